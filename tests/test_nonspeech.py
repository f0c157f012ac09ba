"""Sounds without speech are what they are called, the same for the same seed, and no louder than a sound may be."""

import numpy as np
import pytest

from whisper_sae import nonspeech


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
