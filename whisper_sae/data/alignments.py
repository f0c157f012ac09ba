"""When each phone and each word of a clip sounds, in whatever kind of file a corpus tells it.

Looked for in a corpus's folder, for `phones` and for `words` alike; the first kind that is found counts:

    phones.csv, phones.tsv   a row each: `file_name`, `start_ms` and `end_ms` (or `start_s`, `end_s`), and `phone` (in
                             words.csv `word`; or `label`); where there is a `tier`, one of TIERS counts; other columns,
                             such as `ipa`, are kept
    *.TextGrid               of Praat, long or short text format, UTF-8 or UTF-16: beside the sound of the same name, or
                             in a tree of its own; the interval tier that comes first in TIERS counts, and of words
                             the one that spells them, see `_spelling`
    *.ctm                    of NIST and Kaldi: file, channel, start, duration, label; of phones if "phon" is in its
                             name, else of words

TextGrids are read by their own definition (free-standing numbers, quoted texts and <flags> in their order, all else is
decoration), which takes both formats at once. What is wrong is said in one line that names the file and the field.
"""

import codecs
import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from whisper_sae.data import tables
from whisper_sae.data.corpora import SOUNDS, walk

TIERS = {
    "phones": ("phone", "phones", "phonetic", "phoneme", "phonemes", "mau", "segments"),
    "words": ("words", "word", "ort-mau", "orthography", "text"),
}
"""Names of tiers, in any case, after `speaker - ` too; the first that is there is read."""


class BadAlignment(ValueError):
    """An alignment that cannot be used; the message is one line and names the file and the field."""

    def __init__(self, said: str):
        super().__init__(tables.plain(said))


def read(folder: str | Path, kind: str = "phones", tier: str = "") -> pd.DataFrame:
    """The `phones` or `words` of a corpus, empty where it tells none: path, start, end (seconds), phone or word, …

    Rows are in order of path and start. `tier` names another tier than TIERS does. Raises BadAlignment for a missing
    column or field, a time that is no number, one that ends before it begins, or two of a clip that overlap by more
    than 1 ms.
    """
    name, files = kind.removesuffix("s"), _files(folder, kind)
    parts = []
    for path, sound in files.items():
        if sound:
            part = _of_grid(path, kind, tier).rename(columns={"label": name}).assign(path=str(sound.resolve()))
        elif path.suffix.lower() == ".ctm":
            part = _of_ctm(path, Path(folder)).rename(columns={"label": name})
        else:
            part = _of_table(path, kind, tier, Path(folder))
        _check(path, name, part)
        parts += [part] if len(part) else []
    if not parts:
        return pd.DataFrame(columns=["path", "start", "end", name]).astype({"start": float, "end": float})
    found = pd.concat(parts, ignore_index=True)
    found = found[["path", "start", "end", name, *(c for c in found if c not in ("path", "start", "end", name))]]
    return found.sort_values(["path", "start"], kind="stable", ignore_index=True)


def digest(folder: str | Path, kind: str = "phones") -> str:
    """One number for all that a corpus tells of its phones or words; empty where it tells nothing."""
    total, files = hashlib.sha256(), _files(folder, kind)
    for path, sound in files.items():
        for part in (path, sound):
            total.update(os.fsencode(os.path.relpath(part, folder)) + b"\0" if part else b"\0")
        total.update(hashlib.sha256(_read(tables.content, path)).digest())
    return total.hexdigest()[:12] if files else ""


# ------------------------------------------------------------------------------------------------ which files


def _files(folder: str | Path, kind: str) -> dict[Path, Path | None]:
    """The files that tell, in order, each with the sound of which it tells; None where it tells of many."""
    if kind not in TIERS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(TIERS)}")
    folder = Path(folder)
    for name in (f"{kind}.csv", f"{kind}.tsv"):
        if (folder / name).is_file():
            return {folder / name: None}
    grids = sorted(_below(folder, {".textgrid"}))
    if grids:
        return _matched(grids, folder)
    tables = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".ctm" and path.is_file())
    return {path: None for path in tables if ("phon" in path.stem.lower()) == (kind == "phones")}


