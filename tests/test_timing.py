"""Where in a phone a feature fires, and how late: what was planted is recovered to a few milliseconds."""

import numpy as np
import pytest

from whisper_sae.data import clip_table
from whisper_sae.features import sparse_acts, timing
from whisper_sae.model import whisper_model

FRAME = 0.02


def clock_of(speakers=6, clips=3, frames=400):
    rows = speakers * clips * frames
    return timing.Clock(
        np.repeat(np.arange(speakers * clips), frames), (np.arange(rows) % frames + 0.5) * FRAME,
        np.repeat(np.arange(speakers), clips * frames),
    )  # fmt: skip


def phones_in(clock, seed=0, length=(0.05, 0.12)):
    """Where a phone is said: clip, start and end in seconds, not on the grid of frames."""
    rng, rows = np.random.default_rng(seed), []
    for clip in np.unique(clock.clip):
        at = 0.5
        while at < 7.2:
            long = rng.uniform(*length)
            rows.append((clip, at, at + long))
            at += long + rng.uniform(0.35, 0.6)
    return np.array(rows).T


def bumps(clock, clip, centre, width=0.03):
    """A feature that rises and falls around moments, and is silent elsewhere: (frame, 1) as entries."""
    value = np.zeros(len(clock.clip))
    for c, m in zip(clip, centre, strict=True):
        value += (clock.clip == c) * np.exp(-0.5 * ((clock.moment - m) / width) ** 2)
    return sparse_acts.of_chunks([np.where(value > 0.05, value, 0)[:, None]])


@pytest.mark.parametrize("lag", [-0.06, 0.0, 0.034, 0.1])
def test_a_known_lag_is_recovered(lag):
    clock = clock_of()
    clip, start, end = phones_in(clock)
    made = bumps(clock, clip, (start + end) / 2 + lag)
    found = timing.latency(made, 0, clock, clip, (start + end) / 2)
    assert found.lag == pytest.approx(lag, abs=0.004)
    assert found.low <= found.lag <= found.high and found.high - found.low < 0.01
    assert found.offset[found.mean.argmax()] == pytest.approx(lag, abs=0.011)


def test_the_lag_after_onsets_is_half_a_phone_more():
    clock = clock_of()
    clip, start, end = phones_in(clock, length=(0.08, 0.08))
    made = bumps(clock, clip, (start + end) / 2 + 0.02)
    assert timing.latency(made, 0, clock, clip, start).lag == pytest.approx(0.06, abs=0.004)


def test_a_burst_of_one_frame_is_found_within_half_a_frame():
    clock = clock_of(speakers=1, clips=1)
    made = sparse_acts.of_chunks([(np.arange(400) == 103).astype(float)[:, None]])
    found = timing.latency(made, 0, clock, [0], [2.005])
    assert found.lag == pytest.approx(clock.moment[103] - 2.005, abs=1e-9)
    assert np.isnan(found.low) and np.isnan(found.high), "one speaker"


def test_of_five_speakers_no_interval_is_given():
    for speakers in (5, 6):
        clock = clock_of(speakers=speakers, clips=1)
        clip, start, end = phones_in(clock)
        found = timing.latency(bumps(clock, clip, (start + end) / 2), 0, clock, clip, (start + end) / 2)
        assert np.isfinite([found.low, found.high]).all() == (speakers == 6) and np.isfinite(found.lag)


def test_every_speaker_counts_once():
    """One speaks three times as often as the three others together, and late."""
    clock = clock_of()
    clip, start, end = phones_in(clock)
    mine = clip < 3
    centre = (start + end) / 2
    made = bumps(clock, clip, centre + np.where(mine, 0.08, 0.0))
    many = np.concatenate([np.flatnonzero(~mine)] + [np.flatnonzero(mine)] * 9)
    found = timing.latency(made, 0, clock, clip[many], centre[many])
    assert found.lag < 0.03


def test_moments_and_features_about_which_nothing_can_be_said():
    clock = clock_of(speakers=2, clips=1)
    silent = sparse_acts.of_chunks([np.zeros((800, 1))])
    found = timing.latency(silent, 0, clock, [0, 1], [1.0, 1.0])
    assert np.isnan([found.lag, found.low, found.high]).all() and (found.mean == 0).all()
    always = sparse_acts.of_chunks([np.ones((800, 1))])
    assert np.isnan(timing.latency(always, 0, clock, [0, 1], [1.0, 1.0]).lag), "as loud before as after"
    for clip, moment in ([[], []], [[7], [1.0]], [[0], [99.0]], [[0], [-1.0]]):
        found = timing.latency(always, 0, clock, clip, moment)
        assert np.isnan(found.lag) and np.isnan(found.mean).all()


def test_what_is_beyond_the_clip_is_not_heard():
    """A feature that is loud in the next clip's beginning."""
    clock = clock_of(speakers=1, clips=2)
    value = np.zeros(800)
    value[397], value[400:420] = 1, 50
    found = timing.latency(sparse_acts.of_chunks([value[:, None]]), 0, clock, [0], [clock.moment[397]])
    assert found.lag == pytest.approx(0) and np.isnan(found.mean[-8:]).all()


def test_stages_of_a_phone():
    """Features 0, 1, 2 fire in its onset, middle and offset; 3 in all of it, twice as loud in the offset."""
    third = np.tile([0, 0, 1, 1, 2, 2], 10)
    label = np.repeat(["s", "t"] * 5, 6)
    s = label == "s"
    dense = np.stack([s & (third == 0), s & (third == 1), s & (third == 2), s * (1 + (third == 2))], axis=1)
    made, frames = sparse_acts.known(sparse_acts.of_chunks([dense]), label, np.zeros(60), np.zeros(60))
    rate = timing.stages(made, frames, third)
    assert rate.shape == (4, 2, 3)
    np.testing.assert_array_equal(rate[:3, 0], np.eye(3))
    assert (rate[3, 0] == 1).all() and (rate[:, 1] == 0).all()
    assert timing.stages(made, frames, third, made.data)[3, 0].tolist() == [1, 1, 2]
    short = timing.stages(made, frames, np.ones(60, int))
    assert np.isnan(short[:, :, [0, 2]]).all() and np.isfinite(short[:, :, 1]).all()


def test_a_frame_is_centred_where_speech_says(demo):
    """Clicks at known moments: the stem's frames around them, weighted by what the click changes in each."""
    rng = np.random.default_rng(0)
    noise, late = (0.003 * rng.standard_normal(16_000)).astype(np.float32), []
    sounds, at = [noise], rng.integers(4_000, 12_000, 12)
    for sample in at:
        sound = noise.copy()
        sound[sample : sample + 16] += 0.5 * rng.standard_normal(16)
        sounds.append(sound)
    said = whisper_model.record(demo, whisper_model.mel(demo, sounds), ["encoder.embed"])["encoder.embed"][:, :50]
    energy = (said[1:] - said[0]).square().sum(dim=2).numpy()
    late = (at + 8) / clip_table.RATE - (energy * clip_table.moments(np.arange(50))).sum(axis=1) / energy.sum(axis=1)
    assert abs(late.mean()) < 0.003 and late.std() < 0.005, "the middle of the samples would be 10 ms away"
