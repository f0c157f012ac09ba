"""What a decoder leaves out of MP3 and Ogg without a word is noticed, and whole files are not suspected."""

import re

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae.data import clip_table, containers


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rising = np.linspace(0.001, 0.3, round(seconds * rate))[:, None]  # so that a variable rate varies
    return rng.normal(0, 1, (len(rising), channels)) * rising


def mp3(path, seconds=2.0, rate=16_000, channels=1, mode="CONSTANT", level=0.6, seed=0) -> bytes:
    with soundfile.SoundFile(
        path, "w", rate, channels, format="MP3", bitrate_mode=mode, compression_level=level
    ) as file:
        file.write(noise(seconds, rate, channels, seed))
    return path.read_bytes()


def without_first_frame(content: bytes) -> bytes:
    """Without the frame that says how many there are."""
    first = next(containers.mp3_frames(content))
    assert first.told
    return content[first.start + first.length :]


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_whole_mp3_is_read(tmp_path, rate, mode, channels):
    mp3(tmp_path / "a.mp3", 1.5, rate, channels, mode)
    assert clip_table.decoded(tmp_path / "a.mp3") == pytest.approx(1.5, abs=0.08)


def test_frames_are_counted_past_tags(tmp_path):
    content = mp3(tmp_path / "a.mp3")
    count = len(list(containers.mp3_frames(content)))
    tag = b"ID3\x04\0\0" + bytes([0, 0, 1, 72]) + b"\xff\xfb\x90\0" * 50
    assert len(list(containers.mp3_frames(tag + content + b"TAG" + b"a" * 125))) == count
    (tmp_path / "a.mp3").write_bytes(tag + content)
    assert clip_table.decoded(tmp_path / "a.mp3") == pytest.approx(2.0, abs=0.08)


@pytest.mark.parametrize(("first", "second", "why"), [
    (dict(), dict(seed=1), "are decoded: several files were joined"),
    (dict(mode="VARIABLE"), dict(mode="VARIABLE", seed=1), "are decoded: several files were joined"),
    (dict(), dict(rate=44_100), "sampling rates follow each other"),
])  # fmt: skip
def test_joined_mp3_files_are_rejected(tmp_path, first, second, why):
    joined = mp3(tmp_path / "a.mp3", **first) + mp3(tmp_path / "b.mp3", **second)
    (tmp_path / "a.mp3").write_bytes(joined)
    with pytest.raises(clip_table.BadSpeech, match=why):
        clip_table.decoded(tmp_path / "a.mp3")


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 20.0])
def test_an_mp3_without_its_first_frame_is_read_to_the_end_or_rejected(tmp_path, mode, seconds):
    content = mp3(tmp_path / "a.mp3", seconds, mode=mode)
    (tmp_path / "a.mp3").write_bytes(without_first_frame(content))
    try:
        length = clip_table.decoded(tmp_path / "a.mp3")
    except clip_table.BadSpeech as error:
        assert "s of an MP3 are decoded" in str(error)
    else:
        assert length == pytest.approx(seconds, abs=0.2)


@pytest.mark.parametrize("left", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_a_truncated_mp3_is_rejected(tmp_path, left, mode):
    content = mp3(tmp_path / "a.mp3", 5.0, mode=mode)
    (tmp_path / "a.mp3").write_bytes(content[: int(left * len(content))])
    with pytest.raises(clip_table.BadSpeech, match="truncated"):
        clip_table.decoded(tmp_path / "a.mp3")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_rejected_and_one_stream_is_read(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(1.0, 16_000), 16_000, format="OGG", subtype=subtype)
    assert clip_table.decoded(path) == pytest.approx(1.0, abs=0.02)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(clip_table.BadSpeech, match="several Ogg streams follow each other"):
        clip_table.decoded(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("pages", [1, 2])
def test_ogg_without_its_last_pages_is_truncated_wherever_it_was_cut(tmp_path, subtype, pages):
    """Cut between two pages everything that is left decodes: only the mark of the last page is missing."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(6.0, 16_000), 16_000, format="OGG", subtype=subtype)
    content = path.read_bytes()
    starts = [found.start() for found in re.finditer(b"OggS", content)]
    assert len(starts) > 4
    path.write_bytes(content[: starts[-pages]])
    with pytest.raises(clip_table.BadSpeech, match="truncated"):
        clip_table.decoded(path)


KINDS = {"a.wav": {"subtype": "PCM_16"}, "a.flac": {}, "a.mp3": {"bitrate_mode": "VARIABLE"}, "a.ogg": {}}


@settings(deadline=None)
@given(st.data(), st.sampled_from(sorted(KINDS)))
def test_damaged_sound_is_read_or_rejected_in_one_line(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("damaged") / name
    soundfile.write(path, noise(0.3, 16_000), 16_000, **KINDS[name])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["change", "cut", "join"]))
        if how == "change" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at:]
        else:
            content = content[:4096] + content[:4096]
    path.write_bytes(content)
    try:
        clip_table.decoded(path)
    except clip_table.BadSpeech as error:
        assert str(path) in str(error) and str(error).isprintable()
