"""A corpus of the Hugging Face hub as a local directory that `speech.read` reads.

Only what is asked for is fetched (streaming): clips may be chosen by what is told of them before any sound is read.
Sound is copied as the bytes it came in: decoding is left to `speech`, so neither torchcodec nor ffmpeg is needed.
"""

import csv
import errno
import re
import shutil
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path

from whisper_sae import atomic


class BadCorpus(ValueError):
    """A corpus that cannot be fetched; one line, with the way out."""


def fetch(
    corpus: str, folder: Path, choose: Callable[[Path], Collection[int]] | None = None, progress: Callable = iter
) -> dict:
    """Copy a corpus, `id:configuration:split` (or a local path in the hub's format), to `folder`.

    `id@revision` names a commit, a tag or a branch, which is then part of the key of the copy; without it a copy stays
    the one that was fetched first. Everything is read from one commit, which the facts have as `revision`, unless
    it is a directory, or the hub is out of reach and its cache is read.
    Writes the sound files to `folder/audio` and every column that is not sound to `folder/metadata.csv`. `choose` is
    given a directory that holds this table of all rows, and no sound, and says the numbers of the rows that are
    wanted; of a row group of parquet (a file, in other formats) that holds none of them no sound is read. Without
    `choose` all are copied. Raises BadCorpus when the hub is out of reach, has no such thing, or changes meanwhile.
    """
    with _in_one_line(corpus):
        rows, audio, options = _opened(corpus)
        commit = {"revision": options["revision"]} if "revision" in options else {}
        if choose is None:
            clips = (_row(number, row, audio, rows.features) for number, row in enumerate(_sound(rows, audio)))
            return _copy(progress(clips), folder) | commit
        sizes = _tell(rows, audio, options, folder / "told", progress)
    wanted = sorted(set(choose(folder / "told")))  # its errors speak for themselves
    with _in_one_line(corpus):
        facts = _copy(progress(_those(wanted, sizes, rows, audio, folder / "told")), folder)
    shutil.rmtree(folder / "told")
    return facts | commit


def number_of(file: str | Path) -> int:
    """The number of the row that a file is from, by its name."""
    return int(Path(file).name.split("-")[0])


# ---------------------------------------------------------------------------------------- what the hub has


def _opened(corpus: str) -> tuple:
    """The rows of a corpus, the name of its column of sound, and what opens it again."""
    import datasets  # slow to import, and needed here alone

    asked = [corpus] if Path(corpus).is_dir() else corpus.split(":")  # a directory's name may hold colons
    name, configuration, split = [*asked, "", ""][:3]
    revision = ""
    if not Path(name).is_dir():
        name, _, revision = name.partition("@")
        revision = _commit(name, revision)
    options = {"path": name, "name": configuration or None, "split": split or "train", "streaming": True}
    options |= {"revision": revision} if revision else {}
    rows = datasets.load_dataset(**options)
    audio = next((key for key, kind in (rows.features or {}).items() if isinstance(kind, datasets.Audio)), None)
    if audio is None:
        raise BadCorpus(f"no column of sound; it has {', '.join(rows.features or {})}")
    return rows, audio, options


