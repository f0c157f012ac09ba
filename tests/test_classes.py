"""What is found of classes beats classes dealt anew and random dictionaries; what is planted is found; bounds hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from whisper_sae.features import item_classes

RUNS = 20


def world(seed, features=400, width=48, units=24, each=6):
    """Embeddings of items that are like their unit, and their unit a little like its class: (item, width)."""
    rng = np.random.default_rng([7, seed])
    label = np.repeat(np.arange(4), units)
    centre = rng.normal(size=(4, width))[label] * 0.35 + rng.normal(size=(4 * units, width))
    unit = np.repeat(np.arange(4 * units), each)
    return centre[unit] + 0.5 * rng.normal(size=(len(unit), width)), label[unit], unit


def random_codes(x, seed, features=400, k=20):
    """What a random dictionary says of them: the k strongest of its directions on each item fire."""
    directions = np.random.default_rng([11, seed]).normal(size=(features, x.shape[1]))
    said = (x - x.mean(axis=0)) @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    return np.where(said >= np.sort(said, axis=1)[:, -k, None], said, 0).clip(0)


def decoy(codes, label, unit, first, seed):
    return item_classes.tested(item_classes.by_unit(codes, label, unit), first, deals=120, seed=seed)


def found_in(codes, label, unit, decoys, seed):
    units = item_classes.by_unit(codes, label, unit)
    first = item_classes.halves(units, seed)
    one = item_classes.tested(units, first, seed=seed)
    return item_classes.discoveries(one, decoys, units.classes), first


@pytest.fixture(scope="module")
def twenty():
    """Twenty worlds: codes of a random dictionary, the same with a planted feature, classes dealt anew; each tested."""
    told = []
    for seed in range(RUNS):
        x, label, unit = world(seed)
        codes = random_codes(x, seed)
        rng = np.random.default_rng(seed)
        planted = codes.copy()
        wanted = np.where(label == 2, 0.7, 0.04)
        planted[:, 13] = rng.uniform(size=len(label)) < wanted
        dealt = rng.permutation(label[np.unique(unit, return_index=True)[1]])[unit]
        units = item_classes.by_unit(codes, label, unit)
        first = item_classes.halves(units, seed)
        decoys = [decoy(random_codes(x, 100 + 50 * seed + n), label, unit, first, n) for n in range(25)]
        told.append({
            "random": found_in(codes, label, unit, decoys, seed)[0],
            "dealt": found_in(codes, dealt, unit, decoys, seed)[0],
            "planted": found_in(planted, label, unit, decoys, seed)[0],
            "naive": item_classes.naive(codes, label), "alone": found_in(codes, label, unit, [], seed)[0],
        })  # fmt: skip
    return told


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "dealt"])
def test_a_random_dictionary_and_dealt_classes_give_no_discovery_beyond_the_rate(twenty, kind):
    """At 5 % one run in twenty may have one; more than three has a chance of 1.6 %."""
    assert sum(run[kind].found.any() for run in twenty) <= 3
    assert sum(run[kind].found.sum() for run in twenty) <= 0.05 * sum(len(run[kind]) for run in twenty) / 20
    assert min(len(run[kind]) for run in twenty) > 200, "hundreds were tested"


@pytest.mark.slow
def test_a_planted_feature_is_found_in_every_run(twenty):
    for run in twenty:
        (row,) = run["planted"][run["planted"].feature == 13].itertuples()
        assert row.found and row._2 == "2" and 2.5 < row.selectivity <= 4


@pytest.mark.slow
def test_what_the_decoys_are_for(twenty):
    """Random directions hear the same items: against dealt classes alone some of them are rightly selective."""
    assert sum(run["alone"].found.sum() for run in twenty) > 20


@pytest.mark.slow
def test_the_usual_criterion_passes_anything(twenty):
    assert min(run["naive"] for run in twenty) >= 50


def test_a_feature_that_hardly_fires_is_not_tested():
    x, label, unit = world(0)
    codes = random_codes(x, 0)
    codes[:, 5] = 0
    codes[np.flatnonzero(label == 1)[:4], 5] = 1
    found, _ = found_in(codes, label, unit, [], 0)
    assert 5 not in set(found.feature) and item_classes.naive(codes[:, [5]], label) == 1


def test_one_phrase_makes_no_emotion():
    """A feature of a single unit fires on all its items, and is tested no more than once; with units it is nothing."""
    x, label, unit = world(1, units=24)
    codes = random_codes(x, 1)
    codes[:, 7] = np.isin(unit, [30, 31, 32, 33, 34])  # five phrases of class 1, and no other of its twenty-four
    found, _ = found_in(codes, label, unit, [], 1)
    assert not found[found.feature == 7].found.any()


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 10**6))
def test_selectivity_lies_between_1_and_the_number_of_classes(many, features, seed):
    """So the roadmap's examples of 4.3 to 6.3 with four classes cannot be."""
    rates = np.random.default_rng(seed).uniform(size=(many, features)) ** 8
    told = item_classes.selectivity(rates)
    assert (told >= 1 - 1e-12).all() and (told <= many + 1e-12).all()
    assert item_classes.selectivity(np.eye(many))[0] == pytest.approx(many)


