"""Files and folders that are there whole or not at all, after a crash of the machine as well as of the process.

A rename is atomic, but after a power cut a file that was renamed before its data reached the disk is there with no
bytes. So data are flushed to the disk before they get their name, and then the folder that holds the name.

    durable.write("report.html", text)
    with durable.replacing("sae.safetensors") as part:
        save_file(tensors, part)
"""

import errno
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is being written."""
STALE = 3600
"""Seconds after which a file that was never finished is taken for one of a killed run."""
UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.ENOSYS}
"""What a file system answers that cannot flush a file or a folder on demand, as some network and FUSE ones."""


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) whole or not at all; its folder is made if need be."""
    with replacing(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; at the end it takes the name of `path`, after an error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name[:80]}."
    for old in path.parent.iterdir():  # what a killed run has left
        if old.name.startswith(name) and old.name.endswith(PART):
            with suppress(OSError):
                if old.stat().st_mtime < time.time() - STALE:
                    old.unlink()
    part = path.with_name(f"{name}{uuid.uuid4().hex[:12]}{PART}")
    try:
        yield part
        flush(part)
        os.replace(part, path)
        flush(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def rename(part: str | Path, place: str | Path) -> None:
    """Give a finished folder its name: all that is in it is on the disk before, the name after. Raises OSError."""
    flush_all(part)
    os.rename(part, place)
    flush(Path(place).parent)


def flush_all(folder: str | Path) -> None:
    """Have the disk hold the files of a folder, and of those below it, and their names."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(where, name))
        flush(where)


def flush(path: str | Path) -> None:
    """Have the disk hold a file, or the names in a folder; what cannot be flushed, such as a folder on Windows, is
    left to the system."""
    if sys.platform == "win32" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
    finally:
        os.close(handle)
