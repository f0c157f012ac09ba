"""What a notebook leaves behind for readers: its one-line answer and its tables, beside the rendered page."""

import json
import re
from pathlib import Path

import pandas as pd

from whisper_sae import atomic, private_paths


def folder(profile: str) -> Path:
    """Where the pages of a profile go: `reports/<profile>`; WHISPER_SAE_REPORTS moves `reports`."""
    return private_paths.reports() / profile


def save(notebook: str, profile: str, headline: str, tables: dict | None = None, steps=()) -> Path:
    """Write the answer of a notebook, and each of its tables (name -> data frame) as CSV; empty ones are left out.

    `steps` are the stored results it was drawn from; their keys go to the provenance line of the page.
    """
    where = folder(profile)
    tables = {name: table for name, table in (tables or {}).items() if len(table)}
    names = {name: f"tables/{notebook}_{name}.csv" for name in tables}
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"tables: {name!r} cannot name a file; use letters, digits, _ and -")
        write(where / names[name], as_csv(tables[name], index=tables[name].index.name is not None))
    finding = {
        "notebook": notebook,
        "headline": " ".join(headline.split()),
        "tables": list(names.values()),
        "steps": {step.label: step.key for step in steps},
        "other_versions": _other_versions(steps),
    }
    path = where / "findings" / f"{notebook}.json"
    write(path, json.dumps(finding, indent=1))
    return path


def _other_versions(steps) -> list[str]:
    """A line for each library of which another version made some of the results."""
    found = {(name, *pair) for step in steps for name, pair in getattr(step, "other_versions", {}).items()}
    return [f"{name} {then} made some of the results, {now} runs now" for name, then, now in sorted(found)]


def as_csv(table: pd.DataFrame, index: bool = False) -> str:
    """A table as CSV for people: what a spreadsheet would run as a formula has an apostrophe before it."""
    shown = table.map(_harmless).rename(columns=_harmless)
    return (shown.rename(index=_harmless) if index else shown).to_csv(index=index)


def _harmless(value):
    if not isinstance(value, str):
        return value
    value = value.replace("\r", " ")  # which ends a row for some readers
    if len(value) < 2 or value.lstrip()[:1] not in tuple("=+-@"):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def load(profile: str, notebook: str) -> dict | None:
    """What `save` wrote; None where there is nothing, or nothing whole."""
    found = read(folder(profile) / "findings" / f"{notebook}.json")
    return found if isinstance(found, dict) and isinstance(found.get("headline"), str) else None


def read(path: Path):
    """What a JSON file holds; None where there is none, or it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    atomic.write(path, text)