def test_halves_are_of_every_class_and_stratum_and_share_no_unit():
    units = item_classes.by_unit(np.ones((48, 1)), np.repeat(np.arange(4), 12), np.arange(48), np.tile(["a", "b"], 24))
    first = item_classes.halves(units, 3)
    for label in range(4):
        for stratum in range(2):
            assert first[(units.label == label) & (units.stratum == stratum)].sum() == 3


def test_a_unit_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="'u' has items of two classes"):
        item_classes.by_unit(np.ones((2, 1)), ["a", "b"], ["u", "u"])
    with pytest.raises(ValueError, match="one has items of two classes"):
        item_classes.likeness(np.eye(2), ["a", "b"], ["u", "u"])


# ------------------------------------------------------------------------------------------------- embeddings


def test_likeness_is_the_mean_over_pairs_and_knows_its_chance():
    x, label, unit = world(3)
    one = item_classes.likeness(x, label, deals=50)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = rows @ rows.T
    upper = np.triu(np.ones_like(cosine, dtype=bool), 1)
    same = label[:, None] == label
    assert one.within == pytest.approx(cosine[upper & same].mean())
    assert one.between == pytest.approx(cosine[upper & ~same].mean())
    by_units = item_classes.likeness(x, label, unit, deals=99)
    assert by_units.within < one.within, "pairs of one unit are alike whatever its class"
    assert (
        by_units.p < 0.05
        and item_classes.likeness(x, label[np.random.default_rng(0).permutation(len(label))], deals=99).p > 0.01
    )


def test_a_match_is_found_and_chance_gives_none():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(100, 64))
    other = rng.normal(size=(100, 64))
    other[:40] = one[:40] + 0.3 * rng.normal(size=(40, 64))
    assert item_classes.matched(one, other)[0] == pytest.approx(0.4)
    assert item_classes.matched(one, rng.normal(size=(100, 64)))[0] == 0


def test_correlations_are_of_pairs_of_two_groups():
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    values = np.stack([a, a, rng.normal(size=500), np.zeros(500)], axis=1)
    told = item_classes.correlations(values, ["x", "x", "y", "y"])
    assert len(told) == 2 and told.max() < 0.2
    assert item_classes.correlations(values, ["x", "y", "y", "y"]).max() == pytest.approx(1)


# ----------------------------------------------------------------------------------- the reference's own embeddings


@pytest.fixture(scope="module")
def stored(shared):
    folder = shared / "t5_emotions"
    if not folder.is_dir():
        pytest.skip("the stored T5 embeddings are not there")
    return np.load(folder / "embeddings.npy"), np.load(folder / "labels.npy")


def test_the_stored_cosines_are_reproduced_and_their_p_is_no_t_test(stored):
    told = item_classes.likeness(*stored)
    assert (told.within, told.between) == (pytest.approx(0.5601, abs=5e-5), pytest.approx(0.4944, abs=5e-5))
    assert told.p == 1 / 2001 and told.chance_spread == pytest.approx(0.0023, abs=3e-4) and told.chance_most < 0.02


def test_the_stored_probe_is_reproduced_beside_its_chance(stored):
    x, y = stored
    for seed in range(3):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        probe = LogisticRegression(max_iter=1000)
        assert 0.94 - 1e-9 <= cross_val_score(probe, x, y, cv=folds).mean() <= 0.96 + 1e-9
        dealt = np.random.default_rng(seed).permutation(y)
        assert 0.15 <= cross_val_score(probe, x, dealt, cv=folds).mean() <= 0.36


def test_the_mean_predictor_meets_the_roadmaps_criterion(stored):
    x, _ = stored
    mse = np.square(x - x.mean(axis=0)).mean()
    assert mse == pytest.approx(0.0110, abs=5e-5) and mse < 0.02


def test_no_dimension_has_an_snr_above_1_which_none_can_have(stored):
    told = item_classes.shares(*stored)
    assert (told > 1).sum() == 0 and told.max() == pytest.approx(0.507, abs=5e-4) and len(told) == 768
    assert item_classes.shares(stored[1][:, None].astype(float), stored[1]).max() == pytest.approx(1)


def test_a_random_dictionary_passes_the_roadmap_and_not_this(stored):
    x, y = stored
    codes = random_codes(x, 0, features=6144, k=100)
    assert item_classes.naive(codes, y) > 2000
    units = item_classes.by_unit(codes, y, np.arange(100))
    assert not item_classes.discoveries(
        item_classes.tested(units, item_classes.halves(units)), [], units.classes
    ).found.any()


def test_counterparts_of_another_dictionary():
    directions = np.random.default_rng(1).normal(size=(40, 24))
    same = item_classes.counterparts(directions, directions[::-1], np.ones(40))
    assert same["found"] == 1 == same["found_by_firing"] and same["chance"] < 0.2
    half, rates = np.concatenate([directions[:20], -directions[20:]]), np.r_[np.full(20, 3.0), np.ones(20)]
    found = item_classes.counterparts(directions, half, rates)
    assert found["found"] == pytest.approx(0.5, abs=0.1) and found["found_by_firing"] > 0.7
