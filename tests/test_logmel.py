"""What Whisper is given equals what transformers would give it, to the last frame of padding."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from whisper_sae.model import whisper_model
from whisper_sae.model.logmel import log_mel


def theirs(whisper, sounds):
    return whisper.features(sounds, sampling_rate=16_000, return_tensors="pt", padding="max_length").input_features


@given(
    st.lists(st.tuples(st.integers(1, 32_000), st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0])), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_equal_to_transformers(loaded, clips, seed):
    rng = np.random.default_rng(seed)
    sounds = [(rng.normal(0, 1, length) * level).clip(-1, 1).astype(np.float32) for length, level in clips]
    ours = whisper_model.mel(loaded, sounds)
    assert ours.shape == (len(sounds), 80, 200) and ours.is_contiguous()
    np.testing.assert_allclose(ours, theirs(loaded, sounds), atol=1e-4)


@pytest.mark.parametrize("length", [1, 159, 160, 161, 399, 400, 31_199, 31_200, 31_600, 31_799, 31_800, 31_999, 32_000])
def test_equal_at_the_edges(loaded, length):
    sound = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    np.testing.assert_allclose(whisper_model.mel(loaded, [sound]), theirs(loaded, [sound]), atol=1e-4)


def test_a_clip_is_not_told_of_the_others(loaded):
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, level, n).astype(np.float32) for level, n in ((0.01, 4_000), (0.5, 30_000))]
    np.testing.assert_allclose(whisper_model.mel(loaded, sounds)[:1], whisper_model.mel(loaded, sounds[:1]), atol=1e-6)


def test_a_soft_clip_beside_a_loud_one_is_what_it_is_alone(loaded):
    """Packed into one window each is clamped by its own loudest point; only frames at a clip's edge hear the other."""
    rng, alone = np.random.default_rng(0), []
    for level in (0.5, 0.00005):
        alone.append(rng.normal(0, level, 9_600).astype(np.float32))
    gap = np.zeros(6_400, np.float32)
    packed = np.concatenate([alone[0], gap, alone[1]])
    found = whisper_model.mel(loaded, [packed], [[0, 16_000]])[0]
    right = [whisper_model.mel(loaded, [sound])[0] for sound in alone]
    np.testing.assert_allclose(found[:, :90], right[0][:, :90], atol=1e-6)
    np.testing.assert_allclose(found[:, 102:], right[1][:, 2:100], atol=1e-5)
    as_one = whisper_model.mel(loaded, [packed])[0]
    assert (as_one[:, 102:158] - right[1][:, 2:58]).abs().mean() > 0.1, "without `starts` the soft clip is floored"
    np.testing.assert_array_equal(whisper_model.mel(loaded, alone, [[0], [0]]), whisper_model.mel(loaded, alone))


@pytest.mark.parametrize("bins", [80, 128])
def test_equal_on_speech(shared, bins):
    how = WhisperFeatureExtractor(feature_size=bins)
    paths = sorted((shared / "speech" / "librispeech-sample" / "audio").glob("*"))[:4]
    sounds = [soundfile.read(path, dtype="float32")[0] for path in paths]
    ours = log_mel(sounds, how.mel_filters, window=480_000, n_fft=400, hop=160)
    right = how(sounds, sampling_rate=16_000, return_tensors="np").input_features
    assert ours.shape == right.shape
    np.testing.assert_allclose(ours, right, atol=1e-4)


def test_what_a_config_adds_is_done_by_transformers(small_whisper):
    whisper = whisper_model.load(str(small_whisper), "cpu")
    whisper.features.do_normalize = True
    sound = np.random.default_rng(0).normal(0.2, 0.1, 9_000).astype(np.float32)
    assert whisper.features(sound, sampling_rate=16_000) is not None
    assert whisper_model.mel(whisper, [sound]).shape == (1, 80, 200)
