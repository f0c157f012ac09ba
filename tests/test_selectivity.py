"""Scores of feature × label are those of scikit-learn on dense codes; odd features and labels give sensible ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    f1_score,
    mutual_info_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)

from whisper_sae.features import selectivity, sparse_acts


@st.composite
def worlds(draw):
    """Few different values, so that ties are many; some rare labels; features that never or always fire."""
    frames, features = draw(st.integers(6, 40)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dense = rng.integers(0, draw(st.integers(1, 6)), (frames, features)) * (rng.random((frames, features)) < 0.6)
    if draw(st.booleans()):
        dense[:, 0] = draw(st.sampled_from([0, 1]))
    label = rng.integers(0, draw(st.integers(2, 5)), frames)
    label[:2] = [0, 1]
    return dense.astype(np.float32) / 4, label


def prepared(dense, label, speaker=None, clip=None):
    none = np.zeros(len(label), int)
    made = sparse_acts.of_chunks([dense])
    return sparse_acts.known(
        made, label.astype(str), none if speaker is None else speaker, none if clip is None else clip
    )


def each(dense, frames):
    """Every feature and label: their numbers, the feature's values, and whether the label is there."""
    for feature in range(dense.shape[1]):
        for label in range(len(frames.names)):
            yield feature, label, dense[:, feature], frames.label == label


@given(worlds())
def test_auc_is_that_of_scikit_learn(world):
    made, frames = prepared(*world)
    ours = selectivity.ranked(made, frames).auc(frames.label)
    for feature, label, value, there in each(world[0], frames):
        assert ours[feature, label] == pytest.approx(roc_auc_score(there, value))


@given(worlds())
def test_information_is_that_of_scikit_learn(world):
    made, frames = prepared(*world)
    fires = sparse_acts.coincidences(made, frames.label, len(frames.names))
    ours = selectivity.information(fires, frames.count)
    for feature, label, value, there in each(world[0], frames):
        assert ours[feature, label] == pytest.approx(mutual_info_score(there, value > 0) / np.log(2), abs=1e-12)


@given(worlds())
def test_the_best_threshold_is_that_of_all_thresholds(world):
    made, frames = prepared(*world)
    cut, best = selectivity.thresholds(made, frames)
    for feature, label, value, there in each(world[0], frames):
        precision, recall, at = precision_recall_curve(there, value)
        positive = at > 0  # a threshold at which the feature fires
        with np.errstate(invalid="ignore"):
            f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1][positive]
        assert best[feature, label] == pytest.approx(f1.max(initial=0))
        if best[feature, label]:
            assert f1_score(there, value >= cut[feature, label]) == pytest.approx(best[feature, label])
        else:
            assert cut[feature, label] == np.inf


@given(worlds(), st.integers(0, 2**32))
def test_precision_and_recall_at_any_threshold(world, seed):
    made, frames = prepared(*world)
    cut = np.random.default_rng(seed).choice([0.25, 0.5, 0.6, 1.0, np.inf], (made.shape[1], len(frames.names)))
    found = selectivity.at_thresholds(made, frames, cut)
    for feature, label, value, there in each(world[0], frames):
        said = value >= cut[feature, label]
        assert found.f1[feature, label] == pytest.approx(f1_score(there, said))
        assert found.recall[feature, label] == pytest.approx(recall_score(there, said))
        wanted = precision_score(there, said) if said.any() else np.nan
        assert found.precision[feature, label] == pytest.approx(wanted, nan_ok=True)


@given(worlds(), st.integers(1, 6), st.integers(1, 4))
def test_purity_is_that_of_the_top_clips(world, clips, top):
    dense, label = world
    clip = np.sort(np.arange(len(label)) % clips)
    dense = dense + np.where(dense > 0, np.arange(dense.size).reshape(dense.shape) / 1e4, 0).astype(
        np.float32
    )  # no ties
    made, frames = prepared(dense, label, clip=clip)
    share, number = selectivity.purity(made, frames, top)
    for feature in range(dense.shape[1]):
        peaks = [max(np.flatnonzero(clip == c), key=lambda row: dense[row, feature]) for c in range(clip.max() + 1)]
        peaks = sorted((row for row in peaks if dense[row, feature] > 0), key=lambda row: -dense[row, feature])[:top]
        assert number[feature] == len(peaks)
        wanted = [
            np.mean([frames.label[row] == n for row in peaks]) if peaks else np.nan for n in range(len(frames.names))
        ]
        np.testing.assert_allclose(share[feature], wanted)


@given(worlds())
def test_lift_is_a_ratio_of_rates(world):
    made, frames = prepared(*world)
    found = selectivity.lift(sparse_acts.coincidences(made, frames.label, len(frames.names)), frames.count)
    for feature, label, value, there in each(world[0], frames):
        wanted = (value[there] > 0).mean() / (value > 0).mean() if (value > 0).any() else np.nan
        assert found[feature, label] == pytest.approx(wanted, nan_ok=True)


@given(worlds(), st.integers(1, 50))
def test_blocks_of_features_change_nothing(world, most):
    made, frames = prepared(*world)
    choosing = np.arange(len(frames.label)) % 2 == 0
    whole = selectivity.scores(made, frames, choosing)
    was = sparse_acts.blocks.__defaults__
    try:
        sparse_acts.blocks.__defaults__ = (most,)
        apart = selectivity.scores(made, frames, choosing)
    finally:
        sparse_acts.blocks.__defaults__ = was
    for name, one, other in zip(whole._fields, whole, apart, strict=True):
        if name != "names":
            np.testing.assert_array_equal(one, other, name)


