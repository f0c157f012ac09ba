"""Threads and memory of a process that computes on a processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whisper_sae import devices


def test_long_passes_use_count_idle_and_leave_the_threads_as_they_were(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(devices.psutil, "cpu_count", lambda: 4)
    for cores, busy, inside in (
        ("", 0, before),
        (str(before + 1), 0, before + 1),
        (str(before + 1), 90, before),
        (str(before + 3), 50, before + 2),
        ("1", 0, before),
    ):
        monkeypatch.setenv(devices.CORES, cores)
        monkeypatch.setattr(devices.psutil, "cpu_percent", lambda interval, busy=busy: busy)
        with pytest.raises(KeyError), devices.idle_cores():
            assert torch.get_num_threads() == inside
            raise KeyError
        assert torch.get_num_threads() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what Linux and glibc do with memory")
def test_large_tensors_are_in_large_pages_and_free_memory_is_given_back():
    """Tensors of 64 MiB cause few page faults, many without; after `release` free small ones are no longer resident."""
    script = """
import resource
from whisper_sae import memory
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(1 << 24)
    for _ in range(10):
        x = x * 2
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
resident = lambda: int(open("/proc/self/statm").read().split()[1])
print(faults())
small = [bytearray(1 << 14) for _ in range(4_000)]
last = bytearray(1 << 14)
del small
there = resident()
memory.release()
print(there - resident())
"""
    page_faults = {}
    for enabled in ("0", "1"):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": enabled}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        page_faults[enabled], given_back = map(int, done.stdout.split())
        assert given_back > 1_000
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not pages.exists() or "[never]" in pages.read_text():
        pytest.skip("this system has no transparent huge pages")
    assert page_faults["1"] < page_faults["0"] / 4


def test_importing_the_package_asks_for_large_pages():
    script = "import os, whisper_sae; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    for more, expected in (({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment | more)
        assert done.stdout.strip() == expected
