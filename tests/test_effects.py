"""Effect sizes of speakers are those of scipy and statsmodels, and odd tables have a clear outcome."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from statsmodels.formula.api import ols
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.oneway import anova_oneway
from statsmodels.stats.weightstats import ttest_ind

from whisper_sae.stats import effects, stratified

sizes = st.integers(2, 9)
seeds = st.integers(0, 10_000)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def drawn(seed, *shape, ties=False):
    """Numbers of unlike size and offset a feature, as means of activations are; with `ties` some are equal."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(rng.normal(0, 3, shape[-1])) + rng.normal(0, 10, shape[-1])
    return np.round(x) if ties else x


# ------------------------------------------------------------------------------------------------ two groups


@given(seeds, sizes, sizes, st.booleans())
def test_two_groups_are_as_scipy_and_statsmodels_have_them(seed, n1, n2, ties):
    x, labels = drawn(seed, n1 + n2, 2, ties=ties), np.repeat(["female", "male"], [n1, n2])
    found = effects.between(x, labels)
    assert found.groups == ("female", "male")
    for feature, (a, b) in enumerate(zip(x[:n1].T, x[n1:].T, strict=True)):
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            continue  # below
        t, p, df = ttest_ind(a, b, usevar="unequal")
        theirs = [ttest_ind(a, b)[0] * np.sqrt(1 / n1 + 1 / n2), t, p, df]
        g = effectsize_smd(a.mean(), a.std(ddof=1), n1, b.mean(), b.std(ddof=1), n2)[0]
        auc = stats.mannwhitneyu(a, b).statistic / (n1 * n2)
        ours = [each[feature] for each in (found.d, found.t, found.p, found.df, found.g, found.auc)]
        np.testing.assert_allclose(ours, [*theirs, g, auc], **EXACT)
        np.testing.assert_allclose(found.rank_biserial[feature], 2 * auc - 1, **EXACT)
        np.testing.assert_allclose(found.means[:, feature], [a.mean(), b.mean()], **EXACT)


def test_pingouin_says_the_same():
    """Where it happens to be installed: no part of the project asks for it."""
    pingouin = pytest.importorskip("pingouin")
    x, labels = drawn(0, 17, 30), np.repeat(["a", "b"], [7, 10])
    found = effects.between(x, labels)
    many, groups = effects.among(x, thirds := np.resize(["a", "b", "c"], 17)), pd.Series(thirds)
    for feature, column in enumerate(x.T):
        for kind, ours in (("cohen", found.d), ("hedges", found.g), ("CLES", found.auc)):
            theirs = pingouin.compute_effsize(column[:7], column[7:], eftype=kind)
            np.testing.assert_allclose(ours[feature], theirs, **EXACT)
        table = pingouin.anova(pd.DataFrame({"x": column, "g": groups}), dv="x", between="g")
        np.testing.assert_allclose(many.eta_squared[feature], table.np2[0], **EXACT)


