"""What the C library does with memory that is no longer needed: glibc on Linux, nothing elsewhere."""

import ctypes
import sys


def release() -> None:
    """Give back to the system what is free now, so that memory does not add up over the results of a run."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
