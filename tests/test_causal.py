"""The recipes of causal effects on a handful of the demo's clips: what they write is what their tables say."""

import types

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from whisper_sae import cache, profiles
from whisper_sae.causal import controls, patching
from whisper_sae.data import nonspeech
from whisper_sae.experiments import (
    concept_erasure,
    evaluation_clips,
    faithfulness,
    hallucination,
    phone_ablation,
    phone_selectivity,
    pipeline,
    sae_comparison,
)
from whisper_sae.experiments.phone_tables import phones_of, words_of
from whisper_sae.model import whisper_model

SITE = "encoder.2.resid"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo with a small and hastily trained dictionary, in a store of this module's own."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("causal")
    patch.setenv("WHISPER_SAE_DATA", str(folder))
    patch.setattr(hallucination, "EACH", 2)
    patch.setattr(hallucination, "OF_CORPUS", 14)
    patch.setattr(phone_ablation, "COVERED", 6)
    patch.setattr(faithfulness, "SAMPLE", 5)
    small = profiles.replace(profiles.choose("demo"), sites=(SITE,), focus=SITE, tokens=20_000, sweep_tokens=0,
                             clips_per_speaker=3, source="")  # fmt: skip
    cache.make(pipeline.clips(small, 0))
    for one in (small, faithfulness.random_init(small)):
        cache.make(pipeline.activations(one, 0))
        cache.make(sae_comparison.dictionary(one, 0, SITE))
    evaluation_clips.gathered.cache_clear()
    yield small
    evaluation_clips.gathered.cache_clear()
    patch.undo()


def test_clips_are_those_of_speakers_held_out_a_few_of_each(run):
    some = evaluation_clips.gathered(run, 0, (SITE,))
    assert set(some.clips.split) == {"validation", "test"} and some.spoken.all()
    few = some.fewer(2, seed=0)
    assert pd.Series(few.speakers).value_counts().max() == 2
    assert few.clips["clip"].tolist() == [c for c in some.clips["clip"] if c in set(few.clips["clip"])]
    row = int(np.flatnonzero(some.clips["clip"] == few.clips["clip"][3])[0])
    assert few.heard[SITE].plain[3] == some.heard[SITE].plain[row]
    assert few.scorer.said[3] == some.scorer.said[row]
    assert not evaluation_clips.gathered(run, 0, (SITE,), spoken=False).spoken.any()
    with pytest.raises(ValueError, match="none with a transcript of nowhere"):
        evaluation_clips.gathered(run, 0, (SITE,), splits=("nowhere",))


def test_at_most_so_many_and_the_speakers_in_turn():
    table = pd.DataFrame({"speaker": ["a"] * 5 + ["b"] * 2 + [""] * 2, "id": [*"123456789"]})
    four = evaluation_clips.drawn(table, 0, 4, 0)
    assert sorted(four.speaker) == ["", "", "a", "b"] and four.index.is_monotonic_increasing
    assert evaluation_clips.drawn(table, 1, 9, 0).speaker.value_counts().to_dict() == {"": 2, "a": 1, "b": 1}


def test_faithfulness_of_what_is_left_alone_is_whole(run):
    step = cache.make(faithfulness.faithful(run, 0, SITE, a_speaker=1))
    told = faithfulness.summary(step).set_index("way")
    plain = told.loc[faithfulness.UNTOUCHED]
    assert plain.more == plain.more_low == plain.more_high == 0 and plain.divergence == 0
    assert plain.loss_recovered == 100
    assert told.loc[faithfulness.MEAN].loss_recovered == 0
    assert told.loc[faithfulness.ITS].WER < told.loc["random dictionary"].WER
    assert told.loc[faithfulness.ITS].cross_entropy < told.loc["principal directions"].cross_entropy
    assert set(told.index) >= {"neurons", faithfulness.ZERO, faithfulness.EVERYWHERE}
    assert (told.clips[["untouched", faithfulness.ITS, "neurons"]] == step.facts["clips"]).all()
    assert (told.clips[[faithfulness.MEAN, faithfulness.ZERO, faithfulness.RANDOM_INIT]] == 5).all()
    assert told.loc[faithfulness.ITS].loss_recovered > told.loc[faithfulness.RANDOM_INIT].loss_recovered
    brief = faithfulness.summary(cache.make(faithfulness.faithful(run, 0, SITE, a_speaker=1, brief=True)))
    assert set(brief.way) == {faithfulness.UNTOUCHED, *faithfulness.BRIEF}
    pd.testing.assert_series_equal(brief.set_index("way").WER, told.WER[brief.way])


