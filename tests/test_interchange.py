"""What is translated says what it said, in codes and in reconstructions; what cannot be is refused in one line.

The real SAELens, sparsify and dictionary_learning live in an environment of their own: `peers-requirements.txt` says
how to make it. `WHISPER_SAE_PEERS` names its Python; without it the tests that need it are skipped.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
import zipfile
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from whisper_sae import interchange, model, sae
from whisper_sae.interchange import BadSAE

WIDTH, LATENTS, K = 24, 96, 6


@pytest.fixture
def frames() -> torch.Tensor:
    return 3 * torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(5)) + 1


def made(variant: str, frames: torch.Tensor, seed: int = 0) -> sae.SAE:
    """An SAE in evaluation mode none of whose numbers is a default one."""
    coder = sae.create(variant, WIDTH, LATENTS, K, seed=seed)
    draw = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        if variant != "tied":
            coder.W_enc += 0.1 * torch.randn(coder.W_enc.shape, generator=draw)
        coder.b_enc.copy_(0.5 * torch.randn(LATENTS, generator=draw))
        coder.b_dec.copy_(torch.randn(WIDTH, generator=draw))
        if variant == "jumprelu":
            coder.threshold.copy_(2 * torch.rand(LATENTS, generator=draw))
        elif isinstance(coder, sae.BatchTopK):
            coder.calibrate([frames])
    return coder.eval()


@pytest.fixture
def saved(tmp_path, frames):
    """Writes an SAE of a variant as the project does: `saved(variant)` gives the folder."""

    def save(variant: str, name: str = "ours", **about) -> Path:
        sae.save(made(variant, frames), tmp_path / name, **({"site": "encoder.2.resid", "model": "a model"} | about))
        return tmp_path / name

    return save


def settled(coder: sae.SAE, frames: torch.Tensor, close: float = 1e-5) -> torch.Tensor:
    """Where rounding cannot change which calls are answered: (frame, latent). Two ways to add up the same numbers
    differ in the last place, and a call may lie that close to the threshold, or the last of the k to the next."""
    with torch.no_grad():
        pre = coder.pre(frames)
    if isinstance(coder, sae.TopK):
        best = pre.topk(coder.k + 1, dim=1).values
        return (best[:, -2] - best[:, -1] > close)[:, None].expand_as(pre)
    return (pre - coder.threshold).abs() > close


# ---------------------------------------------------------------------------------------------- our own files


def test_every_variant_can_be_translated():
    assert set(interchange.RULES) == set(interchange.SAELENS) == set(sae.VARIANTS)


@pytest.mark.parametrize("variant", sae.VARIANTS)
def test_what_is_read_is_written_the_same(variant, saved, frames, tmp_path):
    folder = saved(variant, scale=0.25, note="as it was: é")
    said = interchange.read(folder)
    assert (said.variant, said.d_in, said.d_sae, said.k) == (variant, WIDTH, LATENTS, K)
    assert said.about["scale"] == 0.25
    interchange.write(said, tmp_path / "again")
    assert json.loads((tmp_path / "again/sae.json").read_text()) == json.loads((folder / "sae.json").read_text())
    assert torch.equal(sae.load(tmp_path / "again").encode(frames), sae.load(folder).encode(frames))
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["sae.json", "sae.safetensors"]


def spoil(change):
    """Changes the tensors of a folder."""

    def do(folder: Path) -> None:
        tensors = load_file(folder / "sae.safetensors")
        change(tensors)
        save_file(tensors, folder / "sae.safetensors")

    return do


def told(**facts):
    """Changes the facts of a folder."""

    def do(folder: Path) -> None:
        (folder / "sae.json").write_text(json.dumps(json.loads((folder / "sae.json").read_text()) | facts))

    return do


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda folder: (folder / "sae.json").unlink(), "sae.json"),
        (lambda folder: (folder / "sae.json").write_text("{"), "not a saved SAE"),
        (lambda folder: (folder / "sae.json").write_text("[1]"), "variant and k"),
        (lambda folder: (folder / "sae.json").write_bytes(b"\xff"), "not a saved SAE"),
        (lambda folder: (folder / "sae.safetensors").write_bytes(b"nothing"), "not a saved SAE"),
        (told(variant="gated"), "no 'gated'; known: batchtopk"),
        (told(variant=["topk"]), "variant"),
        (told(k=0), "k must be a whole number between 1 and 96, got 0"),
        (told(k=97), "got 97"),
        (told(k=True), "got True"),
        (told(d_sae=95), "d_sae is 95 in sae.json and 96"),
        (told(variant="jumprelu"), r"threshold is \(\), must be \(d_sae\) with d_sae = 96"),
        (spoil(lambda tensors: tensors.pop("b_enc")), "has no b_enc; it has"),
        (
            spoil(lambda tensors: tensors.update(b_dec=torch.zeros(5))),
            r"b_dec is \(5,\), must be \(d_in\) with d_in = 24",
        ),
        (spoil(lambda tensors: tensors["W_dec"].fill_(float("nan"))), "W_dec holds numbers that are not finite"),
        (spoil(lambda tensors: tensors.update(b_dec=torch.zeros(24, dtype=torch.int64))), "must be a tensor of floats"),
    ],
)
def test_a_folder_that_is_none_is_named_in_one_line(saved, harm, named):
    folder = saved("batchtopk")
    harm(folder)
    with pytest.raises(BadSAE, match=named) as caught:
        interchange.read(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


# ------------------------------------------------------------------------------------------------- exports


def saelens_says(folder: Path, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstructions by SAELens' formulas (saes/topk_sae.py, jumprelu_sae.py, standard_sae.py)."""
    told, W = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    pre = (frames - W["b_dec"] * told["apply_b_dec_to_input"]) @ W["W_enc"] + W["b_enc"]
    codes = pre.relu()
    if told["architecture"] == "jumprelu":
        codes = codes * (pre > W["threshold"])
    if told["architecture"] == "topk":
        best = pre.topk(told["k"], dim=-1)
        codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values.relu())
    return codes, codes @ W["W_dec"] + W["b_dec"]


