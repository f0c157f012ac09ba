"""A feature that stands for a sound is found, and scored on folds in which it was not chosen; luck is told as luck."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from whisper_sae.features import sound_classes, sparse_acts

LABELS = np.repeat(["bark", "bell", "rain", "wind"], 12)
FOLD = np.tile([1, 2, 3, 4], 12)


def noise(features, seed=0, clips=48):
    return np.random.default_rng(seed).random((clips, features)).astype(np.float32)


def test_what_is_planted_is_found_and_nothing_else():
    values = noise(400)
    values[LABELS == "rain", 7] += 2
    values[LABELS == "bell", 9] += 0.6
    found = sound_classes.score(values, LABELS, FOLD, shuffles=99)
    told = found.table.set_index("label")
    assert told.loc["rain", ["feature", "chosen", "folds", "auc", "clips"]].tolist() == [7, 4, 4, 1, 12]
    assert told.high["rain"] == 1 and told.low["rain"] == pytest.approx(0.888, abs=1e-3), "by Newcombe: 12 against 36"
    assert told.feature["bell"] == 9 and 0.7 < told.low["bell"] < told.auc["bell"] < told.high["bell"] <= 1
    assert (told.q[["rain", "bell"]] <= 0.05).all() and (told.q[["bark", "wind"]] > 0.05).all()
    assert found.auc == pytest.approx(told.auc.mean()) and found.p == 0.01 and found.low < found.auc < found.high


def test_thousands_to_choose_from_gain_nothing():
    """Chosen and scored on the same clips, the best of 5,000 features that mean nothing looks nearly perfect."""
    found = [sound_classes.score(noise(5000, seed), LABELS, FOLD, shuffles=0, draws=10, seed=seed) for seed in range(8)]
    assert np.mean([one.table.best_auc.mean() for one in found]) > 0.8
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.04)


def test_labels_dealt_anew_give_even_p():
    p = [sound_classes.score(noise(30, seed), LABELS, FOLD, shuffles=49, draws=2, seed=seed).p for seed in range(40)]
    assert 0.4 < np.mean(p) < 0.6 and np.mean(np.array(p) <= 0.1) < 0.22


def test_what_chance_gives_is_told():
    found = sound_classes.score(noise(100), LABELS, FOLD, shuffles=60)
    assert found.by_chance == pytest.approx(0.5, abs=0.03)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.booleans())
def test_the_auc_of_one_feature_is_that_of_scikit_learn(seed, ties):
    values = np.round(noise(1, seed), 1 if ties else 8)
    told = sound_classes.score(values, LABELS, FOLD, shuffles=0, draws=2).table
    for row in told.itertuples():
        is_it = row.label == LABELS
        each = [roc_auc_score(is_it[f == FOLD], values[f == FOLD, 0]) for f in range(1, 5)]
        assert row.auc == pytest.approx(np.mean(each), abs=1e-6)
        assert row.best_auc == pytest.approx(roc_auc_score(is_it, values[:, 0]), abs=1e-6)


def test_of_equally_good_features_the_clearer_one_is_chosen():
    values = noise(6)
    values[:, 1:4] = (LABELS == "wind")[:, None] + [[0.9, 0.0, 0.5]]
    found = sound_classes.score(values, LABELS, FOLD, shuffles=0).table.set_index("label")
    assert found.loc["wind", ["feature", "chosen"]].tolist() == [2, 4]


def test_clips_of_one_recording_count_once():
    """Four clips of each of 12 recordings, alike but for a little noise: without `source` that looks like a finding."""
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(24), 4)
    labels, fold = np.repeat(["a", "b"], 48), np.tile(np.repeat([0, 1], 24), 2)
    p = {True: [], False: []}
    for seed in range(20):
        values = (rng.normal(size=(24, 3))[source] + 0.1 * rng.normal(size=(96, 3))).astype(np.float32)
        for known in p:
            asked = {"source": source} if known else {}
            p[known].append(sound_classes.score(values, labels, fold, shuffles=39, draws=2, seed=seed, **asked).p)
    small = {known: np.mean(np.array(each) <= 0.05) for known, each in p.items()}
    assert small[True] <= 0.15 < small[False]


def test_a_class_that_is_in_one_fold_alone_cannot_be_asked():
    labels = LABELS.copy()
    labels[(labels == "wind") & (FOLD != 2)] = ""
    told = sound_classes.score(noise(20), labels, FOLD, shuffles=20).table.set_index("label")
    assert np.isnan(told.loc["wind", ["auc", "low", "high", "p", "q"]].astype(float)).all() and told.clips["wind"] == 0
    assert told.auc.drop("wind").notna().all()
    nothing = sound_classes.score(noise(5)[:4], ["a", "a", "b", "b"], [1, 1, 2, 2], shuffles=5)
    assert np.isnan([nothing.auc, nothing.low, nothing.p]).all() and len(nothing.table) == 2


def test_features_that_never_fire_are_worth_nothing():
    told = sound_classes.score(np.zeros((48, 10)), LABELS, FOLD, shuffles=20)
    assert told.auc == 0.5 and told.p == 1 and (told.table.auc == 0.5).all()


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"labels": LABELS[:-1]}, "labels: 47 for 48 clips"),
        ({"labels": ["rain"] * 48}, "labels: at least two are needed, there is 'rain'"),
        ({"labels": [""] * 48}, "labels: none"),
        ({"fold": [1] * 48}, "fold: at least two are needed, there is '1'"),
        ({"source": np.arange(48) // 24}, "source: a recording has clips with two label"),
        ({"source": np.arange(48) // 12}, "source: a recording has clips with two fold"),
    ],
)
def test_what_makes_no_sense_is_refused(given_, message):
    asked = {"labels": LABELS, "fold": FOLD} | given_
    with pytest.raises(ValueError, match=message):
        sound_classes.score(noise(3), **asked)


def test_two_scores_are_compared_draw_by_draw():
    values = noise(50)
    better = values.copy()
    better[LABELS == "rain", 3] += 3
    one, other = (sound_classes.score(each, LABELS, FOLD, shuffles=0) for each in (better, values))
    mean, low, high = sound_classes.difference(one, other)
    assert mean == pytest.approx(one.auc - other.auc) and 0 < low < mean < high
    assert sound_classes.difference(one, one) == (0, 0, 0)
    with pytest.raises(ValueError, match="labels: the two scores"):
        sound_classes.difference(
            one, sound_classes.score(values, np.where(LABELS == "rain", "", LABELS), FOLD, shuffles=0)
        )


def test_the_interval_is_over_clips():
    """With one feature nothing is chosen, and the truth is in about 95 % of the intervals."""
    rng, inside = np.random.default_rng(3), 0
    for _ in range(80):
        values = (rng.normal(size=48) + 1.0 * (LABELS == "rain")).astype(np.float32)[:, None]
        told = sound_classes.score(values, LABELS, FOLD, shuffles=0, draws=200).table.set_index("label").loc["rain"]
        inside += told.low <= 0.760 <= told.high  # Φ(1 / √2)
    assert 68 <= inside <= 80


# ---------------------------------------------------------------------------------------- values of clips


@given(st.integers(0, 2**32))
def test_the_values_of_a_clip_are_those_of_its_frames(seed):
    rng = np.random.default_rng(seed)
    dense = (rng.random((30, 5)) * (rng.random((30, 5)) < 0.3)).astype(np.float32)
    clip = np.sort(rng.integers(0, 4, 30))
    for way, right in (("mean", np.mean), ("maximum", np.max)):
        found = sound_classes.by_clip(sparse_acts.of_chunks([dense]), clip, 5, way)
        for one in range(5):
            there = dense[clip == one]
            np.testing.assert_allclose(found[one], right(there, axis=0) if len(there) else 0, rtol=1e-6)


def test_there_are_two_ways():
    with pytest.raises(ValueError, match="way: 'median' is not one of mean, maximum"):
        sound_classes.by_clip(sparse_acts.of_chunks([np.ones((2, 2))]), np.zeros(2, int), 1, "median")


def test_folds_have_each_label_alike():
    found = sound_classes.folds(np.repeat(["a", "b", "c"], [8, 5, 4]), seed=1)
    for first, last in ((0, 8), (8, 13), (13, 17)):
        count = np.bincount(found[first:last], minlength=4)
        assert count.max() - count.min() <= 1
    assert (found == sound_classes.folds(np.repeat(["a", "b", "c"], [8, 5, 4]), seed=1)).all()
