"""A folder of ours comes back as it was, and the exports have the layouts of those who will read them.

That the readers themselves say the same is asked of them in test_peers.py.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from coders import LATENTS, WIDTH, K, settled
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from whisper_sae.sae import architectures, io
from whisper_sae.sae.io import BadSAE

# ------------------------------------------------------------------------------------------------------- our own files


def test_every_variant_can_be_translated():
    assert set(io.RULES) == set(io.SAELENS) == set(architectures.VARIANTS)


@pytest.mark.parametrize("variant", architectures.VARIANTS)
def test_what_is_read_is_written_the_same(variant, saved, frames, tmp_path):
    folder = saved(variant, scale=0.25, note="as it was: é")
    said = io.read(folder)
    assert (said.variant, said.d_in, said.d_sae, said.k) == (variant, WIDTH, LATENTS, K)
    assert said.about["scale"] == 0.25
    io.write(said, tmp_path / "again")
    assert json.loads((tmp_path / "again/sae.json").read_text()) == json.loads((folder / "sae.json").read_text())
    assert torch.equal(architectures.load(tmp_path / "again").encode(frames), architectures.load(folder).encode(frames))
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


def replaced(name, by):
    """Puts something else in the place of a file."""

    def do(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

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
        (spoil(lambda tensors: tensors.update(b_dec=torch.zeros(24, dtype=torch.int64))), "must be a dense tensor of"),
        (
            spoil(lambda tensors: tensors.update(W_dec=tensors["W_dec"].to(torch.int8))),
            "W_dec must be a dense tensor of",
        ),
        (spoil(lambda tensors: tensors.update(W_dec=tensors["W_dec"].to(torch.complex64))), "W_dec must be a dense"),
        (
            spoil(lambda tensors: tensors.update(W_dec=torch.full((96, 24), 1e300, dtype=torch.float64))),
            "W_dec holds numbers that are not finite in float32",
        ),
        (
            spoil(lambda tensors: tensors.update(W_dec=torch.full((96, 24), torch.nan).to(torch.float8_e4m3fn))),
            "W_dec holds numbers that are not finite",
        ),
        (lambda folder: (folder / "sae.json").write_text("[" * 100_000), "not a saved SAE"),
        (lambda folder: (folder / "sae.json").write_text('{"k": ' + "9" * 5000 + "}"), "not a saved SAE"),
        (replaced("sae.json", os.mkfifo), "sae.json: not a regular file"),
        (replaced("sae.safetensors", os.mkfifo), "sae.safetensors: not a regular file"),
        (replaced("sae.safetensors", os.mkdir), "sae.safetensors: not a regular file"),
        (lambda folder: os.truncate(folder / "sae.json", io.MOST_FACTS + 1), "bytes; 16,777,216 at most"),
    ],
)
def test_a_folder_that_is_none_is_named_in_one_line(saved, harm, named):
    folder = saved("batchtopk")
    harm(folder)
    for read in (io.read, architectures.load):
        with pytest.raises(BadSAE, match=named) as caught:
            read(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@given(st.data())
def test_a_damaged_folder_is_read_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    architectures.save(architectures.create("topk", 4, 8, 2), folder)
    path = folder / data.draw(st.sampled_from(["sae.json", "sae.safetensors"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        if data.draw(st.booleans()) and content:
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at:]
    path.write_bytes(content)
    try:
        coder = architectures.load(folder)
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        assert all(tensor.isfinite().all() for tensor in coder.state_dict().values())


def test_an_sae_of_another_model_is_refused(saved):
    folder = saved("batchtopk", model="openai/whisper-tiny", **{io.DIGEST: "0123456789ab"})
    io.require_model(folder, "0123456789ab")
    with pytest.raises(BadSAE, match="trained on openai/whisper-tiny with the digest 0123456789ab, and this model has"):
        io.require_model(folder, "ba9876543210")
    io.require_model(saved("topk"), "ba9876543210")  # it does not say


# ------------------------------------------------------------------------------------------------------------- exports


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


@pytest.mark.parametrize("variant", architectures.VARIANTS)
def test_saelens_is_given_its_own_layout(variant, saved, frames, tmp_path):
    folder = saved(variant)
    out = io.to_saelens(folder, tmp_path / "out")
    told, W = json.loads((out / "cfg.json").read_text()), load_file(out / "sae_weights.safetensors")
    kind = {"topk": "topk", "multitopk": "topk", "relu": "standard", "tied": "standard"}.get(variant, "jumprelu")
    assert told["architecture"] == kind
    assert told["metadata"]["hook_name"] == "encoder.2.resid" and told["metadata"]["whisper_sae"]["variant"] == variant
    shapes = {"W_enc": (24, 96), "b_enc": (96,), "W_dec": (96, 24), "b_dec": (24,)}
    assert {name: tuple(W[name].shape) for name in W} == shapes | ({"threshold": (96,)} if kind == "jumprelu" else {})
    assert told.get("k") == (K if kind == "topk" else None)
    coder = architectures.load(folder)
    codes, x_hat = saelens_says(out, frames)
    sure = settled(coder, frames)
    assert sure.float().mean() > 0.99
    assert ((codes - coder.encode(frames)).abs() * sure).max() < 1e-5
    if sure.all():
        assert (x_hat - coder(frames)).abs().max() < 1e-5


@pytest.mark.parametrize("variant", ["topk", "multitopk"])
def test_sparsify_is_given_its_own_layout(variant, saved, frames, tmp_path):
    folder = saved(variant)
    out = io.to_sparsify(folder, tmp_path / "out")
    told, W = json.loads((out / "cfg.json").read_text()), load_file(out / "sae.safetensors")
    assert told == {
        "activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": LATENTS, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH,
    }  # fmt: skip
    shapes = {"encoder.weight": (96, 24), "encoder.bias": (96,), "W_dec": (96, 24), "b_dec": (24,)}
    assert {name: tuple(W[name].shape) for name in W} == shapes
    coder = architectures.load(folder)
    pre = torch.nn.functional.linear(frames - W["b_dec"], W["encoder.weight"], W["encoder.bias"]).relu()
    best = pre.topk(told["k"], dim=-1)  # sparsify's fused_encoder.py
    codes = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
    assert ((codes - coder.encode(frames)).abs() * settled(coder, frames)).max() < 1e-5


def test_an_export_does_not_write_over_what_it_exports(saved):
    folder = saved("topk")
    with pytest.raises(BadSAE, match="write them to another folder"):
        io.to_sparsify(folder, folder)
    io.to_saelens(folder, folder)  # whose names are others
    assert io.read(folder).variant == "topk"


@pytest.mark.parametrize("variant", sorted(set(architectures.VARIANTS) - {"topk", "multitopk"}))
def test_sparsify_is_not_given_what_it_cannot_say(variant, saved, tmp_path):
    with pytest.raises(BadSAE, match=f"variant '{variant}': sparsify knows topk alone; to_saelens") as caught:
        io.to_sparsify(saved(variant), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