def test_a_transcript_that_the_decoder_cannot_take_is_left_out_and_counted(run, monkeypatch):
    table = evaluation_clips.table

    def longer(*given):
        heard = table(*given).copy()
        heard.loc[heard.index[(heard.split == "test") & (heard.text != "")][0], "text"] = "put six toys " * 60
        return heard

    before = evaluation_clips.gathered(run, 0, (SITE,))
    monkeypatch.setattr(evaluation_clips, "table", longer)
    after = evaluation_clips.gathered.__wrapped__(run, 0, (SITE,))
    assert (before.left_out, after.left_out, after.fewer(1).left_out) == (0, 1, 1)
    assert len(after.clips) == len(before.clips) - 1 and after.clips.text.str.len().max() < 200


def test_recovered_shares_by_hand():
    lost = np.array([[1.0] * 6, [5.0] * 6, [2.0] * 6, [9.0] * 6])
    found = faithfulness.recovered(lost, 0, 1, list("abcdef"))
    assert found[:, 0].tolist() == [100, 0, 75, -100]
    np.testing.assert_allclose(found[2], 75)
    assert np.isnan(faithfulness.recovered(lost[[0, 0]], 0, 1, list("abcdef"))).all()


def test_effects_of_silenced_features_are_measured_where_they_fire(run):
    step = phone_ablation.measured(run, 0, SITE)
    known, less = step.table("features.csv"), step.array("less.npy")
    words = step.table("words.csv")
    assert less.shape == (len(known), len(words)) and np.isfinite(less).all()
    own = known[known.along == "own"].reset_index(drop=True)
    some = evaluation_clips.gathered(run, 0, evaluation_clips.sites_of(run)).fewer(4, seed=0)
    coded = patching.Coded(some.heard[SITE], evaluation_clips.coder_of(run, 0, SITE))
    for row, feature in list(enumerate(own.feature))[::9]:
        silent = ~coded.fires([int(feature)])
        clips = set(some.clips["clip"][silent])
        assert not less[row][words["clip"].isin(clips)].any(), "nothing changes where it never fires"
    tested = phone_ablation.phones(run, 0, step)
    table = tested.table
    assert not tested.refusal and (tested.imbalance[["rate", "rate × size"]] <= controls.MOST_IMBALANCE).all()
    assert (table.p > 0).all() and (table.p <= 1).all() and len(tested.null) <= len(table)
    assert (table.p == table[["p_words", "p_controls"]].max(axis=1)).all() and (table.q >= table.p - 1e-12).all()
    detected = (
        phone_selectivity.read(cache.need(phone_selectivity.detection(run, 0, SITE)), "labels.csv")
        .set_index("label")
        .feature
    )
    assert (detected[table.phone].to_numpy() == table.feature.to_numpy()).all()
    assert set(tested.each.index) == set(table.phone) and not set(table.phone) & set(tested.unmatched)
    total, each = phone_ablation.overall(tested), tested.each.mean(axis=0)
    assert total.mean == pytest.approx(each.mean()) and total.low < total.mean < total.high
    assert total.speakers == len(each) <= step.facts["speakers"]
    many = phone_ablation.by_controls(run, 0, step, ks=(6, 10))
    assert (many["phones"] + many["left out"]).nunique() == 1 and (many["q ≤ 0.05"] <= many["p ≤ 0.05"]).all()


