"""Tones have the pitch that they have, pauses are where they are, and what is not known says so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from whisper_sae.data import clip_table
from whisper_sae.features import acoustics

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo" / "corpus"
T = np.arange(32_000) / 16_000


def voice(hertz, seconds=2.0, level=0.1):
    """A sound with overtones; `hertz` is a number or (sample,)."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, int(seconds * 16_000))) / 16_000
    return level * sum(np.sin(n * phase) / n for n in range(1, 8))


def noise(seconds, level=0.1, seed=0):
    return level * np.random.default_rng(seed).normal(size=int(seconds * 16_000))


# ------------------------------------------------------------------------------------------------- pitch


@pytest.mark.parametrize("hertz", [65, 90, 123.4, 210, 333, 480])
def test_a_steady_voice_has_its_pitch(hertz):
    found = acoustics.measured(voice(hertz), 100)[2:-2]
    assert (np.abs(found.pitch / hertz - 1) < 0.005).all() and (found.voicing > 0.95).all()


def test_a_glide_is_followed():
    hertz = 100 * 2 ** (T / 1.0)  # two octaves
    found = acoustics.measured(voice(hertz), 100)[2:-2]
    there = hertz.reshape(100, 320).mean(axis=1)[2:-2]
    assert (np.abs(found.pitch / there - 1) < 0.02).all()


def test_a_voice_in_noise_and_without_its_lowest_tone():
    found = acoustics.measured(voice(150) + noise(2, 0.03), 100)[2:-2]
    assert (np.abs(found.pitch / 150 - 1) < 0.02).mean() > 0.97
    upper = sum(np.sin(2 * np.pi * 150 * n * T) for n in (3, 4, 5, 6))
    assert (np.abs(acoustics.measured(0.1 * upper, 100)[2:-2].pitch / 150 - 1) < 0.01).all()


def test_noise_and_silence_have_no_pitch():
    assert acoustics.measured(noise(2), 100).pitch.isna().all()
    zeros = acoustics.measured(np.zeros(32_000), 100)
    assert zeros.pitch.isna().all() and (zeros.voicing == 0).all()
    faint = acoustics.measured(np.concatenate([voice(150), 1e-4 * voice(150)]), 200)
    assert faint.pitch[:98].notna().all() and faint.pitch[102:].isna().all(), "what is silence has none"


def test_what_is_faint_beside_the_peak_must_be_more_periodic():
    """A hum 34 dB below a word is not silence by its energy, and half of it is noise: no pitch there, as in Praat."""
    hum = (voice(150) + noise(2, 0.05)) / 50
    alone, beside = acoustics.measured(hum, 100), acoustics.measured(np.concatenate([voice(150), hum]), 200)
    assert alone.pitch.notna().mean() > 0.9 and beside.pitch[:98].notna().all()
    np.testing.assert_allclose(alone.voicing[2:-2], beside.voicing[102:-2], atol=0.02)
    assert beside.pitch[102:].notna().mean() < 0.5
    assert acoustics.measured(np.concatenate([voice(150), 0.1 * voice(150)]), 200).pitch[102:].notna().all()


