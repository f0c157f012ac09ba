"""Histograms and means of a unit by phone are those of scipy and numpy, side by side for both sides of a neuron."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from whisper_sae.features.tuning import by_label_histogram
from whisper_sae.stats import intervals


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=25)
def test_means_have_students_interval(seed, labels):
    rng = np.random.default_rng(seed)
    value, label = rng.normal(size=60), rng.choice(list("stie"[:labels]), 60)
    found = by_label_histogram(value, label)
    for row in found.table.itertuples():
        sign = {"all": value == value, "positive": value > 0, "negative": value < 0}[row.side]
        mine = value[(label == row.label) & sign] * (-1 if row.side == "negative" else 1)
        assert (row.n, row.units) == (len(mine), len(mine)) and row.mean == pytest.approx(mine.mean())
        enough = len(mine) >= intervals.LEAST
        wanted = stats.ttest_1samp(mine, 0).confidence_interval() if enough else (np.nan, np.nan)
        assert (row.low, row.high) == pytest.approx(tuple(wanted), nan_ok=True)
    for side, part in found.table.groupby("side"):
        assert (part["mean"].diff().dropna() <= 0).all(), side


def test_histograms_hold_every_value():
    rng = np.random.default_rng(0)
    value, label = rng.normal(size=200), rng.choice(list("sti"), 200)
    found = by_label_histogram(value, label, bins=10)
    assert found.counts.shape == (3, 10) and found.edges[[0, -1]].tolist() == [value.min(), value.max()]
    assert found.counts.sum(axis=1).to_dict() == pd.Series(label).value_counts().to_dict()


def test_a_neuron_of_two_meanings_shows_on_its_sides():
    """Up on s, down on t."""
    rng = np.random.default_rng(0)
    label = np.repeat(list("ste"), 50)
    value = rng.normal(0, 0.2, 150) + np.repeat([3, -2, 0], 50)
    table = by_label_histogram(value, label).table.set_index(["side", "label"])
    top = {side: table.loc[side].index[0] for side in ("all", "positive", "negative")}
    assert top == {"all": "s", "positive": "s", "negative": "t"}
    assert table.loc[("negative", "t"), "mean"] == pytest.approx(2, abs=0.1)
    assert ("positive", "t") not in table.index


def test_features_of_an_sae_have_no_negative_side():
    table = by_label_histogram([0.0, 1, 0, 2], ["s", "s", "t", "t"]).table
    assert set(table.side) == {"all", "positive"}


def test_speakers_are_units():
    """Six speakers differ; a thousand frames of each are still six units. Of five no interval is given."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(6), 1000)
    value = rng.normal(size=6000) + 2 * (who % 2)
    frames, voices = (by_label_histogram(value, ["s"] * 6000, speakers).table.iloc[0] for speakers in (None, who))
    assert voices.units == 6 and frames.units == 6000 and frames["mean"] == pytest.approx(voices["mean"])
    assert voices.high - voices.low > 25 * (frames.high - frames.low)
    five = by_label_histogram(value[:5000], ["s"] * 5000, who[:5000]).table.iloc[0]
    assert five.units == 5 and np.isnan([five.low, five.high]).all()


def test_odd_units_and_labels():
    constant = by_label_histogram(np.ones(4), ["s", "s", "t", ""])
    assert constant.counts.to_numpy().sum() == 3 and constant.table.label.tolist() == ["s", "t"] * 2
    row = constant.table.iloc[1]
    assert row.n == 1 and np.isnan([row.low, row.high]).all() and row["mean"] == 1
    silent = by_label_histogram(np.zeros(3), ["s", "s", "t"])
    assert set(silent.table.side) == {"all"} and (silent.table["mean"] == 0).all()
    with pytest.raises(ValueError, match="labels: no frame has one"):
        by_label_histogram(np.ones(2), ["", ""])
