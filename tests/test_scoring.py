"""Errors are counted as jiwer counts them, and the intervals of a difference hold what they promise."""

import jiwer
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import profiles
from whisper_sae.model import scoring, whisper_model

WORDS = st.lists(st.sampled_from(["a", "bee", "sea", "dee"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=5))
def test_rates_are_those_of_jiwer(pairs):
    said, wrote = map(list, zip(*pairs, strict=True))
    told = scoring.rates(scoring.Scorer(said).count(wrote))
    assert told["WER"] == pytest.approx(100 * jiwer.wer(said, wrote))
    assert told["CER"] == pytest.approx(100 * jiwer.cer(said, wrote))
    assert told["S"] + told["D"] + told["I"] == pytest.approx(told["WER"])
    assert told["words"] == sum(len(text.split()) for text in said)


def test_clips_without_speech_have_no_rate_but_are_counted():
    counts = scoring.Scorer(["a b", "", " "]).count(["a b", "x y", ""])
    assert counts.insertions.tolist() == [0, 2, 0] and counts.words.tolist() == [2, 0, 0]
    told = scoring.rates(counts)
    assert (told["WER"], told["made_up"], told["clips"]) == (0, 0.5, 1)
    nothing = scoring.rates(counts[1:])
    assert np.isnan(nothing["WER"]) and np.isnan(nothing["CER"])
    assert np.isnan(scoring.rates(counts[:1])["made_up"])


def test_an_unknown_transcript_counts_for_nothing():
    counts = scoring.Scorer(["a b", None, ""]).count(["a b", "x y", "z"])
    assert counts.hallucinated.fillna(-1).tolist() == [-1, -1, 1] and counts.words.tolist() == [2, 0, 0]
    told = scoring.rates(counts)
    assert (told["WER"], told["made_up"], told["clips"]) == (0, 1, 1)


def test_counts_are_the_same_when_they_come_from_a_stored_table(tmp_path):
    """Stored tables are read with an empty field as an empty string."""
    for said in (["a b", None], ["a b", ""]):
        counts = scoring.Scorer(said).count(["a", "x"])
        counts.to_csv(tmp_path / "counts.csv", index=False)
        stored = pd.read_csv(tmp_path / "counts.csv", keep_default_na=False, na_values={})
        assert scoring.rates(stored) == pytest.approx(scoring.rates(counts), nan_ok=True)


def test_hallucinated_words_are_judged_on_the_raw_transcript():
    """Whisper's normaliser drops `Hmm.` and keeps the words of ♪ music ♪; the rule is that of `nonspeech`."""
    english = scoring.normalisers(whisper_model.load(str(profiles.DEMO / "whisper"), "cpu"))["english"]
    wrote = ["...", ".", "[Music]", "(upbeat music)", "♪", "-", "Hmm.", "♪ la la ♪", "you"]
    counts = scoring.Scorer([""] * len(wrote), english).count(wrote)
    assert counts.hallucinated.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 1]


def test_a_pair_is_counted_once_and_some_clips_can_be_asked_alone():
    scorer = scoring.Scorer(["a b", "c"])
    first = scorer.count(["a x", "c"])
    assert len(scorer.known) == 2
    again = scorer.count(["a x"], clips=[0])
    assert len(scorer.known) == 2
    pd.testing.assert_frame_equal(again, first[:1])


def test_full_stops_and_capitals_are_no_errors():
    whisper = whisper_model.load(str(profiles.DEMO / "whisper"), "cpu")
    ways = scoring.normalisers(whisper)
    said, wrote = ["the colour is grey and mr. smith can't"], ["The color is gray, and Mister Smith cannot."]
    wrong = {name: int(scoring.Scorer(said, way).count(wrote).errors[0]) for name, way in ways.items()}
    assert wrong["none"] > wrong["basic"] > wrong["english"]
    basic = scoring.Scorer(["a, b. c"], ways["basic"]).count(["A b C!"])
    assert basic.errors.tolist() == [0]


def test_repetition():
    assert scoring.repetition("a b c d") == scoring.repetition("") == scoring.repetition("a") == 0
    assert scoring.repetition("so so so so so so") == 0.75
    assert scoring.repetition("a b c a b c a b c") > 0.5


# --------------------------------------------------------------------------------------------------- intervals


def test_the_same_transcripts_differ_by_exactly_nothing():
    rng = np.random.default_rng(0)
    wrong = rng.integers(0, 3, 40)
    found = scoring.compared(np.stack([wrong, wrong]), np.full(40, 6), np.repeat(np.arange(8), 5))
    assert found.more[1] == found.more_low[1] == found.more_high[1] == 0
    assert found.low[0] < found.rate[0] < found.high[0] and found.speakers == 8


def test_pairs_tell_more_than_two_rates():
    """A change that costs every speaker the same is sure, however much the speakers differ."""
    rng = np.random.default_rng(1)
    base = np.repeat(rng.integers(0, 30, 12), 5)
    found = scoring.compared(np.stack([base, base + 1]), np.full(60, 50), np.repeat(np.arange(12), 5))
    assert found.low[1] < found.high[0]
    assert found.more[1] == pytest.approx(2) and found.more_low[1] == pytest.approx(2)


def test_one_speaker_has_no_interval():
    found = scoring.compared(np.ones((2, 3)), np.full(3, 4), ["ada"] * 3)
    assert found.rate.tolist() == [25, 25] and np.isnan(found.low).all() and np.isnan(found.more_high).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Twelve speakers of unlike proneness to error: drawing clips instead of speakers would hold it far less often."""
    rng, speakers, clips, words, more = np.random.default_rng(2), 12, 8, 6, 0.05
    held = {"speakers": 0, "clips": 0}
    rounds = 300
    for turn in range(rounds):
        prone = np.repeat(rng.beta(2, 12, speakers), clips)
        worse = np.repeat(rng.beta(1, 19, speakers), clips)  # mean 0.05
        first = rng.binomial(words, prone)
        second = first + rng.binomial(words, worse)
        who = np.repeat(np.arange(speakers), clips)
        for name, units in (("speakers", who), ("clips", np.arange(len(who)))):
            found = scoring.compared(np.stack([first, second]), np.full(len(who), words), units, draws=400, seed=turn)
            held[name] += found.more_low[1] <= 100 * more <= found.more_high[1]
    assert 0.89 <= held["speakers"] / rounds <= 0.985
    assert held["clips"] < held["speakers"]


def test_a_table_of_ways_compares_with_the_first():
    scorer = scoring.Scorer(["a b c", "d e", ""])
    counted = {"plain": scorer.count(["a b c", "d e", ""]), "edited": scorer.count(["a b", "d x", "boo"])}
    told = scoring.table(counted, ["ada", "bob", ""])
    assert told.way.tolist() == ["plain", "edited"] and told.WER.tolist() == [0, 40]
    assert told.more.tolist() == [0, 40] and told.made_up.tolist() == [0, 1]
    assert told.speakers.tolist() == [2, 2] and told.D[1] == told.S[1] == 20
