"""Dictionaries for others: one of our folders as numbers and facts, and the same as SAELens and sparsify have it.

A folder of ours has two files: `sae.safetensors` with the field's names, W_enc (d_in, d_sae), b_enc (d_sae,), W_dec
(d_sae, d_in), b_dec (d_in,), threshold; and `sae.json` with the variant, the sizes and what else is known. It says

    pre   = (x - b_dec) W_enc + b_enc
    f     = pre where it is answered, else 0        which calls are answered: `RULES`
    x_hat = f W_dec + b_dec

`foreign` brings in what others have trained; `sharing` takes such a folder to the Hugging Face hub and back.
"""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whisper_sae import atomic

WEIGHTS, FACTS = "sae.safetensors", "sae.json"
DIGEST = "model_digest"
"""In `sae.json`: the digest of the model that an SAE was trained on."""
MOST_FACTS, MOST_WEIGHTS = 16 << 20, 64 << 30
"""Bytes that the two files may have."""
SIZES = ("variant", "d_in", "d_sae", "k")

RULES = {
    "batchtopk": "pre where pre > threshold and pre > 0",
    "topk": "the k largest pre of a frame, where positive",
    "multitopk": "the k largest pre of a frame, where positive",
    "matryoshka": "pre where pre > threshold and pre > 0",
    "jumprelu": "pre where pre > threshold, one of each latent, and pre > 0",
    "relu": "pre where pre > 0",
    "tied": "pre where pre > 0",
}
"""Which calls each variant answers, once it is trained."""

SAELENS = {
    "batchtopk": "jumprelu", "matryoshka": "jumprelu", "jumprelu": "jumprelu",
    "topk": "topk", "multitopk": "topk",
    "relu": "standard", "tied": "standard",
}  # fmt: skip
"""SAELens' architecture that answers the same calls."""


class BadSAE(ValueError):
    """An SAE that cannot be read, translated, pushed or pulled; one line, with the way out."""


@dataclass(frozen=True)
class Described:
    """An SAE as numbers and facts. `tensors` has our names and shapes; `about` is what is known besides."""

    variant: str
    k: int
    tensors: dict[str, Tensor]
    about: dict = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.tensors["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        return self.tensors["W_enc"].shape[1]


# ------------------------------------------------------------------------------------------------------- our own files


def read(folder: str | Path) -> Described:
    """Read a folder that `sae.save` or `write` wrote; BadSAE names what does not fit."""
    folder = Path(folder)
    try:
        for name, most in ((FACTS, MOST_FACTS), (WEIGHTS, MOST_WEIGHTS)):
            require_file(folder / name, most)
        told = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except BadSAE:
        raise
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise BadSAE(f"{folder}: not a saved SAE: {one_line(error)}") from None
    if not isinstance(told, dict) or not {"variant", "k"} <= set(told):
        raise BadSAE(f"{folder / FACTS}: must be a table with variant and k")
    variant = told["variant"]
    if not isinstance(variant, str) or variant not in RULES:
        raise BadSAE(f"{folder / FACTS}: variant: there is no {str(variant)[:40]!r}; known: {', '.join(RULES)}")
    layout = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
    layout["threshold"] = "d_sae" if variant == "jumprelu" else ""
    known, sizes = fitting(folder / WEIGHTS, tensors, layout)
    for name, size in sizes.items():
        if name in told and told[name] != size:
            raise BadSAE(f"{folder}: {name} is {told[name]} in {FACTS} and {size} in {WEIGHTS}")
    about = {name: value for name, value in told.items() if name not in SIZES}
    return Described(variant, checked_k(folder / FACTS, told["k"], sizes["d_sae"]), tensors | known, about)


def write(described: Described, folder: str | Path) -> Path:
    """Write what `sae.load` reads."""
    sizes = {name: getattr(described, name) for name in SIZES}
    return _write(folder, WEIGHTS, described.tensors, FACTS, sizes | described.about | sizes)


def _write(folder: str | Path, weights: str, tensors: dict[str, Tensor], facts: str, told: dict, note=None) -> Path:
    folder = Path(folder)
    with atomic.replacing(folder / weights) as part:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, part, note)
    atomic.write(folder / facts, json.dumps(told, indent=1))
    return folder


# ------------------------------------------------------------------------------------------------------------- exports


