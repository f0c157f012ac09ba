"""Threads and memory of a process that computes on a processor."""

import os
import subprocess
import sys

import pytest
import torch

from whisper_sae import devices


def test_long_passes_use_every_core_and_leave_the_threads_as_they_were(monkeypatch):
    before = torch.get_num_threads()
    for cores, inside in (("", before), (str(before + 1), before + 1), ("1", before)):
        monkeypatch.setenv(devices.CORES, cores)
        with pytest.raises(KeyError), devices.every_core():
            assert torch.get_num_threads() == inside
            raise KeyError
        assert torch.get_num_threads() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what glibc does with memory")
def test_memory_is_kept_for_the_next_tensor_and_released_when_asked():
    """Tensors of 64 MiB that come and go cause no page fault once memory is kept, and many where it is not."""
    script = """
import resource, torch
from whisper_sae import devices, memory
x = torch.ones(1 << 24)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        y = x * 2
        z = y + 1
        del y, z
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
resident = lambda: int(open("/proc/self/statm").read().split()[1])
print(faults())
devices.pick("cpu")
faults()
print(faults())
there = resident()
memory.release()
print(there - resident())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    before, kept, given_back = map(int, done.stdout.split())
    assert kept < before / 10 and given_back > 1_000
