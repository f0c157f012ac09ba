"""Which phone each feature goes with: the recipes say what the leaves say, and nothing where nothing is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from whisper_sae import cache
from whisper_sae.data import frame_alignment
from whisper_sae.experiments import (
    feature_index,
    phone_selectivity,
    phone_tables,
    pipeline,
    sae_comparison,
    transcript_words,
)
from whisper_sae.features import index, phone_detection, selectivity

SITE = "encoder.1.resid"


def tell_phones(folder: Path, labels=("s", "i", "n", "ɑ"), seed=0, of="*") -> None:
    """Phones of 100 to 200 ms over the clips of a corpus that are called so, told in its phones.csv."""
    rng, rows = np.random.default_rng(seed), []
    for path in sorted(folder.glob(f"audio/{of}.flac")):
        end, start = 1000 * soundfile.info(path).duration, 0.0
        while start < end - 100:
            stop = min(end, start + rng.uniform(100, 200))
            rows.append((f"audio/{path.name}", start, stop, labels[rng.integers(len(labels))]))
            start = stop
    pd.DataFrame(rows, columns=["file_name", "start_ms", "end_ms", "phone"]).to_csv(folder / "phones.csv", index=False)


@pytest.fixture
def prepared(small_whisper, corpus, run_for, data):
    """A run of which all is made that answers need; `voices` and `clips` of its corpus."""

    def prepare(voices=6, clips=4, labels=("s", "i", "n", "ɑ"), of="*", **fields):
        folder = corpus(voices=voices, clips=clips)
        if labels:
            tell_phones(folder, labels, of=of)
        run = run_for(small_whisper, folder, tokens=2_000, **fields)
        for recipe in (pipeline.clips, pipeline.activations):
            cache.make(recipe(run, 0))
        cache.make(sae_comparison.dictionary(run, 0, SITE))
        for of in ("dictionary", "neurons"):
            cache.make(feature_index.codes(run, 0, SITE, of))
        return run

    return prepare


@pytest.mark.parametrize("of", ["dictionary", "neurons"])
def test_the_recipes_say_what_the_leaves_say(prepared, of):
    run = prepared()
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    known = phone_selectivity.asked(run, heard, cache.need(pipeline.activations(run, 0)))
    found = feature_index.index_of(run, 0, SITE, of)
    every = phone_selectivity.sparse_acts.only(found.columns(0, len(found.firings) - 1), known.here)
    step = cache.make(phone_selectivity.detection(run, 0, SITE, of))
    right = phone_detection.dictionary_score(every, known.frames, known.choosing)
    got = phone_selectivity.score_of(step)
    assert (got.f1, got.low, got.high) == pytest.approx((right.f1, right.low, right.high), nan_ok=True)
    pd.testing.assert_frame_equal(got.table[list(right.table)], right.table, check_dtype=False)
    told = phone_selectivity.read(cache.make(phone_selectivity.answers(run, 0, SITE, of)), "features.csv")
    scores = selectivity.scores(every, known.frames, known.choosing)
    np.testing.assert_allclose(told.auc, scores.best().auc)
    assert len(told) == found.features * (1 + found.signed) and told.found.dtype == bool
    rows, values = found.activations(3)
    line = np.zeros(found.rows)
    line[rows] = values
    table = phone_selectivity.by_phone(run, 0, SITE, of, 3).table
    n = table[(table.side == "all") & (table.label == "s")].n.iloc[0]
    assert n == (known.frames.names[known.frames.label] == "s").sum()


def test_frames_are_those_of_their_phones(prepared):
    run = prepared()
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    recording = cache.need(pipeline.activations(run, 0))
    known = phone_selectivity.asked(run, heard, recording)
    told = phone_tables.phones_of(run, heard)
    clip, moment = known.clock.clip[known.here], known.clock.moment[known.here]
    for at in range(0, len(clip), 17):
        here = told[(told["clip"] == clip[at]) & (told.start <= moment[at]) & (moment[at] < told.end)]
        assert here.phone.item() == known.frames.names[known.frames.label[at]]
        assert min(moment[at] - here.start.item(), here.end.item() - moment[at]) >= phone_selectivity.TOLERANCE
    assert known.apart == "speakers"
    assert not set(known.frames.speaker[known.choosing]) & set(known.frames.speaker[~known.choosing])


def test_features_of_a_hum_know_no_phone(prepared):
    """The phones are drawn by lot: nothing is found in the true alignment, nor in shifted ones."""
    run = prepared()
    facts = cache.make(phone_selectivity.answers(run, 0, SITE)).facts
    assert facts["tested"] > 50 and facts["found"] <= 0.05 * facts["tested"]
    assert len(facts["shifted"]) == phone_selectivity.SHIFTED and sum(n > 0 for n in facts["shifted"]) <= 4


def test_a_planted_detector_is_found_by_every_score(prepared):
    run = prepared()
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    known = phone_selectivity.asked(run, heard, cache.need(pipeline.activations(run, 0)))
    label, scores = phone_selectivity.planted(known, 0)
    for name in ("lift", "auc", "information", "purity", "f1"):
        assert np.nanargmax(getattr(scores, name)[0]) == label, name
    assert scores.f1[0, label] > 0.9 and scores.f1[1, label] < 0.6


def test_classes_and_words_can_be_asked(prepared):
    run = prepared()
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    recording = cache.need(pipeline.activations(run, 0))
    assert set(phone_selectivity.asked(run, heard, recording, "manner").frames.names) == {"fricative", "nasal", "vowel"}
    assert set(phone_selectivity.asked(run, heard, recording, "voicing").frames.names) == {"voiced", "voiceless"}
    assert set(phone_selectivity.asked(run, heard, recording, "height").frames.names) == {"close", "open"}
    with pytest.raises(frame_alignment.BadPhones, match="word"):
        phone_selectivity.asked(run, heard, recording, "word")


def test_what_is_not_asked_of_phones_has_a_reason(prepared, monkeypatch):
    run = prepared(labels=("s", "f"))
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    recording = cache.need(pipeline.activations(run, 0))
    columns = ["place", "manner", "height", "word"]
    asked, refused = phone_selectivity.askable(run, heard, recording, columns)
    assert asked == ["place"] and refused == {
        "manner": "all are fricative", "height": "not known of any phone", "word": "not known of any phone",
    }  # fmt: skip
    steps = {"place": cache.make(phone_selectivity.detection(run, 0, SITE, column="place"))}
    table = phone_selectivity.asked_about(steps, refused).set_index("column")
    assert table.index.tolist() == columns and table["left out"].tolist() == ["", *refused.values()]
    monkeypatch.setattr(phone_selectivity, "LEAST_FRAMES", 10_000)  # then the most frequent alone counts
    known = phone_selectivity.asked(run, heard, recording, "place")
    (common,), ((rare, count),) = known.frames.names, known.few.items()
    assert {common, rare} == {"alveolar", "labiodental"} and 0 < count < 10_000
    few = f"fewer than 10000 frames: {rare} ({count})"
    assert phone_selectivity.askable(run, heard, recording, ["place"]) == ([], {"place": f"all are {common}; {few}"})


def test_one_speaker_is_asked_about_other_clips(prepared):
    run = prepared(clips=8, of="v00_*")
    facts = cache.make(phone_selectivity.detection(run, 0, SITE)).facts
    assert facts["apart"] == "clips" and np.isnan(facts["low"])


def test_one_clip_gives_no_score_and_no_error(prepared):
    run = prepared(of="v00_0")
    step = cache.make(phone_selectivity.detection(run, 0, SITE))
    assert np.isnan(step.facts["f1"]) and not phone_selectivity.score_of(step).table.counted.any()
    told = phone_selectivity.read(cache.make(phone_selectivity.answers(run, 0, SITE)), "features.csv")
    assert not told.found.any() and told.f1.isna().all()


def test_where_no_phones_are_told_it_says_so(prepared):
    run = prepared(labels=())
    with pytest.raises(frame_alignment.BadPhones, match="no corpus of this profile tells"):
        cache.make(phone_selectivity.detection(run, 0, SITE))


def test_the_key_is_of_the_phones_that_are_told(prepared):
    run = prepared()
    before = phone_selectivity.detection(run, 0, SITE).key
    tell_phones(Path(run.corpus[0]), seed=1)
    assert phone_selectivity.detection(run, 0, SITE).key != before
    assert phone_selectivity.detection(replace(run, k=3), 0, SITE).key != before


def test_labels_that_look_like_nothing_are_read_as_they_are(prepared):
    run = prepared(labels=("NA", "null", "nan", "i"))
    told = phone_selectivity.read(cache.make(phone_selectivity.detection(run, 0, SITE)), "labels.csv")
    assert set(told.label) == {"NA", "null", "nan", "i"} and told.frames.dtype.kind == "i"


def test_a_word_that_goes_with_nothing_is_not_found(prepared):
    """Clips are called "clip 0" to "clip 3" whatever they sound like."""
    run = prepared(voices=8)
    step = cache.make(transcript_words.words(run, 0, SITE))
    told = step.table("tokens.csv")
    assert set(told.token.astype(str)) == {"0", "1", "2", "3"} and set(told.question) == set(transcript_words.ASKS)
    assert all(step.facts[name]["found"] <= 0.05 * step.facts[name]["tested"] for name in transcript_words.ASKS)


def test_a_word_with_a_sound_of_its_own_is_found(prepared, monkeypatch):
    """One feature of a made-up index fires in the clips that have the word, and nowhere else."""
    run = prepared(voices=8)
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    windows = cache.need(pipeline.activations(run, 0)).table("windows.csv")
    has = (heard.text == "clip 2").to_numpy()[windows["clip"]]
    columns = index.Index.columns

    def planted(self, first, last):
        made = columns(self, first, last).tolil()
        if first == 0:
            made[:, 0] = 0
            for piece in np.flatnonzero(has):
                made[self.starts[piece] : self.starts[piece + 1], 0] = 5.0
        return made.tocsc()

    monkeypatch.setattr(index.Index, "columns", planted)
    told = cache.make(transcript_words.words(run, 0, SITE)).table("tokens.csv")
    row = told[(told.token.astype(str) == "2") & (told.question == "presence")].iloc[0]
    assert row.feature == 0 and row.score == 1 and row.q <= 0.05


def test_too_few_words_are_refused(prepared):
    run = prepared(voices=4, clips=1, labels=())
    with pytest.raises(ValueError, match="fewer than two words"):
        cache.make(transcript_words.words(run, 0, SITE))


def spoken_by(speakers, texts, seed=0):
    """Frames of which a speaker reads each of some texts, 30 a clip: chosen on (the first half of the speakers), what
    is known of them, and the number of their text."""
    clips = [(speaker, text) for speaker in range(speakers) for text in texts(speaker)]
    speaker, text = (np.repeat(part, 30) for part in zip(*clips, strict=True))
    clip = np.repeat(np.arange(len(clips)), 30)
    known = phone_selectivity.sparse_acts.Frames(np.zeros(len(clip), int), np.array(["a"]), speaker, clip)
    return speaker < speakers / 2, known, text


def sides(choosing, known, text):
    """What is kept: the texts chosen on and scored on, and the speakers of both."""
    kept = phone_selectivity._other_texts(choosing, known, text, seed=0)
    return [set(part[side & kept]) for part in (text, known.speaker) for side in (choosing, ~choosing)]


def test_sentences_that_were_chosen_on_are_not_scored():
    """Everyone reads text 0 and four of their own: text 0 is left out where it is scored."""
    chosen, scored, *speakers = sides(*spoken_by(16, lambda speaker: [0, *range(4 * speaker + 1, 4 * speaker + 5)]))
    assert 0 in chosen and 0 not in scored and not chosen & scored and len(scored) == 32
    assert [len(side) for side in speakers] == [8, 8]


def test_where_all_read_the_same_sentences_half_of_them_are_for_choosing():
    chosen, scored, *speakers = sides(*spoken_by(16, lambda speaker: range(10)))
    assert not chosen & scored and chosen | scored == set(range(10)) and len(chosen) == 5
    assert [len(side) for side in speakers] == [8, 8]


@pytest.mark.parametrize("texts", [lambda speaker: [0], lambda speaker: [speaker % 8 // 4]], ids=["one", "a few each"])
def test_sentences_are_not_held_out_where_too_few_speakers_are_left(texts):
    known = spoken_by(16, texts)
    assert phone_selectivity._other_texts(*known, seed=0).all()
    told = phone_selectivity._overlap(known[0], known[2], known[1].clip)
    assert told == {"scored": 8, "shared": 8}, "and that is said"


def test_where_no_sentence_is_said_twice_all_are_kept():
    assert phone_selectivity._other_texts(*spoken_by(12, lambda speaker: [speaker]), seed=0).all()


def test_texts_are_compared_without_case_and_punctuation():
    heard = pd.DataFrame({"text": ["She had it.", "she  HAD it", "", "", "…"], "id": list("abcde")})
    first, second, *others = phone_selectivity._texts(heard)
    assert first == second == "she had it" and len(set(others)) == 3, "nobody told: each is its own"
