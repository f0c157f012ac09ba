"""Chance is found as often as it should be, and what is planted is found."""

import math

import numpy as np
import pytest
import speakers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from whisper_sae.stats import effects, permutation, stratified


def alike(rng, kind, icc, n, each, features):
    """Speakers' means of features of which neighbours have something in common, as those of a dictionary have."""
    x = speakers.two_groups(rng, kind, icc, n, each, features + 1)
    return x[:, :-1] + 0.7 * x[:, 1:]


# ------------------------------------------------------------------------------------------------ what it is


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(3, 5), st.integers(3, 5))
def test_every_deal_of_a_small_design_is_as_scipy_has_it(seed, n1, n2):
    rng = np.random.default_rng(seed)
    x = np.round(10 * rng.normal(size=(n1 + n2, 3)))  # whole numbers: scipy's ties are then exact
    labels = np.repeat(["a", "b"], [n1, n2])
    found = permutation.relabelled(x, labels)
    assert found.exact and found.deals == math.comb(n1 + n2, n1)

    def size(one, other, axis):
        return np.abs(one.mean(axis=axis) - other.mean(axis=axis))  # goes up with |d|

    for feature in range(3):
        parts = (x[:n1, feature], x[n1:, feature])
        theirs = stats.permutation_test(parts, size, vectorized=True, alternative="greater", n_resamples=np.inf)
        assert found.p[feature] == pytest.approx(theirs.pvalue)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_d_is_that_of_effects(seed, crossed, missing):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(40, 4)) + 5, rng.permutation(np.resize(["a", "b"], 40))
    if missing:
        x[rng.random(x.shape) < 0.4] = np.nan
    strata = rng.integers(0, 4, 40).astype(str) if crossed else None
    found = permutation.relabelled(x, labels, strata=strata, deals=50)
    theirs = stratified.within(x, labels, strata) if crossed else effects.between(x, labels)
    np.testing.assert_allclose(found.d, theirs.d, atol=1e-9)
    np.testing.assert_array_equal(found.nominal, (theirs.p <= 0.05).sum() if crossed else found.nominal)


def test_labels_change_places_within_strata_only():
    first, stratum = np.array([1, 1, 0, 0, 0, 1, 0, 1], bool), np.array([0, 0, 0, 1, 1, 1, 2, 2])
    for orders in (
        permutation._every(first, stratum),
        permutation._drawn(first, stratum, 600, np.random.default_rng(0)),
    ):
        dealt = np.concatenate(list(orders))
        for one in range(3):
            assert (dealt[:, stratum == one].sum(axis=1) == first[stratum == one].sum()).all()
        assert len(np.unique(dealt, axis=0)) == 3 * 3 * 2
    assert len(np.concatenate(list(permutation._every(first, stratum)))) == 18
    assert len(dealt) == 601 and (dealt[0] == first).all()


def test_the_threshold_is_the_level_of_the_greatest_of_all():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(30, 80)), np.resize(["a", "b"], 30)
    found = permutation.relabelled(x, labels, deals=999)
    greatest = []
    for _ in range(400):
        greatest.append(np.abs(effects.between(x, rng.permutation(labels)).d).max())
    assert found.threshold == pytest.approx(np.quantile(greatest, 0.95), abs=0.08)
    assert (found.beyond == (np.abs(found.d) > found.threshold)).all()
    assert (found.p_family >= found.p).all() and (found.q >= found.p).all()
    assert found.by_chance.mean() == pytest.approx(4, abs=0.6) and len(found.by_chance) == found.deals == 1000


# ------------------------------------------------------------------------------------------------ calibration


def false_positives(kind, icc, n, each=20, repeats=2000, deals=999, seed=0):
    """From clips to p: the share of features without an effect that have p ≤ 0.05; and the same by Welch's t."""
    rng = np.random.default_rng([seed, n, round(10 * icc)])
    values = speakers.clips(rng, kind, icc, 2 * n, each, repeats).reshape(-1, repeats)
    who = np.repeat([f"s{number:03d}" for number in range(2 * n)], each)
    cast = effects.voices(values, who)
    labels = rng.permutation(np.resize(["f", "m"], 2 * n))
    found = permutation.relabelled(cast.means, labels, deals=deals, seed=seed)
    clip_by_clip = stats.ttest_ind(*(values[np.isin(who, cast.labels.index[labels == one])] for one in "fm")).pvalue
    return (
        (found.p <= 0.05).mean(),
        (effects.between(cast.means, labels).p <= 0.05).mean(),
        (clip_by_clip <= 0.05).mean(),
    )


def test_few_features_without_an_effect_are_significant():
    dealt, welch, clip_by_clip = false_positives("codes", 0.3, 10, repeats=500, deals=399)
    assert 0.02 <= dealt <= 0.08 and 0.02 <= welch <= 0.08
    assert clip_by_clip > 0.3, "why clips are not counted"


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 10, 20, 60])
@pytest.mark.parametrize(("kind", "icc"), [("normal", 0.0), ("normal", 0.3), ("codes", 0.0), ("codes", 0.3)])
def test_type_one_error(kind, icc, n):
    """2,000 features from clips to p: 5 ± 1 % of them are significant at 0.05."""
    dealt, _, _ = false_positives(kind, icc, n)
    assert 0.04 <= dealt <= 0.06


