"""A corpus of the Hugging Face hub as a local directory that `speech.read` reads.

Only what is asked for is fetched (streaming), and sound is copied as the bytes it came in: decoding is left to
`speech`, so neither torchcodec nor ffmpeg is needed.
"""

import csv
import errno
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path


class BadCorpus(ValueError):
    """A corpus that cannot be fetched; one line, with the way out."""


def fetch(corpus: str, folder: Path, clips: int = 0, progress: Callable = iter) -> dict:
    """Copy a corpus, `id:configuration:split` (or a local path in the hub's format), to `folder`.

    Writes the sound files to `folder/audio` and every column that is not sound to `folder/metadata.csv`. `clips`
    takes the first so many; 0 takes all. Raises BadCorpus when the hub is out of reach or has no such thing.
    """
    import datasets  # slow to import, and needed here alone

    asked = [corpus] if Path(corpus).is_dir() else corpus.split(":")  # a directory's name may hold colons
    name, configuration, split = [*asked, "", ""][:3]
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split or "train", streaming=True)
        audio = next((key for key, kind in (rows.features or {}).items() if isinstance(kind, datasets.Audio)), None)
        if audio is None:
            raise BadCorpus(f"no column of sound; it has {', '.join(rows.features or {})}")
        return _copy(rows.cast_column(audio, datasets.Audio(decode=False)), audio, folder, clips, progress)
    except BadCorpus as error:
        raise BadCorpus(f"corpus {corpus!r}: {error}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk speaks for itself
            raise
        raise _unreachable(corpus, error) from None
    except Exception as error:  # datasets raises a dozen kinds; each becomes one line
        raise _unreachable(corpus, error) from None


def _copy(rows, audio: str, folder: Path, clips: int, progress: Callable) -> dict:
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    named = {
        key: kind for key, kind in rows.features.items() if hasattr(kind, "int2str")
    }  # numbers that stand for words
    table = []
    for number, row in enumerate(progress(islice(rows, clips or None))):
        sound = row.pop(audio)
        if not sound["bytes"]:
            raise BadCorpus(f"row {number}: no bytes in column {audio!r}")
        ending = Path(sound.get("path") or "clip.flac").suffix or ".flac"
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", str(row.get("id") or Path(sound.get("path") or "").stem or "clip"))
        file = f"audio/{number:06d}-{stem[:60]}{ending}"
        (folder / file).write_bytes(sound["bytes"])
        row.pop("file_name", None)
        row |= {key: kind.int2str(row[key]) for key, kind in named.items() if row[key] is not None}
        table.append({"file_name": file, **row})
    if not table:
        raise BadCorpus("it has no rows")
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return {"clips": len(table)}


def _unreachable(corpus: str, error: Exception) -> BadCorpus:
    said = " ".join(str(error).split())[:300]
    return BadCorpus(f"corpus {corpus!r}: cannot be fetched; give a local directory in audiofolder layout: {said}")