@pytest.mark.slow
def test_voicing_agrees_with_praat(shared):
    """Of frames voiced for us, few are not for Praat (60-500 Hz), where 14 % were without a threshold of loudness."""
    parselmouth = pytest.importorskip("parselmouth")
    ours, praat = [], []
    for path in sorted((shared / "speech" / "librispeech-sample" / "audio").rglob("*.*"))[:20]:
        sound = clip_table.samples(path).astype(float)
        frames = -(-len(sound) // 320)
        ours.append(acoustics.measured(sound, frames).pitch.notna())
        told = parselmouth.Sound(sound, 16_000).to_pitch_ac(time_step=0.01, pitch_floor=60, pitch_ceiling=500)
        praat.append([told.get_value_at_time(moment) > 0 for moment in clip_table.moments(np.arange(frames))])
    ours, praat = np.concatenate(ours), np.concatenate(praat)
    assert (ours & ~praat).sum() < 0.10 * ours.sum() and (praat & ~ours).sum() < 0.08 * praat.sum()


def test_the_synthesiser_was_told_the_same_pitch():
    told = pd.read_csv(DEMO / "metadata.csv")
    for row in told[told.kind == "speech"].iloc[::60].itertuples():
        found = acoustics.measured(clip_table.samples(DEMO / row.file_name), 1500)
        assert found.pitch.median() == pytest.approx(row.f0_hz, rel=0.05), row.file_name


# ---------------------------------------------------------------------------------- loudness and spectrum


def test_energy_is_that_of_the_frame_alone():
    sound = np.zeros(3200)
    sound[480:800] = 0.5  # around 40 ms
    found = acoustics.measured(sound, 10).energy
    assert found[2] == pytest.approx(20 * np.log10(0.5)) and (found.drop(2) == -120).all()


def test_the_colour_of_tones_and_of_white_and_brown_noise():
    for hertz in (200, 1000, 5000):
        found = acoustics.measured(0.1 * np.sin(2 * np.pi * hertz * T), 100)[2:-2]
        assert (np.abs(found.centroid - hertz) < 10).all()
        assert (np.abs(found.crossings - 2 * hertz) <= 50).all()
    white = acoustics.measured(noise(2), 100)
    assert white.centroid.mean() == pytest.approx(4000, rel=0.03) and abs(white.tilt.mean()) < 0.5
    brown = np.cumsum(noise(2, 0.01))
    assert acoustics.measured(brown - brown.mean(), 100).tilt.mean() == pytest.approx(-6, abs=0.7)


def test_how_loud_it_is_changes_no_colour():
    loud, soft = (acoustics.measured(level * noise(1, 1.0), 50) for level in (0.3, 0.003))
    np.testing.assert_allclose(loud.energy - soft.energy, 40, atol=0.01)
    for name in ("centroid", "tilt", "crossings", "voicing"):
        np.testing.assert_allclose(loud[name], soft[name], rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------ where a frame is


def planted():
    """0.4 s silence, 0.6 s of sound, a pause of 0.3 s, sound and sound with a gap of 0.1 s between, 0.2 s silence."""
    parts = [0.4, -0.6, 0.3, -0.2, 0.1, -0.2, 0.2]
    return np.concatenate([np.zeros(round(p * 16_000)) if p > 0 else noise(-p) for p in parts])


def test_pauses_and_what_is_near_them():
    found = acoustics.measured(planted(), 110)
    assert np.flatnonzero(found["start of speech"] == 1).tolist() == [20, 21, 22, 65, 66, 67]
    assert np.flatnonzero(found["end of speech"] == 1).tolist() == [47, 48, 49, 87, 88, 89]
    since, until = found["since silence"], found["until silence"]
    assert since[:20].isna().all() and since[20] == pytest.approx(0.0) and since[49] == pytest.approx(0.58)
    assert since[50:65].isna().all() and since[76] == pytest.approx(0.22), "a gap of 0.1 s is no pause"
    assert until[:20].isna().all() and until[20] == pytest.approx(0.60) and until[65] == pytest.approx(0.50)
    assert found["since silence"][90:].isna().all() and np.flatnonzero(found["start of sound"] == 1).tolist() == [
        0,
        1,
        2,
    ]


def test_the_edge_of_the_padding():
    found = acoustics.measured(planted(), 110)
    assert np.flatnonzero(found["padding edge"] == 1).tolist() == [97, 98, 99]
    assert found["until padding"][99] == pytest.approx(0.02) and found["until padding"][101] == pytest.approx(-0.02)
    assert found.loc[100:].drop(columns="until padding").isna().all(axis=None)
    full = acoustics.measured(planted(), 100)
    assert full[["padding edge", "until padding"]].isna().all(axis=None), "a sound that fills the window has none"
    pd.testing.assert_frame_equal(full.drop(columns=["padding edge", "until padding"]),
                                  found[:100].drop(columns=["padding edge", "until padding"]))  # fmt: skip


def test_a_sound_without_pauses_does_not_know_how_long_ago_one_was():
    found = acoustics.measured(noise(1), 60)
    assert found[["since silence", "until silence"]].isna().all(axis=None)
    assert (found.loc[:49, ["start of speech", "end of speech"]] == 0).all(axis=None)
    assert found.position[:50].tolist() == pytest.approx((np.arange(50) * 0.02).tolist())


@pytest.mark.parametrize("samples, frames", [(0, 5), (1, 5), (320, 1), (321, 2), (511, 2), (16_000, 50)])
def test_any_length(samples, frames):
    found = acoustics.measured(noise(1)[:samples], frames)
    assert list(found) == [*acoustics.MEASURES, *acoustics.EVENTS] and len(found) == frames
    assert found.energy.notna().sum() == -(-samples // 320) == found.voicing.notna().sum()


def test_a_sound_must_fit():
    with pytest.raises(ValueError, match="321 samples need 2 frames, the window has 1"):
        acoustics.measured(noise(1)[:321], 1)


def test_short_silence_is_no_pause():
    silent = np.array([1, 1, 0] + [1] * 8 + [0] + [1] * 7, dtype=bool)
    assert acoustics.pauses(silent).tolist() == [False] * 3 + [True] * 8 + [False] * 8
    assert acoustics.pauses(np.zeros(0, bool)).tolist() == []
