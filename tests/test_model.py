"""Whisper and its sites: what a hook hears is what the model says, and hooks leave."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_sae import profiles
from whisper_sae.model import whisper_model

SECONDS = (0.4, 1.1, 1.9)
SPEECH = "speech/librispeech-sample/audio"


@pytest.fixture(scope="module")
def mels(loaded):
    rng = np.random.default_rng(0)
    return whisper_model.mel(loaded, [rng.normal(0, 0.1, int(s * 16_000)).astype(np.float32) for s in SECONDS])


@pytest.fixture(scope="module")
def tokens():
    return torch.tensor([[1, 5, 9, 2], [1, 7, 7, 7], [1, 2, 3, 4]])


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_encoder_sites_equal_hidden_states(loaded, mels):
    """A batch of three clips of different length; the last hidden state is after the final layer norm."""
    wanted = ["encoder.embed", "encoder.0.resid", "encoder.1.resid"]
    heard = whisper_model.record(loaded, mels, wanted)
    theirs = loaded.encoder(mels, output_hidden_states=True).hidden_states
    assert len(theirs) == 3 and heard["encoder.0.resid"].shape == (3, loaded.positions, loaded.config.d_model)
    torch.testing.assert_close(heard["encoder.embed"], theirs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(heard["encoder.0.resid"], theirs[1], atol=1e-6, rtol=0)
    normed = loaded.encoder.layer_norm(heard["encoder.1.resid"])
    torch.testing.assert_close(normed, theirs[2], atol=1e-6, rtol=0)
    assert (heard["encoder.1.resid"] - theirs[2]).abs().max() > 0.1


def test_decoder_sites_equal_hidden_states(loaded, mels, tokens):
    wanted = ["decoder.embed", "decoder.0.resid", "decoder.1.resid"]
    heard = whisper_model.record(loaded, mels, wanted, tokens)
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
    heard = whisper_model.record(loaded, mels, wanted, tokens)
    total = heard[f"{side}.0.resid"] + sum(heard[f"{side}.1.{part}"] for part in parts)
    torch.testing.assert_close(total, heard[f"{side}.1.resid"], atol=1e-5, rtol=0)
    layer = getattr(loaded, side).layers[1]
    torch.testing.assert_close(layer.fc2(heard[f"{side}.1.mlp_hidden"]), heard[f"{side}.1.mlp"])
    assert heard[f"{side}.1.mlp_hidden"].min() < 0 and heard[f"{side}.1.mlp_hidden"].min() > -0.18  # GELU's floor


def test_sites_are_named_with_their_widths(loaded):
    every = whisper_model.sites(loaded.config)
    assert len(every) == (1 + 2 * 7) + (1 + 2 * 9) and every["encoder.1.mlp_hidden"] == loaded.config.encoder_ffn_dim
    assert list(whisper_model.sites(loaded.config, ["encoder.?.resid"])) == ["encoder.0.resid", "encoder.1.resid"]


def test_encoder_sites_do_not_run_the_decoder(loaded, mels):
    calls = []
    with whisper_model.watching(loaded.decoder.layers[0], lambda hidden: calls.append(1)):
        whisper_model.record(loaded, mels, ["encoder.1.resid"])
    assert not calls


@pytest.mark.parametrize(
    "site",
    ["encoder.0.resid", "encoder.1.attn", "encoder.0.mlp_hidden", "encoder.embed", "encoder.1.heads",
     "encoder.0.mlp_in", "encoder.0.mlp_pre", "encoder.0.normed", "encoder.blocks.1.mlp.1"],
)  # fmt: skip
def test_a_patch_is_heard_downstream_and_the_identity_is_not(loaded, mels, site):
    with torch.no_grad():
        clean = loaded.encoder(mels).last_hidden_state
        with whisper_model.at(loaded, {site: lambda hidden: hidden}):
            assert torch.equal(loaded.encoder(mels).last_hidden_state, clean)
        with whisper_model.at(loaded, {site: lambda hidden: hidden * 1.5}):
            assert not torch.allclose(loaded.encoder(mels).last_hidden_state, clean, atol=1e-3)
        assert torch.equal(loaded.encoder(mels).last_hidden_state, clean)


def test_hooks_leave_after_an_exception(loaded, mels):
    def stumble(hidden):
        raise RuntimeError("stumbled")

    before = hooks(loaded.encoder)  # transformers keeps some of its own, for hidden_states
    see = {"encoder.0.resid": lambda hidden: None, "encoder.1.mlp_hidden": stumble}
    with pytest.raises(RuntimeError, match="stumbled"), torch.no_grad(), whisper_model.at(loaded, see):
        assert hooks(loaded.encoder) == before + 2
        loaded.encoder(mels)
    assert hooks(loaded.encoder) == before
    see = {"encoder.0.resid": lambda hidden: None, "encoder.9.resid": lambda hidden: None}
    with pytest.raises(whisper_model.BadModel), whisper_model.at(loaded, see):
        pass
    assert hooks(loaded.encoder) == before


@pytest.mark.parametrize("as_tuple", [True, False], ids=["tuple", "tensor"])
def test_modules_may_say_a_tuple_or_a_tensor(as_tuple):
    """Whisper's layers say a tensor in transformers 5 and said a tuple before: no clip of a batch is lost."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            return (x + 1, "cache") if as_tuple else x + 1

    layer, x, heard = Layer(), torch.zeros(3, 4, 2), []
    with whisper_model.watching(layer, heard.append):
        layer(x)
    assert heard[0].shape == (3, 4, 2)
    with whisper_model.watching(layer, lambda hidden: hidden * 2):
        said = layer(x)
    assert torch.equal(said[0] if as_tuple else said, torch.full((3, 4, 2), 2.0))
    assert not as_tuple or said[1] == "cache"