def _below(folder: Path, endings: set[str]) -> Iterator[Path]:
    for place, names in walk(folder):
        yield from (Path(place, name) for name in names if os.path.splitext(name)[1].lower() in endings)


def _matched(grids: list[Path], folder: Path) -> dict[Path, Path]:
    """Each TextGrid with its sound: that beside it, or the one sound of its name; those without one are left out."""
    sounds, pairs, found = _by_stem(folder), [], {}
    for grid in grids:
        if same := sounds.get(grid.stem, []):
            beside = [sound for sound in same if sound.parent == grid.parent]
            pairs.append((not beside, grid, _only(grid, beside or same, folder)))
    for apart, grid, sound in sorted(pairs):
        known = found.setdefault(sound, grid)
        if known != grid and not (apart and known.parent == sound.parent):
            raise BadAlignment(f"{grid}: {known.relative_to(folder)} tells of the same sound; keep one")
    if not found:
        raise BadAlignment(f"{grids[0]}: no sound file below {folder} has this name, nor that of any other TextGrid")
    return {grid: sound for sound, grid in sorted(found.items())}


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(_below(folder, SOUNDS)):
        found.setdefault(path.stem, []).append(path)
    return found


def _only(path: Path, same: list[Path], folder: Path) -> Path:
    if len(same) > 1:
        names = " and ".join(sound.relative_to(folder).as_posix() for sound in same[:2])
        raise BadAlignment(f"{path}: {names} have its name; nothing says which is meant")
    return same[0]


# ------------------------------------------------------------------------------------------------- tables


def _of_table(path: Path, kind: str, tier: str, folder: Path) -> pd.DataFrame:
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}  # in X-SAMPA " is a phone
    raw = _read(tables.read, path, **form)
    if "tier" in raw:
        chosen = _chosen(path, raw.tier.unique(), kind, tier)
        if kind == "words" and not tier:
            chosen = _spelling(chosen, _tiers_of(raw))
        raw = raw[raw.tier.str.lower() == chosen].drop(columns="tier")
    name = kind.removesuffix("s")
    raw = raw.rename(columns={} if name in raw else {"label": name})
    if lost := [column for column in ("file_name", name) if column not in raw]:
        raise BadAlignment(f"{path}: no column {lost[0]!r}; it has {', '.join(raw.columns)}")
    times = {side: _seconds(path, raw, side) for side in ("start", "end")}
    used = {"file_name", "start_ms", "end_ms", "start_s", "end_s", "start", "end", "path"}
    rest = raw[[column for column in raw if column not in used]].reset_index(drop=True)
    places = {name: str((folder / name).resolve()) for name in raw.file_name.unique()}  # asks the disk: once a clip
    return pd.DataFrame({"path": raw.file_name.map(places).to_numpy(), **times}).join(rest)


def _read(way: Callable, path: Path, **how):
    """What a function of `tables` gives of a file; its faults as BadAlignment."""
    try:
        return way(path, **how)
    except tables.BadSpeech as error:
        raise BadAlignment(str(error)) from None


def _seconds(path: Path, raw: pd.DataFrame, name: str) -> np.ndarray:
    column, unit = (f"{name}_ms", 1e-3) if f"{name}_ms" in raw else (f"{name}_s", 1.0)
    if column not in raw:
        raise BadAlignment(f"{path}: no column '{name}_ms' or '{name}_s'; it has {', '.join(raw.columns)}")
    values = pd.to_numeric(raw[column], errors="coerce")
    if (bad := ~np.isfinite(values)).any():
        raise BadAlignment(f"{path}: {column}: {raw[column][bad].iloc[0]!r} is not a number")
    return values.to_numpy() * unit