def _commit(name: str, revision: str) -> str:
    """The commit that a data set of the hub is at; what was asked for where the hub is out of reach."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name, revision=revision or None).sha or revision
    except Exception:  # out of reach, or no such thing: load_dataset has it in its cache, or says what is wrong
        return revision


def _sound(rows, audio: str):
    import datasets

    return rows.cast_column(audio, datasets.Audio(decode=False))


def _without_sound(rows, audio: str, options: dict):
    """The same rows without their sound, which is not even read of parquet; with it, if there is nothing else."""
    import datasets

    others = [key for key in rows.features if key != audio]
    if not others:
        return _sound(rows, audio)
    try:
        return datasets.load_dataset(**options, columns=others)
    except ValueError:  # a format whose columns cannot be read apart
        return rows.select_columns(others)


def _parts(rows) -> Iterator:
    """The least parts of a data set that can be read by themselves, in order."""
    for place in range(rows.num_shards):
        groups = rows.shard(rows.num_shards, place).reshard()
        yield from (groups.shard(groups.num_shards, group) for group in range(groups.num_shards))


def _tell(rows, audio: str, options: dict, folder: Path, progress: Callable) -> list[int]:
    """Write what is told of every row, without sound, as `folder/metadata.csv`; how many rows each part has."""
    sizes = []

    def told() -> Iterator[tuple[dict, bytes]]:
        for part in _parts(_without_sound(rows, audio, options)):
            sizes.append(0)
            for row in part:
                yield _row(sum(sizes), row, audio, rows.features)
                sizes[-1] += 1

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "metadata.csv", (row for row, _ in progress(told())))
    return sizes


def _those(wanted: list[int], sizes: list[int], rows, audio: str, folder: Path) -> Iterator[tuple[dict, bytes]]:
    """The wanted rows with their sound; no part without one is read. They must be what `_tell` has found."""
    told, met = _lines(folder / "metadata.csv", set(wanted)), 0
    for part, (first, end) in zip(_parts(rows), pairwise(accumulate(sizes, initial=0)), strict=False):
        here = wanted[bisect_left(wanted, first) : bisect_left(wanted, end)]
        if not here:
            continue
        for number, given in zip(range(first, here[-1] + 1), _sound(part, audio), strict=False):
            if number in told:
                row, sound = _row(number, given, audio, rows.features)
                if _as_text(row) != told[number]:
                    raise BadCorpus(f"row {number} is another than a moment ago; fetch it again")
                met += 1
                yield row, sound
    if met < len(wanted):
        raise BadCorpus("it has fewer rows than a moment ago; fetch it again")


# ---------------------------------------------------------------------------------------- what is written


def _row(number: int, row: dict, audio: str, features: dict) -> tuple[dict, bytes]:
    """A row of the table, its file's name first and numbers that stand for words as words; and the clip's bytes."""
    sound = row.get(audio) or {}
    if audio in row and not sound.get("bytes"):
        raise BadCorpus(f"row {number}: no bytes in column {audio!r}")
    given = Path(sound.get("path") or "")
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", str(row.get("id") or given.stem or "clip"))
    words = {key: features[key] for key in row if hasattr(features.get(key), "int2str") and row[key] is not None}
    named = {key: kind.int2str(row[key]) for key, kind in words.items()}
    rest = {key: value for key, value in (row | named).items() if key not in (audio, "file_name")}
    return {"file_name": f"audio/{number:06d}-{stem[:60]}{given.suffix or '.flac'}", **rest}, sound.get("bytes")


def _copy(clips: Iterator[tuple[dict, bytes]], folder: Path) -> dict:
    """Write the sound of each clip, and the table when all of them are there."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    table = []
    for row, sound in clips:
        (folder / row["file_name"]).write_bytes(sound)
        table.append(row)
    _write(folder / "metadata.csv", table)
    return {"clips": len(table)}


def _write(path: Path, table) -> None:
    """A table as CSV, which has its name only when it is whole."""
    rows = iter(table)
    if (first := next(rows, None)) is None:
        raise BadCorpus("it has no rows")
    with atomic.replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(first))
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)


def _lines(path: Path, wanted: set[int]) -> dict[int, dict]:
    """The wanted rows of a table that `_tell` has written, without the names of their files."""
    with open(path, newline="", encoding="utf-8") as file:
        return {number: _as_text(row) for number, row in enumerate(csv.DictReader(file)) if number in wanted}


def _as_text(row: dict) -> dict:
    """A row as it is read back from CSV, without the name of its file."""
    return {key: "" if value is None else str(value) for key, value in row.items() if key != "file_name"}


# ------------------------------------------------------------------------------------------------- errors


@contextmanager
def _in_one_line(corpus: str) -> Iterator[None]:
    try:
        yield
    except BadCorpus as error:
        raise BadCorpus(f"corpus {corpus!r}: {error}") from None
    except Exception as error:  # datasets raises a dozen kinds; each becomes one line
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # a full disk speaks for itself
            raise
        said = " ".join(str(error).split())[:300]
        way_out = "give a local directory in audiofolder layout"
        raise BadCorpus(f"corpus {corpus!r}: cannot be fetched; {way_out}: {said}") from None