@pytest.mark.parametrize("variant", sae.VARIANTS)
def test_saelens_is_given_its_own_layout(variant, saved, frames, tmp_path):
    folder = saved(variant)
    out = interchange.to_saelens(folder, tmp_path / "out")
    told, W = json.loads((out / "cfg.json").read_text()), load_file(out / "sae_weights.safetensors")
    kind = {"topk": "topk", "multitopk": "topk", "relu": "standard", "tied": "standard"}.get(variant, "jumprelu")
    assert told["architecture"] == kind
    assert told["metadata"]["hook_name"] == "encoder.2.resid" and told["metadata"]["whisper_sae"]["variant"] == variant
    shapes = {"W_enc": (24, 96), "b_enc": (96,), "W_dec": (96, 24), "b_dec": (24,)}
    assert {name: tuple(W[name].shape) for name in W} == shapes | ({"threshold": (96,)} if kind == "jumprelu" else {})
    assert told.get("k") == (K if kind == "topk" else None)
    coder = sae.load(folder)
    codes, x_hat = saelens_says(out, frames)
    sure = settled(coder, frames)
    assert sure.float().mean() > 0.99
    assert ((codes - coder.encode(frames)).abs() * sure).max() < 1e-5
    if sure.all():
        assert (x_hat - coder(frames)).abs().max() < 1e-5


@pytest.mark.parametrize("variant", ["topk", "multitopk"])
def test_sparsify_is_given_its_own_layout(variant, saved, frames, tmp_path):
    folder = saved(variant)
    out = interchange.to_sparsify(folder, tmp_path / "out")
    told, W = json.loads((out / "cfg.json").read_text()), load_file(out / "sae.safetensors")
    assert told == {
        "activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": LATENTS, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH,
    }  # fmt: skip
    shapes = {"encoder.weight": (96, 24), "encoder.bias": (96,), "W_dec": (96, 24), "b_dec": (24,)}
    assert {name: tuple(W[name].shape) for name in W} == shapes
    coder = sae.load(folder)
    pre = torch.nn.functional.linear(frames - W["b_dec"], W["encoder.weight"], W["encoder.bias"]).relu()
    best = pre.topk(told["k"], dim=-1)  # sparsify's fused_encoder.py
    codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
    assert ((codes - coder.encode(frames)).abs() * settled(coder, frames)).max() < 1e-5


def test_an_export_does_not_write_over_what_it_exports(saved):
    folder = saved("topk")
    with pytest.raises(BadSAE, match="write them to another folder"):
        interchange.to_sparsify(folder, folder)
    interchange.to_saelens(folder, folder)  # whose names are others
    assert interchange.read(folder).variant == "topk"