def test_without_matched_controls_nothing_is_claimed(run):
    tested = phone_ablation.phones(run, 0, phone_ablation.measured(run, 0, SITE))
    apart = tested.table.assign(mass_ratio=3.0)
    assert "No matched controls: the median |log ratio| is 1.10" in tested._replace(table=apart).refusal
    lone = phone_ablation.phones(run, 0, phone_ablation.measured(run, 0, SITE), k=500)
    assert lone.table.empty and lone.unmatched and "No matched controls: none of" in lone.refusal
    assert "No phone is held by 6 words" in lone._replace(unmatched=[]).refusal


def test_phones_that_no_corpus_puts_in_words_are_placed_by_time(run, monkeypatch):
    own = phone_ablation.told_in(run, 0)
    monkeypatch.setattr(phone_ablation, "phones_of", lambda *of: phones_of(*of).assign(word_index=-1, word=""))
    placed = phone_ablation.told_in(run, 0)
    assert (placed.word_index == own.word_index).mean() > 0.99 and (placed.word == own.word).mean() > 0.99
    assert phone_ablation.lacking(run, 0) == ""
    monkeypatch.setattr(phone_ablation, "words_of", lambda *of: words_of(*of)[:0])
    assert "no words with times" in phone_ablation.lacking(run, 0)
    assert "none" not in phone_ablation.lacking(run, 0)
    monkeypatch.setattr(phone_ablation, "phones_of", lambda *of: phones_of(*of)[:0])
    assert "No corpus of this profile has phones" in phone_ablation.lacking(run, 0)


def test_one_speaker_with_phones_is_too_few(run, monkeypatch):
    who = pipeline.table(run, cache.need(pipeline.clips(run, 0))).speaker
    own = phone_ablation.told_in(run, 0)
    mine = own[own["clip"].isin(who.index[who == who[0]])]
    monkeypatch.setattr(phone_ablation, "phones_of", lambda *_: mine)
    assert "1 training and 0 held-out speakers" in phone_ablation.lacking(run, 0)


def test_what_cannot_be_patched_is_said_at_the_top(run):
    assert evaluation_clips.lacking(run, 0, evaluation_clips.sites_of(run)) == ""
    every = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluation_clips, "table", lambda *_: every.assign(text=""))
    evaluation_clips.gathered.cache_clear()
    reason = evaluation_clips.lacking(run, 0, evaluation_clips.sites_of(run))
    patch.undo()
    evaluation_clips.gathered.cache_clear()
    assert reason.startswith("Nothing can be patched here: clips: none with a transcript of validation or test")


def test_a_concept_to_erase_is_on_both_sides_or_there_is_none(run):
    every, told = pipeline.table(run, cache.need(pipeline.clips(run, 0))), phone_ablation.told_in(run, 0)
    assert concept_erasure.concept(every, ["gender", "accent"], told) == "manner:nasal"
    assert concept_erasure.concept(every, ["gender", "accent"], told[:0]) == "gender"
    assert concept_erasure.concept(every, ["gender", "accent"], told[told.manner != "nasal"]) == "gender"
    assert concept_erasure.concept(every.assign(gender=""), ["gender", "accent"], told[:0]) == "accent"
    one_sided = every.assign(gender=every.gender.where(every.split == "train", "male"))
    assert concept_erasure.concept(one_sided, ["gender"], told[:0]) == ""
    assert concept_erasure.concept(every, [], told[:0]) == ""
    assert concept_erasure.concept(every[every.speaker == every.speaker[0]], ["gender"], told) == ""


def test_phones_in_a_dose_are_chosen_on_other_speakers(run):
    measured = phone_ablation.measured(run, 0, SITE)
    step = cache.make(phone_ablation.dose(run, 0, SITE, most=2))
    every = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    chosen_on = set(phone_ablation.words_in(measured).query("split == 'validation'").speaker)
    measured_on = set(phone_ablation.words_in(step).speaker)
    assert measured_on and not chosen_on & measured_on
    assert measured_on <= set(every.speaker[every.split == "test"])
    surest = phone_ablation.phones(run, 0, measured, splits=("validation",)).table.phone.tolist()
    assert [phone for phone in surest if phone in step.facts["phones"]] == step.facts["phones"]
    pairs = step.table("features.csv")
    assert np.abs(np.log(pairs[["rate_ratio", "mass_ratio"]])).max().max() <= phone_ablation.DOSE_CALIPER


