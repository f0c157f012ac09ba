"""A clip, factors of features, three transcripts and the tracks."""

import numpy as np
import pytest
import torch

from whisper_sae import profiles
from whisper_sae.causal import steering
from whisper_sae.data import clip_table
from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures

DEMO = profiles.DEMO
SITE = "encoder.1.resid"


@pytest.fixture(scope="module")
def sound():
    found = clip_table.read(DEMO / "corpus")
    return clip_table.samples(found[found.kind == "speech"].path.iloc[0])


@pytest.fixture(scope="module")
def coder(demo, sound):
    x = whisper_model.record(demo, whisper_model.mel(demo, [sound]), [SITE])[SITE][0]
    made = architectures.create("topk", 192, 256, 8)
    made.start_on(x)
    return made.eval().requires_grad_(False)


def loudest(demo, coder, sound):
    f = coder.encode(whisper_model.record(demo, whisper_model.mel(demo, [sound]), [SITE])[SITE][0])
    return int(f[: -(-len(sound) // 320)].sum(dim=0).argmax()), f


def test_factors_of_one_and_none_change_nothing(demo, coder, sound):
    feature, _ = loudest(demo, coder, sound)
    for scales in ({}, {feature: 1.0}):
        told = steering.steer(demo, coder, SITE, sound, scales)
        assert told.plain == told.edited and told.plain
    assert told.resaid != told.plain, "an SAE that was never trained re-says nothing"


def test_tracks_are_the_codes_and_what_became_of_them(demo, coder, sound):
    feature, f = loudest(demo, coder, sound)
    other = (feature + 1) % 256
    told = steering.steer(demo, coder, SITE, sound, {feature: -2.0, other: 0.0}, seconds=(0.5, 1.0))
    assert list(told.tracks) == [feature, other] and told.frame_seconds == 0.02
    frames = -(-len(sound) // 320)
    np.testing.assert_allclose(told.tracks[feature], f[:frames, feature].numpy(), rtol=1e-4, atol=1e-4)
    inside = np.zeros(frames, dtype=bool)
    inside[25:50] = True
    factor = np.where(inside, -2.0, 1.0)
    np.testing.assert_allclose(told.after[feature], factor * told.tracks[feature], rtol=1e-5)


def test_a_strong_turn_changes_what_is_written(demo, coder, sound):
    feature, _ = loudest(demo, coder, sound)
    told = steering.steer(demo, coder, SITE, sound, {feature: -30.0})
    assert told.edited != told.plain


def test_what_cannot_be_steered_is_said(demo, coder, sound):
    with pytest.raises(ValueError, match="there is no feature 999; the SAE has 256"):
        steering.steer(demo, coder, SITE, sound, {999: 1.0})
    for site in ("decoder.0.resid", "encoder.1.mlp"):
        with pytest.raises(ValueError, match="is not embed, resid or normed of the encoder"):
            steering.steer(demo, coder, site, sound, {1: 1.0})
    assert torch.isfinite(coder.W_dec).all()
