"""Which device computes: the same word for every model, whatever it reads."""

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator

import psutil
import torch
from tqdm import tqdm

from whisper_sae import memory


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


CORES = "WHISPER_SAE_CORES"
"""The environment variable by which a run of several notebooks says how many cores there are."""

LOOK_AGAIN, RELEASE_AGAIN = 0.5, 5.0
"""Seconds between looks at what other processes leave idle, and between times that free memory is given back."""


def on_idle_cores(items: Iterable) -> Iterator:
    """The items of a loop of long forward passes. Before each, torch is given the cores of a run of several notebooks
    on which no other process computes; after the loop, as many as before. Free memory is given back now and then.

    A core on which another notebook computes is left to it: two threads of which one has to wait are slower than one.
    """
    own, cores = torch.get_num_threads(), int(os.environ.get(CORES) or 0)
    looked, released, first = _used(), time.monotonic(), True
    if cores > own:
        time.sleep(0.1)
    try:
        for item in items:
            now = _used()
            if cores > own and (first or now[0] - looked[0] >= LOOK_AGAIN):
                torch.set_num_threads(min(cores, max(own, cores - _busy_elsewhere(looked, now))))
                looked, first = now, False
            if time.monotonic() - released >= RELEASE_AGAIN:
                memory.release()
                released = time.monotonic()
            yield item
    finally:
        torch.set_num_threads(own)


def long_pass(title: str) -> Callable[..., Iterator]:
    """A wrapper of the batches of a long forward pass: `on_idle_cores`, with a progress bar."""
    return lambda batches, unit=" batches", **how: on_idle_cores(tqdm(batches, desc=title, unit=unit, **how))


def _used() -> tuple[float, float, float]:
    """Now, and how long all processes, and this one, have computed on all cores: seconds."""
    times = psutil.cpu_times()._asdict()
    unused = {"idle", "iowait", "guest", "guest_nice"}  # guests are part of user and nice
    busy = sum(seconds for name, seconds in times.items() if name not in unused)
    return time.monotonic(), busy, time.process_time()


def _busy_elsewhere(since: tuple[float, float, float], now: tuple[float, float, float]) -> int:
    """On how many cores other processes computed between two looks."""
    seconds, every, own = (b - a for a, b in zip(since, now, strict=True))
    return round(max(0.0, every - own) / max(seconds, 1e-9))