def test_doses_change_nothing_at_one(run):
    phone_ablation.measured(run, 0, SITE)
    step = cache.make(phone_ablation.dose(run, 0, SITE, most=2))
    told = phone_ablation.dosed(run, 0, step)
    assert len(told) == 2 * 2 * len(phone_ablation.SCALES)
    one = told[told.scale == 1]
    assert not one[["holding", "others", "effect"]].to_numpy().any()
    assert {"said", "wrote", "phones", "times", "phone"} <= set(phone_ablation.became(run, 0, step).columns)


@pytest.mark.parametrize("concept", ["gender", "manner:nasal"])
def test_erasing_begins_with_the_whole_and_one_direction_is_a_baseline(run, concept):
    step = cache.make(concept_erasure.erased(run, 0, SITE, concept, frames=1500, most=14))
    left = concept_erasure.curves(step).set_index(["way", "count"]).right
    assert left["best removed", 0] == left["random removed", 0] == left["matched removed", 0] > 0.6
    assert left["LEACE removed", 1] < left["best removed", 0]
    words = concept_erasure.words(step)
    assert words.way[0] == "untouched" and words.more[0] == 0
    assert len(words) == 3 * len(concept_erasure.IN_WORDS), "there are no 256 matched ones"
    apart = np.log(step.table("controls.csv").set_index(["order", "count"])[["rate", "rate × size"]]).abs().max(axis=1)
    assert apart["matched", 16] < min(0.4, apart["random", 16])
    assert concept_erasure.gone_at(step, "best removed") in (-1, *concept_erasure.COUNTS)


def test_the_bench_tells_both_sides(run):
    step = cache.make(hallucination.bench(run, 0, SITE, spoken=4))
    kinds = hallucination.by_kind(step)
    assert kinds.sounds.sum() == step.facts["sounds"] and set(hallucination.RULES) <= set(kinds)
    assert (kinds.greedy == kinds["empty allowed"]).all(), "the demo's model suppresses nothing"
    assert (kinds["Whisper's rule"] <= kinds.greedy).all() and kinds.greedy.sum() < step.facts["sounds"]
    told = hallucination.steered(step).set_index(["direction", "strength", "rule"])
    untouched = told.xs("greedy", level="rule").xs(0.0, level="strength")
    assert untouched.hallucinated.nunique() == 1 and untouched.WER.nunique() == 1
    assert not untouched.more.any() and not untouched.fewer.any()
    assert (told.sounds == step.facts["sounds"]).all() and (told.kinds >= 8).all()
    assert untouched.hallucinated.iloc[0] == pytest.approx(100 * kinds.greedy.sum() / kinds.sounds.sum())
    assert told.more["mean difference", 0.5, "greedy"] > 10, "what leads away from speech deafens in the end"
    detectors = hallucination.detected(step).set_index("detector")
    assert detectors.non_speech[["features", "activations"]].between(0.5, 1).all()
    assert "p(no speech)" in detectors.index and (detectors.non_speech_n == step.facts["sounds"]).all()


def test_a_kind_of_sound_is_steered_by_all_others(run):
    """The direction of a kind does not know its sounds; every kind has one, whatever is written of it."""
    rng = np.random.default_rng(0)
    means = {side: (rng.random((n, 40)), rng.normal(size=(n, 8)).astype(np.float32))
             for side, n in (("sound", 6), ("train", 5))}  # fmt: skip
    about = pd.DataFrame({"is": ["sound"] * 6 + ["speech"] * 3, "kind": [*"aabbcc", "", "", ""]})
    coder = types.SimpleNamespace(W_dec=torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))

    def step(means, kind, name="mean difference"):
        change = hallucination._changes(means, about, coder, 0)["sound"][name, 0.5]
        return change.see(torch.zeros(6, 4, 8), torch.arange(6))[list(about.kind).index(kind), 0]

    other = {"sound": tuple(x.copy() for x in means["sound"]), "train": means["train"]}
    for x in other["sound"]:
        x[:2] += 5
    for name in ("features", "mean difference"):
        assert torch.equal(step(means, "a", name), step(other, "a", name))
        assert not torch.allclose(step(means, "b", name), step(other, "b", name))
    ways = [step(means, "a", name) for name in hallucination.DIRECTIONS]
    assert all(torch.isfinite(way).all() for way in ways)
    assert torch.stack(ways).norm(dim=1).numpy() == pytest.approx([float(ways[0].norm())] * 3, rel=1e-5)