@given(seeds, st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_effect_sizes_know_no_unit(seed, offset, scale):
    x, labels = drawn(seed, 12, 3), np.resize(["a", "b"], 12)
    one, other = effects.between(x, labels), effects.between(scale * (x - x.mean(axis=0)) + scale * offset, labels)
    np.testing.assert_allclose(one.d, other.d, rtol=1e-5, atol=1e-5)


@given(seeds)
def test_the_other_way_round_is_the_negative(seed):
    x, labels = drawn(seed, 11, 3, ties=True), np.resize(["a", "b", "b"], 11)
    one, other = effects.between(x, labels, ("a", "b")), effects.between(x, labels, ("b", "a"))
    np.testing.assert_allclose(one.d, -other.d, **EXACT)
    np.testing.assert_allclose(one.auc, 1 - other.auc, **EXACT)


@given(seeds)
def test_a_speaker_without_a_value_is_as_one_who_is_not_there(seed):
    x, labels = drawn(seed, 20, 3, ties=True), np.resize(["a", "b"], 20)
    x[np.random.default_rng(seed).random(x.shape) < 0.3] = np.nan
    accents = np.resize(["x", "y", "y"], 20)
    found, held = effects.between(x, labels), stratified.within(x, labels, accents)
    many, (_, matrix) = effects.among(x, labels), effects.pairwise(x, labels)
    for feature, column in enumerate(x.T):
        there = np.isfinite(column)
        one = column[there, None]
        if min(np.sum(labels[there] == "a"), np.sum(labels[there] == "b")) < 2:
            assert np.isnan(found.d[feature])
            continue
        alone = effects.between(one, labels[there])
        for ours, theirs in zip(found[1:], alone[1:], strict=True):
            np.testing.assert_allclose(ours[..., feature], theirs[..., 0], **EXACT)
        np.testing.assert_allclose(matrix[0, 1, feature], alone.d[0], **EXACT)
        np.testing.assert_allclose(many.eta_squared[feature], effects.among(one, labels[there]).eta_squared[0], **EXACT)
        alone = stratified.within(one, labels[there], accents[there])
        for ours, theirs in zip(held[1:], alone[1:], strict=True):
            np.testing.assert_allclose(ours[feature], theirs[0], **EXACT)


# ----------------------------------------------------------------------------------------------- many groups


@settings(max_examples=25)
@given(seeds, st.lists(st.integers(1, 7), min_size=2, max_size=6).filter(lambda sizes: max(sizes) > 1))
def test_many_groups_are_as_statsmodels_has_them(seed, sizes):
    x, labels = drawn(seed, sum(sizes), 2), np.repeat([f"group {i}" for i in range(len(sizes))], sizes)
    found = effects.among(x, labels)
    for feature, column in enumerate(x.T):
        table = sm.stats.anova_lm(ols("x ~ g", pd.DataFrame({"x": column, "g": labels})).fit())
        between, within = table.sum_sq
        noise = table.mean_sq.iloc[1]
        omega = (between - table.df.iloc[0] * noise) / (between + within + noise)
        ours = [each[feature] for each in (found.eta_squared, found.omega_squared, found.f, found.p)]
        theirs = [between / (between + within), omega, table.F.iloc[0], table["PR(>F)"].iloc[0]]
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)  # theirs, by a formula, is not as exact
        if min(sizes) > 1:
            f = anova_oneway([column[labels == name] for name in np.unique(labels)], use_var="equal").statistic
            eta = f * (len(sizes) - 1) / (f * (len(sizes) - 1) + sum(sizes) - len(sizes))
            np.testing.assert_allclose(ours[0], eta, **EXACT)


def test_pairs_of_groups():
    x, labels = drawn(0, 20, 5), np.resize(["a", "b", "c", "c"], 20)
    labels[-3:] = ["d", "", "d"]
    names, found = effects.pairwise(x, labels, least=3)
    assert names == ("a", "b", "c") and found.shape == (3, 3, 5)
    assert (np.diagonal(found) == 0).all() and (found == -found.swapaxes(0, 1)).all()
    np.testing.assert_allclose(found[0, 2], effects.between(x, labels, ("a", "c")).d, **EXACT)


# -------------------------------------------------------------------------------------------------- speakers


def test_a_speaker_counts_once_however_many_clips():
    """One woman of 1,000 clips is one of three: her clips do not make the mean of women hers."""
    speaker = np.repeat(["w1", "w2", "w3", "m1", "m2"], [1000, 1, 2, 3, 1])
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(speaker), 2)) + 50 * (speaker == "w1")[:, None]
    labels = pd.DataFrame({"gender": np.where(np.char.startswith(speaker, "w"), "F", "M")})
    cast = effects.voices(values, speaker, labels)
    assert cast.clips.tolist() == [3, 1, 1000, 1, 2] and cast.labels.index.tolist() == ["m1", "m2", "w1", "w2", "w3"]
    np.testing.assert_allclose(cast.means[2], values[:1000].mean(axis=0), **EXACT)
    found = effects.between(cast.means, cast.labels.gender)
    assert found.n[:, 0].tolist() == [3, 2]
    np.testing.assert_allclose(found.means[0], cast.means[2:].mean(axis=0), **EXACT)


def test_what_features_say_of_clips():
    codes = np.array([[0, 2.0], [4, 0], [0, 0], [1, 0], [3, 0]])
    found = effects.of_clips(sparse.csc_array(codes), np.array([0, 2, 3, 5]))
    assert found.rate.tolist() == [[0.5, 0.5], [0, 0], [1, 0]]
    np.testing.assert_array_equal(found.when_firing, [[4, 2], [np.nan, np.nan], [2, np.nan]])
    assert found.mean.tolist() == [[2, 1], [0, 0], [2, 0]]


