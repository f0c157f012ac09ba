"""Power agrees with statsmodels, with simulation, and with itself."""

import numpy as np
import pandas as pd
import pytest
import speakers
import statsmodels.formula.api as formulas
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestIndPower

from whisper_sae.stats import effects, permutation, power


@given(st.floats(0, 3), st.integers(2, 200), st.integers(2, 200), st.sampled_from([0.05, 0.01, 1e-4]))
def test_power_is_that_of_statsmodels(d, n1, n2, level):
    theirs = TTestIndPower().power(d, n1, level, ratio=n2 / n1)
    assume(np.isfinite(theirs))  # it has NaN here and there
    assert power.power(d, n1, n2, level) == pytest.approx(theirs, abs=1e-8)


@settings(max_examples=30)
@given(st.integers(3, 300), st.integers(3, 300), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_least_difference_is_that_of_statsmodels(n1, n2, wanted):
    d = power.detectable(n1, n2, wanted=wanted)
    assert power.power(d, n1, n2) == pytest.approx(wanted, abs=1e-8)
    assert d == pytest.approx(TTestIndPower().solve_power(None, n1, 0.05, wanted, n2 / n1), rel=1e-4)


@pytest.mark.parametrize("d", [0.2, 0.5, 0.8, 2.0])
def test_as_many_speakers_as_statsmodels_says_and_not_one_more(d):
    n = power.speakers_needed(d)
    assert n == np.ceil(TTestIndPower().solve_power(d, None, 0.05, 0.8))
    assert power.power(d, n, n) >= 0.8 > power.power(d, n - 1, n - 1)


def test_design_effect():
    assert power.design_effect(10, 0.3) == pytest.approx(3.7) and power.design_effect(1, 0.9) == 1
    assert power.in_speakers(0.5, 10, 0.3) == pytest.approx(0.5 * np.sqrt(10 / 3.7))
    assert power.in_speakers(0.5, 10**9, 0.25) == pytest.approx(1.0, abs=1e-6), "ICC alone is left"
    assert power.in_clips(power.in_speakers(0.5, 7, 0.2), 7, 0.2) == pytest.approx(0.5)


def simulated(n, each, icc, shift, repeats):
    """How often Welch's t of speakers' means sees a shift in SDs of clips."""
    rng = np.random.default_rng([n, each])
    x = [speakers.clips(rng, "normal", icc, n, each, repeats).mean(axis=1) for _ in range(2)]
    return (stats.ttest_ind(x[0] + shift, x[1]).pvalue <= 0.05).mean()


@pytest.mark.parametrize(("n", "each", "icc"), [(8, 10, 0.3), (20, 3, 0.3), (12, 20, 0.0)])
def test_the_least_difference_is_seen_as_often_as_it_says(n, each, icc):
    shift = float(power.in_clips(power.detectable(n, n), each, icc))
    assert simulated(n, each, icc, shift, 4000) == pytest.approx(0.8, abs=0.02)


def test_tables_and_curve():
    table = power.table([10, 20], [1, 10], [0.0, 0.3])
    assert len(table) == 8 and table.columns[-1] == "d_clips"
    row = table[(table.speakers == 20) & (table.clips == 10) & (table.icc == 0.3)].iloc[0]
    assert row.design_effect == pytest.approx(3.7) and row.effective_clips == pytest.approx(200 / 3.7)
    assert row.d == pytest.approx(power.detectable(20, 20)) and row.d_clips < row.d
    needed = power.needed([0.5], [1, 10], [0.3])
    assert needed.speakers.tolist() == [64, power.speakers_needed(0.5 * np.sqrt(10 / 3.7))]
    curve = power.curve(20, 20, 10, 0.3)
    assert curve.power.iloc[0] == pytest.approx(0.05) and curve.power.is_monotonic_increasing
    assert np.interp(row.d_clips, curve.d_clips, curve.power) == pytest.approx(0.8, abs=0.01)


def test_power_after_correction_is_how_often_the_threshold_is_passed():
    rng, labels = np.random.default_rng(0), np.repeat(["a", "b"], 15)
    threshold = permutation.relabelled(rng.normal(size=(30, 300)), labels, deals=999).threshold
    level = power.level_of(threshold, 15, 15)
    assert 1e-5 < level < 1e-3
    x = rng.normal(size=(30, 6000))
    x[:15] += 1.5
    assert (effects.between(x, labels).d > threshold).mean() == pytest.approx(power.power(1.5, 15, 15, level), abs=0.02)


# ------------------------------------------------------------------------------------------------------- ICC


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(3, 8), st.integers(2, 6))
def test_likeness_of_a_balanced_table_is_that_of_a_mixed_model(seed, count, each):
    """Where the estimate is positive, restricted maximum likelihood gives the same."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(count), each)
    x = 2 * rng.normal(size=count)[who] + rng.normal(size=count * each)
    found = power.likeness(x[:, None], who)
    square = [np.square(x[who == one] - x[who == one].mean()).sum() for one in range(count)]
    f = stats.f_oneway(*(x[who == one] for one in range(count))).statistic
    assert found.icc[0] == pytest.approx((f - 1) / (f + each - 1))
    assert found.inside[0] == pytest.approx(sum(square) / (count * (each - 1))) and found.clips == each
    if found.icc[0] > 0.3:
        fit = formulas.mixedlm("x ~ 1", pd.DataFrame({"x": x}), groups=who).fit()
        variance = float(np.asarray(fit.cov_re)[0, 0])
        assert variance / (variance + fit.scale) == pytest.approx(found.icc[0], abs=0.01)


@pytest.mark.parametrize(("kind", "icc"), [("normal", 0.0), ("normal", 0.3), ("codes", 0.0), ("codes", 0.3)])
def test_likeness_is_what_was_planted(kind, icc):
    values = speakers.clips(np.random.default_rng(0), kind, icc, 400, 8, 60)
    found = power.likeness(values.reshape(-1, 60), np.repeat(np.arange(400), 8))
    assert found.icc.mean() == pytest.approx(icc, abs=0.02)


def test_unequal_clips_and_groups():
    """The difference between groups is no likeness of a speaker's clips, if groups are named."""
    rng = np.random.default_rng(0)
    each = rng.integers(1, 12, 300)
    who = np.repeat(np.arange(300), each).astype(str)
    side = np.repeat(np.resize(["f", "m"], 300), each)
    between = np.sqrt(0.3) * rng.normal(size=(300, 40))[who.astype(int)]
    values = between + np.sqrt(0.7) * rng.normal(size=between.shape) + 3 * (side == "f")[:, None]
    assert power.likeness(values, who, side).icc.mean() == pytest.approx(0.3, abs=0.02)
    assert power.likeness(values, who).icc.mean() > 0.6
    values[rng.random(values.shape) < 0.2] = np.nan
    assert power.likeness(values, who, side).icc.mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: power.likeness(np.ones((2, 1)), ["a", "b"]), "speaker: no one has two clips"),
        (lambda: power.design_effect(0, 0.1), "clips and icc: "),
        (lambda: power.design_effect(5, 1.1), "clips and icc: "),
        (lambda: power.power(1, 1, 5), "n1 and n2: a group needs at least two speakers"),
        (lambda: power.detectable(5, 5, 0.9, 0.8), "level and wanted: 0.9 and 0.8"),
        (lambda: power.speakers_needed(1e-6, most=1000), "d: 1e-06 is not seen with 1,000 speakers a group"),
    ],
)
def test_what_cannot_be_said_is_refused(what, said):
    with pytest.raises(ValueError) as refused:
        what()
    assert said in str(refused.value)


def test_sample_sizes_have_a_column_a_design():
    needed = pd.DataFrame(
        {"d_clips": [0.2] * 4, "clips": [1, 1, 10, 10], "icc": [0.1, 0.3] * 2, "speakers": [9, 9, 4, 6]}
    )
    assert power.by_design(needed).iloc[0].to_dict() == {
        "d of clips": 0.2, "1 clip": 9, "10 clips, ICC 0.1": 4, "10 clips, ICC 0.3": 6,
    }  # fmt: skip


def test_what_no_difference_reaches_is_not_seen():
    assert power.detectable(6, 6, power.level_of(np.inf, 6, 6)) == np.inf
    assert power.detectable(6, 6, power.level_of(1e7, 6, 6)) == np.inf
