"""Threads and memory of a process that computes on a processor."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from whisper_sae import devices


def test_long_passes_use_cores_that_others_leave_idle(monkeypatch):
    """Looked at before each item; afterwards, and when the loop is left early, there are as many threads as before."""
    before = torch.get_num_threads()
    cores, busy = before + 2, iter([0, 0, 1, 2, 5, 0])
    seconds = itertools.count()
    monkeypatch.setattr(devices, "_used", lambda: (next(seconds), 0.0, 0.0))
    monkeypatch.setattr(devices, "_busy_elsewhere", lambda since, now: next(busy))
    monkeypatch.setenv(devices.CORES, str(cores))
    seen = [torch.get_num_threads() for _ in devices.on_idle_cores(range(5))]
    assert seen == [cores, cores, cores - 1, before, before]
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), contextlib.closing(devices.on_idle_cores("ab")) as items:
        next(items)
        assert torch.get_num_threads() == cores
        raise KeyError
    assert torch.get_num_threads() == before
    for few in ("", str(before)):
        monkeypatch.setenv(devices.CORES, few)
        assert [torch.get_num_threads() for _ in devices.on_idle_cores(range(2))] == [before, before]


def test_long_passes_give_free_memory_back_now_and_then(monkeypatch):
    released, moments = [], itertools.count(step=2)
    monkeypatch.setattr(devices.memory, "release", lambda: released.append(len(released)))
    monkeypatch.setattr(devices.time, "monotonic", lambda: next(moments))
    monkeypatch.setattr(devices, "_used", lambda: (0.0, 0.0, 0.0))
    assert list(devices.on_idle_cores(range(10))) == list(range(10))
    assert len(released) == 3  # every third look, two seconds each, and one for noting the time


def test_what_other_processes_compute_is_counted_and_what_this_one_does_is_not():
    script = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        since, own = devices._used(), psutil.Process().cpu_times()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        now, after = devices._used(), psutil.Process().cpu_times()
        other.kill()
    assert now[2] - since[2] == pytest.approx(after.user + after.system - own.user - own.system, abs=0.1)
    assert devices._busy_elsewhere(since, now) >= 1 or psutil.cpu_count() == 1


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