def _chosen(path: Path, names, kind: str, tier: str) -> str | None:
    """The tier that counts, in lower case; None where none of TIERS is there."""
    there = [str(name).lower() for name in names]
    if tier and tier.lower() not in there:
        raise BadAlignment(f"{path}: tier: no {tier!r}; it has {', '.join(map(str, names))}")
    return tier.lower() or next((name for name in TIERS[kind] if name in there), None)


def _spelling(chosen: str | None, tiers: dict[str, list[tuple]]) -> str | None:
    """Of `chosen` and the other TIERS of words with the same edges, the one with most letters; of equals the first.

    In databases of emuR the tier "Word" holds classes (C, F) and "Text", with the same edges, the words. A tier of
    whole utterances has other edges.
    """
    if chosen is None:
        return None
    edges = {name: sorted(row[:-1] for row in rows) for name, rows in tiers.items()}
    alike = [chosen, *(n for n in TIERS["words"] if n != chosen and n in tiers and edges[n] == edges[chosen])]
    return max(alike, key=lambda name: sum(len(row[-1]) for row in tiers[name]))


def _tiers_of(raw: pd.DataFrame) -> dict[str, list[tuple]]:
    """The rows of a table by their tier, in lower case: (file, start, end, label), all as they are written."""
    name = "word" if "word" in raw else "label"
    columns = [c for c in ("file_name", "start_ms", "end_ms", "start_s", "end_s", name) if c in raw]
    rows = raw[columns].itertuples(index=False, name=None)
    found: dict[str, list[tuple]] = {}
    for tier, row in zip(raw.tier.str.lower(), rows, strict=True):
        found.setdefault(tier, []).append(row)
    return found


def _check(path: Path, what: str, found: pd.DataFrame) -> None:
    found = found.sort_values(["path", "start"], kind="stable")
    same = found.path.eq(found.path.shift())
    for wrong, fault in (
        (found.start < 0, f"a {what} begins before its sound"),
        (found.end < found.start, f"a {what} ends before it begins"),
        (same & (found.start < found.end.shift() - 1e-3), f"two {what}s at once"),
    ):
        if wrong.any():
            first = found[wrong].iloc[0]
            raise BadAlignment(f"{path}: {Path(first.path).name}: {fault}, at {first.start:.3f} s")


# ---------------------------------------------------------------------------------------------------- CTM


def _of_ctm(path: Path, folder: Path) -> pd.DataFrame:
    sounds, rows = _by_stem(folder), []
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        where = f"{path}: line {number}"
        if len(fields) < 5:
            raise BadAlignment(f"{where}: {len(fields)} fields; file, channel, start, duration and label are needed")
        start, duration = (_number(where, name, fields[at]) for at, name in ((2, "start"), (3, "duration")))
        if fields[4] != "<eps>" and (same := sounds.get(fields[0]) or sounds.get(Path(fields[0]).stem, [])):
            beside = [sound for sound in same if sound.with_suffix("") == (folder / fields[0]).with_suffix("")]
            rows.append((str(_only(path, beside or same, folder).resolve()), start, start + duration, fields[4]))
    found = pd.DataFrame(rows, columns=["path", "start", "end", "label"])
    placed = found.label.str.extract("^(.+)_[BIES]$")[0]  # Kaldi's B_egin, I_nside, E_nd and S_ingle of a word
    return found.assign(label=placed.fillna(found.label)) if placed.notna().mean() > 0.5 else found


