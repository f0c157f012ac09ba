"""A sound that is handed over comes out as it went in, or is refused in one line before it can do harm."""

import io
import resource

import numpy as np
import pytest
import soundfile
from conftest import hum

from whisper_sae.data import uploads
from whisper_sae.data.tables import BadSpeech
from whisper_sae.viz import media

SOUND = hum(np.random.default_rng(0), 150, seconds=1.0)


def file(sound=SOUND, rate=16_000, format="WAV", subtype="PCM_16") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, sound, rate, format=format, subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize(
    ("format", "subtype", "least"),
    [("WAV", "PCM_16", 0.99999), ("WAV", "FLOAT", 1.0), ("FLAC", "PCM_16", 0.99999), ("OGG", "VORBIS", 0.95),
     ("OGG", "OPUS", 0.9), ("MP3", "MPEG_LAYER_III", 0.9)],
)  # fmt: skip
def test_every_kind_of_file_is_heard(format, subtype, least):
    found = uploads.samples(file(format=format, subtype=subtype))
    assert found.dtype == np.float32 and abs(len(found) - 16_000) < 1200
    if format != "MP3":  # which begins a little late
        assert np.corrcoef(found[:15_000], SOUND[:15_000])[0, 1] >= least - 1e-6


def test_wav_out_is_wav_in():
    once = uploads.samples(media.wav(SOUND))
    np.testing.assert_allclose(once, SOUND, atol=1 / 32_000)
    assert media.wav(once) == media.wav(SOUND) and np.array_equal(uploads.samples(media.wav(once)), once)


def test_two_channels_are_averaged_and_rates_brought_to_one():
    both = np.stack([SOUND, 0.5 * SOUND], axis=1)
    np.testing.assert_allclose(uploads.samples(file(both, subtype="FLOAT")), 0.75 * SOUND, atol=1e-6)
    assert len(uploads.samples(file(SOUND, 48_000))) == pytest.approx(16_000 / 3, abs=1)


LONG = np.zeros(8_000 * 7_200, dtype=np.int16)  # two hours


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"this is no sound, whatever it is called", "not a sound file that can be read"),
        (b"RIFF\x00\x00\x00\x00WAVE", "not a sound file|holds no samples|truncated"),
        (b"\x00" * 5000, "not a sound file"),
        (file()[:9000], "truncated"),
        (file(np.zeros((1600, 8))), "8 channels; mix them down to one or two"),
        (file(SOUND[:800]), "at least 0.1 s"),
        (file(np.zeros(16_000)), "silent"),
        (file(np.zeros(0)), "holds no samples"),
        (file(np.full(16_000, np.nan), subtype="FLOAT"), "NaN"),
        (file(SOUND, 1_000), "1,000 samples a second"),
        (file(LONG, 8_000, "FLAC"), r"it lasts 2\.0 hours; at most 2 minutes"),
    ],
    ids=["nothing", "text", "header", "zeros", "cut off", "8 channels", "too short", "silence", "no samples", "NaN",
         "a slow rate", "2 h"],
)  # fmt: skip
def test_what_cannot_be_asked_about_is_refused_in_one_line(data, why):
    with pytest.raises(BadSpeech, match=why) as refused:
        uploads.samples(data)
    assert "\n" not in str(refused.value) and "/tmp" not in str(refused.value)


def test_two_hours_take_no_memory():
    data = file(LONG, 8_000, "FLAC")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadSpeech):
        uploads.samples(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


def test_bytes_are_counted_before_they_are_read():
    with pytest.raises(BadSpeech, match="at most 64 MB"):
        uploads.samples(bytes(uploads.BYTES + 1))
