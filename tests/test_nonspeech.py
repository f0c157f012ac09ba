"""Sounds without speech are what they are called, the same for the same seed, and no louder than a sound may be."""

import numpy as np
import pandas as pd
import pytest

from whisper_sae.data import corpora, nonspeech
from whisper_sae.experiments import correlates_of_features


@pytest.mark.parametrize(
    "text",
    ["", " ", "...", ".", "-", "♪", "♪ ♪", "[Music]", "(upbeat music)", "[ Silence", "(crowd (far) cheers)", "*sighs*",
     "♪ la la la ♪", "<|nospeech|>", "（音乐）", "[BLANK_AUDIO] (wind)"],
)  # fmt: skip
def test_a_transcript_without_letters_outside_brackets_has_no_words(text):
    assert not nonspeech.has_words(text)


@pytest.mark.parametrize(
    "text", ["Hmm.", "you", "Uh", "7", "(laughs) yes", "[Music] thank you", "それ", "2 * 3", "♪ la ♪ hey"]
)
def test_letters_and_digits_outside_brackets_are_words(text):
    assert nonspeech.has_words(text)


def table(*rows, **more):
    """A table of clips of (text, speaker), with other columns."""
    return pd.DataFrame(rows, columns=["text", "speaker"]).assign(**more)


def test_an_unknown_transcript_is_not_silence():
    clips = table(("one two", "ada"), ("", "bob"), ("", ""), ("[noise]", ""))
    assert nonspeech.is_transcribed(clips).tolist() == [True, False, False, False]
    assert nonspeech.is_nonspeech(clips).tolist() == [False, False, True, True]


def test_of_bare_audio_nothing_is_known():
    assert not nonspeech.is_nonspeech(table(("", ""), ("", ""))).any()
    assert not nonspeech.is_nonspeech(table(("a", ""), ("", ""))).any(), "no speaker is named, so none missing tells"
    assert not nonspeech.is_nonspeech(table(("", "ada"), ("", ""))).any(), "no transcript is given"


def test_each_corpus_speaks_for_itself():
    clips = table(("a", "ada"), ("", ""), ("", ""), corpus=["told", "told", "bare"])
    assert nonspeech.is_nonspeech(clips).tolist() == [False, True, False]
    assert nonspeech.reasons(clips).tolist() == ["", nonspeech.AMONG_OTHERS, ""]


@pytest.mark.parametrize("column", nonspeech.CLASSES)
def test_a_class_of_sound_is_enough_unless_somebody_speaks(column):
    clips = table(("", ""), ("", ""), ("", "ada"), ("yes", ""), ("", ""), gender=["", "", "", "", "female"])
    clips[column] = ["dog", "Speech, adult", "angry", "yes", "happy"]
    assert nonspeech.is_nonspeech(clips).tolist() == [True, False, False, False, False]
    assert nonspeech.reasons(clips).tolist() == [nonspeech.OF_A_CLASS, "", "", "", ""]
    assert correlates_of_features.classed(clips).tolist() == [True, False, False, False, False]


def test_real_corpora_say_which_clips_hold_no_speech(shared):
    found = {}
    for name in ("duke-alphanumeric", "esc10-environmental", "ravdess-emotion", "free-spoken-digits"):
        clips = corpora.rows(shared / "speech" / name)
        found[name] = int(nonspeech.is_transcribed(clips).sum()), int(nonspeech.is_nonspeech(clips).sum())
    assert found["duke-alphanumeric"] == (48, 0), "48 others have a speaker and no transcript"
    assert found["esc10-environmental"] == (0, 80)
    assert found["ravdess-emotion"] == (192, 0) and found["free-spoken-digits"] == (180, 0)


@pytest.mark.parametrize("kind", nonspeech.KINDS)
def test_every_kind_is_made_again_the_same_and_is_not_too_loud(kind):
    sound = nonspeech.made(kind, 3, seconds=1.0)
    assert sound.shape == (16_000,) and sound.dtype == np.float32
    assert np.isfinite(sound).all() and np.abs(sound).max() <= 1
    assert np.array_equal(sound, nonspeech.made(kind, 3, seconds=1.0))
    assert (np.abs(sound).max() == 0) == (kind == "silence")
    if kind != "silence":
        assert not np.array_equal(sound, nonspeech.made(kind, 4, seconds=1.0))


def slope(kind):
    power = np.square(np.abs(np.fft.rfft(nonspeech.made(kind, 0, seconds=4.0))))
    hertz = np.fft.rfftfreq(64_000, 1 / 16_000)
    low, high = ((hertz > a) & (hertz < b) for a, b in ((100, 400), (2000, 8000)))
    return power[low].mean() / power[high].mean()


def test_colours_are_what_they_are_called():
    assert 0.5 < slope("white") < 2 < slope("pink")
    spectrum = np.abs(np.fft.rfft(nonspeech.made("hum", 0, seconds=4.0)))
    assert np.argmax(spectrum) / 4 in (50, 60)


def test_speech_like_noise_swells_four_times_a_second():
    loud = np.square(nonspeech.made("speech-like noise", 1, seconds=4.0)).reshape(-1, 320).mean(axis=1)
    swell = np.abs(np.fft.rfft(loud - loud.mean()))
    assert 3 <= np.argmax(swell) / 4 <= 5


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="'music' is not one of silence"):
        nonspeech.made("music")