def test_window_and_frames_come_from_the_config(loaded):
    assert loaded.samples_a_frame == 320 and loaded.window == loaded.positions * 320


def test_identity_changes_with_the_weights(small_whisper, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small_whisper, copy)
    assert whisper_model.identity(str(copy)) == whisper_model.identity(str(small_whisper))
    other = tmp_path / "other"
    shutil.copytree(small_whisper, other)
    weights = other / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert whisper_model.identity(str(other)) != whisper_model.identity(str(small_whisper))


@pytest.mark.parametrize("folder", ["whisper-tiny.en-encoder", "whisper-tiny.en"])
def test_real_whisper_hidden_states(shared, folder):
    """The same equality on OpenAI's weights, every layer; the encoder-only directory says what it cannot do."""
    whisper = whisper_model.load(str(shared / folder))
    rng = np.random.default_rng(0)
    mels = whisper_model.mel(whisper, [rng.normal(0, 0.1, 50_000).astype(np.float32)])
    sites = list(whisper_model.sites(whisper.config, ["encoder.*.resid"]))
    heard = whisper_model.record(whisper, mels, sites)
    theirs = whisper.encoder(mels, output_hidden_states=True).hidden_states
    for site, hidden in zip(sites[:-1], theirs[1:], strict=False):
        torch.testing.assert_close(heard[site], hidden, atol=1e-6, rtol=0)
    torch.testing.assert_close(whisper.encoder.layer_norm(heard[sites[-1]]), theirs[-1], atol=1e-6, rtol=0)
    if whisper.decoder is None:
        with pytest.raises(whisper_model.BadModel, match="only encoder weights"):
            whisper_model.record(whisper, mels, ["decoder.0.resid"], torch.tensor([[1], [1]]))
    else:
        tokens = torch.tensor([[50257, 50362, 11]])
        said = whisper.whole(mels, decoder_input_ids=tokens, output_hidden_states=True).decoder_hidden_states
        wanted = list(whisper_model.sites(whisper.config, ["decoder.*.resid"]))
        heard = whisper_model.record(whisper, mels, wanted, tokens)
        for site, hidden in zip(wanted[:-1], said[1:], strict=False):
            torch.testing.assert_close(heard[site], hidden, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------- untrained twins


@pytest.fixture(scope="module")
def drawn(small_whisper, tmp_path_factory):
    """The small Whisper with weights of another seed: what the twin of `small_whisper` is, is not its twin."""
    folder = shutil.copytree(small_whisper, tmp_path_factory.mktemp("drawn") / "drawn")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_a_twin_has_the_same_shapes_and_other_weights(drawn):
    trained, twin = (whisper_model.load(prefix + str(drawn), "cpu") for prefix in ("", whisper_model.UNTRAINED))
    ours, theirs = trained.whole.state_dict(), twin.whole.state_dict()
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
    matrices = [name for name, weight in ours.items() if weight.ndim > 1 and "encoder.embed_positions" not in name]
    assert len(matrices) > 20
    assert not any(torch.allclose(ours[name], theirs[name], atol=0.01) for name in matrices)
    assert twin.whole.proj_out.weight is twin.decoder.embed_tokens.weight
    assert twin.name == f"untrained:{drawn}" and twin.window == trained.window
    assert not twin.whole.training and not any(weight.requires_grad for weight in twin.whole.parameters())


def test_a_twin_is_as_loud_as_whisper_before_training(drawn):
    weights = whisper_model.load(whisper_model.UNTRAINED + str(drawn), "cpu").whole.state_dict()
    assert weights["model.encoder.layers.1.fc1.weight"].std() == pytest.approx(0.1, rel=0.1), "init_std"
    assert weights["model.encoder.layers.1.fc1.bias"].abs().max() == 0


def test_a_twin_is_the_same_on_every_call_and_leaves_chance_alone(drawn):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        first = whisper_model.load(whisper_model.UNTRAINED + str(drawn), "cpu").whole.state_dict()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(3)
        second = whisper_model.load(whisper_model.UNTRAINED + str(drawn), "cpu").whole.state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_a_twin_is_another_model_whatever_the_weights(drawn, small_whisper, tmp_path):
    bare = shutil.copytree(drawn, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert not (bare / "model.safetensors").exists()
    with pytest.raises(whisper_model.BadModel, match=r"model\.safetensors"):
        whisper_model.load(str(bare), "cpu")
    folders = [drawn, small_whisper, bare]
    twins = [whisper_model.load(whisper_model.UNTRAINED + str(folder), "cpu").whole.state_dict() for folder in folders]
    assert all(torch.equal(weight, twin[name]) for twin in twins for name, weight in twins[0].items())
    assert len({whisper_model.identity(whisper_model.UNTRAINED + str(folder)) for folder in folders}) == 1
    assert len({whisper_model.identity(str(folder)) for folder in folders}) == 3
    assert whisper_model.identity(whisper_model.UNTRAINED + str(bare)) != whisper_model.identity(str(bare))


def test_a_twin_of_another_config_is_another_twin(small_whisper, tmp_path):
    other = shutil.copytree(small_whisper, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"encoder_layers": 3}))
    assert whisper_model.identity(f"untrained:{other}") != whisper_model.identity(f"untrained:{small_whisper}")
    assert len(whisper_model.load(f"untrained:{other}", "cpu").encoder.layers) == 3


