"""Model and SAE on another device than the CPU: everything causal runs there, and the numbers are the CPU's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from other_device import DEVICE, Elsewhere, There

from whisper_sae import devices, profiles
from whisper_sae.causal import edits, losses, patching, steering
from whisper_sae.data import clip_table
from whisper_sae.model import text, whisper_model
from whisper_sae.sae import architectures

SITES = ["encoder.1.resid", "encoder.3.normed", "encoder.1.mlp", "decoder.0.resid"]
WHISPER = str(profiles.DEMO / "whisper")


def on(whisper: whisper_model.Whisper, whole) -> whisper_model.Whisper:
    return replace(whisper, whole=whole, encoder=whole.model.encoder, decoder=whole.model.decoder)


@pytest.fixture(scope="module")
def here() -> whisper_model.Whisper:
    """The demo's Whisper on the CPU, its attention not fused, so that its weights can be moved."""
    return whisper_model.load(WHISPER, "cpu", attention="eager")


@pytest.fixture(scope="module")
def clips():
    found = clip_table.read(profiles.DEMO / "corpus")
    return found[found.kind == "speech"].iloc[[0, 111]]


def coder_for(width: int = 192) -> architectures.SAE:
    coder = architectures.create("topk", width, 64, 8)
    coder.start_on(torch.randn(500, width, generator=torch.Generator().manual_seed(0)))
    return coder.eval().requires_grad_(False)


def everything(whisper, coder, sounds, texts, sites=SITES) -> dict:
    """What is asked of a model and an SAE, by site: texts, and numbers as arrays."""
    heard, found = patching.hear(whisper, sounds, sites, languages=["en"] * len(sounds)), {}
    for site, one in heard.items():
        coded = patching.Coded(one, coder)
        mask = edits.between(len(one), 64 if one.in_decoder else one.valid.shape[1], 2, 40)
        changes = {
            "spliced": coded.spliced(),
            "strongest": coded.edit(edits.strongest(4)),
            "held": coded.edit(edits.hold({3: 5.0, 7: 40.0}), where=mask),
            "random": coded.edit(edits.scale({3: -9.0}), along=torch.ones(64, 192)),
        }
        read = losses.read(one, changes, texts)
        _, less = losses.by_word(one, {"held": changes["held"]}, texts)
        found[site] = {
            "wrote": {name: patching.said(one, each.tokens) for name, each in read.items()},
            "costs": np.array([[each.cross_entropy, each.divergence] for each in read.values()]),
            "less": less["held"],
        }
        if coded.codes is not None:
            found[site] |= {"rates": coded.rates, "fires": coded.fires([3])}
        outcome = patching.outcomes(one, {"held": changes["held"]})["held"]
        found[site]["wrote"]["allowing empty"] = outcome.wrote_or_empty.tolist()
        found[site]["confidence"] = outcome[["no_speech", "mean_logprob"]].to_numpy()
    one = patching.some(heard[SITES[0]], np.array([1]))
    spliced = patching.write(one, {"": patching.Coded(one, coder).spliced()})[""]
    steered = steering.steer(whisper, coder, SITES[0], sounds[0], {3: -2.0}, seconds=(0.2, 0.6))
    return found | {"": {"wrote": [*spliced, steered.edited], "after": steered.after[3]}}


def close(found: dict, right: dict, rtol: float) -> None:
    assert list(found) == list(right)
    for site, known in right.items():
        for name, one in known.items():
            if name != "wrote":
                np.testing.assert_allclose(found[site][name], one, rtol=rtol, atol=rtol, err_msg=f"{site} {name}")


@pytest.mark.parametrize("sites", [SITES[::3], pytest.param(SITES, marks=pytest.mark.slow)], ids=["two", "all"])
def test_everything_causal_runs_on_another_device_and_gives_the_same(here, clips, monkeypatch, sites):
    sounds, texts = [clip_table.samples(path) for path in clips.path], clips.text.tolist()
    coder, mel = coder_for(), whisper_model.mel
    right, wrote = everything(here, coder, sounds, texts, sites), text.transcribe(here, mel(here, sounds))
    with Elsewhere() as elsewhere:
        there = on(here, elsewhere.move(here.whole))
        monkeypatch.setattr(whisper_model.Whisper, "device", property(lambda self: self.encoder.conv1.weight.device))
        monkeypatch.setattr(
            whisper_model, "mel", lambda _whisper, some: There(mel(here, some))
        )  # its transform is in C++
        assert there.device == DEVICE != here.device
        found = everything(there, coder, sounds, texts, sites)
        assert text.transcribe(there, whisper_model.mel(there, sounds)) == wrote
    assert coder.W_dec.device.type == "cpu", "the SAE that was handed over stays where it was"
    close(found, right, 1e-3)
    assert all(found[site]["wrote"] == right[site]["wrote"] for site in right)


def test_the_device_that_is_not_there_keeps_tensors_apart():
    with Elsewhere():
        x, few = torch.zeros(3, 2, device=DEVICE), torch.tensor([0])
        assert (x + 1).cpu().sum() == 6 and x[few].device == DEVICE
        for wrong in (
            lambda: x + torch.ones(3, 2),
            lambda: torch.nn.functional.embedding(few, x),
            lambda: torch.zeros(3)[few.to(DEVICE)],
            lambda: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
            lambda: x.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")
def test_everything_causal_runs_on_a_card(clips):
    sounds, texts = [clip_table.samples(path) for path in clips.path], clips.text.tolist()
    right = everything(whisper_model.load(WHISPER, "cpu"), coder_for(), sounds, texts)
    close(everything(whisper_model.load(WHISPER, "cuda"), coder_for(), sounds, texts), right, 2e-2)
    assert not torch.backends.cudnn.allow_tf32


def test_auto_is_a_device_on_which_everything_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick("auto").type == "cpu", "mps lacks sparse products and float64"


def test_float32_is_float32_on_a_card(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(ValueError, match="cuda") if not torch.cuda.is_available() else torch.no_grad():
        devices.pick("cuda")
    assert not torch.backends.cudnn.allow_tf32