def test_the_spread_of_auc_is_what_shuffles_give():
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 4, (300, 3)) * (rng.random((300, 3)) < [0.05, 0.4, 1])
    made, frames = prepared(dense.astype(np.float32), rng.integers(0, 3, 300))
    known = selectivity.ranked(made, frames)
    shuffled = np.stack([known.auc(rng.permutation(frames.label)) for _ in range(2000)])
    np.testing.assert_allclose(shuffled.std(axis=0), known.spread, rtol=0.08)
    np.testing.assert_allclose(shuffled.mean(axis=0), 0.5, atol=4 * known.spread.max() / 2000**0.5)


# ------------------------------------------------------------------------------------------ what is planted is found


def planted(seed=0, speakers=6, frames=400):
    """Ten features of chance; 0 follows label s, loudly; 1 never fires; 2 is always as loud; 3 is loud on s and t."""
    rng = np.random.default_rng(seed)
    rows = speakers * frames
    label = np.repeat(rng.choice(list("stie"), rows // 5), 5)
    dense = rng.exponential(0.2, size=(rows, 10)) * (rng.random((rows, 10)) < 0.1)
    dense[:, 0] = np.where(label == "s", rng.uniform(2, 3, rows) * (rng.random(rows) < 0.9), dense[:, 0])
    dense[:, 1], dense[:, 2] = 0, 1
    dense[:, 3] = np.where(np.isin(label, ["s", "t"]), rng.uniform(2, 3, rows), dense[:, 3])
    speaker, clip = np.repeat(np.arange(speakers), frames), np.repeat(np.arange(rows // 100), 100)
    return sparse_acts.known(sparse_acts.of_chunks([dense]), label, speaker, clip)


def test_a_planted_detector_is_found_by_every_score():
    made, frames = planted()
    found = selectivity.scores(made, frames, sparse_acts.half_of(frames.speaker))
    s = frames.names.tolist().index("s")
    for name in ("lift", "auc", "information", "purity", "precision", "f1", "f1_chosen"):
        score = getattr(found, name).copy()
        score[3] = np.nan  # the other one that is loud on s
        assert np.unravel_index(np.nanargmax(score), score.shape) == (0, s), name
    assert found.recall[0, s] > 0.8 and (found.recall[[0], np.arange(len(found.names)) != s] < 0.2).all()
    best = found.best()
    assert best.label[0] == "s" and best.f1[0] > 0.9 and best.purity[0] == 1 and 1.5 < best.threshold[0] < 3
    assert best.precision[3] == pytest.approx(0.5, abs=0.06) and best.recall[3] > 0.9
    assert found.purity[3].max() < 0.9


def test_odd_features_have_sensible_scores():
    made, frames = planted()
    found = selectivity.scores(made, frames, sparse_acts.half_of(frames.speaker))
    never, always = 1, 2
    assert np.isnan(found.lift[never]).all() and (found.auc[never] == 0.5).all() and found.fires[never] == 0
    assert (found.f1[never] == 0).all() and (found.recall[never] == 0).all() and np.isnan(found.precision[never]).all()
    assert np.isnan(found.purity[never]).all() and (found.information[never] == 0).all()
    assert (found.lift[always] == 1).all() and (found.auc[always] == 0.5).all() and found.fires[always] == 1
    share = found.count / found.count.sum()
    np.testing.assert_allclose(found.f1[always], 2 * share / (1 + share))
    assert (found.recall[always] == 1).all() and (found.information[always] < 1e-12).all()


def test_a_label_that_one_side_lacks():
    made, frames = planted()
    choosing = frames.speaker < 3
    e, t = (frames.names.tolist().index(name) for name in "et")
    keep = ~((frames.label == e) & choosing) & ~((frames.label == t) & ~choosing)
    made, frames = sparse_acts.part(made, frames, keep)
    found = selectivity.scores(made, frames, frames.speaker < 3)
    assert (
        (found.threshold[:, e] == np.inf).all() and (found.f1_chosen[:, e] == 0).all() and (found.f1[:, e] == 0).all()
    )
    for name in ("f1", "recall", "precision", "auc"):
        assert np.isnan(getattr(found, name)[:, t]).all(), name
    assert found.count[t] == 0 and found.best().label[0] == "s"


def test_one_speaker_and_one_clip():
    """Nobody else can be asked: what was not chosen is told, what was is NaN."""
    made, frames = planted(speakers=1)
    frames = frames._replace(clip=np.zeros_like(frames.clip))
    found = selectivity.scores(made, frames, sparse_acts.half_of(frames.speaker))
    assert np.isnan(found.f1).all() and found.f1_chosen[0].max() > 0.9 and found.auc[0].max() > 0.9
    assert set(np.unique(found.purity[0])) == {0, 1}, "one clip has one peak"
    assert selectivity.purity(made, frames)[1].max() == 1


def test_equal_activations_have_one_threshold():
    label = np.array(list("ssssttiiee") * 4)
    made, frames = prepared(np.where(label == "s", 1.0, 0)[:, None].astype(np.float32), label)
    cut, best = selectivity.thresholds(made, frames)
    s = frames.names.tolist().index("s")
    assert best[0, s] == 1 and cut[0, s] == 1 and (np.delete(best[0], s) == 0).all()


def test_what_was_chosen_is_not_what_is_told():
    """Of codes of chance, the best threshold looks better where it was chosen than for other speakers."""
    rng = np.random.default_rng(1)
    dense = rng.exponential(size=(600, 80)) * (rng.random((600, 80)) < 0.05)
    made, frames = prepared(
        dense, rng.integers(0, 6, 600), speaker=np.repeat(np.arange(6), 100), clip=np.arange(600) // 20
    )
    best = selectivity.scores(made, frames, sparse_acts.half_of(frames.speaker)).best()
    assert best.f1_chosen.mean() > 1.5 * best.f1.mean()
