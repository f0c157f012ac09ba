"""The table of `make test-anywhere`: the worst margin of each calibration, and every notebook that failed."""

import json

import anywhere
import pandas as pd
import pytest
import torch

from whisper_sae.calibrations import Calibrations


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
    table = anywhere.smallest(pd.concat(parts, ignore_index=True)).set_index("calibration")
    assert table["where"]["planted"] == "avx2, seed 1" and table.passed["planted"] == "2 of 3"
    assert table["smallest margin"]["planted"] == "-0.1 × bound" and table.passed["null"] == "3 of 3"
    assert anywhere.failures(tmp_path / "1", []) == {"04_voices": "CalibrationError: planted"}
    assert anywhere.failures(tmp_path / "1", ["00"]) == {} == anywhere.failures(tmp_path / "0", [])


@pytest.mark.parametrize("name", anywhere.SETS)
def test_an_instruction_set_is_one_that_this_processor_can_do(name):
    """Each set is at most what the processor has: numpy and PyTorch import, multiply, and say that they obey."""
    import os
    import subprocess
    import sys

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
