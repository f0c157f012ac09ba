"""What others have trained says here what it said there; what is not known to be theirs is refused in one line."""

import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from coders import LATENTS, WIDTH, K, off

from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures, converters
from whisper_sae.sae.io import BadSAE


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def v1_state() -> dict:
    state = {"encoder.weight": drawn(LATENTS, WIDTH), "encoder.bias": drawn(LATENTS),
             "decoder.weight": drawn(WIDTH, LATENTS), "decoder.bias": drawn(WIDTH)}  # fmt: skip
    state["decoder.weight"][:, 7] = 0  # a latent that says nothing
    return state


def v1_says(state: dict, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstructions by whisper-sae v1's formula (librispeech_sae_training.py)."""
    codes = torch.relu(x @ state["encoder.weight"].T + state["encoder.bias"])
    return codes, codes @ state["decoder.weight"].T + state["decoder.bias"]


def test_v1_says_the_same(frames, tmp_path):
    state = v1_state()
    torch.save(OrderedDict(state), tmp_path / "a.pth")
    told = converters.from_v1(tmp_path / "a.pth", tmp_path / "out", site="encoder.3.resid", variant="topk")
    coder = architectures.load(tmp_path / "out")
    codes, x_hat = v1_says(state, frames)
    length = state["decoder.weight"].norm(dim=0)
    assert told.variant == "relu" and told.about["from"] == "whisper-sae v1" and told.about["site"] == "encoder.3.resid"
    kept = json.loads((tmp_path / "out/sae.json").read_text())
    assert "b_enc += b_dec W_enc" in kept["folded"] and kept["variant"] == "relu"
    assert off(coder(frames), x_hat) < 1e-6
    assert off(coder.encode(frames), codes * length.where(length > 0, 1)) < 1e-6
    assert torch.allclose(coder.W_dec.norm(dim=1), (length > 0).float(), atol=1e-6)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_v1s_real_checkpoints_load(side, shared, tmp_path):
    path = shared / f"whisper-sae-v1/{side}_sae_tiny_100k_1152_space.pth"
    told = converters.from_v1(path, tmp_path / "out")
    coder = architectures.load(tmp_path / "out")
    state = torch.load(path, weights_only=True)
    x = 1.2 * drawn(300, 384)  # as long as Whisper's last hidden states
    codes, x_hat = v1_says(state, x)
    assert (told.d_in, told.d_sae) == (384, 1152)
    assert (
        coder.double()(x.double()) - v1_says({k: v.double() for k, v in state.items()}, x.double())[1]
    ).abs().max() < 1e-5
    assert off(coder.float()(x), x_hat) < 1e-5
    assert off(coder.encode(x) / state["decoder.weight"].norm(dim=0), codes) < 1e-5


def test_v1_is_hardly_sparse(shared, tmp_path):
    """v1 said 24 % of its encoder's codes are zero, of a model of 128 latents that it did not publish. The one that
    it published, of 1,152, on the last hidden states of tiny.en (it read multilingual tiny's): about half."""
    converters.from_v1(shared / "whisper-sae-v1/encoder_sae_tiny_100k_1152_space.pth", tmp_path / "out")
    coder = architectures.load(tmp_path / "out")
    whisper = whisper_model.load(str(shared / "whisper-tiny.en-encoder"), "cpu")
    folder = shared / "speech/librispeech-sample/audio"
    sounds = [soundfile.read(path, dtype="float32")[0][: whisper.window] for path in sorted(folder.iterdir())[:4]]
    said = whisper_model.record(whisper, whisper_model.mel(whisper, sounds), ["encoder.3.resid"])["encoder.3.resid"]
    with torch.no_grad():
        codes = coder.encode(whisper.encoder.layer_norm(said)).flatten(0, 1)
    zeros, l0 = float((codes.abs() < 1e-5).float().mean()), float((codes > 0).float().sum(dim=1).mean())
    assert 0.45 < zeros < 0.62
    assert 440 < l0 < 630  # of 1,152


def freud(model_state: dict, config: dict | None, **more) -> dict:
    """A checkpoint as FREUD's train_sae.py saves it: its best loss is a number of numpy."""
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    hparams = {
        "whisper_config": {"model": "tiny", "layer_name": "encoder.blocks.2"},
        "activation_size": WIDTH,
        "lr": 1e-4,
    }
    if config is not None:
        hparams["autoencoder_config"] = config
    return {
        "model": OrderedDict(model_state),
        "optimizer": optimiser.state_dict(),
        "step": 9,
        "best_val_loss": np.float64(0.25),
        "hparams": hparams | more,
    }


def topk_state() -> dict:
    return {"b_dec": drawn(WIDTH), "W_dec": 2 * drawn(LATENTS, WIDTH), "encoder.weight": drawn(LATENTS, WIDTH, seed=3),
            "encoder.bias": drawn(LATENTS)}  # fmt: skip


L1_STATE = {"encoder_bias": drawn(LATENTS), "decoder.weight": 3 * drawn(WIDTH, LATENTS)}


@pytest.mark.parametrize(
    "hparams", [{"config": {"k": K, "n_dict_components": LATENTS}}, {"config": None, "topk_params": {"k": K}}]
)
def test_freuds_topk_says_the_same(hparams, frames, tmp_path):
    state = topk_state()
    torch.save(freud(state, **hparams), tmp_path / "bestval.pth")
    told = converters.from_freud(tmp_path / "bestval.pth", tmp_path / "out")
    pre = torch.nn.functional.relu((frames - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    best = pre.topk(K, sorted=False)  # topkautoencoder.py
    codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
    coder = architectures.load(tmp_path / "out")
    assert (told.variant, told.k, told.about["model"]) == ("topk", K, "openai/whisper-tiny")
    assert told.about["site"] == "encoder.2.resid" and told.about["from"] == "FREUD"
    assert off(coder.encode(frames), codes) < 1e-6
    assert off(coder(frames), codes @ state["W_dec"] + state["b_dec"]) < 1e-6


def test_freuds_l1_says_the_same(frames, tmp_path):
    torch.save(freud(L1_STATE, {"n_dict_components": LATENTS, "recon_alpha": 1e4}), tmp_path / "step9.pth")
    told = converters.from_freud(tmp_path / "step9.pth", tmp_path / "out")
    W = torch.nn.functional.normalize(L1_STATE["decoder.weight"], dim=0)  # l1autoencoder.py
    codes = torch.relu(frames @ W + L1_STATE["encoder_bias"])
    coder = architectures.load(tmp_path / "out")
    assert told.variant == "tied"
    assert off(coder.encode(frames), codes) < 1e-6
    assert off(coder(frames), codes @ W.T) < 1e-6


@pytest.mark.parametrize(
    ("name", "layer", "known"),
    [
        ("large-v1", "encoder.blocks.16", {"model": "openai/whisper-large", "site": "encoder.16.resid"}),
        ("large", "decoder.blocks.0.mlp", {"model": "openai/whisper-large-v3", "site": "decoder.0.mlp"}),
        ("tiny.en", "encoder.blocks.2.mlp.1", {"model": "openai/whisper-tiny.en", "site": "encoder.2.mlp_hidden"}),
        ("turbo", "encoder.blocks.2.attn", {"model": "openai/whisper-large-v3-turbo", "site": "encoder.2.attn"}),
        ("../evil", "encoder.ln_post", {"model": "../evil", "layer": "encoder.ln_post"}),
    ],
)
def test_freuds_places_are_our_sites(name, layer, known, tmp_path):
    state = freud(L1_STATE, {}, whisper_config={"model": name, "layer_name": layer})
    torch.save(state, tmp_path / "a.pth")
    about = converters.from_freud(tmp_path / "a.pth", tmp_path / "out").about
    assert known.items() <= about.items() and ("site" in about) == ("site" in known)


def test_a_checkpoint_of_an_older_numpy_opens(tmp_path):
    torch.save(freud(L1_STATE, {}), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as new, zipfile.ZipFile(tmp_path / "b.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in (tmp_path / "b.pth").read_bytes()
    assert converters.from_freud(tmp_path / "b.pth", tmp_path / "out").variant == "tied"


def audiosae(
    folder: Path, threshold: float | None = 1.5, k: int | None = K, config: dict | None = None, **more
) -> dict:
    """A layer as AudioSAE keeps it: dictionary_learning's state of a BatchTopK."""
    state = {"encoder.weight": drawn(LATENTS, WIDTH), "encoder.bias": drawn(LATENTS),
             "decoder.weight": drawn(WIDTH, LATENTS), "b_dec": drawn(WIDTH)} | more  # fmt: skip
    if k is not None:
        state["k"] = torch.tensor(k, dtype=torch.int)
    if threshold is not None:
        state["threshold"] = torch.tensor(threshold)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(OrderedDict(state), folder / "ae.pt")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"trainer": config}))
    return state


@pytest.mark.parametrize("threshold", [1.5, 0.0, -1.0])
def test_audiosae_says_the_same(threshold, frames, tmp_path):
    config = {"dict_class": "BatchTopKSAE", "k": K, "lm_name": "openai/whisper-small", "trainer_class": "x"}
    state = audiosae(tmp_path / "layer_6", threshold, config=config)
    told = converters.from_audiosae(tmp_path / "layer_6", tmp_path / "out")
    pre = torch.relu((frames - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    codes = pre * (pre > threshold)  # dictionary_learning's trainers/batch_top_k.py, use_threshold=True
    coder = architectures.load(tmp_path / "out")
    assert (told.variant, told.k, told.about["layer"], told.about["site"]) == ("batchtopk", K, 6, "encoder.5.resid")
    assert told.about["model"] == "openai/whisper-small"
    assert off(coder.encode(frames), codes) < 1e-6
    assert off(coder(frames), codes @ state["decoder.weight"].T + state["b_dec"]) < 1e-6
    assert ("none was learnt" in told.about["folded"]) == (threshold < 0)
    assert told.tensors["threshold"] == max(threshold, 0.0)


def test_audiosaes_card_names_no_threshold_so_one_can_be_given(tmp_path):
    audiosae(tmp_path / "layer_1", threshold=None)
    with pytest.raises(BadSAE, match=r"holds no threshold, so .* give threshold="):
        converters.from_audiosae(tmp_path / "layer_1", tmp_path / "out")
    told = converters.from_audiosae(tmp_path / "layer_1/ae.pt", tmp_path / "out", threshold=0.75)
    assert told.tensors["threshold"] == 0.75 and "site" not in told.about  # nothing says that it is a Whisper


def test_dictionary_learnings_topk_is_read_too(frames, tmp_path):
    state = audiosae(tmp_path, threshold=-1.0, config={"dict_class": "AutoEncoderTopK", "k": K})
    assert converters.from_audiosae(tmp_path, tmp_path / "out").variant == "topk"
    pre = torch.relu((frames - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    best = pre.topk(K, sorted=False)
    codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
    assert off(architectures.load(tmp_path / "out").encode(frames), codes) < 1e-6


# ----------------------------------------------------------------------------------------------------- what is refused


class Trap:
    """Something that would run code when a careless loader opens it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


class Foreign(torch.nn.Module):
    """A whole model, as `torch.save(model, path)` keeps it."""


READERS = [converters.from_v1, converters.from_freud, converters.from_audiosae]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["trap", "trap among tensors", "a whole model"])
def test_a_checkpoint_that_would_run_code_stays_shut(reader, kind, tmp_path):
    mark = tmp_path / "ran"
    inside = {"trap": Trap(mark), "trap among tensors": v1_state() | {"x": Trap(mark)}, "a whole model": Foreign()}
    torch.save(inside[kind], tmp_path / "a.pth")
    with pytest.raises(BadSAE, match=r"holds more than tensors and plain values \(\S+\), .*state_dict alone") as caught:
        reader(tmp_path / "a.pth", tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "No such file"),
        (b"", "not a checkpoint of torch"),
        (b"\x00\x01 nothing of the sort", "not a checkpoint of torch"),
        (b"PK\x03\x04 torn", "not a checkpoint of torch"),
        ([1, 2], "must hold a state_dict, holds a list"),
        ({1: 2}, "must hold a state_dict"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_in_one_line(reader, content, named, tmp_path):
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BadSAE, match=named) as caught:
        reader(path, tmp_path / "out")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("reader", "state", "named"),
    [
        (converters.from_v1, without(v1_state(), "decoder.bias"), "has no decoder.bias; it has encoder.weight"),
        (converters.from_v1, v1_state() | {"r_mag": drawn(3)}, "another layout: .* it has r_mag"),
        (converters.from_v1, v1_state() | {"encoder.bias": drawn(5)}, r"encoder.bias is \(5,\)"),
        (converters.from_v1, v1_state() | {"encoder.bias": [1.0]}, "encoder.bias must be a dense tensor of floats"),
        (converters.from_v1, v1_state() | {"decoder.bias": torch.full((WIDTH,), torch.inf)}, "not finite"),
        (converters.from_freud, v1_state(), "it must hold `model` and `hparams`"),
        (converters.from_freud, freud(topk_state(), None), "hparams do not say k"),
        (converters.from_freud, freud(topk_state(), {"k": 0}), "k must be a whole number between 1 and 96, got 0"),
        (converters.from_freud, freud(topk_state(), {"k": "6"}), "k must be a whole number"),
        (converters.from_freud, freud(v1_state(), {"k": 6}), "has no W_dec"),
        (converters.from_freud, freud(without(L1_STATE, "decoder.weight"), {}), "has no decoder.weight"),
    ],
)  # fmt: skip
def test_another_layout_is_not_guessed_at(reader, state, named, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadSAE, match=named) as caught:
        reader(tmp_path / "a.pth", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"config": {"dict_class": "GatedAutoEncoder"}}, "a GatedAutoEncoder; of dictionary_learning only"),
        ({"config": {"dict_class": ["GatedAutoEncoder"]}}, r"a \['GatedAutoEncoder'\]; of dictionary_learning only"),
        ({"config": {"k": 7}}, "k is 6 and 7"),
        ({"config": {"k": 10**400}}, "k must be one number"),
        ({"k": None}, "k is not said"),
        ({"k": None, "config": {"k": "six"}}, "k must be one number"),
        ({"threshold": float("nan")}, "threshold must be one number"),
        ({"gate_bias": drawn(LATENTS)}, "another layout"),
    ],
)
def test_another_dictionary_of_dictionary_learning_is_not_guessed_at(options, named, tmp_path):
    audiosae(tmp_path / "layer_1", **options)
    with pytest.raises(BadSAE, match=named) as caught:
        converters.from_audiosae(tmp_path / "layer_1", tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '{"trainer": 3}', '{"trainer": null}'])
def test_a_config_that_is_none_is_named(text, tmp_path):
    audiosae(tmp_path / "layer_1")
    (tmp_path / "layer_1/config.json").write_text(text)
    with pytest.raises(BadSAE, match=r"config\.json: not a config of dictionary_learning"):
        converters.from_audiosae(tmp_path / "layer_1", tmp_path / "out")
