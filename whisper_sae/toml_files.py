"""TOML as people write it: what cannot be read is said in one line that names the file."""

import os
import stat
import tomllib
from pathlib import Path

MOST = 16 << 20
"""Bytes; a file of notes on every feature of a large dictionary is smaller."""


def read(path: str | Path) -> dict:
    """What a TOML file holds, with a byte order mark or without. Raises ValueError, or FileNotFoundError."""
    path = Path(path)
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("not a regular file")
        if about.st_size > MOST:
            raise ValueError(f"{about.st_size:,} bytes; {MOST:,} at most")
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # of TOML, of UTF-8, and of numbers with too many digits
        raise ValueError(f"{path}: not valid TOML: {' '.join(str(error).split())}") from None
