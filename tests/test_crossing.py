"""Differences within strata are those of two-way least squares, and what is of the strata is not of the groups."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols

from whisper_sae.stats import effects, stratified

seeds = st.integers(0, 10_000)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def drawn(seed, *shape):
    """Numbers of unlike size and offset a feature, as means of activations are."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * np.exp(rng.normal(0, 3, shape[-1])) + rng.normal(0, 10, shape[-1])


@settings(max_examples=25)
@given(seeds, st.integers(16, 40), st.integers(1, 4))
def test_within_strata_is_two_way_least_squares(seed, n, strata):
    rng = np.random.default_rng(seed)
    x, side, accent = (
        drawn(seed, n, 3),
        rng.permutation(np.resize(["a", "b"], n)),
        rng.integers(0, strata, n).astype(str),
    )
    cells = pd.crosstab(accent, side)
    if not (cells > 0).all(axis=None):
        return
    found = stratified.within(x, side, accent)
    for feature, column in enumerate(x.T):
        table = pd.DataFrame({"x": column, "first": (side == "a") * 1.0, "accent": accent})
        model = ols("x ~ first + C(accent)" if strata > 1 else "x ~ first", table).fit()
        d = model.params["first"] / np.sqrt(model.scale)
        ours = [each[feature] for each in (found.d, found.t, found.p, found.df)]
        theirs = [d, model.tvalues["first"], model.pvalues["first"], model.df_resid]
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)
        if strata > 1 and len(cells) > 1:
            full = ols("x ~ first * C(accent)", table).fit()
            np.testing.assert_allclose(
                found.interaction[feature], sm.stats.anova_lm(model, full)["Pr(>F)"][1], atol=1e-7
            )
    if strata == 1:
        np.testing.assert_allclose(found.d, effects.between(x, side).d, **EXACT)
        np.testing.assert_allclose(found.left, 1, **EXACT)


def test_what_is_of_accent_is_gone_within_accents():
    """Three women in four are Scottish and only accent matters: that shows between genders, and not within accents."""
    rng = np.random.default_rng(0)
    accent = np.repeat(["scottish", "indian"], 40)
    gender = np.concatenate([np.repeat(["f", "m"], [30, 10]), np.repeat(["f", "m"], [10, 30])])
    x = rng.normal(size=(80, 400)) + 2 * (accent == "scottish")[:, None]
    assert effects.between(x, gender).d.mean() > 0.6
    found = stratified.within(x, gender, accent)
    assert abs(found.d.mean()) < 0.05 and abs((found.p < 0.05).mean() - 0.05) < 0.04
    assert found.left[0] == pytest.approx(0.75)
    crossed = x + np.where((gender == "f") == (accent == "indian"), 1.5, -1.5)[:, None]
    assert (stratified.within(crossed, gender, accent).interaction < 0.01).all()
