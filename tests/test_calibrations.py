"""A calibration passes inside its bound, says by how much, and fails in one line."""

import math

import numpy as np
import pytest

from whisper_sae.viz.calibrations import CalibrationError, Calibrations


def test_margins_are_counted_in_the_unit_that_is_stated():
    asked = Calibrations()
    asked.at_least("planted", 40, 10)
    asked.at_most("null", 1, 5)
    asked.at_most("in errors", 0.5, 0.8, unit=0.1, of="standard error")
    asked.at_most("nothing at all", 0, 0)
    assert asked.table.margin.round(9).tolist() == [3.0, 0.8, 3.0, 0.0]
    assert asked.table.passed.all() and asked.table.unit.tolist() == ["bound", "bound", "standard error", "bound"]
    asked.require()


def test_what_fails_is_named_in_one_line():
    asked = Calibrations()
    asked.at_least("planted", 3, 10)
    asked.at_most("null", math.nan, 5)
    asked.at_most("fine", 1, 5)
    with pytest.raises(CalibrationError, match="2 of 3 calibrations failed: planted: 3, must be ≥ 10; null: nan") as e:
        asked.require()
    assert "\n" not in str(e.value) and asked.table.margin[0] == pytest.approx(-0.7)


def test_a_share_is_held_against_its_binomial_error():
    """A right method, asked 1,000 times with 200 trials each, hardly ever fails; one that errs twice as often does."""
    rng = np.random.default_rng(0)

    def failures(rate):
        failed = 0
        for _ in range(1000):
            asked = Calibrations()
            asked.share_at_least("nothing found", rng.uniform(size=200) < rate, 0.95)
            failed += not asked.table.passed[0]
        return failed

    assert failures(0.95) <= 3 and failures(0.85) >= 600


def test_nothing_asked_is_nothing_failed(capsys):
    asked = Calibrations()
    asked.require()
    assert asked.table.empty and asked.table.columns[0] == "expectation"
