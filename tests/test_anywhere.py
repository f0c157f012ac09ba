"""The table of `make test-anywhere`: the worst margin of each calibration, and every notebook that failed."""

import json
import os
import subprocess
import sys

import anywhere
import numpy as np
import pandas as pd
import pytest
import torch
from coders import CLOSE, flipped, off

from whisper_sae import devices, profiles
from whisper_sae.data import clip_table
from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures
from whisper_sae.viz.calibrations import Calibrations


def saved(folder, value: float, status: str = "done"):
    asked = Calibrations()
    asked.at_least("planted", value, 10)
    asked.at_most("null", 1, 5)
    (folder / "tables").mkdir(parents=True)
    asked.table.to_csv(folder / "tables" / "04_voices_calibrations.csv", index=False)
    row = {"status": status, "error": "" if status == "done" else "CalibrationError: planted"}
    (folder / "run.json").write_text(json.dumps({"notebooks": {"04_voices": row}}))


def test_the_smallest_margin_of_each_calibration_is_told_with_its_place(tmp_path):
    for seed, value in enumerate((30, 9, 50)):
        saved(tmp_path / str(seed), value, "failed" if value < 10 else "done")
    parts = [anywhere.calibrations(tmp_path / str(seed)).assign(set="avx2", seed=seed) for seed in range(3)]
    table = anywhere.smallest(pd.concat(parts, ignore_index=True), runs=4).set_index("calibration")
    assert table["where"]["planted"] == "avx2, seed 1" and table.passed["planted"] == "2 of 4"
    assert table["smallest margin"]["planted"] == "-0.1 × bound" and table.passed["null"] == "3 of 4", (
        "the fourth saved nothing"
    )
    assert anywhere.failures(tmp_path / "1", []) == {"04_voices": "CalibrationError: planted"}
    assert anywhere.failures(tmp_path / "1", ["00"]) == {} == anywhere.failures(tmp_path / "0", [])


def test_what_was_saved_last_time_does_not_count(tmp_path, monkeypatch):
    """A run that ends before its notebook saves: no calibration is collected, and the run has failed."""
    reports = tmp_path / "native-1" / "reports" / "demo"
    saved(reports, 30)

    def stops(command, stdout, **_):
        stdout.write("stopped")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(anywhere.subprocess, "run", stops)
    assert anywhere.run(tmp_path, "native", 1, ["04"])["failed"] == {"run": "stopped"}
    assert anywhere.calibrations(reports).empty


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "avx2" else pytest.mark.slow) for name in anywhere.SETS]
)
def test_an_instruction_set_is_one_that_this_processor_can_do(name):
    """Each set is at most what the processor has: numpy and PyTorch import, multiply, and say that they obey."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    code = (
        "import numpy, numba, torch; from whisper_sae import devices; x = torch.ones(64, 64); (x @ x).sum();"
        "print(torch.backends.cpu.get_cpu_capability(), devices.multiplies_bfloat16(torch.device('cpu')))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | anywhere.SETS[name], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-500:]
    wanted = {"avx2": "AVX2 False", "baseline": "DEFAULT False"}
    assert told.stdout.strip() == wanted.get(name, told.stdout.strip())


def encoded(whisper) -> torch.Tensor:
    """Activations of two of the demo's clips at its second layer, as a batch: (frame, width)."""
    found = clip_table.read(profiles.DEMO / "corpus")
    sounds = [clip_table.samples(path) for path in found[found.kind == "speech"].path.iloc[:400:200]]
    return whisper_model.record(whisper, whisper_model.mel(whisper, sounds), ["encoder.1.resid"])[
        "encoder.1.resid"
    ].flatten(0, 1)


def test_another_instruction_set_gives_the_same_up_to_rounding(demo, tmp_path):
    """As another processor would: activations are equal to CLOSE, and fewer than 0.1 % of an SAE's flip."""
    code = (
        "import sys, numpy, test_anywhere; from whisper_sae import profiles;"
        "from whisper_sae.model import whisper_model;"
        "whisper = whisper_model.load(str(profiles.DEMO / 'whisper'), 'cpu');"
        "numpy.save(sys.argv[1], test_anywhere.encoded(whisper).numpy())"
    )
    paths = os.pathsep.join([str(anywhere.PROJECT / "tests"), str(anywhere.PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | anywhere.SETS["baseline"] | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", code, str(tmp_path / "x.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    here, there = encoded(demo), torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert off(there, here) < CLOSE
    coder = architectures.create("batchtopk", here.shape[1], 1024, 16)
    coder.start_on(here)
    coder.calibrate([here])
    with torch.no_grad():
        assert flipped(coder.eval().encode(here), coder.encode(there)) < 0.001


def test_bfloat16_is_not_used_where_the_library_refuses_it(monkeypatch):
    """A processor that can, and oneDNN limited to AVX2: one product is tried and fails, so float32 is used."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def refuse(*_):
        raise RuntimeError("could not create a primitive descriptor for the matmul primitive")

    devices._one_product.cache_clear()
    try:
        assert devices.multiplies_bfloat16(torch.device("cpu"))
        devices._one_product.cache_clear()
        monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
        assert not devices.multiplies_bfloat16(torch.device("cpu"))
        with pytest.raises(whisper_model.BadModel, match="use float32"):
            whisper_model.require_precision("bfloat16", torch.device("cpu"))
    finally:
        devices._one_product.cache_clear()