def share_of_families(kind, repeats, deals, seed=0, n=10, features=40):
    """In how many of so many data sets without any effect a feature is beyond the threshold."""
    rng, labels, found = np.random.default_rng([seed, 1]), np.resize(["f", "m"], 2 * n), 0
    for _ in range(repeats):
        x = rng.permutation(alike(rng, kind, 0.3, n, 5, features))
        found += permutation.relabelled(x, labels, deals=deals, seed=int(rng.integers(2**31))).beyond.any()
    return found / repeats


def test_seldom_is_any_feature_beyond_the_threshold():
    assert share_of_families("codes", 200, 199) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "codes"])
def test_family_wise_error(kind):
    """In 5 ± 1 % of 2,000 data sets without any effect some feature is beyond the threshold."""
    assert 0.04 <= share_of_families(kind, 2000, 499) <= 0.06


def false_discoveries(kind, repeats, deals, seed=0, n=15, features=60):
    """The mean share of false ones among the discoveries: a fifth of the features have an effect."""
    rng, labels, shares, seen = np.random.default_rng([seed, 2]), np.repeat(["f", "m"], n), [], []
    true = np.arange(features) < features // 5
    for _ in range(repeats):
        x = alike(rng, kind, 0.3, n, 5, features)
        x[:n, true] += 1.2 * x[:, true].std(axis=0)
        found = permutation.relabelled(x, labels, deals=deals, seed=int(rng.integers(2**31))).found
        shares.append((found & ~true).sum() / max(found.sum(), 1))
        seen.append(found[true].mean())
    return np.mean(shares), np.mean(seen)


def test_few_discoveries_are_false():
    false, seen = false_discoveries("codes", 60, 999)
    assert false <= 0.09 and seen > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "codes"])
def test_false_discovery_rate(kind):
    """At a nominal 5 %, of which four fifths apply where a fifth of all features differ: 4 ± 2 %."""
    false, _ = false_discoveries(kind, 2000, 1999)
    assert false == pytest.approx(0.8 * 0.05, abs=0.02)


def test_a_planted_feature_is_found_within_accents_and_no_other():
    rng = np.random.default_rng(0)
    gender, accent = np.resize(["f", "m"], 48), np.repeat(["a", "b", "c", "d", "e", "f"], 8)
    x = rng.exponential(size=(48, 300)) * (1 + (np.arange(300) % 7 == 0) * (accent == "b")[:, None])
    x[:, 5] += 2.5 * (gender == "f")
    found = permutation.relabelled(x, gender, strata=accent, deals=8000)
    assert np.flatnonzero(found.beyond).tolist() == [5] and found.found[5] and found.found.sum() <= 2
    none = permutation.relabelled(x, rng.permutation(gender), strata=None, deals=2000)
    assert not none.beyond.any()


def test_speakers_who_change_places_are_asked_as_those_who_did_not():
    """Each of a few relabelings, asked again by itself."""
    rng = np.random.default_rng(0)
    x, labels = rng.exponential(size=(20, 30)), np.resize(["a", "b"], 20)
    x[:, 3] += 5 * (labels == "a")  # found as it is, and by no lot
    table = permutation.nothing(x, labels, relabelings=100, deals=2_000)
    assert len(table) == 100 and (table.found > 0).mean() < 0.12 and (table.beyond > 0).mean() < 0.12
    assert ((table.beyond > 0) == (table.p_family <= 0.05)).mean() > 0.98
    alone = permutation.nothing(x[:, :1], labels, relabelings=400, deals=2_000)
    assert (alone.q == alone.p_family).all() and (alone.q <= 0.05).mean() == pytest.approx(0.05, abs=0.04)


# ------------------------------------------------------------------------------------------------- odd input


def test_what_cannot_be_tested_is_not():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(14, 5)), np.resize(["a", "b"], 14)
    x[:, 0], x[:, 1], x[:, 2] = 0.1, np.nan, labels == "a"
    found = permutation.relabelled(x, labels, tested=np.array([True, True, True, True, False]))
    assert found.tested.tolist() == [False, False, True, True, False]
    assert found.d[2] == np.inf and found.p[2] == pytest.approx(2 / math.comb(14, 7)) and found.beyond[2]
    assert not found.found[[0, 1, 4]].any() and not found.beyond[[0, 1, 4]].any()


def test_too_few_deals_are_refused():
    x = np.random.default_rng(0).normal(size=(8, 3))
    with pytest.raises(ValueError, match=r"labels: a, b can be dealt in 6 ways, so p is never below 0\.17"):
        permutation.relabelled(x, ["a", "a", "b", "b", "", "", "", ""])
    with pytest.raises(ValueError, match="in 16 ways"):
        permutation.relabelled(x, ["a", "b"] * 4, strata=["w", "w", "x", "x", "y", "y", "z", "z"])
    with pytest.raises(ValueError, match="means: no feature can be tested"):
        permutation.relabelled(np.ones((8, 3)), ["a", "b"] * 4)


def test_how_many_have_to_be_found_together():
    x, labels = np.random.default_rng(0).normal(size=(30, 400)), np.resize(["a", "b"], 30)
    x[:, 0] += 4 * (labels == "a")
    few, many = (permutation.relabelled(x, labels, deals=deals) for deals in (99, 9999))
    assert few.least_found == 80 and not few.found.any() and few.beyond[0]
    assert many.least_found == 1 and many.found[0]
