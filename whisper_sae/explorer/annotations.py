"""What a person thinks a feature stands for, kept in a small file to be read, edited and compared line by line.

    data/labels/encoder.2.resid-166e5d6f8fbb.toml

    dictionary = "166e5d6f8fbb"
    site = "encoder.2.resid"

    [feature.30]
    category = "phone"
    description = "/s/ and /z/, mostly their onset"
    confidence = 0.8
    evidence = "9 of the 10 loudest, 4 of 5 at random; not at pauses"
    who = "Ada"
    when = "2026-03-01"

There is one file for each dictionary and site, and it says for which: feature 30 of another dictionary is another
feature. A dictionary that is trained anew, from other frames, settings or code, has another key, and begins without
notes; those of the old one stay where they are, are never shown beside the new one, and are named by `others`. Nothing
but `put` and `remove` writes here, so that running a report again leaves every note as it is.

`draft` says what scores suggest, for the features that nobody has listened to. It is no note, and is never kept.
"""

import datetime
import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import filelock
import pandas as pd

from whisper_sae import toml_files
from whisper_sae.report.results import as_csv
from whisper_sae.report.results import write as write_whole

CATEGORIES = ("phone", "word", "prosody", "speaker", "sound", "position", "unknown", "other")
"""What a feature may stand for; `unknown` is for one that was listened to and not understood."""

HEAD = "# Notes on the features of one dictionary; to be edited by hand, too. Comments go when a note is put.\n"


