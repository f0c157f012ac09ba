"""Calibrations: what a corpus whose truth is known has to show, with room to spare.

An *invariant* of a notebook holds for any corpus, seed and processor, and is a bare assert. A *calibration* is a
statistic: a planted effect is found, a null is not. It has a bound and a margin, so that nobody mistakes one feature
more or less for a verdict:

    calibrated = Calibrations()
    calibrated.at_least("features that differ between microphones", found, 10)
    calibrated.show()                             # a table: expectation, value, bound, margin, passed
    findings.save(..., tables={"calibrations": calibrated.table})
    calibrated.require()                          # after saving, so that a failure can be read, too
"""

import math

import numpy as np
import pandas as pd

from whisper_sae.viz import display

COLUMNS = ["expectation", "value", "bound", "margin", "unit", "passed"]


class CalibrationError(AssertionError):
    """A calibration lies outside its bound."""


class Calibrations:
    """The calibrations of one run, in the order in which they were asked."""

    def __init__(self):
        self.rows: list[tuple] = []

    def at_least(self, expectation: str, value: float, bound: float, unit: float = 0.0, of: str = "bound") -> None:
        """`value` must be `bound` or more. The margin is counted in `unit`s, called `of`; without one, in bounds."""
        self._add(expectation, value, bound, "≥", float(value) - bound, unit, of)

    def at_most(self, expectation: str, value: float, bound: float, unit: float = 0.0, of: str = "bound") -> None:
        """`value` must be `bound` or less. The margin is counted as in `at_least`."""
        self._add(expectation, value, bound, "≤", bound - float(value), unit, of)

    def share_at_least(self, expectation: str, hits, rate: float, errors: float = 4.0) -> None:
        """The share of true among `hits`, (trial,) bool, is that of trials which succeed at `rate` or more often.

        The bound lies `errors` standard errors of a binomial share below the rate: at 4, 3 in 100,000 runs of a right
        method fail.
        """
        hits = np.asarray(hits, dtype=bool)
        error = math.sqrt(rate * (1 - rate) / max(1, len(hits)))
        share = float(hits.mean()) if len(hits) else math.nan
        self.at_least(expectation, share, rate - errors * error, error, "standard error")

    def _add(self, expectation, value, bound, sign, inside, unit, of):
        margin = inside / (unit or abs(bound) or 1.0)
        passed = bool(inside >= 0)  # a NaN does not pass
        self.rows.append((expectation, float(value), f"{sign} {float(bound):.3g}", margin, of, passed))

    @property
    def table(self) -> pd.DataFrame:
        """A row a calibration: expectation, value, bound, margin (negative: outside), its unit, and whether it
        passed."""
        return pd.DataFrame(self.rows, columns=COLUMNS)

    def show(self) -> None:
        """Display the table, or say that there is nothing to calibrate on."""
        if not self.rows:
            display.say("Calibrations are asked of the demo alone, whose truth is known.")
            return
        shown = self.table.assign(margin=[f"{row.margin:.2g} × {row.unit}" for row in self.table.itertuples()])
        display.table(
            shown.drop(columns="unit"),
            caption="Calibrations: statistics of a corpus whose truth is known. Margin: how far inside its bound a "
            "value lies.",
        )

    def require(self) -> None:
        """Raise CalibrationError, in one line, if any has failed."""
        failed = [f"{row.expectation}: {row.value:.3g}, must be {row.bound}" for row in self.table.itertuples()
                  if not row.passed]  # fmt: skip
        if failed:
            raise CalibrationError(f"{len(failed)} of {len(self.rows)} calibrations failed: {'; '.join(failed)}")