def test_a_twin_gives_attention_weights_where_asked(small_whisper, mels):
    twin = whisper_model.load(f"untrained:{small_whisper}", "cpu", attention="eager")
    assert twin.encoder(mels, output_attentions=True).attentions[1].shape == (3, 4, 100, 100)


def test_what_is_not_there_has_no_twin(tmp_path):
    with pytest.raises(whisper_model.BadModel, match="there is no directory") as said:
        whisper_model.load(f"untrained:{tmp_path / 'gone'}")
    assert "\n" not in str(said.value)


# ---------------------------------------------------------------------------------------------- tokenizers


def test_a_model_without_a_tokenizer_says_so(loaded):
    assert loaded.tokenizer is None
    with pytest.raises(whisper_model.BadModel, match=r"no tokenizer\.json here"):
        loaded.require_tokenizer()


demo = pytest.mark.skipif(not (profiles.DEMO / "whisper").exists(), reason="the demo's model is not there")


@demo
def test_a_model_and_its_twin_have_its_tokenizer(tmp_path):
    bare = shutil.copytree(profiles.DEMO / "whisper", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in (str(profiles.DEMO / "whisper"), whisper_model.UNTRAINED + str(bare)):
        whisper = whisper_model.load(name, "cpu")
        assert whisper.require_tokenizer() is whisper.tokenizer
        assert whisper.tokenizer.convert_ids_to_tokens(whisper.config.decoder_start_token_id) == "<|startoftranscript|>"
        assert len(whisper.tokenizer) == whisper.config.vocab_size


@demo
def test_a_spoilt_tokenizer_is_named(tmp_path):
    folder = shutil.copytree(profiles.DEMO / "whisper", tmp_path / "spoilt")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(whisper_model.BadModel, match=r"tokenizer\.json") as said:
        whisper_model.load(str(folder), "cpu")
    assert "\n" not in str(said.value)


# ------------------------------------------------------------------------------------------------- more sites


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_heads_are_parted_by_their_width_and_make_the_attention(loaded, mels, tokens, side):
    heads = ["heads", "cross_heads"] if side == "decoder" else ["heads"]
    adds = {"heads": "attn", "cross_heads": "cross"}
    wanted = [f"{side}.1.{part}" for head in heads for part in (head, adds[head])]
    heard = whisper_model.record(loaded, mels, wanted, tokens)
    layer = getattr(loaded, side).layers[1]
    for head, module in zip(heads, (layer.self_attn, getattr(layer, "encoder_attn", None)), strict=False):
        parted = heard[f"{side}.1.{head}"].unflatten(-1, (4, -1))  # (clip, position, head, width of a head)
        assert parted.shape[2:] == (4, 8)
        weight = module.out_proj.weight.unflatten(-1, (4, -1))  # (width, head, width of a head)
        each = torch.einsum("cphw,dhw->cphd", parted, weight)  # what each head adds by itself
        said = heard[f"{side}.1.{adds[head]}"]
        torch.testing.assert_close(each.sum(dim=2) + module.out_proj.bias, said, atol=1e-5, rtol=0)


def test_a_head_is_what_its_attention_weights_say(small_whisper, mels):
    """Head 2 of layer 0 by its formula, from the weights that transformers gives when asked for them."""
    eager = whisper_model.load(str(small_whisper), "cpu", attention="eager")
    heard = whisper_model.record(eager, mels, ["encoder.0.heads", "encoder.embed"])
    layer = eager.encoder.layers[0]
    weights = eager.encoder(mels, output_attentions=True).attentions[0][:, 2]  # (clip, to, from)
    values = layer.self_attn.v_proj(layer.self_attn_layer_norm(heard["encoder.embed"]))[..., 16:24]
    torch.testing.assert_close(heard["encoder.0.heads"][..., 16:24], weights @ values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_what_the_mlp_reads_gives_what_it_adds(loaded, mels, tokens, side):
    heard = whisper_model.record(
        loaded, mels, [f"{side}.1.{p}" for p in ("mlp_in", "mlp_pre", "mlp_hidden", "mlp")], tokens
    )
    x, pre, hidden, y = heard.values()
    layer = getattr(loaded, side).layers[1]
    torch.testing.assert_close(layer.fc2(layer.activation_fn(layer.fc1(x))), y, atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.fc1(x), pre)
    torch.testing.assert_close(layer.activation_fn(pre), hidden)


def test_others_names_say_the_same(loaded, mels, tokens):
    pairs = {
        "encoder.blocks.1": "encoder.1.resid",
        "encoder.blocks.0.mlp.0": "encoder.0.mlp_pre",
        "decoder.blocks.1.cross_attn": "decoder.1.cross",
        "model.encoder.layers.0.fc2": "encoder.0.mlp",
    }
    heard = whisper_model.record(loaded, mels, [*pairs, *pairs.values()], tokens)
    assert all(torch.equal(heard[theirs], heard[ours]) for theirs, ours in pairs.items())
    with torch.no_grad(), whisper_model.at(loaded, {"encoder.blocks.1": lambda hidden: hidden * 0}):
        assert (loaded.encoder(mels).last_hidden_state == loaded.encoder.layer_norm.bias).all()


def test_normed_is_the_final_layer_norm_and_can_be_undone(loaded, mels, tokens):
    for side in ("encoder", "decoder"):
        norm = getattr(loaded, side).layer_norm
        heard = whisper_model.record(loaded, mels, [f"{side}.0.normed", f"{side}.0.resid"], tokens)
        torch.testing.assert_close(heard[f"{side}.0.normed"], norm(heard[f"{side}.0.resid"]), atol=1e-5, rtol=0)
        moments = heard[f"{side}.0.normed.moments"]
        assert moments.shape == (*heard[f"{side}.0.normed"].shape[:2], 2)
        back = whisper_model.unnormed(norm, heard[f"{side}.0.normed"], moments)
        torch.testing.assert_close(back, heard[f"{side}.0.resid"], atol=1e-5, rtol=0)


def test_a_norm_that_cannot_be_undone_is_refused():
    norm = torch.nn.LayerNorm(4)
    norm.weight.data[2] = 0
    with pytest.raises(ValueError, match="cannot be inverted"):
        whisper_model.unnormed(norm, *whisper_model.normed(norm, torch.randn(3, 4)))


def test_what_comes_after_the_last_site_is_not_computed(loaded, mels):
    calls = []
    before = hooks(loaded.encoder)
    with whisper_model.watching(loaded.encoder.layers[1], lambda hidden: calls.append(1)):
        whisper_model.record(loaded, mels, ["encoder.0.resid", "encoder.embed"])
        assert not calls
        whisper_model.record(loaded, mels, ["encoder.0.resid", "encoder.1.resid"])
        assert calls
    assert hooks(loaded.encoder) == before


def plain(folder, mels):
    """What transformers says of its own, nothing of ours between: all hidden states."""
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return theirs.model.encoder(mels, output_hidden_states=True).hidden_states


def test_attention_says_what_it_says_in_transformers(small_whisper, loaded, mels):
    heard = whisper_model.record(loaded, mels, ["encoder.0.resid"])["encoder.0.resid"]
    torch.testing.assert_close(heard, plain(small_whisper, mels)[1], atol=1e-5, rtol=0)
    weight = loaded.encoder.layers[0].self_attn.k_proj.weight
    assert weight.shape == (32, 32) and weight.untyped_storage().nbytes() == 3 * 4 * 32 * 32, "a part of one matrix"


def test_real_attention_says_what_it_says_in_transformers(shared):
    folder = shared / "whisper-tiny.en"
    whisper = whisper_model.load(str(folder), "cpu")
    paths = sorted((shared / SPEECH).glob("*"))[:1]
    mels = whisper_model.mel(whisper, [soundfile.read(path, dtype="float32")[0] for path in paths])
    heard = whisper_model.record(whisper, mels, list(whisper_model.sites(whisper.config, ["encoder.*.resid"])))
    for layer, right in enumerate(plain(folder, mels)[1:-1]):
        torch.testing.assert_close(heard[f"encoder.{layer}.resid"], right, atol=1e-3, rtol=1e-4)


def test_real_norms_are_undone(shared):
    """Largest error under 1e-4 on speech, every layer, although some dimensions reach into the hundreds."""
    whisper = whisper_model.load(str(shared / "whisper-tiny.en-encoder"), "cpu")
    sounds = [soundfile.read(path, dtype="float32")[0] for path in sorted((shared / SPEECH).glob("*"))[:2]]
    mels = whisper_model.mel(whisper, [sound[: whisper.window] for sound in sounds])
    heard = whisper_model.record(
        whisper, mels, list(whisper_model.sites(whisper.config, ["encoder.*.resid", "encoder.*.normed"]))
    )
    for layer in range(4):
        resid, said, moments = (heard[f"encoder.{layer}.{part}"] for part in ("resid", "normed", "normed.moments"))
        assert (whisper_model.unnormed(whisper.encoder.layer_norm, said, moments) - resid).abs().max() < 1e-4


# -------------------------------------------------------------------------------------------------- precision


narrow = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported(),
    reason="this processor does not multiply in bfloat16",
)


@narrow
def test_bfloat16_is_used_where_it_is_asked_for(small_whisper, loaded, mels):
    narrowed = whisper_model.load(str(small_whisper), "cpu", precision="bfloat16")
    wanted = ["encoder.0.mlp", "encoder.1.resid"]
    with narrowed.narrowed():
        assert narrowed.encoder.layers[0].fc1(torch.zeros(1, 32)).dtype == torch.bfloat16
    ours, right = whisper_model.record(narrowed, mels, wanted), whisper_model.record(loaded, mels, wanted)
    for site in wanted:
        assert ours[site].dtype == torch.float32
        error = (ours[site] - right[site]).norm() / right[site].norm()
        assert 1e-4 < error < 0.05, "no silent float32, and no nonsense"


def test_a_precision_that_is_not_there_is_refused(small_whisper, monkeypatch):
    with pytest.raises(whisper_model.BadModel, match="precision: 'float8' is not one of float32, bfloat16"):
        whisper_model.load(str(small_whisper), "cpu", precision="float8")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(whisper_model.BadModel, match="precision: cpu cannot multiply in bfloat16 itself; use float32"):
        whisper_model.load(str(small_whisper), "cpu", precision="bfloat16")


# ----------------------------------------------------------------------------------------- odd and changed files


@pytest.fixture
def copied(small_whisper, tmp_path):
    """A model's directory that may be spoilt."""
    return Path(shutil.copytree(small_whisper, tmp_path / "whisper"))


def config_of(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def weights_of(folder, change):
    save_file({name: change(tensor) for name, tensor in load_file(folder / "model.safetensors").items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip


def spoil(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


SPOILT = {
    "a layer less": (lambda at: config_of(at, encoder_layers=1), "config.json has no place for"),
    "a decoder layer less": (lambda at: config_of(at, decoder_layers=1), "config.json has no place for"),
    "integers": (lambda at: weights_of(at, lambda one: one.to(torch.int8)), "no quantized weights"),
    "NaN": (lambda at: weights_of(at, lambda one: spoil(one, torch.nan)), "NaN or infinite weights"),
    "infinite": (lambda at: weights_of(at, lambda one: spoil(one, torch.inf)), "NaN or infinite weights"),
    "weights cut": (lambda at: os.truncate(at / "model.safetensors", 1000), "model.safetensors: not whole"),
    "no weights": (lambda at: os.truncate(at / "model.safetensors", 0), "model.safetensors: not whole"),
    "generation settings cut": (lambda at: (at / "generation_config.json").write_text("{"), "not JSON"),
    "deep JSON": (lambda at: (at / "generation_config.json").write_text("[" * 100_000), "not JSON"),
    "code of its own": (
        lambda at: config_of(at, model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "config.json cannot be"),
    "a pipe": (lambda at: ((at / "vocab.json").unlink(missing_ok=True), os.mkfifo(at / "vocab.json")), "not a regular"),
    "a folder": (lambda at: (at / "normalizer.json").mkdir(), "not a regular file"),
    "a broken link": (lambda at: (at / "merges.txt").symlink_to("nowhere"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_directory_is_refused_in_one_line(copied, how, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    change, why = SPOILT[how]
    (copied / "generation_config.json").write_text("{}")
    change(copied)
    with pytest.raises(whisper_model.BadModel, match=why) as said:
        whisper_model.load(str(copied), "cpu")
    assert str(copied) in str(said.value) and "\n" not in str(said.value)


def test_weights_replaced_in_place_are_another_model(copied):
    before = whisper_model.identity(str(copied))
    stands = os.stat(copied / "model.safetensors")
    weights_of(copied, lambda one: one + 1)
    os.utime(copied / "model.safetensors", ns=(stands.st_atime_ns, stands.st_mtime_ns + 1))
    with pytest.raises(whisper_model.BadModel, match="have changed since"):
        whisper_model.load(str(copied), "cpu")
    assert whisper_model.identity(str(copied)) != before
    whisper_model.load(str(copied), "cpu")


def test_only_what_a_model_is_made_of_decides_what_it_is(copied):
    before = whisper_model.identity(str(copied))
    for name in ("notes.json", "README.md", "training_args.bin"):
        (copied / name).write_text("{}")
    assert whisper_model.identity(str(copied)) == before
    for name in ("merges.txt", "normalizer.json", "generation_config.json"):
        (copied / name).write_text("{}")
        assert before != (before := whisper_model.identity(str(copied)))


FILES = ["config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"]


@given(st.data())
@settings(max_examples=15)
def test_a_damaged_directory_is_loaded_or_refused_in_one_line(small_whisper, tmp_path_factory, data):
    folder = Path(shutil.copytree(small_whisper, tmp_path_factory.mktemp("damaged") / "model"))
    path = folder / data.draw(st.sampled_from(FILES))
    path.write_bytes(damaged(data, path.read_bytes(), [b"\0", b"[", b'"', b"\xe4", b"99999999999", b"-"]))
    try:
        whisper = whisper_model.load(str(folder), "cpu")
    except whisper_model.BadModel as error:
        assert str(folder) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert all(torch.isfinite(weights).all() for weights in whisper.encoder.parameters())