def _number(where: str, field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise BadAlignment(f"{where}: {field}: {text!r} is not a number")
    return value


# ----------------------------------------------------------------------------------------------- TextGrid


_TOKEN = re.compile(r'"((?:[^"]|"")*)"|<([^<>\s]*)>|(?<!\S)!.*|([^\s"<]+)|(["<])')


def _of_grid(path: Path, kind: str, tier: str) -> pd.DataFrame:
    tiers = grid(path)
    bare = {name: name if tier else name.rpartition(" - ")[2] for name in tiers}
    chosen = _chosen(path, bare.values(), kind, tier)
    if kind == "words" and not tier:
        parts: dict[str, list] = {}
        for name, part in tiers.items():
            parts.setdefault(bare[name].lower(), []).extend(part)
        chosen = _spelling(chosen, parts)
    rows = [row for name, part in tiers.items() if bare[name].lower() == chosen for row in part if row[2]]
    return pd.DataFrame(rows, columns=["start", "end", "label"]).astype({"start": float, "end": float})


def grid(path: str | Path) -> dict[str, list[tuple[float, float, str]]]:
    """The interval tiers of a TextGrid by name: start, end (seconds) and text, "" where nothing is told.

    Tiers of points are passed over; intervals of two tiers of one name stand together. Raises BadAlignment for what is
    not whole.
    """
    text = _decoded(Path(path))
    if not re.match(r'\s*(File type = )?"ooTextFile', text):
        raise BadAlignment(f"{path}: File type: not a text file of Praat; there, use `Save as text file`")
    tokens = _Tokens(path, text)
    tokens.text("File type")
    if (told := tokens.text("Object class")) != "TextGrid":
        raise BadAlignment(f"{path}: Object class: {told!r} is not a TextGrid")
    tokens.number("xmin"), tokens.number("xmax")
    found: dict[str, list] = {}
    if tokens.flag("tiers?") != "exists":
        return found
    for place in range(1, tokens.count("size") + 1):
        sort, name = tokens.text(f"item [{place}]: class"), tokens.text(f"item [{place}]: name")
        where = f"tier {name!r}: "
        tokens.number(where + "xmin"), tokens.number(where + "xmax")
        if sort not in ("IntervalTier", "TextTier"):
            raise BadAlignment(f"{path}: {where}class: {sort!r} is not IntervalTier or TextTier")
        for row in range(1, tokens.count(where + "size") + 1):
            here = f"{where}{row}: "
            if sort == "TextTier":
                tokens.number(here + "number"), tokens.text(here + "mark")
                continue
            start, end = tokens.number(here + "xmin"), tokens.number(here + "xmax")
            found.setdefault(name, []).append((start, end, " ".join(tokens.text(here + "text").split())))
        if sort == "IntervalTier":
            found.setdefault(name, [])
    tokens.end()
    return found


def _decoded(path: Path) -> str:
    raw = _read(tables.content, path)
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadAlignment(f"{path}: byte {error.start}: neither UTF-8 nor UTF-16; save it as UTF-8") from None


class _Tokens:
    """What counts in a text file of Praat, in order: texts, numbers and flags. The rest only tells a reader what."""

    def __init__(self, path: str | Path, text: str):
        self.path, self.every = path, self._walk(text)

    def _walk(self, text: str) -> Iterator[tuple[str, str]]:
        for match in _TOKEN.finditer(text):
            quoted, flag, bare, broken = match.groups()
            if quoted is not None:
                yield "a text", quoted.replace('""', '"')
            elif flag is not None:
                yield "a flag", flag
            elif broken:
                yield "nothing whole", broken
            elif bare and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", bare):
                yield "a number", bare

    def _next(self, kind: str, field: str) -> str:
        there, value = next(self.every, ("the end of the file", ""))
        if there != kind:
            there += f", {value[:40]!r}" if value else ""
            raise BadAlignment(f"{self.path}: {field}: {kind} is needed, there is {there}")
        return value

    def text(self, field: str) -> str:
        return self._next("a text", field)

    def number(self, field: str) -> float:
        value = float(text := self._next("a number", field))
        if not np.isfinite(value):
            raise BadAlignment(f"{self.path}: {field}: {text} is not a number that a time or a count can have")
        return value

    def end(self) -> None:
        """There must be nothing after the last row that a size announced."""
        if rest := next(self.every, None):
            raise BadAlignment(f"{self.path}: size: more follows than it announces: {rest[0]}, {rest[1][:40]!r}")

    def flag(self, field: str) -> str:
        return self._next("a flag", field)

    def count(self, field: str) -> int:
        value = self.number(field)
        if value < 0 or value != int(value):
            raise BadAlignment(f"{self.path}: {field}: {value:g} is not a count")
        return int(value)
