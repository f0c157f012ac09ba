"""What the C library does with the memory of tensors that are no longer needed: glibc on Linux, nothing elsewhere."""

import ctypes
import functools
import sys


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


def keep() -> None:
    """Keep the memory of tensors up to 96 MiB for the next ones, in the whole process, until `release`.

    glibc maps each tensor above 32 MiB anew, and the kernel fills it with zeros page by page: a quarter of a training
    step, half of an encoder pass on two cores, nine tenths of a greedy transcript. Larger ones, such as logits of whole
    transcripts, are left to it: what they leave behind does not fit the next one, and a process grew to 6 GB.
    """
    if library := _glibc():
        library.mallopt(-3, 96 << 20)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD


def release() -> None:
    """Give back to the system what is free now, so that memory does not add up over the results of a run."""
    if library := _glibc():
        library.malloc_trim(0)
