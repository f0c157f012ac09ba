"""Whisper and its sites: what a hook hears is what the model says, and hooks leave."""

import numpy as np
import pytest
import torch

from whisper_sae import model

SECONDS = (0.4, 1.1, 1.9)


@pytest.fixture(scope="module")
def mels(loaded):
    rng = np.random.default_rng(0)
    return model.mel(loaded, [rng.normal(0, 0.1, int(s * 16_000)).astype(np.float32) for s in SECONDS])


@pytest.fixture(scope="module")
def tokens():
    return torch.tensor([[1, 5, 9, 2], [1, 7, 7, 7], [1, 2, 3, 4]])


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_encoder_sites_equal_hidden_states(loaded, mels):
    """A batch of three clips of different length; the last hidden state is after the final layer norm."""
    wanted = ["encoder.embed", "encoder.0.resid", "encoder.1.resid"]
    heard = model.record(loaded, mels, wanted)
    theirs = loaded.encoder(mels, output_hidden_states=True).hidden_states
    assert len(theirs) == 3 and heard["encoder.0.resid"].shape == (3, loaded.positions, loaded.config.d_model)
    torch.testing.assert_close(heard["encoder.embed"], theirs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(heard["encoder.0.resid"], theirs[1], atol=1e-6, rtol=0)
    normed = loaded.encoder.layer_norm(heard["encoder.1.resid"])
    torch.testing.assert_close(normed, theirs[2], atol=1e-6, rtol=0)
    assert (heard["encoder.1.resid"] - theirs[2]).abs().max() > 0.1


def test_decoder_sites_equal_hidden_states(loaded, mels, tokens):
    wanted = ["decoder.embed", "decoder.0.resid", "decoder.1.resid"]
    heard = model.record(loaded, mels, wanted, tokens)
    said = loaded.whole(mels, decoder_input_ids=tokens, output_hidden_states=True).decoder_hidden_states
    torch.testing.assert_close(heard["decoder.embed"], said[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(heard["decoder.0.resid"], said[1], atol=1e-6, rtol=0)
    normed = loaded.decoder.layer_norm(heard["decoder.1.resid"])
    torch.testing.assert_close(normed, said[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_parts_add_up_to_the_residual_stream(loaded, mels, tokens, side):
    """resid(i) = resid(i - 1) + attention + cross-attention + MLP, and the MLP is its neurons through fc2."""
    parts = ["attn", "mlp"] + (["cross"] if side == "decoder" else [])
    wanted = [f"{side}.0.resid", f"{side}.1.resid", f"{side}.1.mlp_hidden", *(f"{side}.1.{part}" for part in parts)]
    heard = model.record(loaded, mels, wanted, tokens)
    total = heard[f"{side}.0.resid"] + sum(heard[f"{side}.1.{part}"] for part in parts)
    torch.testing.assert_close(total, heard[f"{side}.1.resid"], atol=1e-5, rtol=0)
    layer = getattr(loaded, side).layers[1]
    torch.testing.assert_close(layer.fc2(heard[f"{side}.1.mlp_hidden"]), heard[f"{side}.1.mlp"])
    assert heard[f"{side}.1.mlp_hidden"].min() < 0 and heard[f"{side}.1.mlp_hidden"].min() > -0.18  # GELU's floor


def test_sites_are_named_with_their_widths(loaded):
    every = model.sites(loaded.config)
    assert len(every) == (1 + 2 * 4) + (1 + 2 * 5) and every["encoder.1.mlp_hidden"] == loaded.config.encoder_ffn_dim
    assert list(model.sites(loaded.config, ["encoder.?.resid"])) == ["encoder.0.resid", "encoder.1.resid"]


def test_encoder_sites_do_not_run_the_decoder(loaded, mels):
    calls = []
    with model.watching(loaded.decoder.layers[0], lambda hidden: calls.append(1)):
        model.record(loaded, mels, ["encoder.1.resid"])
    assert not calls


@pytest.mark.parametrize("site", ["encoder.0.resid", "encoder.1.attn", "encoder.0.mlp_hidden", "encoder.embed"])
def test_a_patch_is_heard_downstream_and_the_identity_is_not(loaded, mels, site):
    with torch.no_grad():
        clean = loaded.encoder(mels).last_hidden_state
        with model.at(loaded, {site: lambda hidden: hidden}):
            assert torch.equal(loaded.encoder(mels).last_hidden_state, clean)
        with model.at(loaded, {site: lambda hidden: hidden * 1.5}):
            assert not torch.allclose(loaded.encoder(mels).last_hidden_state, clean, atol=1e-3)
        assert torch.equal(loaded.encoder(mels).last_hidden_state, clean)


def test_hooks_leave_after_an_exception(loaded, mels):
    def stumble(hidden):
        raise RuntimeError("stumbled")

    before = hooks(loaded.encoder)  # transformers keeps some of its own, for hidden_states
    see = {"encoder.0.resid": lambda hidden: None, "encoder.1.mlp_hidden": stumble}
    with pytest.raises(RuntimeError, match="stumbled"), torch.no_grad(), model.at(loaded, see):
        assert hooks(loaded.encoder) == before + 2
        loaded.encoder(mels)
    assert hooks(loaded.encoder) == before
    see = {"encoder.0.resid": lambda hidden: None, "encoder.9.resid": lambda hidden: None}
    with pytest.raises(model.BadModel), model.at(loaded, see):
        pass
    assert hooks(loaded.encoder) == before


@pytest.mark.parametrize("as_tuple", [True, False], ids=["tuple", "tensor"])
def test_modules_may_say_a_tuple_or_a_tensor(as_tuple):
    """Whisper's layers say a tensor in transformers 5 and said a tuple before: no clip of a batch is lost."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            return (x + 1, "cache") if as_tuple else x + 1

    layer, x, heard = Layer(), torch.zeros(3, 4, 2), []
    with model.watching(layer, heard.append):
        layer(x)
    assert heard[0].shape == (3, 4, 2)
    with model.watching(layer, lambda hidden: hidden * 2):
        said = layer(x)
    assert torch.equal(said[0] if as_tuple else said, torch.full((3, 4, 2), 2.0))
    assert not as_tuple or said[1] == "cache"


def test_window_and_frames_come_from_the_config(loaded):
    assert loaded.samples_a_frame == 320 and loaded.window == loaded.positions * 320


def test_identity_changes_with_the_weights(small_whisper, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_whisper, copy)
    assert model.identity(str(copy)) == model.identity(str(small_whisper))
    other = tmp_path / "other"
    shutil.copytree(small_whisper, other)
    weights = other / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert model.identity(str(other)) != model.identity(str(small_whisper))


@pytest.mark.parametrize("folder", ["whisper-tiny.en-encoder", "whisper-tiny.en-small-vocabulary"])
def test_real_whisper_hidden_states(shared, folder):
    """The same equality on OpenAI's weights, every layer; the encoder-only directory says what it cannot do."""
    whisper = model.load(str(shared / folder))
    rng = np.random.default_rng(0)
    mels = model.mel(whisper, [rng.normal(0, 0.1, n).astype(np.float32) for n in (16_000, 50_000)])
    sites = list(model.sites(whisper.config, ["encoder.*.resid"]))
    heard = model.record(whisper, mels, sites)
    theirs = whisper.encoder(mels, output_hidden_states=True).hidden_states
    for site, hidden in zip(sites[:-1], theirs[1:], strict=False):
        torch.testing.assert_close(heard[site], hidden, atol=1e-6, rtol=0)
    torch.testing.assert_close(whisper.encoder.layer_norm(heard[sites[-1]]), theirs[-1], atol=1e-6, rtol=0)
    if whisper.decoder is None:
        with pytest.raises(model.BadModel, match="only encoder weights"):
            model.record(whisper, mels, ["decoder.0.resid"], torch.tensor([[1], [1]]))
    else:
        tokens = torch.tensor([[50257, 50362, 11], [50257, 50362, 12]])
        said = whisper.whole(mels, decoder_input_ids=tokens, output_hidden_states=True).decoder_hidden_states
        wanted = list(model.sites(whisper.config, ["decoder.*.resid"]))
        heard = model.record(whisper, mels, wanted, tokens)
        for site, hidden in zip(wanted[:-1], said[1:], strict=False):
            torch.testing.assert_close(heard[site], hidden, atol=1e-6, rtol=0)
