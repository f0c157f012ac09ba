"""Which device computes: the same word for every model, whatever it reads."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


def pick(device: str) -> torch.device:
    """The device of that name; `auto` is cuda, else cpu. ValueError where this machine has no such device.

    `auto` leaves out mps (Apple): training needs sparse CSR products (`sparse`), and scores need float64, which PyTorch
    does not have there. On cuda, float32 is float32: convolutions would round to TF32 (10 bits) by default.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device).startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        torch.zeros((), device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} cannot be used here: {' '.join(str(error).split())[:200]}") from None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are fast here and work: asked of the library, too, which may be told to do
    without an instruction that the processor has (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and able and torch.backends.cpu.get_cpu_capability() == "AVX512" and _one_product()


@functools.cache
def _one_product() -> bool:
    """Whether a product of bfloat16 matrices, and its gradient, can be computed on this processor."""
    x = torch.ones(64, 64, dtype=torch.bfloat16, requires_grad=True)
    try:
        (x @ x.T).sum().backward()
    except RuntimeError:  # oneDNN: "could not create a primitive"
        return False
    return True


def _count_idle() -> int:
    """The number of cores that were idle during the last half second."""
    return round((1 - psutil.cpu_percent(interval=0.5) / 100) * (psutil.cpu_count() or 1))


CORES = "WHISPER_SAE_CORES"
"""The environment variable by which a run of several notebooks says how many cores there are."""


@contextmanager
def idle_cores() -> Iterator[None]:
    """Let torch use the idle cores of a run in which several notebooks have one core each, for a long forward pass.

    Cores that another notebook computes on are left to it: two threads of which one has to wait are slower than one.
    """
    before, cores = torch.get_num_threads(), int(os.environ.get(CORES) or 0)
    torch.set_num_threads(max(before, min(cores, before + _count_idle())) if cores > before else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
