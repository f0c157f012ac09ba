"""A part of a recording is what it is in the whole, and costs what a part costs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_sae.activations import extract
from whisper_sae.data import audio, clip_table

RATES = [4_000, 8_000, 11_025, 16_000, 22_050, 22_255, 44_100, 48_000, 96_000]
FORMATS = {
    "16 bits": {"file": "a.wav"},
    "floats": {"file": "a.wav", "subtype": "FLOAT"},
    "FLAC": {"file": "a.flac"},
    "AIFF": {"file": "a.aiff"},
    "Vorbis": {"file": "a.ogg", "subtype": "VORBIS"},
    "Opus": {"file": "a.opus", "format": "OGG", "subtype": "OPUS", "compression_level": 1.0},  # leans on its past
    "MP3": {"file": "a.mp3", "bitrate_mode": "VARIABLE", "compression_level": 0.7},  # so does this
    "ADPCM": {"file": "a.wav", "subtype": "MS_ADPCM"},
    "GSM": {"file": "a.wav", "subtype": "GSM610"},  # libsndfile cannot seek in it
}


def written(folder: Path, samples: int, rate: int, channels: int = 1, file: str = "a.wav", **how) -> Path:
    """A voice that glides, in noise, loud and still in turn: (sample, channel)."""
    rng, path, time = np.random.default_rng(rate + channels), folder / file, np.arange(samples) / rate
    voice = sum(np.sin(n * (600 * time - 80 * np.cos(3 * time))) / n for n in range(1, 8))
    loud = 0.02 + 0.1 * (np.sin(3 * time) > 0)
    sound = loud[:, None] * (voice[:, None] + 0.3 * rng.normal(size=(samples, channels)))
    with soundfile.SoundFile(path, "w", rate, channels, **how) as out:
        for part in np.array_split(sound, 1 + samples // 4_000):
            out.write(part)
    return path


def windows_of(path: Path, window: int) -> list[np.ndarray]:
    """All of a file, window by window, as its header has them."""
    table = clip_table.windows(pd.DataFrame({"duration": [clip_table.seconds(path)]}), window)
    return [audio.excerpt(path, row.first, row.samples) for row in table.itertuples()]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_windows_make_up_the_whole(tmp_path, rate, channels):
    path = written(tmp_path, 7 * rate + 123, rate, channels, subtype="FLOAT")
    whole, parts = clip_table.samples(path), windows_of(path, 32_000)
    assert [len(part) for part in parts[:-1]] == [32_000] * 3
    joined = np.concatenate(parts)
    assert joined.dtype == np.float32
    assert len(joined) == len(whole)
    assert np.abs(joined - whole).max() <= (0 if rate == 16_000 else 1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same_from_wherever_it_is_read(tmp_path, name):
    path = written(tmp_path, 300_000, 16_000, **FORMATS[name])
    whole = clip_table.samples(path)
    for first, samples in (
        (100_000, 32_000),
        (200_003, 16_001),
        (17, 1),
        (250_000, 32_000),
        (30_000, 32_000),
        (290_000, 20_000),
    ):
        part = audio.excerpt(path, first, samples)
        assert len(part) == len(whole[first : first + samples])
        np.testing.assert_allclose(part, whole[first : first + samples], rtol=0, atol=1e-6)


@given(st.sampled_from([8_000, 11_025, 16_000, 44_100, 48_001]), st.integers(0, 50_000), st.integers(1, 40_000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_of_any_rate(tmp_path, rate, first, samples):
    path = tmp_path / f"{rate}.wav"
    if not path.exists():
        written(tmp_path, 3 * rate, rate, file=path.name, subtype="FLOAT")
    right = clip_table.samples(path)[first : first + samples]
    part = audio.excerpt(path, first, samples)
    assert part.shape == right.shape
    np.testing.assert_allclose(part, right, rtol=0, atol=1e-5 if rate == 48_001 else 1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("name", ["16 bits", "FLAC", "Vorbis", "MP3"])
def test_a_clip_of_one_window_is_bit_for_bit_what_it_was(tmp_path, name, rate):
    path = written(tmp_path, 2 * rate - 77, rate, 2, **FORMATS[name])
    whole = clip_table.samples(path)
    (part,) = windows_of(path, 32_000 + 5_000)
    assert part.tobytes() == whole.tobytes()


def test_the_sound_of_a_piece_is_read_so(tmp_path):
    path = written(tmp_path, 200_000, 44_100)
    heard = pd.DataFrame({"path": [str(path)], "duration": [clip_table.seconds(path)]})
    windows = clip_table.windows(heard, 32_000)
    whole = clip_table.samples(path)
    for row, (first, samples) in enumerate(zip(windows["first"], windows.samples, strict=True)):
        right = whole[first : first + samples]
        np.testing.assert_allclose(extract.sound_of(heard, windows, row), right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "most"), [("FLAC", 1.1), ("MP3", 1.6)])
def test_a_long_clip_is_decoded_about_once(tmp_path, monkeypatch, name, most):
    """MP3 is begun twice: the first window does not know that others follow."""
    path = written(tmp_path, 64 * 8_000, 8_000, **FORMATS[name])
    decode, counts = clip_table.decode, []

    def counted(*args):
        for block in decode(*args):
            counts.append(len(block))
            yield block

    monkeypatch.setattr(clip_table, "decode", counted)
    assert len(windows_of(path, 64_000)) == 16
    assert 64 * 8_000 <= sum(counts) < most * 64 * 8_000


def test_what_is_given_may_be_changed(tmp_path):
    path = written(tmp_path, 90_000, 16_000, **FORMATS["MP3"])
    right = audio.excerpt(path, 40_000, 2_000)
    audio.excerpt(path, 40_000, 2_000)[:] = 7
    np.testing.assert_array_equal(audio.excerpt(path, 40_000, 2_000), right)


def test_another_file_of_the_same_name_is_read_anew(tmp_path):
    path = written(tmp_path, 90_000, 16_000, **FORMATS["MP3"])
    before = audio.excerpt(path, 40_000, 2_000)
    written(tmp_path, 95_000, 16_000, 2, **FORMATS["MP3"])
    right = clip_table.samples(path)[40_000:42_000]
    assert not np.array_equal(before, right)
    np.testing.assert_allclose(audio.excerpt(path, 40_000, 2_000), right, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- what is broken


def test_a_fault_is_told_of_the_part_that_has_it(tmp_path):
    sound = np.full(96_000, 0.1, np.float32)
    sound[50_000] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    for first in (0, 64_000):
        assert audio.excerpt(tmp_path / "a.wav", first, 32_000).tolist() == sound[:32_000].tolist()
    with pytest.raises(clip_table.BadSpeech, match=r"a\.wav: 1 samples are NaN"):
        audio.excerpt(tmp_path / "a.wav", 32_000, 32_000)


@pytest.mark.parametrize("name", ["16 bits", "AIFF", "Vorbis", "Opus"])
def test_what_is_truncated_is_told_whichever_part_is_asked_for(tmp_path, name):
    path = written(tmp_path, 160_000, 16_000, **FORMATS[name])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    for first in (0, 32_000):
        with pytest.raises(clip_table.BadSpeech, match="truncated"):
            audio.excerpt(path, first, 16_000)


def test_an_mp3_that_says_nothing_of_its_length_is_not_called_truncated(tmp_path):
    """Of constant bit rate and without a table, it is guessed from the size of the file, half a percent too long."""
    how = {"file": "a.mp3", "bitrate_mode": "CONSTANT", "compression_level": 0.9}
    path = written(tmp_path, 60 * 22_050, 22_050, **how)
    whole = clip_table.samples(path)
    assert len(whole) / 16_000 == pytest.approx(clip_table.decoded(path), abs=1e-4) == pytest.approx(60, abs=0.1)
    assert clip_table.seconds(path) > 60.2
    last = audio.excerpt(path, len(whole) - 20_000, 20_000)
    np.testing.assert_allclose(last, whole[-20_000:], rtol=0, atol=1e-6)


def test_a_damaged_flac_is_told_where_it_is_damaged(tmp_path):
    path = written(tmp_path, 320_000, 16_000, **FORMATS["FLAC"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    audio.excerpt(path, 0, 32_000)
    with pytest.raises(clip_table.BadSpeech, match=r"a\.flac: (truncated|cannot be decoded)"):
        audio.excerpt(path, 288_000, 32_000)


def test_after_a_fault_the_file_can_be_read_again(tmp_path, monkeypatch):
    path = written(tmp_path, 90_000, 16_000, **FORMATS["MP3"])
    right = audio.excerpt(path, 20_000, 2_000)
    decode = clip_table.decode

    def fails(*args):
        yield next(iter(decode(*args)))[:500]
        raise clip_table.BadSpeech("cannot be decoded")

    with monkeypatch.context() as during:
        during.setattr(clip_table, "decode", fails)
        with pytest.raises(clip_table.BadSpeech):
            audio.excerpt(path, 60_000, 2_000)
    np.testing.assert_array_equal(audio.excerpt(path, 20_000, 2_000), right)
    right = clip_table.samples(path)[60_000:62_000]
    np.testing.assert_allclose(audio.excerpt(path, 60_000, 2_000), right, rtol=0, atol=1e-6)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(clip_table.BadSpeech, match=r"nowhere\.wav: no such file"):
        audio.excerpt(tmp_path / "nowhere.wav", 0, 100)


# -------------------------------------------------------------------------------------------------- the memory

SCRIPT = """
import sys
from pathlib import Path
import pandas as pd
from whisper_sae.data import audio, clip_table

def told(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

path, window = sys.argv[1], int(sys.argv[2])
table = clip_table.windows(pd.DataFrame({"duration": [clip_table.seconds(path)]}), window)
before = told("VmRSS")
total = sum(len(audio.excerpt(path, row.first, row.samples)) for row in table.itertuples())
print(total, len(table), told("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")
@pytest.mark.parametrize(("subtype", "minutes"), [("PCM_16", 10), ("MS_ADPCM", 10)])
def test_a_long_file_takes_no_more_memory_than_a_window(tmp_path, subtype, minutes):
    """As float32 they would be 115 MB. The second form cannot be begun in the middle."""
    path = tmp_path / "long.wav"
    minute = np.random.default_rng(0).normal(0, 0.1, 60 * 48_000).astype(np.float32)
    with soundfile.SoundFile(path, "w", 48_000, 1, subtype=subtype) as out:
        for _minute in range(minutes):
            out.write(minute)
    asks = [sys.executable, "-c", SCRIPT, str(path), str(30 * 16_000)]
    done = subprocess.run(asks, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    total, windows, megabytes = done.stdout.split()
    assert int(total) >= minutes * 60 * 16_000
    assert int(windows) >= 2 * minutes
    assert float(megabytes) < 60
