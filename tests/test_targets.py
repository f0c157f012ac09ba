"""Words are found by their phones, what became of them is told word by word and phone by phone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from whisper_sae.data import corpora, frame_alignment
from whisper_sae.experiments import phone_tables, target_phones
from whisper_sae.model import scoring

NORMALISE = EnglishTextNormalizer({"colour": "color"})

TOLD = pd.DataFrame(
    [(5, 0, "ð", "the"), (5, 0, "ə", "the"), (5, 1, "θ", "thin"), (5, 1, "ɪ", "thin"), (5, 1, "n", "thin"),
     (9, 0, "f", "fin"), (9, 0, "ɪ", "fin"), (9, 0, "n", "fin"), (9, -1, "x", "")],
    columns=["clip", "word_index", "ipa", "word"],
)  # fmt: skip
WORDS = target_phones.Spoken(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array(["ada", "ada", "bob"]))


def test_words_that_hold_a_phone():
    found = target_phones.holding(WORDS, TOLD, {5: 0, 9: 1})
    assert found["n"].tolist() == [False, True, True] and found["ð"].tolist() == [True, False, False]
    assert "x" not in found
    assert target_phones.holding(WORDS, TOLD, {9: 1})["n"].tolist() == [False, False, True]


def test_the_contrast_is_a_difference_of_each_speaker():
    holds, speaker = np.array([True, False, True, False, True]), np.array(["a", "a", "b", "b", "c"])
    lost = np.array([[5.0, 1.0, 3.0, 2.0, 99.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert target_phones.contrast(lost, holds, speaker).tolist() == [[4, 1], [0, 0]]  # c has no other words
    assert target_phones.contrast(lost, ~holds & holds, speaker).shape == (2, 0)


def test_missed_words_are_those_that_were_not_written():
    said, wrote = ["the thin cat", "a dog", "so"], ["the fin cat", "dog dog", "so so"]
    words = target_phones.Spoken(np.repeat([0, 1, 2], [3, 2, 1]), np.array([0, 1, 2, 0, 1, 0]), np.full(6, "ada"))
    assert target_phones.missed(said, wrote, words).tolist() == [False, True, False, True, False, False]


TEXTS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=5)


@given(TEXTS, TEXTS)
def test_as_many_are_missed_as_are_substituted_and_deleted(said, wrote):
    wrote = (wrote * 5)[: len(said)]
    lengths = [len(text.split()) for text in said]
    words = target_phones.Spoken(np.repeat(np.arange(len(said)), lengths),
                           np.concatenate([np.arange(n) for n in lengths]), np.zeros(sum(lengths)))  # fmt: skip
    counts = scoring.Scorer(said).count(wrote)
    assert target_phones.missed(said, wrote, words).sum() == counts.substitutions.sum() + counts.deletions.sum()


def test_which_sound_turned_into_which():
    spelling = target_phones.spellings(TOLD)
    assert spelling["thin"] == ("θ", "ɪ", "n")
    found = target_phones.turned(["the thin", "thin", "the fin"], ["the fin", "fin", "fin zoo"], spelling)
    first = found.iloc[0]
    assert (first.said, first.wrote, first.phones, first.times) == ("thin", "fin", "θ → f", 2)
    assert set(zip(found.said, found.wrote, strict=True)) >= {("the", "∅")} or "the" in set(found.said)
    assert found[found.wrote == "zoo"].phones.tolist() == [""]


def test_a_word_that_is_said_in_two_ways_has_the_commoner():
    told = pd.DataFrame([(clip, 0, "a" if clip else "b", "w") for clip in range(3)],
                        columns=["clip", "word_index", "ipa", "word"])  # fmt: skip
    assert target_phones.spellings(told) == {"w": ("a",)}


def missed_of(text: str, wrote: str) -> list[bool]:
    """Which words of a transcript are missed by what was written, both normalised."""
    said, spans = target_phones.spans(text, NORMALISE)
    many = len(said.split())
    words = target_phones.Spoken(np.zeros(many, int), np.arange(many), np.zeros(many))
    wrote = " ".join(NORMALISE(wrote).split())
    return target_phones.within(target_phones.missed([said], [wrote], words), spans[:, 0], spans[:, 1]).tolist()


@pytest.mark.parametrize("text", [
    "MISTER Quilter's GOSPEL, twenty five miles -- uh -- of I'll colour: it won't [laughs] do",
    "Twenty-five twenty five hundred and one", "um", "", "Mr. Smith", "$20 million is £5", "I'm I'm gonna",
])  # fmt: skip
def test_a_perfect_transcript_misses_no_word(text):
    assert not any(missed_of(text, text))
    assert not any(missed_of(text, NORMALISE(text)))
    assert len(missed_of(text, text)) == len(text.split())


def test_a_word_keeps_its_place_when_normalising_changes_their_number():
    text = "I'll take twenty five grey -- dogs"
    assert missed_of(text, "I will take 25 gray dog") == [False, False, False, False, True, False, True]
    assert missed_of(text, "I will take 24 grey dogs") == [False, False, True, True, False, False, False]
    assert missed_of(text, "I take 25 grey dogs") == [True, *[False] * 6]


WORDS_OF_TEXT = st.sampled_from(["I'll", "twenty", "five", "DOG", "colour", "--", "uh", "Mr.", "won't", "$20", "a"])


@given(st.lists(WORDS_OF_TEXT, max_size=12))
def test_no_word_is_missed_whatever_is_said(words):
    text = " ".join(words)
    assert not any(missed_of(text, text))


def test_no_word_of_recorded_speech_is_missed(shared):
    texts = corpora.rows(shared / "speech" / "librispeech-sample").text.iloc[::10]
    assert not any(any(missed_of(text, text)) for text in texts)


def timed(rows, column: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["clip", "start", "end", column])


def test_phones_without_a_word_index_are_placed_by_time():
    told = timed([(3, 0.0, 0.1, "s"), (3, 0.1, 0.2, "ə"), (3, 0.2, 0.3, "k"), (3, 0.5, 0.6, "t"), (4, 0.0, 0.2, "p")],
                 "phone").assign(word_index=[-1, -1, -1, -1, 7], word=["", "", "", "", "kept"])  # fmt: skip
    words = timed([(3, 0.0, 0.1, "<sil>"), (3, 0.1, 0.2, "A"), (3, 0.2, 0.3, "cat"), (4, 0.0, 0.2, "pip")], "word")
    found = phone_tables.in_words(told, words, pd.Series({3: "a Cat, sat.", 4: "pip"}))
    assert found.word_index.tolist() == [-1, 0, 1, -1, 7] and found.word.tolist() == ["", "a", "Cat,", "", "kept"]
    alike = words[words["clip"] == 4].assign(word="C")  # a tier that names kinds of words: as many, spelled otherwise
    assert phone_tables.in_words(told.assign(word_index=-1), alike, pd.Series({4: "pip"})).word_index.tolist()[-1] == 0
    assert phone_tables.in_words(told, words[:0], pd.Series({3: "a", 4: "b"})).equals(told)


def test_hand_made_phones_are_placed_in_their_words(shared):
    folder = shared / "speech" / "emur-ae-aligned"
    clips = corpora.rows(folder).reset_index(drop=True)
    row = {str(Path(path).resolve()): number for number, path in enumerate(clips.path)}
    told, words = (
        part.assign(clip=part.path.map(row)) for part in (frame_alignment.read(folder), frame_alignment.words(folder))
    )
    found = phone_tables.in_words(told.assign(word_index=-1, word="", ipa=told.phone), words, clips.text)
    placed = found[found.word_index >= 0]
    assert set(placed["clip"]) == set(clips.index)
    assert len(placed) > 0.95 * len(found)
    first = found[(found["clip"] == 0) & (found.word_index == 0)]
    assert first.word.unique().tolist() == [clips.text[0].split()[0]] and len(first) >= 4
    each = placed.groupby("clip").word_index.nunique()
    assert (each == clips.text.str.split().str.len()[each.index]).all()
