"""Groups are compared as by least squares with covariates, and chance is found as often as it should be."""

import numpy as np
import pandas as pd
import pytest
import speakers
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols

from whisper_sae.stats import covariates, effects, matching, permutation


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans())
def test_partial_eta_squared_is_that_of_least_squares(seed, groups, crossed):
    rng, n = np.random.default_rng(seed), 40
    label = rng.permutation(np.resize(list("abcd")[:groups], n))
    side, level = rng.permutation(np.resize(["x", "y"], n)), rng.normal(size=n) + (label == "a")
    x = rng.normal(size=(n, 3)) + level[:, None] + 5
    found = covariates.dealt(x, label, pd.DataFrame({"level": level}), side if crossed else None, deals=1)
    for feature, column in enumerate(x.T):
        table = pd.DataFrame({"x": column, "label": label, "side": side, "level": level})
        fit = ols("x ~ level + C(label)" + (" + C(side)" if crossed else ""), table).fit()
        row = sm.stats.anova_lm(fit, typ=2).loc["C(label)"]
        assert found.f[feature] == pytest.approx(row.F, rel=1e-8)
        assert found.eta_squared[feature] == pytest.approx(row.sum_sq / (row.sum_sq + fit.ssr), rel=1e-8)
        assert found.df == (row.df, fit.df_resid)


def test_without_covariates_it_is_analysis_of_variance_and_the_permutation_of_labels():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(36, 50)), np.resize(["a", "b", "c"], 36)
    found = covariates.dealt(x, label, deals=100)
    np.testing.assert_allclose(found.eta_squared, effects.among(x, label).eta_squared, atol=1e-12)
    assert (
        found.left == pytest.approx(1) and found.n == 36 and found.nominal == (effects.among(x, label).p <= 0.05).sum()
    )
    two, gender = (x[label != "c"], label[label != "c"])
    mine, theirs = covariates.dealt(two, gender, deals=4_000), permutation.relabelled(two, gender, deals=4_000)
    np.testing.assert_allclose(mine.p, theirs.p, atol=0.04)
    t = theirs.threshold * np.sqrt(6)
    assert mine.threshold == pytest.approx(t**2 / (t**2 + 22), abs=0.03)


def test_of_two_groups_it_is_the_t_of_adjusted():
    rng = np.random.default_rng(0)
    label, told = np.resize(["a", "b"], 30), pd.DataFrame({"level": rng.normal(size=30), "length": rng.normal(size=30)})
    x = rng.normal(size=(30, 6)) + told.level.to_numpy()[:, None]
    found, theirs = covariates.dealt(x, label, told, deals=1), matching.adjusted(x, label, told)
    np.testing.assert_allclose(found.f, theirs.t**2, rtol=1e-8)
    assert found.left == pytest.approx(theirs.left[0]) and found.df == (1, theirs.df[0])


def families(kind, repeats, deals, seed=0, n=12, features=20):
    """(share of features with p ≤ 0.05, of data sets with any beyond); all hear a level that groups differ in."""
    rng, label, each, any_ = np.random.default_rng([seed, 7]), np.repeat(["f", "m"], n), [], []
    for _ in range(repeats):
        level = 1.0 * (label == "f") + rng.normal(size=2 * n)
        x = speakers.two_groups(rng, kind, 0.3, n, 5, features)
        x = x + x.std() * level[:, None]
        found = covariates.dealt(x, label, pd.DataFrame({"level": level}), deals=deals, seed=int(rng.integers(2**31)))
        each.append((found.p <= 0.05).mean())
        any_.append(found.beyond.any())
    return np.mean(each), np.mean(any_)


def test_what_the_covariate_tells_is_seldom_found():
    each, family = families("codes", 100, 199)
    assert each < 0.08 and family < 0.13


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "codes"])
def test_error_with_a_covariate_held(kind):
    """2,000 data sets in which a covariate alone tells groups apart: 5 ± 1 % a feature, and of any feature."""
    each, family = families(kind, 2000, 499)
    assert each == pytest.approx(0.05, abs=0.01) and family == pytest.approx(0.05, abs=0.01)


def test_what_is_planted_is_found_and_what_cannot_be_asked_is_not():
    rng = np.random.default_rng(0)
    label, level = np.resize(["a", "b", "c"], 48), rng.normal(size=48)
    x = rng.normal(size=(48, 40)) + level[:, None]
    x[:, 3] += 2 * (label == "b")
    x[:, 4], x[:, 5], x[0, 6] = 1.0, level, np.nan
    tested = np.arange(40) != 7
    found = covariates.dealt(x, label, pd.DataFrame({"level": level}), tested=tested, deals=2_000)
    assert np.flatnonzero(found.beyond).tolist() == [3] == np.flatnonzero(found.found).tolist()
    assert np.flatnonzero(~found.tested).tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("labels", "told", "said"),
    [
        (["a"] * 6, None, "two groups of two speakers"),
        (["a"] * 3 + ["b"] * 3, pd.DataFrame({"x": [0.0] * 3 + [1.0] * 3}), "they tell a, b apart"),
        (["a", "b"] * 3, pd.DataFrame(np.eye(6)[:, :4]), "too many for 6 speakers"),
    ],
)
def test_what_cannot_be_compared_is_refused(labels, told, said):
    with pytest.raises(ValueError, match=said):
        covariates.dealt(np.random.default_rng(0).normal(size=(6, 2)), labels, told, deals=20)
    with pytest.raises(ValueError, match="no feature can be tested"):
        covariates.dealt(np.ones((6, 2)), ["a", "b"] * 3, deals=20)