def test_no_direction_without_a_length_is_made():
    codes, x = np.ones((3, 40)), np.ones((3, 8), dtype=np.float32)
    W_dec = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    none = codes[:0], x[:0]
    with pytest.raises(hallucination.NoDirection, match="0 sounds and 3 clips of speech are left"):
        hallucination.directions(none, (codes, x), W_dec)
    with pytest.raises(hallucination.NoDirection, match="has no length"):
        hallucination.directions((codes, x), (codes, x), W_dec)
    with pytest.raises(hallucination.NoDirection, match="has no length"):
        hallucination.directions((codes, x * np.nan), (codes, x), W_dec)
    assert hallucination.directions((2 * codes, 2 * x), (codes, x), W_dec)["features"].isfinite().all()


def test_silence_is_decided_as_whisper_decides_it():
    told = pd.DataFrame(
        {"wrote": [*"abcd"], "wrote_or_empty": ["", "b", "c", "d"], "no_speech": [0.7, 0.7, 0.5, np.nan]}
    )
    told["mean_logprob"] = [-1.1, -0.9, -2, -2]
    assert hallucination.is_silent(told).tolist() == [True, False, False, False]
    assert set(hallucination.texts(told)) == {"greedy", "empty allowed"}, "no token, no rule"
    rules = hallucination.texts(told[:3])
    assert rules == {"greedy": [*"abc"], "empty allowed": ["", "b", "c"], "Whisper's rule": ["", "b", "c"]}


def test_of_real_whisper_every_sound_has_words_unless_it_may_be_empty(shared):
    """tiny.en: the end of text is suppressed at the beginning, so plain greedy writes `you` of digital silence."""
    whisper = whisper_model.load(str(shared / "whisper-tiny.en"), "cpu")
    heard = patching.hear(whisper, [nonspeech.made("silence"), nonspeech.made("pink")], ["encoder.3.resid"])
    told = patching.outcomes(heard["encoder.3.resid"], {"": patching.Change(lambda x, _: x)})[""]
    assert all(map(nonspeech.has_words, told.wrote))
    assert told.no_speech.between(0, 1).all() and (told.no_speech > 0.3).any()


def test_proportions_are_wilsons():
    share, low, high = hallucination.proportion(5, 10)
    assert share == 50 and (low, high) == pytest.approx((23.66, 76.34), abs=0.01)
    assert hallucination.proportion(0, 10)[1] == 0 and np.isnan(hallucination.proportion(0, 0)).all()
    assert hallucination.proportion(2, 5)[0] == 40 and np.isnan(hallucination.proportion(2, 5)[1:]).all()
    for found, of in [(0, 6), (1, 6), (3, 7), (80, 80)]:  # six is enough
        wilson = stats.binomtest(found, of).proportion_ci(method="wilson")
        assert hallucination.proportion(found, of)[1:] == pytest.approx([100 * end for end in wilson], abs=0.01)


def test_sounds_are_decoded_in_the_language_of_most_clips_of_speech():
    sounds = {"text": "", "speaker": "", "language": "", "label": "dog"}
    german = {"text": "eins", "speaker": "a", "language": "German", "label": ""}
    clips = pd.DataFrame([german] * 3 + [german | {"language": "fr"}] * 2 + [sounds] * 9)
    assert hallucination.spoken_language(clips) == "de", "sounds name no language and do not count"
    assert hallucination.spoken_language(clips, "fr") == "fr" and hallucination.spoken_language(clips[5:]) == "en"
    assert hallucination.spoken_language(clips.drop(columns="language")) == "en"
