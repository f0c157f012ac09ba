"""Figures of effect sizes: every number where it belongs, and what lies beyond chance marked as such."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from whisper_sae.stats import power
from whisper_sae.viz import speaker_plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_effects_are_in_falling_order_and_those_beyond_are_dots():
    axis = speaker_plots.ordered({"rate": np.array([0.5, -2.0, np.nan, 1.0])}, {"rate": 0.9}).axes[0]
    line, dots, threshold = axis.lines
    assert line.get_ydata().tolist() == [2.0, 1.0, 0.5] and dots.get_ydata().tolist() == [2.0, 1.0]
    assert set(threshold.get_ydata()) == {0.9}


def test_a_threshold_without_bounds_is_not_drawn():
    """Of features with few values, a permutation may leave no spread, and then d is infinite."""
    axis = speaker_plots.ordered({"rate": np.array([0.5, -2.0, np.inf])}, {"rate": np.inf}).axes[0]
    assert len(axis.lines) == 2 and axis.get_ylim() == pytest.approx((0, 2.16))
    rows = pd.DataFrame({"feature": [7], "d": [1.5], "low": [1.0], "high": [2.0]})
    assert speaker_plots.forest(rows, ("female", "male"), np.inf).axes[0].lines


def test_a_mark_is_filled_where_it_lies_beyond_the_threshold():
    rows = pd.DataFrame({"feature": [7, 3, 5], "d": [1.5, -1.2, 0.4], "low": [1, -2, 0.1], "high": [2, -0.5, 0.6]})
    axis = speaker_plots.forest(rows, ("female", "male"), 1.3, most=2).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["7", "3"]
    marks = [line for line in axis.lines if line.get_marker() in ("o", "^")]
    assert [(mark.get_xdata()[0], mark.get_fillstyle()) for mark in marks] == [(1.5, "full"), (-1.2, "none")]
    assert "below 0 more in male" in axis.get_xlabel()


def test_power_is_marked_on_its_curve():
    axis = speaker_plots.powers(
        {"24 and 24": power.curve(24, 24, most=3)}, {"24 and 24": power.detectable(24, 24)}
    ).axes[0]
    curve, mark = axis.lines[:2]
    assert np.interp(mark.get_xdata()[0], curve.get_xdata(), curve.get_ydata()) == pytest.approx(0.8, abs=0.01)
    assert "0.83" in curve.get_label()


def test_the_matrix_names_its_groups_and_says_its_numbers():
    axis = speaker_plots.apart(("a", "b"), np.array([[0, -1.5], [1.5, 0]]), 4).axes[0]
    assert sorted(text.get_text() for text in axis.texts) == ["-1.5", "1.5"]
    assert axis.get_title(loc="left") == "Feature 4: d between any two"


def test_a_sparse_probe_is_a_line_an_input():
    rows = pd.DataFrame({"input": ["ours"] * 2 + ["random"] * 2, "width": [1, 8] * 2, "balanced": [0.6, 0.8, 0.5, 0.6]})
    rows = rows.assign(balanced_low=rows.balanced - 0.1, balanced_high=rows.balanced + 0.1)
    axis = speaker_plots.sparse(rows, 0.5).axes[0]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"ours", "random", "chance"}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "8"]
