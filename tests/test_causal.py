"""The recipes of causal effects on a handful of the demo's clips: what they write is what their tables say."""

import numpy as np
import pandas as pd
import pytest

from whisper_sae import (
    causal,
    dictionaries,
    erasing,
    faithfulness,
    hallucination,
    meaning,
    patching,
    phonetics,
    profiles,
    recipes,
    store,
    targeted,
)

SITE = "encoder.2.resid"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo with a small and hastily trained dictionary, in a store of this module's own."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("causal")
    patch.setenv("WHISPER_SAE_DATA", str(folder))
    patch.setattr(hallucination, "EACH", 3)
    patch.setattr(targeted, "POOL", 20)
    small = profiles.replace(profiles.choose("demo"), sites=(SITE,), focus=SITE, tokens=20_000, sweep_tokens=0,
                             clips_per_speaker=3, source="")  # fmt: skip
    for recipe in (recipes.clips(small, 0), recipes.activations(small, 0), dictionaries.dictionary(small, 0, SITE)):
        store.make(recipe)
    causal.gathered.cache_clear()
    yield small
    causal.gathered.cache_clear()
    patch.undo()


def test_clips_are_those_of_speakers_held_out_a_few_of_each(run):
    some = causal.gathered(run, 0, (SITE,))
    assert set(some.clips.split) == {"validation", "test"} and some.spoken.all()
    few = some.fewer(2, seed=0)
    assert pd.Series(few.speakers).value_counts().max() == 2
    assert few.clips["clip"].tolist() == [c for c in some.clips["clip"] if c in set(few.clips["clip"])]
    row = int(np.flatnonzero(some.clips["clip"] == few.clips["clip"][3])[0])
    assert few.heard[SITE].plain[3] == some.heard[SITE].plain[row]
    assert few.scorer.said[3] == some.scorer.said[row]
    assert not causal.gathered(run, 0, (SITE,), spoken=False).spoken.any()
    with pytest.raises(ValueError, match="none with words of nowhere"):
        causal.gathered(run, 0, (SITE,), splits=("nowhere",))


def test_at_most_so_many_and_the_speakers_in_turn():
    table = pd.DataFrame({"speaker": ["a"] * 5 + ["b"] * 2 + [""] * 2, "id": [*"123456789"]})
    four = causal.drawn(table, 0, 4, 0)
    assert sorted(four.speaker) == ["", "", "a", "b"] and four.index.is_monotonic_increasing
    assert causal.drawn(table, 1, 9, 0).speaker.value_counts().to_dict() == {"": 2, "a": 1, "b": 1}


def test_faithfulness_of_what_is_left_alone_is_whole(run):
    step = store.make(faithfulness.faithful(run, 0, SITE, a_speaker=1))
    told = faithfulness.summary(step).set_index("way")
    plain = told.loc[faithfulness.UNTOUCHED]
    assert plain.more == plain.more_low == plain.more_high == 0 and plain.divergence == 0
    assert plain.WER_recovered == plain.loss_recovered == 100
    assert told.loc[faithfulness.MEAN].WER_recovered == told.loc[faithfulness.MEAN].loss_recovered == 0
    assert told.loc[faithfulness.ITS].WER < told.loc["random dictionary"].WER
    assert told.loc[faithfulness.ITS].cross_entropy < told.loc["principal directions"].cross_entropy
    assert set(told.index) >= {"neurons", faithfulness.ZERO, faithfulness.EVERYWHERE}
    assert (told.clips == step.facts["clips"]).all()


def test_recovered_shares_by_hand():
    lost = np.array([[1.0, 1.0], [5.0, 5.0], [2.0, 2.0], [9.0, 9.0]])
    found = faithfulness.recovered(lost, 0, 1, ["a", "b"])
    assert found[:, 0].tolist() == [100, 0, 75, -100]
    np.testing.assert_allclose(found[2], 75)
    assert np.isnan(faithfulness.recovered(lost[[0, 0]], 0, 1, ["a", "b"])).all()


def test_effects_of_silenced_features_are_measured_where_they_fire(run):
    step = targeted.measured(run, 0, SITE)
    known, less = step.table("features.csv"), step.array("less.npy")
    words = step.table("words.csv")
    assert less.shape == (len(known), len(words)) and np.isfinite(less).all()
    own = known[known.along == "own"].reset_index(drop=True)
    some = causal.gathered(run, 0, causal.sites_of(run)).fewer(4, seed=0)
    coded = patching.Coded(some.heard[SITE], causal.coder_of(run, 0, SITE))
    for row, feature in list(enumerate(own.feature))[::9]:
        silent = ~coded.fires([int(feature)])
        clips = set(some.clips["clip"][silent])
        assert not less[row][words["clip"].isin(clips)].any(), "nothing changes where it never fires"
    table, null = targeted.phones(run, 0, step)
    assert (table.p > 0).all() and (table.p <= 1).all() and len(null) == len(table)
    assert (table.p == table[["p_words", "p_controls"]].max(axis=1)).all() and (table.q >= table.p - 1e-12).all()
    detected = phonetics.read(store.need(phonetics.detection(run, 0, SITE)), "labels.csv").set_index("label").feature
    assert (detected[table.phone].to_numpy() == table.feature.to_numpy()).all()
    assert store.need(meaning.codes(run, 0, SITE))


def test_doses_change_nothing_at_one(run):
    targeted.measured(run, 0, SITE)
    step = store.make(targeted.dose(run, 0, SITE, most=2))
    told = targeted.dosed(run, 0, step)
    assert len(told) == 2 * 2 * len(targeted.SCALES)
    one = told[told.scale == 1]
    assert not one[["holding", "others", "effect"]].to_numpy().any()
    assert {"said", "wrote", "phones", "times", "phone"} <= set(targeted.became(run, 0, step).columns)


@pytest.mark.parametrize("concept", ["gender", "manner:nasal"])
def test_erasing_begins_with_the_whole_and_one_direction_is_a_rival(run, concept):
    step = store.make(erasing.erased(run, 0, SITE, concept, frames=1500, a_speaker=1))
    left = erasing.curves(step).set_index(["way", "count"]).right
    assert left["best removed", 0] == left["random removed", 0] > 0.6
    assert left["LEACE removed", 1] < left["best removed", 0]
    words = erasing.words(step)
    assert words.way[0] == "untouched" and words.more[0] == 0 and len(words) == 1 + 3 * len(erasing.IN_WORDS)
    assert erasing.gone_at(step, "best removed") in (-1, *erasing.COUNTS)


def test_the_bench_tells_both_sides(run):
    step = store.make(hallucination.bench(run, 0, SITE, spoken=8))
    kinds = hallucination.by_kind(step)
    assert kinds.sounds.sum() == step.facts["sounds"] and (kinds.made_up <= kinds.sounds).all()
    told = hallucination.steered(step).set_index(["direction", "strength"])
    untouched = told.xs(0.0, level="strength")
    assert untouched.made_up.nunique() <= 1 and untouched.WER.nunique() == 1 and not untouched.more.any()
    assert told.more["mean difference", 0.5] > 10, "what leads away from speech deafens in the end"
    assert hallucination.detected(step).no_speech.between(0.5, 1).all()


def test_proportions_are_wilsons():
    share, low, high = hallucination.proportion(5, 10)
    assert share == 50 and (low, high) == pytest.approx((23.66, 76.34), abs=0.01)
    assert hallucination.proportion(0, 10)[1] == 0 and np.isnan(hallucination.proportion(0, 0)).all()
