"""Cross-entropy is that of transformers, divergence that of its definition, and both are 0 where nothing changes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from whisper_sae import profiles
from whisper_sae.causal import losses, patching
from whisper_sae.data import clip_table
from whisper_sae.model import text

DEMO = profiles.DEMO


@pytest.fixture(scope="module")
def clips():
    found = clip_table.read(DEMO / "corpus")
    return found[found.kind == "speech"].iloc[::60]  # 8 clips


@pytest.fixture(scope="module")
def heard(demo, clips):
    return patching.hear(
        demo, [clip_table.samples(path) for path in clips.path], ["encoder.2.resid", "decoder.0.resid"]
    )


def theirs(demo, heard, said, encoded):
    """The model's own loss of one clip and its logits, over the text's tokens and its end."""
    ids, _ = text.given(demo, [said])
    start = len(heard.decoder.prompt) - 1
    wanted = torch.cat([ids[0, start + 1 :], torch.tensor([heard.decoder.end])])
    with torch.no_grad():
        logits = demo.whole(encoder_outputs=(encoded[None],), decoder_input_ids=ids).logits[0, start:]
    return F.cross_entropy(logits, wanted, reduction="sum").item(), logits.log_softmax(-1), len(wanted)


def test_losses_are_those_of_the_model(demo, clips, heard):
    here, said = heard["encoder.2.resid"], clips.text.tolist()
    change = patching.Change(lambda x, _: 0.2 * x)
    found = losses.read(here, {"less": change, "same": patching.Change(lambda x, _: x)}, said, batch=3)
    for clip, words in enumerate(said):
        with torch.no_grad():
            encoded = patching.run_of(here, [(change, torch.tensor([clip]))]).encoded[0]
        plain, before, count = theirs(demo, here, words, here.encoded[clip])
        now, after, _ = theirs(demo, here, words, encoded)
        away = (before.exp() * (before - after)).sum().item()
        assert found["same"].cross_entropy[clip] == pytest.approx(plain, abs=1e-3)
        assert found["less"].cross_entropy[clip] == pytest.approx(now, rel=1e-3, abs=1e-3)
        assert found["less"].divergence[clip] == pytest.approx(away, rel=1e-2, abs=1e-3)
        assert found["less"].answers[clip] == count
    assert (found["less"].cross_entropy > found["same"].cross_entropy).all()
    np.testing.assert_allclose(found["same"].divergence, 0, atol=1e-5)
    assert found["same"].tokens == here.plain
    assert found["less"].tokens == patching.tokens(here, {"": change})[""]


def test_at_a_site_of_the_decoder_too(clips, heard):
    here, said = heard["decoder.0.resid"], clips.text.tolist()
    step = 12 * torch.randn(192, generator=torch.Generator().manual_seed(0))
    changes = {"same": patching.Change(lambda x, _: x), "moved": patching.Change(lambda x, _: x + step)}
    found = losses.read(here, changes, said)
    np.testing.assert_allclose(found["same"].divergence, 0, atol=1e-5)
    assert (found["moved"].divergence > 0.01).all()
    assert found["moved"].tokens == patching.tokens(here, changes)["moved"]


def test_clips_that_are_not_touched_cost_what_they_did(clips, heard):
    here = heard["encoder.2.resid"]
    touched = np.arange(len(here)) < 2
    changes = {"two": patching.Change(lambda x, _: 0 * x, touched), "none": patching.Change(lambda x, _: x)}
    found = losses.read(here, changes, clips.text.tolist())
    assert (found["two"].divergence > 0.1).tolist() == touched.tolist()
    np.testing.assert_allclose(found["two"].cross_entropy[2:], found["none"].cross_entropy[2:], atol=1e-4)


def test_a_text_that_is_too_long_is_refused(heard):
    here = heard["encoder.2.resid"]
    with pytest.raises(ValueError, match=r"number 1 is .* the decoder takes 64"):
        losses.read(here, {}, ["a", *["the stranger hid a green garden " * 9] * (len(here) - 1)])