def to_saelens(folder: str | Path, out: str | Path) -> Path:
    """Write one of our folders as SAELens 6 reads it: `SAE.load_from_disk(out)` gives the same codes.

    Their `topk`, `standard` (which is ReLU) and `jumprelu` use our formula. A threshold for all latents is one of
    each latent, so what is trained by BatchTopK is a `jumprelu` to them, as their own is when they save it. What they
    have no field for stands in `cfg.json` under metadata.whisper_sae.
    """
    said = read(folder)
    kind = SAELENS[said.variant]
    tensors = {name: said.tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if kind == "jumprelu":
        tensors["threshold"] = said.tensors["threshold"].expand(said.d_sae)
    named = {"model_name": said.about.get("model"), "hook_name": said.about.get("site")}
    told = {
        "architecture": kind,
        "d_in": said.d_in,
        "d_sae": said.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # of the layout; without it they take the file for an older one
            **{name: value for name, value in named.items() if value is not None},
            "whisper_sae": {"variant": said.variant, "k": said.k, **said.about},
        },
    }
    if kind == "topk":
        told |= {"k": said.k, "rescale_acts_by_decoder_norm": False}  # k unsaid would be 100
    return _write(out, "sae_weights.safetensors", tensors, "cfg.json", told)


def to_sparsify(folder: str | Path, out: str | Path) -> Path:
    """Write one of our folders as EleutherAI's sparsify reads it: `SparseCoder.load_from_disk(out)`.

    It knows TopK alone, and has our formula: it subtracts b_dec, takes relu, then the k largest. What it has no field
    for stands in the head of its `sae.safetensors`.
    """
    said = read(folder)
    if SAELENS[said.variant] != "topk":
        raise BadSAE(f"{folder}: variant {said.variant!r}: sparsify knows topk alone; to_saelens takes every variant")
    if Path(out).resolve() == Path(folder).resolve():
        raise BadSAE(f"{folder}: sparsify's weights have the name of ours; write them to another folder")
    W_dec = said.tensors["W_dec"]
    tensors = {
        "encoder.weight": said.tensors["W_enc"].T,
        "encoder.bias": said.tensors["b_enc"],
        "W_dec": W_dec,
        "b_dec": said.tensors["b_dec"],
    }
    told = {
        "activation": "topk",
        "expansion_factor": said.d_sae // said.d_in,  # not read where num_latents is told
        "normalize_decoder": bool((W_dec.norm(dim=1) - 1).abs().max() < 1e-3),
        "num_latents": said.d_sae,
        "k": said.k,
        "multi_topk": False,  # theirs, left on, re-says by 4 k latents after training too
        "skip_connection": False,
        "transcode": False,
        "d_in": said.d_in,
    }
    return _write(out, "sae.safetensors", tensors, "cfg.json", told, {"whisper_sae": json.dumps(said.about)})


# -------------------------------------------------------------------------------------------------------------- checks


def fitting(
    where: str | Path, tensors: dict, layout: dict[str, str], alone: bool = False
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of a layout, `{name: "size size"}`, in float32, and the sizes; BadSAE names the one that does not
    fit. `alone`: other tensors would mean another formula, and are refused."""
    if missing := [name for name in layout if name not in tensors]:
        raise BadSAE(f"{where}: has no {', '.join(missing)}; it has {_listed(tensors)}")
    if alone and (more := [name for name in tensors if name not in layout]):
        raise BadSAE(f"{where}: another layout: besides {', '.join(layout)} it has {_listed(more)}")
    found, sizes = {}, {}
    for name, wanted in layout.items():
        tensor, axes = tensors[name], wanted.split()
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not plain or not tensor.is_floating_point():
            raise BadSAE(f"{where}: {name} must be a dense tensor of floats")
        agree = [sizes.setdefault(axis, size) == size for axis, size in zip(axes, tensor.shape, strict=False)]
        if tensor.ndim != len(axes) or not all(agree):
            known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes)
            raise BadSAE(f"{where}: {name} is {tuple(tensor.shape)}, must be ({', '.join(axes)}) with {known}")
        found[name] = tensor.detach().float()
        if not found[name].isfinite().all():
            raise BadSAE(f"{where}: {name} holds numbers that are not finite in float32")
    return found, sizes


def require_file(path: Path, most: float) -> None:
    """BadSAE for what is no regular file, such as a pipe, which would be waited for, or has more than `most` bytes."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise BadSAE(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(about.st_mode):
        raise BadSAE(f"{path}: not a regular file")
    if about.st_size > most:
        raise BadSAE(f"{path}: {about.st_size:,} bytes; {most:,.0f} at most")


def require_model(folder: str | Path, identity: str) -> None:
    """BadSAE where an SAE says that it was trained on another model than the one of this digest, `model.identity`.
    One that does not say, such as those of others, is taken at its user's word."""
    said = read(folder).about
    if said.get(DIGEST, identity) != identity:
        raise BadSAE(
            f"{folder}: trained on {said.get('model', 'a model')} with the digest {said[DIGEST]}, and this model has "
            f"{identity}: its latents mean nothing here"
        )


def checked_k(where: str | Path, k, d_sae: int) -> int:
    """k, if it is a whole number of at most d_sae; BadSAE names it."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
        raise BadSAE(f"{where}: k must be a whole number between 1 and {d_sae}, got {str(k)[:40]}")
    return k


def _listed(names: Iterable) -> str:
    names = [str(name)[:60] for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def one_line(error: Exception) -> str:
    """An error as one line of at most 300 letters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
