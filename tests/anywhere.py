"""`make test-anywhere`: the demo's calibrations for several seeds under several instruction sets, in one table.

    python tests/anywhere.py [--seeds 0 1 2 3 4] [--sets native avx2 baseline] [--notebooks 00 04]

Each pair of an instruction set and a seed has its own results and reports below WHISPER_SAE_ANYWHERE (default
data/raw/anywhere), so a run that was stopped goes on where it was, and one that is done costs little. Two run at a
time, one thread each. The exit status is 1 if a notebook or a calibration failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parents[1]

SETS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2",
             "NUMBA_CPU_NAME": "haswell", "NPY_DISABLE_CPU_FEATURES": "AVX512_SKX X86_V4"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
                 "NUMBA_CPU_NAME": "generic", "NPY_DISABLE_CPU_FEATURES": "AVX512_SKX X86_V4 AVX2 FMA3 X86_V3"},
}  # fmt: skip
"""What each instruction set is told to PyTorch, oneDNN, MKL, numba and numpy. bfloat16 is off in all but native."""

THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}


def run(where: Path, instructions: str, seed: int, notebooks: list[str]) -> dict:
    """Run the demo once: {"set", "seed", "seconds", "failed": {notebook: error}}."""
    where = where / f"{instructions}-{seed}"
    where.mkdir(parents=True, exist_ok=True)
    for path in (where / "reports" / "demo" / "tables").glob("*_calibrations.csv"):
        if not notebooks or path.name[:2] in notebooks:
            path.unlink()  # a notebook that fails before it saves must not pass by what it saved last time
    places = {"WHISPER_SAE_DATA": str(where / "data"), "WHISPER_SAE_REPORTS": str(where / "reports")}
    paths = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | THREADS | places | SETS[instructions] | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "whisper_sae", "demo", "--seed", str(seed), "--jobs", "1", *notebooks]
    begun = time.monotonic()
    with open(where / "log.txt", "w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=PROJECT).returncode
    failed = failures(where / "reports" / "demo", notebooks)
    if code and not failed:
        failed = {"run": (where / "log.txt").read_text()[-300:].strip().splitlines()[-1]}
    return {"set": instructions, "seed": seed, "seconds": round(time.monotonic() - begun), "failed": failed}


def failures(reports: Path, notebooks: list[str]) -> dict[str, str]:
    """{notebook: error} of those that did not end well, by what `run.json` says."""
    rows = json.loads((reports / "run.json").read_text())["notebooks"] if (reports / "run.json").exists() else {}
    asked = {name: row for name, row in rows.items() if not notebooks or name[:2] in notebooks}
    return {name: row["error"] for name, row in asked.items() if row["status"] != "done"}


def calibrations(reports: Path) -> pd.DataFrame:
    """The calibrations that the notebooks of a run saved: `notebook` and the columns of `Calibrations.table`."""
    parts = [
        pd.read_csv(path, keep_default_na=False, na_values={"value": "", "margin": ""}).assign(notebook=path.name[:2])
        for path in sorted((reports / "tables").glob("*_calibrations.csv"))
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["notebook", "expectation"])


def smallest(found: pd.DataFrame, runs: int) -> pd.DataFrame:
    """A row a calibration: its smallest margin and where that was, and in how many of all `runs` it passed.

    `found` has a row a run and calibration: set, seed, notebook, expectation, value, bound, margin, unit, passed.
    """
    rows = []
    for (notebook, expectation), part in found.groupby(["notebook", "expectation"], sort=False):
        least = part.loc[part.margin.fillna(-float("inf")).idxmin()]
        rows.append({
            "notebook": notebook, "calibration": expectation, "value": float(f"{least.value:.3g}"),
            "bound": least.bound, "smallest margin": f"{least.margin:.2g} × {least.unit}",
            "where": f"{least['set']}, seed {least.seed}", "passed": f"{int(part.passed.sum())} of {runs}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--notebooks", nargs="*", default=[], metavar="NN")
    asked = parser.parse_args()
    where = Path(os.environ.get("WHISPER_SAE_ANYWHERE") or PROJECT / "data" / "raw" / "anywhere").resolve()
    pairs = [(name, seed) for seed in asked.seeds for name in asked.sets]
    done = []
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool, tqdm(total=len(pairs), unit=" runs") as bar:
        for one in pool.map(lambda pair: run(where, *pair, asked.notebooks), pairs):
            done.append(one)
            bar.update()
            errors = "; ".join(f"{name}: {error}" for name, error in one["failed"].items())
            bar.write(f"{one['set']}, seed {one['seed']}: {one['seconds']} s, {errors or 'passed'}")
    parts = [calibrations(where / f"{name}-{seed}" / "reports" / "demo").assign(set=name, seed=seed)
             for name, seed in pairs]  # fmt: skip
    found = pd.concat(parts, ignore_index=True)
    found = found[found.notebook.isin(asked.notebooks)] if asked.notebooks else found
    found.to_csv(where / "calibrations.csv", index=False)
    print(smallest(found, len(pairs)).to_string(index=False))
    right = sum(not one["failed"] for one in done)
    print(f"{right} of {len(done)} runs passed; all values: {where / 'calibrations.csv'}")
    return 0 if right == len(done) else 1


if __name__ == "__main__":
    sys.exit(main())
