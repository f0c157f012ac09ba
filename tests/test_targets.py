"""Words are found by their phones, what became of them is told word by word and phone by phone."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import scoring, targets

TOLD = pd.DataFrame(
    [(5, 0, "ð", "the"), (5, 0, "ə", "the"), (5, 1, "θ", "thin"), (5, 1, "ɪ", "thin"), (5, 1, "n", "thin"),
     (9, 0, "f", "fin"), (9, 0, "ɪ", "fin"), (9, 0, "n", "fin"), (9, -1, "x", "")],
    columns=["clip", "word_index", "ipa", "word"],
)  # fmt: skip
WORDS = targets.Spoken(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array(["ada", "ada", "bob"]))


def test_words_that_hold_a_phone():
    found = targets.holding(WORDS, TOLD, {5: 0, 9: 1})
    assert found["n"].tolist() == [False, True, True] and found["ð"].tolist() == [True, False, False]
    assert "x" not in found
    assert targets.holding(WORDS, TOLD, {9: 1})["n"].tolist() == [False, False, True]


def test_the_contrast_is_a_difference_of_each_speaker():
    holds, speaker = np.array([True, False, True, False, True]), np.array(["a", "a", "b", "b", "c"])
    lost = np.array([[5.0, 1.0, 3.0, 2.0, 99.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert targets.contrast(lost, holds, speaker).tolist() == [[4, 1], [0, 0]]  # c has no other words
    assert targets.contrast(lost, ~holds & holds, speaker).shape == (2, 0)


def test_missed_words_are_those_that_were_not_written():
    said, wrote = ["the thin cat", "a dog", "so"], ["the fin cat", "dog dog", "so so"]
    words = targets.Spoken(np.repeat([0, 1, 2], [3, 2, 1]), np.array([0, 1, 2, 0, 1, 0]), np.full(6, "ada"))
    assert targets.missed(said, wrote, words).tolist() == [False, True, False, True, False, False]


TEXTS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=5)


@given(TEXTS, TEXTS)
def test_as_many_are_missed_as_are_substituted_and_deleted(said, wrote):
    wrote = (wrote * 5)[: len(said)]
    lengths = [len(text.split()) for text in said]
    words = targets.Spoken(np.repeat(np.arange(len(said)), lengths), np.concatenate([np.arange(n) for n in lengths]),
                           np.zeros(sum(lengths)))  # fmt: skip
    counts = scoring.Scorer(said).count(wrote)
    assert targets.missed(said, wrote, words).sum() == counts.substitutions.sum() + counts.deletions.sum()


def test_which_sound_turned_into_which():
    spelling = targets.spellings(TOLD)
    assert spelling["thin"] == ("θ", "ɪ", "n")
    found = targets.turned(["the thin", "thin", "the fin"], ["the fin", "fin", "fin zoo"], spelling)
    first = found.iloc[0]
    assert (first.said, first.wrote, first.phones, first.times) == ("thin", "fin", "θ → f", 2)
    assert set(zip(found.said, found.wrote, strict=True)) >= {("the", "∅")} or "the" in set(found.said)
    assert found[found.wrote == "zoo"].phones.tolist() == [""]


def test_a_word_that_is_said_in_two_ways_has_the_commoner():
    told = pd.DataFrame([(clip, 0, "a" if clip else "b", "w") for clip in range(3)],
                        columns=["clip", "word_index", "ipa", "word"])  # fmt: skip
    assert targets.spellings(told) == {"w": ("a",)}
