"""Recording needs as much memory as a batch does, not as a corpus does: 200 clips in under 2 GB."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_sae import profiles

SCRIPT = """
import sys
from pathlib import Path
from whisper_sae import profiles, cache
from whisper_sae.experiments import pipeline
model, corpus, windows = sys.argv[1:]
run = profiles.Profile(name="lean", about="", model=model, corpus=(corpus,), clips=200, device="cpu", windows=windows)
cache.make(pipeline.clips(run, 0))
step = cache.make(pipeline.activations(run, 0))
told = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(step.facts["frames"], int(told) / 1024)
"""

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")


def peak(model: Path, corpus: Path, data: Path, windows: str) -> tuple[int, float]:
    """Frames recorded, and the most MB that the process held."""
    asks = [sys.executable, "-c", SCRIPT, str(model), str(corpus), windows]
    done = subprocess.run(asks, env=os.environ | {"WHISPER_SAE_DATA": str(data)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    frames, megabytes = done.stdout.split()
    return int(frames), float(megabytes)


@linux
@pytest.mark.slow
def test_a_small_model_and_200_clips(small_whisper, corpus, tmp_path):
    frames, megabytes = peak(small_whisper, corpus(voices=10, clips=20), tmp_path / "data", "clip")
    assert frames > 10_000 and megabytes < 1_000


@linux
@pytest.mark.slow
@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_real_weights_and_200_clips(shared, tmp_path, windows):
    frames, megabytes = peak(
        shared / "whisper-tiny.en-encoder", shared / "speech" / "speechocean762", tmp_path / "data", windows
    )  # fmt: skip
    assert frames > 30_000 and megabytes < 2_000


def test_the_default_is_lean_enough():
    """What the test above measures is what a profile does that says nothing of batches."""
    run = replace(profiles.TABLE["tiny"], name="x")
    assert (run.batch_windows, run.shard_windows, run.dtype) == (8, 64, "float16")