@dataclass(frozen=True)
class Note:
    """What a person thinks of one feature. Raises ValueError, which names the field, for what cannot be."""

    feature: int
    category: str = "unknown"
    """One of CATEGORIES."""
    description: str = ""
    confidence: float | None = None
    """From 0, a guess, to 1; None where it was not said."""
    evidence: str = ""
    """What was heard and seen that speaks for it."""
    who: str = ""
    when: str = ""
    """A date or a moment, ISO 8601."""

    def __post_init__(self):
        if type(self.feature) is not int or self.feature < 0:
            raise ValueError(f"feature: must be a whole number from 0, got {self.feature!r}")
        if self.category not in CATEGORIES:
            raise ValueError(f"category: {self.category!r} is not one of {', '.join(CATEGORIES)}")
        for name in ("description", "evidence", "who", "when"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _can_be_written(value):
                raise ValueError(f"{name}: must be text, got {value!r}")
        sure = self.confidence
        if sure is not None and (type(sure) not in (int, float) or not 0 <= sure <= 1):
            raise ValueError(f"confidence: must be a number from 0 to 1, got {sure!r}")
        if self.when and not _is_date(self.when):
            raise ValueError(f"when: must be a date like 2026-03-01, got {self.when!r}")


def _can_be_written(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)  # half of a letter, which no file can hold


def _is_date(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


FIELDS = [field.name for field in fields(Note)]


class Labels:
    """The notes on one dictionary, in a file of `folder`, which need not be there.

    `dictionary` is the key of its step, `site` where it listens. The file is read anew each time, so that what a
    person has edited counts at once. Everything raises ValueError, one line that names the file and the field, for a
    file that cannot be understood, or that is of another dictionary or site.
    """

    def __init__(self, folder: str | Path, dictionary: str, site: str):
        for name, value in {"dictionary": dictionary, "site": site}.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._]*", value):
                raise ValueError(f"{name}: {value!r} cannot name a file; use letters, digits, . and _")
        self.folder, self.dictionary, self.site = Path(folder), dictionary, site
        self.path = self.folder / f"{site}-{dictionary}.toml"

    def notes(self) -> dict[int, Note]:
        """The notes by feature, in order; none where there is no file."""
        if not self.path.exists():
            return {}
        told = toml_files.read(self.path)
        for name in ("dictionary", "site"):
            if told.pop(name, None) != getattr(self, name):
                raise ValueError(f"{self.path}: {name}: these notes are not of {getattr(self, name)}")
        features = told.pop("feature", {})
        if told:
            raise ValueError(f"{self.path}: unknown field {next(iter(told))!r}; known: dictionary, site, feature")
        if not isinstance(features, dict):
            raise ValueError(f"{self.path}: feature: expected tables such as [feature.30]")
        found = [_note(self.path, number, given) for number, given in features.items()]
        return {note.feature: note for note in sorted(found, key=lambda note: note.feature)}

    def put(self, note: Note) -> None:
        """Keep a note, in the place of what was kept of that feature."""
        self._change(lambda notes: notes | {note.feature: note})

    def remove(self, feature: int) -> None:
        """Forget the note on a feature; KeyError where there is none."""
        self._change(lambda notes: {number: notes[number] for number in notes if number != notes[feature].feature})

    def others(self) -> list[Path]:
        """Files of other dictionaries at this site, in order of their keys: notes that are not shown here."""
        named = re.compile(re.escape(self.site) + r"-[A-Za-z0-9._]+\.toml")
        return sorted(path for path in self.folder.glob("*.toml") if named.fullmatch(path.name) and path != self.path)

    def table(self) -> pd.DataFrame:
        """A row a note, in the order of the features; a confidence that was not said is NaN."""
        found = pd.DataFrame([asdict(note) for note in self.notes().values()], columns=FIELDS)
        return found.astype({"feature": int, "confidence": float})

    def export(self, path: str | Path) -> None:
        """Write the notes as `.csv`, `.json` or `.md`, with the dictionary and the site in each row."""
        path = Path(path)
        if path.suffix not in EXPORTS:
            raise ValueError(f"{path}: the name must end in {', '.join(EXPORTS)}")
        table = self.table()
        table.insert(0, "site", self.site)
        table.insert(0, "dictionary", self.dictionary)
        write_whole(path, EXPORTS[path.suffix](table))

    def _change(self, change) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock"):
            notes = change(self.notes())
            write_whole(self.path, _written(self.dictionary, self.site, notes))


# ------------------------------------------------------------------------------------------------- the file


def _note(path: Path, number: str, given) -> Note:
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", number) or not isinstance(given, dict):
        raise ValueError(f"{path}: feature: expected tables such as [feature.30], got {number!r}")
    known = FIELDS[1:]
    for name in given:
        if name not in known:
            raise ValueError(f"{path}: feature.{number}: unknown field {name!r}; known: {', '.join(known)}")
    if isinstance(given.get("when"), datetime.date):  # TOML has dates of its own
        given["when"] = given["when"].isoformat()
    try:
        return Note(int(number), **given)
    except ValueError as error:
        raise ValueError(f"{path}: feature.{number}: {error}") from None


def _written(dictionary: str, site: str, notes: dict[int, Note]) -> str:
    lines = [HEAD, f"dictionary = {_quoted(dictionary)}", f"site = {_quoted(site)}"]
    for number in sorted(notes):
        lines += ["", f"[feature.{number}]"]
        for name in FIELDS[1:]:
            value = getattr(notes[number], name)
            if name == "category" or value not in ("", None):
                lines.append(f"{name} = {_quoted(value) if isinstance(value, str) else repr(value)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one letter that TOML does not let be


# -------------------------------------------------------------------------------------------------- exports


def _as_json(table: pd.DataFrame) -> str:
    rows = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
            for row in table.to_dict("records")]  # fmt: skip
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _as_markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns)]
    for row in table.itertuples(index=False):
        rows.append(["" if isinstance(v, float) and math.isnan(v) else _plain(str(v)) for v in row])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line of a table."""
    text = re.sub(r"([\\`*_\[\]|~$:@])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"\r\n|[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", "<br>", text)


EXPORTS = {".csv": as_csv, ".json": _as_json, ".md": _as_markdown}


# --------------------------------------------------------------------------------------------------- drafts


def draft(row: Mapping, above: float = 0.2) -> str:
    """What scores suggest of a feature, such as "likely /s/, onset, F1 0.81, chance 0.12"; "unclear" where little does.

    Of `row` is read, as far as it is there: `phone` with its `f1` and `chance`, what the same score gives without any
    connection; `stage` (onset, steady, offset), where in the phone; `word`, which it often fires in; `flag`, what else
    would explain it, such as loudness. A phone is told where f1 is more than `above` over chance.
    """
    phone, f1, chance = _said(row, "phone"), _number(row, "f1"), _number(row, "chance")
    word, flag, stage = _said(row, "word"), _said(row, "flag"), _said(row, "stage")
    told = []
    if phone and f1 - (0 if math.isnan(chance) else chance) > above:
        told = [f"likely /{phone}/", *([stage] if stage else []), f"F1 {f1:.2f}"]
        told += [] if math.isnan(chance) else [f"chance {chance:.2f}"]
    if word:
        told.append(f"often in “{word}”")
    if flag:
        told.append(f"but goes with {flag}" if told else f"goes with {flag}")
    return ", ".join(told) or "unclear"


def _said(row: Mapping, name: str) -> str:
    value = row.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def _number(row: Mapping, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None or isinstance(value, str) else float(value)
