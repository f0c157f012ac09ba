"""Trials on corpora drawn from known people: what counts as true, and how often it is held."""

import numpy as np
import pandas as pd
import pytest
from speakers import people

from whisper_sae import cache
from whisper_sae.experiments import calibration_study, feature_index, pipeline, sae_comparison, speakers
from whisper_sae.stats import effects, permutation, stratified

SITE = "encoder.1.resid"


def test_the_truth_is_what_many_speakers_drawn_again_come_to():
    rng = np.random.default_rng(0)
    x, first = rng.exponential(size=(20, 4)) * (rng.random((20, 4)) < 0.6), np.arange(20) < 8
    big = np.concatenate([x[first][rng.integers(0, 8, 80_000)], x[~first][rng.integers(0, 12, 120_000)]])
    side = np.arange(200_000) < 80_000
    gap, spread = big[side].mean(0) - big[~side].mean(0), (7 * big[side].var(0) + 11 * big[~side].var(0)) / 18
    np.testing.assert_allclose(calibration_study.truth(x, first), gap / np.sqrt(spread), atol=0.02)


def test_intervals_hold_the_truth_of_people_that_are_known():
    cast = people(planted=2.0)
    (table,) = calibration_study.covered(cast, "gender", trials=10)
    assert len(table) == 60 and (table.drawn == 10).all() and table.inside.sum() / table.drawn.sum() > 0.9
    assert table.set_index("feature").right[0] == 10 and table.wrong.sum() < 20
    three = calibration_study.covered(cast, "accent", trials=3)
    assert [part.one[0] for part in three] == ["a", "b", "c"] and {part.other[0] for part in three} == {"all others"}
    cast.labels["rare"] = np.where(np.arange(48) < 5, "x", "y")
    assert calibration_study.covered(cast, "rare", trials=3) == []


def two_corpora(planted=0.0, seed=0, n=20):
    """Women and men 20 : 6 in one corpus and 6 : 20 in the other; every feature is of the corpus, and feature 0 is
    `planted` SDs higher in women as well."""
    rng = np.random.default_rng(seed)
    corpus = np.repeat(["a", "b"], n + 6)
    gender = np.repeat(["female", "male"] * 2, [n, 6, 6, n])
    x = rng.normal(size=(len(corpus), 60)) + 5 + 3 * (corpus == "a")[:, None]
    x[:, 0] += planted * (gender == "female")
    return effects.Voices(x, pd.DataFrame({"gender": gender}), np.ones(len(x), int), 0, corpus)


def test_a_label_that_goes_with_the_corpus_is_tried_within_it():
    cast = two_corpora()
    alone = cast._replace(corpus=None)
    (within,), (across,) = (calibration_study.covered(each, "gender", trials=6) for each in (cast, alone))
    assert across.true.mean() > 0.9 and across.right.sum() / across.drawn.sum() > 0.7, "the corpus passes for gender"
    assert within.true.abs().mean() < 0.4 and within.inside.sum() / within.drawn.sum() > 0.9
    assert within.right.sum() / within.drawn.sum() < 0.3
    (planted,) = calibration_study.covered(two_corpora(planted=3.0), "gender", trials=6)
    assert planted.true[0] > 2 and planted.right[0] == 6 and planted.inside[0] >= 4
    held = permutation.nothing(cast.means, cast.labels.gender, None, cast.corpus, relabelings=60, deals=2000)
    assert (held.found == 0).mean() > 0.85 and (held.beyond == 0).mean() > 0.85


@pytest.mark.slow
def test_the_truth_within_strata_is_what_draws_come_to_on_average():
    cast, rng = two_corpora(planted=2.0), np.random.default_rng(0)
    x, first, corpus = cast.means[:, :4], (cast.labels.gender == "female").to_numpy(), cast.corpus
    x[:, 1] += 2 * (first & (corpus == "a"))  # another difference in each corpus
    cells = [np.flatnonzero((corpus == one) & side) for one in "ab" for side in (first, ~first)]
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(cell, len(cell)) for cell in cells])
        drawn.append(stratified.within(x[rows], np.where(first[rows], "x", "y"), corpus[rows], ("x", "y")).d)
    np.testing.assert_allclose(calibration_study.truth(x, first, corpus), np.mean(drawn, axis=0), rtol=0.06, atol=0.03)


def test_numbers_that_were_planted_are_measured_as_features_are():
    labels = people().labels.assign(mic=np.tile(["near", "near", "far", "far"], 12))
    level = np.where(labels.mic == "near", 0.0, -8.0) + np.random.default_rng(0).uniform(0, 6, 48)
    known = [("level", "mic", ("near", "far"), 8 / np.sqrt(3)), ("level", "gender", ("female", "male"), 0.0)]
    table = calibration_study.planted(pd.DataFrame({"level": level}), labels, known)
    assert table.inside.all() and table.n.tolist() == ["24 + 24"] * 2 and table.groups[0] == "near – far"
    assert not calibration_study.planted(pd.DataFrame({"level": level}), labels, [(*known[0][:3], 1.0)]).inside.any()


def test_the_step_holds_both(small_whisper, corpus, run_for, data, monkeypatch):
    monkeypatch.setattr(calibration_study, "TRIALS", 2)
    run = run_for(small_whisper, corpus(voices=14, clips=3), tokens=2_000)
    cache.make(pipeline.clips(run, 0)), cache.make(pipeline.activations(run, 0))
    cache.make(sae_comparison.dictionary(run, 0, SITE)), cache.make(feature_index.codes(run, 0, SITE))
    cache.make(speakers.of_features(run, 0, SITE))
    step = cache.make(calibration_study.tried(run, 0, SITE, "gender", ["gender"], relabelings=20))
    nothing, covered = step.table("nothing.csv"), step.table("covered.csv")
    assert len(nothing) == 20 and step.facts["none"] == (nothing.found == 0).sum() >= 15
    assert set(covered.label) == {"gender"} and (covered.inside <= covered.drawn).all()
    bare = cache.make(calibration_study.tried(run, 0, SITE, "", []))
    assert bare.facts == {"relabelings": 0, "none": 0, "pairs": 0}
    with pytest.raises(FileNotFoundError):
        bare.table("covered.csv")
