"""Loops that numba compiles when they are first called, and keeps on disk where that can be."""

import functools
from contextlib import suppress
from pathlib import Path

import numba


def _can_keep() -> bool:
    """Whether numba finds a folder to keep compiled code in; what a power cut has left empty there is removed."""
    for path in Path(__file__).parent.rglob("__pycache__/*.nb[ci]"):
        with suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
    try:
        numba.njit(cache=True)(_can_keep)
    except RuntimeError:  # neither the package nor the home directory can be written to
        return False
    return True


jit = functools.partial(numba.njit, cache=_can_keep())
"""Compiled when first called; kept on disk where that can be."""