@pytest.mark.parametrize("variant", sorted(set(sae.VARIANTS) - {"topk", "multitopk"}))
def test_sparsify_is_not_given_what_it_cannot_say(variant, saved, tmp_path):
    with pytest.raises(BadSAE, match=f"variant '{variant}': sparsify knows topk alone; to_saelens") as caught:
        interchange.to_sparsify(saved(variant), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- imports


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


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The greatest difference, as a share of the greatest number."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_v1_says_the_same(frames, tmp_path):
    state = v1_state()
    torch.save(OrderedDict(state), tmp_path / "a.pth")
    told = interchange.from_v1(tmp_path / "a.pth", tmp_path / "out", site="encoder.3.resid", variant="topk")
    coder = sae.load(tmp_path / "out")
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
    told = interchange.from_v1(path, tmp_path / "out")
    coder = sae.load(tmp_path / "out")
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
    interchange.from_v1(shared / "whisper-sae-v1/encoder_sae_tiny_100k_1152_space.pth", tmp_path / "out")
    coder = sae.load(tmp_path / "out")
    whisper = model.load(str(shared / "whisper-tiny.en-encoder"), "cpu")
    folder = shared / "speech/librispeech-sample/audio"
    sounds = [soundfile.read(path, dtype="float32")[0][: whisper.window] for path in sorted(folder.iterdir())[:4]]
    said = model.record(whisper, model.mel(whisper, sounds), ["encoder.3.resid"])["encoder.3.resid"]
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
    told = interchange.from_freud(tmp_path / "bestval.pth", tmp_path / "out")
    pre = torch.nn.functional.relu((frames - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    best = pre.topk(K, sorted=False)  # topkautoencoder.py
    codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
    coder = sae.load(tmp_path / "out")
    assert (told.variant, told.k, told.about["model"]) == ("topk", K, "openai/whisper-tiny")
    assert told.about["site"] == "encoder.2.resid" and told.about["from"] == "FREUD"
    assert off(coder.encode(frames), codes) < 1e-6
    assert off(coder(frames), codes @ state["W_dec"] + state["b_dec"]) < 1e-6


def test_freuds_l1_says_the_same(frames, tmp_path):
    torch.save(freud(L1_STATE, {"n_dict_components": LATENTS, "recon_alpha": 1e4}), tmp_path / "step9.pth")
    told = interchange.from_freud(tmp_path / "step9.pth", tmp_path / "out")
    W = torch.nn.functional.normalize(L1_STATE["decoder.weight"], dim=0)  # l1autoencoder.py
    codes = torch.relu(frames @ W + L1_STATE["encoder_bias"])
    coder = sae.load(tmp_path / "out")
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
    about = interchange.from_freud(tmp_path / "a.pth", tmp_path / "out").about
    assert known.items() <= about.items() and ("site" in about) == ("site" in known)


def test_a_checkpoint_of_an_older_numpy_opens(tmp_path):
    torch.save(freud(L1_STATE, {}), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as new, zipfile.ZipFile(tmp_path / "b.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in (tmp_path / "b.pth").read_bytes()
    assert interchange.from_freud(tmp_path / "b.pth", tmp_path / "out").variant == "tied"


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
    told = interchange.from_audiosae(tmp_path / "layer_6", tmp_path / "out")
    pre = torch.relu((frames - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    codes = pre * (pre > threshold)  # dictionary_learning's trainers/batch_top_k.py, use_threshold=True
    coder = sae.load(tmp_path / "out")
    assert (told.variant, told.k, told.about["layer"], told.about["site"]) == ("batchtopk", K, 6, "encoder.5.resid")
    assert told.about["model"] == "openai/whisper-small"
    assert off(coder.encode(frames), codes) < 1e-6
    assert off(coder(frames), codes @ state["decoder.weight"].T + state["b_dec"]) < 1e-6
    assert ("none was learnt" in told.about["folded"]) == (threshold < 0)
    assert told.tensors["threshold"] == max(threshold, 0.0)


def test_audiosaes_card_names_no_threshold_so_one_can_be_given(tmp_path):
    audiosae(tmp_path / "layer_1", threshold=None)
    with pytest.raises(BadSAE, match=r"holds no threshold, so .* give threshold="):
        interchange.from_audiosae(tmp_path / "layer_1", tmp_path / "out")
    told = interchange.from_audiosae(tmp_path / "layer_1/ae.pt", tmp_path / "out", threshold=0.75)
    assert told.tensors["threshold"] == 0.75 and "site" not in told.about  # nothing says that it is a Whisper


def test_dictionary_learnings_topk_is_read_too(frames, tmp_path):
    state = audiosae(tmp_path, threshold=-1.0, config={"dict_class": "AutoEncoderTopK", "k": K})
    assert interchange.from_audiosae(tmp_path, tmp_path / "out").variant == "topk"
    pre = torch.relu((frames - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    best = pre.topk(K, sorted=False)
    codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
    assert off(sae.load(tmp_path / "out").encode(frames), codes) < 1e-6


# ----------------------------------------------------------------------------------------- what is refused


class Trap:
    """Something that would run code when a careless loader opens it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


class Foreign(torch.nn.Module):
    """A whole model, as `torch.save(model, path)` keeps it."""


READERS = [interchange.from_v1, interchange.from_freud, interchange.from_audiosae]


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
        (interchange.from_v1, without(v1_state(), "decoder.bias"), "has no decoder.bias; it has encoder.weight"),
        (interchange.from_v1, v1_state() | {"r_mag": drawn(3)}, "another layout: .* it has r_mag"),
        (interchange.from_v1, v1_state() | {"encoder.bias": drawn(5)}, r"encoder.bias is \(5,\)"),
        (interchange.from_v1, v1_state() | {"encoder.bias": [1.0]}, "encoder.bias must be a tensor of floats"),
        (interchange.from_v1, v1_state() | {"decoder.bias": torch.full((WIDTH,), torch.inf)}, "not finite"),
        (interchange.from_freud, v1_state(), "it must hold `model` and `hparams`"),
        (interchange.from_freud, freud(topk_state(), None), "hparams do not say k"),
        (interchange.from_freud, freud(topk_state(), {"k": 0}), "k must be a whole number between 1 and 96, got 0"),
        (interchange.from_freud, freud(topk_state(), {"k": "6"}), "k must be a whole number"),
        (interchange.from_freud, freud(v1_state(), {"k": 6}), "has no W_dec"),
        (interchange.from_freud, freud(without(L1_STATE, "decoder.weight"), {}), "has no decoder.weight"),
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
        ({"config": {"k": 7}}, "k is 6 and 7"),
        ({"k": None}, "k is not said"),
        ({"k": None, "config": {"k": "six"}}, "k must be one number"),
        ({"threshold": float("nan")}, "threshold must be one number"),
        ({"gate_bias": drawn(LATENTS)}, "another layout"),
    ],
)
def test_another_dictionary_of_dictionary_learning_is_not_guessed_at(options, named, tmp_path):
    audiosae(tmp_path / "layer_1", **options)
    with pytest.raises(BadSAE, match=named) as caught:
        interchange.from_audiosae(tmp_path / "layer_1", tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '{"trainer": 3}', '{"trainer": null}'])
def test_a_config_that_is_none_is_named(text, tmp_path):
    audiosae(tmp_path / "layer_1")
    (tmp_path / "layer_1/config.json").write_text(text)
    with pytest.raises(BadSAE, match=r"config\.json: not a config of dictionary_learning"):
        interchange.from_audiosae(tmp_path / "layer_1", tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- the hub


def parts_of(card: str) -> tuple[dict, str]:
    """The head of a model card, as YAML reads it, and the rest."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.S)
    return yaml.safe_load(found[1]), found[2]


def test_the_card_says_what_it_is_and_how_to_load_it(saved):
    about = {"model": "openai/whisper-tiny", "fvu": 0.12345678, "l0": 6.02, "penalty": None}
    head, text = parts_of(interchange.card(interchange.read(saved("batchtopk", **about)), "me/my-sae", "apache-2.0"))
    assert head["license"] == "apache-2.0" and head["base_model"] == "openai/whisper-tiny"
    assert "sparse-autoencoder" in head["tags"]
    assert "# A sparse autoencoder of encoder.2.resid of openai&#47;whisper-tiny" in text
    for row in ("| variant | batchtopk |", "| width | 24 |", "| latents | 96 |", "| k | 6 |", "| 0.1235 |", "| 6.02 |"):
        assert row in text
    assert "penalty" not in text and "No scores" not in text
    assert 'interchange.pull("me/my-sae", "the_sae")' in text


def test_the_card_of_an_sae_without_scores_says_so(saved):
    head, text = parts_of(interchange.card(interchange.read(saved("relu")), "me/my-sae"))
    assert "No scores came with it" in text and "base_model" not in head and "| k |" not in text


HOSTILE = "x\n---\nlicense: evil\n# <script>alert(1)</script> | [a](javascript:b) \u202e `c` **d** _e_ ![f](https://g)"
HOSTILE += " \"h' \\i"


@pytest.mark.parametrize("key", ["model", "site", "note", HOSTILE])
def test_words_of_others_are_words_on_the_card(key, saved):
    said = interchange.read(saved("topk", **{key: HOSTILE}))
    plain = interchange.read(saved("topk", "other", **{key: "x"}))
    for license in ("mit", HOSTILE):
        head, text = parts_of(interchange.card(said, 'me/"\n```\n', license))
        assert head["license"] == license and set(head) == {"license", "library_name", "tags"}
    assert "\u202e" not in text
    text, bare = interchange.card(said, "me/my-sae"), interchange.card(plain, "me/my-sae")
    for sign in '<>[]()`*_!"\\:#|\n':
        if sign not in "#":  # which is in &#60;
            assert text.count(sign) == bare.count(sign), sign
    assert re.findall(r"#(?!\d+;)", text) == re.findall(r"#(?!\d+;)", bare)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as pushing and pulling needs, on this machine. `files` is what it keeps."""

    files: dict[str, bytes]
    asked: list[str]
    refuse = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        if self.refuse:
            return self.say({"error": "Invalid credentials"}, 401)
        if self.path == "/api/validate-yaml":
            head, _ = parts_of(json.loads(body)["content"])
            return self.say({"errors": [] if head else [{"message": "no head"}], "warnings": []})
        if "/preupload/" in self.path:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.say({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.say(
                {
                    "commitUrl": f"{self.endpoint}/me/my-sae/commit/" + "c" * 40,
                    "commitOid": "c" * 40,
                    "success": True,
                }
            )
        if self.path == "/api/repos/create":
            self.asked.append(body.decode())
            return self.say({"url": f"{self.endpoint}/me/my-sae"})
        return self.say({"error": "what?"}, 404)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/api/models/me/my-sae/tree/"):
            tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.files.items()]  # fmt: skip
            return self.say(tree)
        if path.startswith("/api/models/me/my-sae"):
            told = {"id": "me/my-sae", "sha": "c" * 40, "siblings": [{"rfilename": name} for name in self.files]}
            return self.say(told | {"private": False, "tags": [], "downloads": 0, "likes": 0})
        name = path.split("/")[-1]
        if path.startswith("/me/my-sae/resolve/") and name in self.files:
            return self.say(self.files[name])
        self.say({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def say(self, what, status=200):
        content = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, with nothing in it, and a cache of this test's own: its `endpoint`, `files`, `asked`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    handler = type("Here", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_pushed_can_be_pulled(hub, saved, frames, tmp_path):
    folder = saved("batchtopk")
    (folder / "secret.txt").write_text("not for others")
    where = interchange.push(
        folder,
        "me/my-sae",
        license="apache-2.0",
        token="t",
        endpoint=hub.endpoint,
        fvu=0.25,
        model="openai/whisper-tiny",
    )
    assert where == f"{hub.endpoint}/me/my-sae/commit/" + "c" * 40
    assert set(hub.files) == {"README.md", "sae.json", "sae.safetensors"}
    assert json.loads(hub.asked[1])["visibility"] == "private"
    head, text = parts_of(hub.files["README.md"].decode())
    assert head["license"] == "apache-2.0" and head["base_model"] == "openai/whisper-tiny" and "| 0.25 |" in text
    assert sorted(path.name for path in folder.iterdir()) == ["sae.json", "sae.safetensors", "secret.txt"]

    told = interchange.pull("me/my-sae", tmp_path / "back", token="t", endpoint=hub.endpoint)
    assert told.about["fvu"] == 0.25
    assert torch.equal(sae.load(tmp_path / "back").encode(frames), sae.load(folder).encode(frames))
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["sae.json", "sae.safetensors"]


def test_what_would_be_pushed_can_be_looked_at(saved, tmp_path):
    out = interchange.prepare(saved("topk"), tmp_path / "look", "me/my-sae", l0=5.9)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "sae.json", "sae.safetensors"]
    assert interchange.read(out).about["l0"] == 5.9
    assert huggingface_hub.ModelCard.load(out / "README.md").data.license == "mit"


def test_what_comes_from_the_hub_is_checked(hub, saved, tmp_path):
    folder = saved("topk")
    hub.files |= {"sae.json": b'{"variant": "topk", "k": 10000}'}
    hub.files |= {"sae.safetensors": (folder / "sae.safetensors").read_bytes(), "evil.py": b"import os"}
    with pytest.raises(BadSAE, match=r"^me/my-sae: .*k must be a whole number"):
        interchange.pull("me/my-sae", tmp_path / "back", token="t", endpoint=hub.endpoint)
    assert not (tmp_path / "back").exists()
    assert not list((tmp_path / "cache").rglob("evil.py"))


@pytest.mark.parametrize("repo_id", ["me/other", "me/my sae", "a/b/c", "../up"])
def test_a_repository_that_is_not_there_is_named(hub, repo_id, tmp_path):
    with pytest.raises(BadSAE, match=f"^{re.escape(repo_id)}: cannot be pulled; ") as caught:
        interchange.pull(repo_id, tmp_path / "back", token="t", endpoint=hub.endpoint)
    assert "\n" not in str(caught.value)


def test_a_refusal_is_one_line_without_the_token(hub, saved):
    hub.refuse = True
    with pytest.raises(BadSAE, match=r"^me/my-sae: cannot be pushed; ") as caught:
        interchange.push(saved("topk"), "me/my-sae", token="hf_veryverysecret", endpoint=hub.endpoint)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize("trouble", ["nobody answers", "told to stay offline"])
def test_without_a_network_there_is_one_line(way, trouble, hub, saved, tmp_path, monkeypatch):
    if trouble != "nobody answers":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = saved("topk") if way == "push" else tmp_path / "back"
    with pytest.raises(BadSAE, match=f"^me/my-sae: cannot be {way}ed; ") as caught:
        # port 9 is `discard`, where nobody listens
        options = {"token": "t", "endpoint": "http://127.0.0.1:9"}
        if way == "push":
            interchange.push(folder, "me/my-sae", **options)
        else:
            interchange.pull("me/my-sae", folder, **options)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ the real packages

ASKED_OF_PEERS = """
import json, sys
import numpy as np, torch
from sae_lens import SAE
from sparsify import SparseCoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

work = sys.argv[1]
torch.set_num_threads(1)
jobs = json.load(open(f"{work}/jobs.json"))

@torch.no_grad()
def say(kind, folder, x):
    if kind == "saelens":
        coder = SAE.load_from_disk(folder)
        return coder.encode(x), coder(x)
    if kind == "sparsify":
        coder = SparseCoder.load_from_disk(folder)
        best, which, pre = coder.encode(x)
        return torch.zeros_like(pre).scatter_(-1, which, best), coder(x).sae_out
    coder = {"batchtopk": BatchTopKSAE, "topk": AutoEncoderTopK}[kind](x.shape[1], 4 * x.shape[1], 6)
    state = coder.state_dict()
    draw = torch.Generator().manual_seed(0)
    for name in ("encoder.weight", "encoder.bias", "b_dec"):
        state[name] += 0.3 * torch.randn(state[name].shape, generator=draw)
    state["threshold"] = torch.tensor(3.0 if kind == "batchtopk" else -1.0)
    coder.load_state_dict(state)
    torch.save(coder.state_dict(), f"{folder}/ae.pt")
    config = {"trainer": {"dict_class": type(coder).__name__, "k": 6, "layer": 2, "lm_name": "openai/whisper-small"}}
    json.dump(config, open(f"{folder}/config.json", "w"))
    coder = type(coder).from_pretrained(f"{folder}/ae.pt")
    return coder.encode(x), coder(x)

for name, kind, folder, data in jobs:
    codes, x_hat = say(kind, folder, torch.from_numpy(np.load(data)))
    np.savez(f"{work}/{name}.npz", codes=codes.numpy(), x_hat=x_hat.numpy())
"""


@pytest.fixture(scope="module")
def peers() -> Path:
    named = os.environ.get("WHISPER_SAE_PEERS")
    if not named:
        pytest.skip("WHISPER_SAE_PEERS names no Python with SAELens and sparsify: see tests/peers-requirements.txt")
    if not Path(named).is_file():
        pytest.skip(f"WHISPER_SAE_PEERS: no Python at {named}")
    return Path(named)


def ask(peers: Path, work: Path, jobs: list) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What the real packages say: codes and reconstructions of each job, (name, kind, folder, file of frames)."""
    (work / "jobs.json").write_text(json.dumps(jobs, default=str))
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [peers, "-I", "-c", ASKED_OF_PEERS, work],
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {name: np.load(work / f"{name}.npz") for name, *_ in jobs}
    return {name: (torch.from_numpy(a["codes"]), torch.from_numpy(a["x_hat"])) for name, a in said.items()}


def test_the_real_packages_say_the_same(peers, saved, frames, tmp_path):
    np.save(tmp_path / "frames.npy", frames.numpy())
    jobs = []
    for variant in sae.VARIANTS:
        folder = saved(variant, variant)
        jobs.append((f"{variant}-saelens", "saelens", interchange.to_saelens(folder, tmp_path / f"{variant}-1")))
        if variant in ("topk", "multitopk"):
            jobs.append((f"{variant}-sparsify", "sparsify", interchange.to_sparsify(folder, tmp_path / f"{variant}-2")))
    said = ask(peers, tmp_path, [(*job, tmp_path / "frames.npy") for job in jobs])
    assert len(said) == len(sae.VARIANTS) + 2
    for name, (codes, x_hat) in said.items():
        coder = sae.load(tmp_path / name.split("-")[0])
        sure = settled(coder, frames)
        worst = ((codes - coder.encode(frames)).abs() * sure).max()
        assert worst < 1e-5, name
        assert sure.float().mean() > 0.99, name
        whole = sure.all(dim=1)
        assert off(x_hat[whole], coder(frames)[whole]) < 1e-5, name
        assert 1 < (codes > 0).sum(dim=1).float().mean() < LATENTS, name


def test_what_dictionary_learning_saves_is_read(peers, frames, tmp_path):
    np.save(tmp_path / "frames.npy", frames.numpy())
    jobs = []
    for kind in ("batchtopk", "topk"):
        (tmp_path / kind / "layer_3").mkdir(parents=True)
        jobs.append((kind, kind, tmp_path / kind / "layer_3", tmp_path / "frames.npy"))
    for name, (codes, x_hat) in ask(peers, tmp_path, jobs).items():
        told = interchange.from_audiosae(tmp_path / name / "layer_3", tmp_path / name / "out")
        coder = sae.load(tmp_path / name / "out")
        sure = settled(coder, frames)
        assert (told.variant, told.k, told.about["site"]) == (name, 6, "encoder.2.resid")
        assert ((codes - coder.encode(frames)).abs() * sure).max() < 1e-5
        assert off(x_hat[sure.all(dim=1)], coder(frames)[sure.all(dim=1)]) < 1e-5


def test_real_frames_are_told_alike(peers, shared, tmp_path):
    """At Whisper's own sizes: a layer of tiny.en, 3,072 latents, codes of up to 80."""
    whisper = model.load(str(shared / "whisper-tiny.en-encoder"), "cpu")
    folder = shared / "speech/librispeech-sample/audio"
    sounds = [soundfile.read(sorted(folder.iterdir())[0], dtype="float32")[0][: whisper.window]]
    x = model.record(whisper, model.mel(whisper, sounds), ["encoder.2.resid"])["encoder.2.resid"][0]
    np.save(tmp_path / "frames.npy", x.numpy())
    jobs, coders = [], {}
    for variant in ("batchtopk", "topk"):
        coder = sae.create(variant, 384, 3072, 32, seed=1)
        coder.start_on(x)
        if variant == "batchtopk":
            coder.calibrate([x])
        sae.save(coder, tmp_path / variant)
        coders[variant] = sae.load(tmp_path / variant)
        jobs.append((variant, "saelens", interchange.to_saelens(tmp_path / variant, tmp_path / f"{variant}-1")))
    jobs.append(("topk-sparsify", "sparsify", interchange.to_sparsify(tmp_path / "topk", tmp_path / "topk-2")))
    for name, (codes, _) in ask(peers, tmp_path, [(*job, tmp_path / "frames.npy") for job in jobs]).items():
        coder = coders[name.split("-")[0]]
        ours, sure = coder.encode(x).detach(), settled(coder, x, close=3e-5)
        worst = ((codes - ours).abs() * sure).max()
        assert worst < 1e-5, name
        assert sure.float().mean() > 0.95, name