def test_clips_without_a_value_do_not_count_and_may_leave_a_speaker_without():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0], [2.0, 4.0]])
    cast = effects.voices(values, ["a", "a", "a", "b"])
    np.testing.assert_allclose(cast.means, [[2.0, 5.0], [2.0, 4.0]])
    only = effects.voices(values[:2], ["a", "b"])
    assert np.isnan(only.means[:, 1]).all() and only.labels.empty


def test_stray_spaces_and_case_make_no_group_of_their_own():
    told = effects.tidy([" Female", "female ", "FEMALE", "new  Zealand", None, np.nan, "N/A", " unknown", "", pd.NA, 3])
    assert told.tolist() == ["female"] * 3 + ["new zealand"] + [""] * 6 + ["3"]
    x = drawn(0, 8, 2)
    mixed = [" F", "f", "F ", "f", "m", " M", "", "m\t"]
    found = effects.between(x, mixed, ("F", " m "))
    assert found.groups == ("f", "m") and found.n[:, 0].tolist() == [4, 3]


def test_clips_without_a_speaker_or_label():
    values = drawn(0, 7, 2)
    speaker = ["a", " a", "", None, np.nan, "b", "c"]
    labels = pd.DataFrame({"gender": ["F", "", "M", "M", "M", "unknown", "m "]})
    cast = effects.voices(values, speaker, labels)
    assert cast.nameless == 3 and cast.clips.tolist() == [2, 1, 1]
    assert cast.labels.gender.tolist() == ["f", "", "m"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: effects.voices(np.ones((2, 1)), ["a", "a"], pd.DataFrame({"gender": ["F", "M"]})),
         "gender: speaker 'a' is both f and m"),
        (lambda: effects.voices(np.ones((2, 1)), ["a"]), r"values: \(2, 1\) is not \(clip, feature\) for 1 clips"),
        (lambda: effects.voices(np.ones((2, 1)), ["", None]), "speaker: no clip names one"),
        (lambda: effects.voices(np.array([[np.inf]]), ["a"]), "values: some are infinite"),
        (lambda: effects.between(np.ones((4, 1)), ["f"] * 4), "labels: 1 groups (f), not two"),
        (lambda: effects.between(np.ones((4, 1)), ["f", "m", "d", ""]), "labels: 3 groups (d, f, m), not two"),
        (lambda: effects.between(np.ones((4, 1)), ["f", "f", "f", ""], ("f", "m")), "labels: 0 speakers are 'm'"),
        (lambda: effects.between(np.ones((4, 1)), ["f", "f", "f", "m"]), "labels: 1 speakers are 'm'"),
        (lambda: effects.among(np.ones((3, 1)), ["a", "b", ""]), "labels: 2 groups of 2 speakers"),
        (lambda: stratified.within(np.ones((4, 1)), ["f", "f", "m", "m"], ["x", "x", "y", "y"]),
         "strata: none has both f and m"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(what, said):
    with pytest.raises(ValueError) as refused:
        what()
    assert said.replace("\\", "") in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 / 3])
def test_a_constant_feature_has_no_effect_size(value):
    """Not zero: nothing can be said. That a sum of 0.1 is not exact in binary must make no difference."""
    x, labels = np.full((14, 1), value), np.resize(["a", "b"], 14)
    found, many = effects.between(x, labels), effects.among(x, labels)
    for each in (found.d, found.g, found.auc, found.t, found.p, many.eta_squared, many.f, many.p, many.omega_squared):
        assert np.isnan(each).all()
    assert np.isnan(stratified.within(x, labels, np.resize(["x", "x", "y"], 14)).d).all()
    assert not effects.live(x).any()


def test_groups_that_do_not_vary_in_themselves_are_infinitely_apart():
    x, labels = np.array([[0.1, 5.0]] * 3 + [[0.7, 2.0]] * 4), ["a"] * 3 + ["b"] * 4
    found = effects.between(x, labels)
    assert found.d.tolist() == [-np.inf, np.inf] and found.auc.tolist() == [0, 1]
    assert np.isnan(found.p).all() and np.isnan(found.t).all()
    assert effects.among(x, labels).eta_squared == pytest.approx(1)


def test_live_features():
    x = np.zeros((10, 4))
    x[:5, 1] = 1
    x[:6, 2] = 1
    x[:, 3] = 2
    assert effects.live(x).tolist() == [False, False, True, False]
    assert effects.live(x, 5).tolist() == [False, True, True, False]
