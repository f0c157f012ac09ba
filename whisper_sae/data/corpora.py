"""What lies in a directory of speech, as one table: the layouts in which corpora are released and kept.

    audiofolder   metadata.csv, .jsonl or .parquet, at the top or in train/, validation/ and test/
    librispeech   subset/speaker/chapter/*.flac with *.trans.txt; SPEAKERS.TXT above them tells the gender
    commonvoice   validated.tsv, or another table of the release, and clips/
    esc50         meta/esc50.csv and audio/
    parquet       a data set as the hub keeps it, sound within its tables: `hub` unpacks it
    files         sound files and nothing else, in folders or not

Only tables and names are read here, no sound: a file that is missing or broken is found by who listens to it.
"""

import csv
import functools
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from whisper_sae.data.tables import BadSpeech, is_missing, lines, need, one_spelling, plain
from whisper_sae.data.tables import read as read_table

COLUMNS = ["id", "path", "text", "speaker", "gender", "accent", "split"]
"""Of the table that `rows` gives, all of them text, empty where the corpus does not say; its other columns follow."""

ALIASES = {
    "text": ("text", "transcription", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "gender": ("gender", "sex"),
    "accent": ("accent", "accents"),
    "split": ("split",),
}
GENDERS = {"f": "female", "m": "male", "female_feminine": "female", "male_masculine": "male", "do_not_wish_to_say": ""}
GENDERS |= {"female": "female", "male": "male"}
"""What corpora write for what others call female and male; anything else stays as it was recorded."""

LIBRISPEECH = Path(__file__).with_name("librispeech_readers.csv")
"""Sex and subset of every reader, from LibriSpeech's SPEAKERS.TXT (CC BY 4.0), for copies that leave it out."""

SPLITS = ("train", "validation", "test")
DEVELOPMENT = ("dev", "val", "valid")
"""Other names of the split `validation`."""

SOUNDS = {".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
          ".w64", ".rf64", ".voc", ".sph"}  # fmt: skip
FOREIGN = {".m4a", ".aac", ".wma", ".amr"}
"""Sound that cannot be read here, and is said so rather than passed over."""
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
WAY_OUT = "data/README.md tells which layouts are read"


@dataclass(frozen=True)
class Place:
    """Where a corpus lies and how: its layout, its folder and the tables that describe it."""

    layout: str
    folder: Path
    tables: tuple[Path, ...] = ()


def find(place: str | Path) -> Place:
    """The layout of a directory, or of one that is named by its table, such as `cv-corpus/en/train.tsv`.

    Raises BadSpeech where there is nothing, no sound, or more than one corpus.
    """
    place = Path(os.path.abspath(place))
    if place.is_file():
        return _of_table(place)
    if not place.is_dir():
        raise BadSpeech(f"corpus: there is no directory {place}")
    next(walk(place), None)  # says so if it cannot be listed
    found = _released(place) or _unpacked(place)
    if found:
        return found
    listed, deeper = _walk(place)
    if deeper:
        raise BadSpeech(f"{place}: a table lies deeper, at {deeper[0]}; name its directory, or move it up")
    if listed:
        return Place("files", place)
    if any(place.rglob("*.parquet")):
        return Place("parquet", place, tuple(sorted(place.rglob("*.parquet"))))
    raise BadSpeech(f"{place}: neither sound files nor a table of them, such as metadata.csv; {WAY_OUT}")


def rows(place: str | Path) -> pd.DataFrame:
    """A row a clip: COLUMNS, then what else the corpus tells of it; all of it text.

    Paths are absolute and not looked at. Raises BadSpeech for a table that lacks a column or a row, holds two clips of
    one name, an unknown split, a speaker in two splits, or a path that leaves the corpus.
    """
    found = find(place)
    if found.layout == "parquet":
        raise BadSpeech(f"{place}: its sound lies within parquet tables; unpack them with `hub.fetch`")
    if found.layout == "files":
        return _kept(found, tuple(_walk(found.folder)[0])).copy()
    watched = [*found.tables]
    if found.layout == "librispeech":  # its folders say which files there are
        watched += dict.fromkeys(table.parent for table in found.tables)
    return _kept(found, tuple((told.st_size, told.st_mtime_ns) for told in map(os.stat, watched))).copy()


@functools.lru_cache(maxsize=16)
def _kept(found: Place, _state: tuple) -> pd.DataFrame:
    """Read again only when the tables, or the folders that files lie in, have another size or time of change."""
    return READERS[found.layout](found)


def check_splits(clips: pd.DataFrame, where: str = "") -> None:
    """BadSpeech, which starts with `where`, for a split that is none, or a speaker in two of them."""
    if unknown := set(clips.split) - {*SPLITS, ""}:
        raise BadSpeech(f"{where}split: {sorted(unknown)[0]!r} is not one of {', '.join(SPLITS)}")
    given = clips[(clips.split != "") & (clips.speaker != "")]
    if len(both := (found := given.groupby("speaker").split.nunique())[found > 1]):
        raise BadSpeech(f"{where}split: speaker {both.index[0]!r} is in more than one split")


# ---------------------------------------------------------------------------------------- which layout it is


def _of_table(table: Path) -> Place:
    if table.suffix == ".tsv":
        return Place("commonvoice", table.parent, (table,))
    if table.name == "esc50.csv" and table.parent.name == "meta":
        return Place("esc50", table.parent.parent, (table,))
    if table.suffix in (".csv", ".jsonl", ".parquet"):
        return Place("audiofolder", table.parent, (table,))
    raise BadSpeech(f"corpus: {table} is a file; name the directory that it lies in")


def _released(folder: Path) -> Place | None:
    """The layout of a directory that has a table of its own, or is a release as it is downloaded."""
    for name in TABLES:
        if (folder / name).is_file():
            return Place("audiofolder", folder, (folder / name,))
    if (folder / "meta" / "esc50.csv").is_file():
        return Place("esc50", folder, (folder / "meta" / "esc50.csv",))
    if (folder / "validated.tsv").is_file():
        return Place("commonvoice", folder, (folder / "validated.tsv",))
    if (folder / "clips").is_dir() and (tables := sorted(folder.glob("*.tsv"))):
        raise BadSpeech(f"{folder}: no validated.tsv; name one of {', '.join(path.name for path in tables)}")
    if any(folder.glob("*/*/*.trans.txt")) or any(folder.glob("*/*/*/*.trans.txt")):
        return _librispeech_at(folder)
    parts = [folder / part / name for part in (*SPLITS, *DEVELOPMENT) for name in TABLES]
    if tables := tuple(table for table in parts if table.is_file()):
        return Place("audiofolder", folder, tables)
    return None


def _unpacked(folder: Path) -> Place | None:
    """A release in the directory into which its archive was unpacked."""
    inner = [part for part in sorted(folder.iterdir()) if part.is_dir() and not part.name.startswith(".")]
    if (folder / "LibriSpeech").is_dir():
        return _released(folder / "LibriSpeech")
    spoken = [part for part in inner if (part / "validated.tsv").is_file() or (part / "meta" / "esc50.csv").is_file()]
    if len(spoken) > 1:
        raise BadSpeech(f"{folder}: several corpora; name one of them: {', '.join(part.name for part in spoken)}")
    return _released(spoken[0]) if spoken else None


def _librispeech_at(folder: Path) -> Place:
    depth = "*/*/*.trans.txt" if any(folder.glob("*/*/*.trans.txt")) else "*/*/*/*.trans.txt"
    tables = sorted(folder.glob(depth))
    cast = [place / "SPEAKERS.TXT" for place in (folder, folder.parent) if (place / "SPEAKERS.TXT").is_file()]
    return Place("librispeech", folder, (*cast[:1], *tables))


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each directory at or below `folder` with the names of its files, without hidden directories; links to directories
    are not followed. Raises BadSpeech for one that cannot be listed: nothing must be missing unnoticed."""

    def refuse(error: OSError):
        if not isinstance(error, FileNotFoundError):
            raise BadSpeech(f"{error.filename}: cannot be listed: {error.strerror}; make it readable, or move it away")

    for where, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        yield where, names


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The sound files and the tables below a directory, in order; hidden ones and what is linked to are left out."""
    sounds, tables = [], []
    for where, names in walk(folder):
        for name in names:
            if Path(name).suffix.lower() in SOUNDS | FOREIGN and not name.startswith("."):
                sounds.append(os.path.join(where, name))
            elif name in TABLES:
                tables.append(os.path.join(where, name))
    return sorted(sounds), sorted(tables)


# --------------------------------------------------------------------------------------------- its readers


def _audiofolder(found: Place) -> pd.DataFrame:
    parts = []
    for table in found.tables:
        raw = read_table(table)
        need(table, raw, "file_name")
        raw["path"] = [_path_of(table.parent, table, name) for name in raw.pop("file_name")]
        here = table.parent.name if table.parent != found.folder else ""
        if here and "split" not in raw:
            raw["split"] = here
        parts.append(raw)
    return _shaped(found, pd.concat(parts, ignore_index=True).fillna(""))


def _commonvoice(found: Place) -> pd.DataFrame:
    (table,) = found.tables
    raw = read_table(table, delimiter="\t", quoting=csv.QUOTE_NONE)  # a sentence may hold a single "
    for name in ("path", "client_id"):
        need(table, raw, name)
    names = [name if Path(name).suffix or not name else f"{name}.mp3" for name in raw.path]
    raw["path"] = [_path_of(found.folder / "clips", table, name) for name in names]
    if (part := _split(table.stem)) in SPLITS:  # the release keeps speakers apart in these
        raw["split"] = part
    return _shaped(found, raw, below="clips")


def _esc50(found: Place) -> pd.DataFrame:
    (table,) = found.tables
    raw = read_table(table)
    for name in ("filename", "category", "fold"):
        need(table, raw, name)
    raw["path"] = [_path_of(found.folder / "audio", table, name) for name in raw.pop("filename")]
    return _shaped(found, raw, below="audio")


def _librispeech(found: Place) -> pd.DataFrame:
    cast = _cast(found.tables[0]) if found.tables[0].name == "SPEAKERS.TXT" else {}
    said = []
    for table in found.tables:
        if table.name.endswith(".trans.txt"):
            speaker, chapter = table.parent.parent.name, table.parent.name
            who = {"speaker": speaker, "gender": cast.get(speaker, ""), "chapter": chapter}
            who["subset"] = table.parents[2].name
            said += [who | {"path": path, "text": text} for path, text in _chapter(table)]
    raw = pd.DataFrame(said)
    sides = raw.subset.str.split("-").str[0]
    if {"train", "dev", "test"} <= set(sides):  # a part alone is not held to be one side of a split
        raw["split"] = sides.map(_split)
    return _shaped(found, raw, short=True)


def _chapter(table: Path) -> list[tuple[str, str]]:
    """Path and text of each utterance of a chapter: of each line, and of each sound file that has none."""
    words = {}
    for number, line in enumerate(lines(table), 1):
        name, _, text = line.strip().partition(" ")
        if name in words:
            raise BadSpeech(f"{table}: line {number}: {name!r} stands there twice")
        if name:
            words[name] = text.strip()
    there = {Path(name).stem: name for name in os.listdir(table.parent) if Path(name).suffix.lower() in SOUNDS}
    names = sorted({*words, *there})
    for name in there.values():
        _check_text(name)
    return [(str(table.parent / there.get(name, f"{name}.flac")), words.get(name, "")) for name in names]


def _cast(table: Path) -> dict[str, str]:
    """The gender of each reader: lines of `id | sex | subset | minutes | name`, the name may hold a | itself."""
    found = {}
    for number, line in enumerate(lines(table), 1):
        if line.strip() and not line.startswith(";"):
            fields = [field.strip() for field in line.split("|", 4)]
            if len(fields) < 3:
                raise BadSpeech(f"{table}: line {number}: not `id | sex | subset | …`: {line.strip()[:60]!r}")
            found[fields[0]] = fields[1]
    return found


def _files(found: Place) -> pd.DataFrame:
    sounds, _ = _walk(found.folder)
    for path in sounds:
        _check_text(path)
    names = [os.path.relpath(path, found.folder) for path in sounds]
    return _shaped(found, pd.DataFrame({"path": sounds, "folder": [Path(name).parent.as_posix() for name in names]}))


READERS = {
    "audiofolder": _audiofolder,
    "librispeech": _librispeech,
    "commonvoice": _commonvoice,
    "esc50": _esc50,
    "files": _files,
}


# -------------------------------------------------------------------------------------------------- tables


def _shaped(found: Place, raw: pd.DataFrame, below: str = "", short: bool = False) -> pd.DataFrame:
    """COLUMNS and what else there is; ids are paths below the corpus, or names alone, without their endings."""
    table = found.tables[0] if found.tables else found.folder
    if raw.empty:
        raise BadSpeech(f"{table}: no rows")
    if len(twice := raw.path[raw.path.duplicated()]):
        name, count = os.path.relpath(twice.iloc[0], found.folder), int((raw.path == twice.iloc[0]).sum())
        raise BadSpeech(f"{table}: file_name: {name!r} stands there {count} times")
    taken = {name: next((alias for alias in known if alias in raw), None) for name, known in ALIASES.items()}
    clips = pd.DataFrame({name: raw[alias] if alias else "" for name, alias in taken.items()}, index=raw.index)
    clips = clips.apply(lambda column: column.map(lambda value: " ".join(value.splitlines())))
    if found.layout == "commonvoice" or {"client_id", "up_votes"} <= set(raw):
        clips["accent"] = clips.accent.map(first_accent)
    clips["gender"] = [GENDERS.get(gender.strip().lower(), gender) for gender in clips.gender]
    for name in ("gender", "accent"):
        clips[name] = one_spelling(clips[name].mask(is_missing(clips[name]), ""))
    clips["split"] = clips.split.map(_split)
    clips.insert(0, "path", raw.path)
    names = [Path(path).name if short else os.path.relpath(path, found.folder / below) for path in raw.path]
    clips.insert(0, "id", _ids(names))
    extra = raw.drop(columns=["path", *filter(None, taken.values())]).apply(one_spelling)
    if (readers := _librispeech_readers(clips, raw)) is not None:
        clips["gender"], extra["gender_from"] = readers, "LibriSpeech's list of readers"
    extra = extra.rename(columns={name: f"{name}_given" for name in extra if name in (*COLUMNS, "duration", "corpus")})
    check_splits(clips, f"{table}: ")
    return pd.concat([clips, extra], axis=1)


def first_accent(accents: str) -> str:
    """The first value of Common Voice's list of accents: commas within brackets separate nothing, a | does."""
    return re.split(r"[,|](?![^(]*\))", accents)[0].strip()


def _librispeech_readers(clips: pd.DataFrame, raw: pd.DataFrame) -> pd.Series | None:
    """The gender of LibriSpeech's readers, where a copy of LibriSpeech does not tell it; None of anything else.

    A copy is known by the names of its clips, `speaker-chapter-number`.
    """
    if (clips.gender != "").any():
        return None
    parts = (raw.id if "id" in raw else clips.id).str.extract(r"^(\d+)-\d+-\d{4}$")[0]
    if not (parts == clips.speaker).all():
        return None
    table = read_table(LIBRISPEECH)
    known = clips.speaker.map(dict(zip(table.reader, table.sex.str.lower().map(GENDERS), strict=True)))
    return known.fillna("") if known.notna().any() else None


def _ids(names: list[str]) -> list[str]:
    """Names of files without their endings, unless that would give two files one name."""
    for form in (lambda name: Path(name).with_suffix("").as_posix(), str):
        ids = [plain(form(name)) for name in names]
        if len(set(ids)) == len(ids):
            return ids
    return [f"{place}-{plain(name)}" for place, name in enumerate(names)]


def _check_text(path: str) -> None:
    if not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path):
        raise BadSpeech(f"{path}: its name is not text in UTF-8; rename it")


def _split(name: str) -> str:
    return "validation" if name in DEVELOPMENT else name


def _path_of(folder: Path, table: Path, name: str) -> str:
    """Where a file lies that a table names; names that another system has written otherwise are tried, too."""
    if not name or "\0" in name:
        raise BadSpeech(f"{table}: file_name: {'empty' if not name else 'a zero byte'} in one of the rows")
    tried = dict.fromkeys(
        os.path.normpath(os.path.join(folder, form(name)))
        for form in (str, _composed, _decomposed, lambda name: name.replace("\\", "/"))
    )
    path = next(iter(tried)) if len(tried) == 1 else next(filter(os.path.exists, tried), next(iter(tried)))
    if not path.startswith(f"{folder}{os.sep}"):
        raise BadSpeech(f"{table}: file_name: {name!r} lies outside {folder}")
    return path


_composed, _decomposed = (functools.partial(unicodedata.normalize, form) for form in ("NFC", "NFD"))
