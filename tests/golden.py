"""Golden numbers: the tables and headlines of the demo, without names, to check that renaming changes no result.

    python tests/golden.py record [REPORTS]     # after `make report`: writes tests/golden/demo.json
    python tests/golden.py check [REPORTS]      # prints each number that differs

For each notebook: the numbers in its headline, and for each table the number of rows and, for each numeric column in
order, the number of finite values, mean, standard deviation, minimum and maximum to six digits. Rounding differs by
processor, and training amplifies it, so check on the instruction set on which the numbers were recorded.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

GOLDEN = Path(__file__).parent / "golden" / "demo.json"
REPORTS = Path(__file__).parents[1] / "reports" / "demo"


def summary(reports: Path) -> dict:
    """{notebook: numbers in its headline, summary of each table}."""
    notebooks = {}
    for path in sorted((reports / "findings").glob("*.json")):
        finding = json.loads(path.read_text(encoding="utf-8"))
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?![\d.]| MB)", finding["headline"])]
        tables = [summarize_table(pd.read_csv(reports / name)) for name in finding["tables"]]
        notebooks[path.stem[:2]] = {"headline": numbers, "tables": tables}
    return notebooks


def summarize_table(table: pd.DataFrame) -> dict:
    """Number of rows, and a summary of each numeric column. Times and memory, which no run repeats, are left out."""
    table = table.drop(columns="seconds", errors="ignore")
    if "expectation" in table:
        table = table[~table.expectation.str.contains("megabytes")]
    columns = [table[name].astype(float).to_numpy() for name in table.select_dtypes([np.number, bool])]
    return {"rows": len(table), "columns": [summarize_column(values) for values in columns]}


def summarize_column(values: np.ndarray) -> list[float]:
    """Number of finite values, and their mean, standard deviation, minimum and maximum."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [0.0] * 5
    return [
        len(finite),
        *(float(f"{number:.6g}") for number in (finite.mean(), finite.std(), finite.min(), finite.max())),
    ]


def differences(golden: dict, now: dict, tolerance: float = 1e-5) -> list[str]:
    """One line for each number with a relative difference above `tolerance`."""
    lines = []
    for notebook in sorted(golden | now):
        old, new = flat(golden.get(notebook)), flat(now.get(notebook))
        for place in sorted(old | new):
            a, b = old.get(place), new.get(place)
            if a is None or b is None or abs(a - b) > tolerance * max(abs(a), abs(b), 1e-9):
                lines.append(f"{notebook} {place}: {a} -> {b}")
    return lines


def flat(tree, place: str = "") -> dict[str, float]:
    """Nested dicts and lists as {path: number}."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {} if tree is None else {place.strip("."): float(tree)}
    return {at: value for key, branch in items for at, value in flat(branch, f"{place}.{key}").items()}


def main(command: str, reports: str | None = None) -> int:
    now = summary(Path(reports) if reports else REPORTS)
    if command == "record":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(now), encoding="utf-8")
        return 0
    lines = differences(json.loads(GOLDEN.read_text(encoding="utf-8")), now)
    print(*lines, f"{len(lines)} numbers differ", sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
