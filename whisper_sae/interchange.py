"""Dictionaries to and from elsewhere: SAELens, sparsify, FREUD, whisper-sae v1, AudioSAE, and the Hugging Face hub.

Ours is a folder of two files: `sae.safetensors` with the field's names, W_enc (d_in, d_sae), b_enc (d_sae,), W_dec
(d_sae, d_in), b_dec (d_in,), threshold; and `sae.json` with the variant, the sizes and what else is known. It says

    pre   = (x - b_dec) W_enc + b_enc
    f     = pre where it is answered, else 0        which calls are answered: `RULES`
    x_hat = f W_dec + b_dec

Some of the others say it differently: they subtract nothing before encoding, or leave the rows of W_dec at any length.
That is folded into the numbers, so that what is read here says what it said there: the same reconstructions, and the
same codes up to a factor of each latent's own. What was folded is written down in `sae.json`, under `folded`.

Nothing that is read here can run code: checkpoints of torch are opened with `weights_only`.
"""

import json
import math
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, FACTS = "sae.safetensors", "sae.json"
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


# ------------------------------------------------------------------------------------------------ our own files


def read(folder: str | Path) -> Described:
    """Read a folder that `sae.save` or `write` wrote; BadSAE names what does not fit."""
    folder = Path(folder)
    try:
        told = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise BadSAE(f"{folder}: not a saved SAE: {_line(error)}") from None
    if not isinstance(told, dict) or not {"variant", "k"} <= set(told):
        raise BadSAE(f"{folder / FACTS}: must be a table with variant and k")
    variant = told["variant"]
    if not isinstance(variant, str) or variant not in RULES:
        raise BadSAE(f"{folder / FACTS}: variant: there is no {str(variant)[:40]!r}; known: {', '.join(RULES)}")
    layout = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
    layout["threshold"] = "d_sae" if variant == "jumprelu" else ""
    known, sizes = _fitting(folder / WEIGHTS, tensors, layout)
    for name, size in sizes.items():
        if name in told and told[name] != size:
            raise BadSAE(f"{folder}: {name} is {told[name]} in {FACTS} and {size} in {WEIGHTS}")
    about = {name: value for name, value in told.items() if name not in SIZES}
    return Described(variant, _k(folder / FACTS, told["k"], sizes["d_sae"]), tensors | known, about)


def write(described: Described, folder: str | Path) -> Path:
    """Write what `sae.load` reads."""
    sizes = {name: getattr(described, name) for name in SIZES}
    return _write(folder, WEIGHTS, described.tensors, FACTS, sizes | described.about | sizes)


def _write(folder: str | Path, weights: str, tensors: dict[str, Tensor], facts: str, told: dict, note=None) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{weights}.part"
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, part, note)
    os.replace(part, folder / weights)
    part = folder / f"{facts}.part"
    part.write_text(json.dumps(told, indent=1), encoding="utf-8")
    os.replace(part, folder / facts)
    return folder


# ----------------------------------------------------------------------------------------------------- exports


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


# ----------------------------------------------------------------------------------------------------- imports


def from_v1(path: str | Path, out: str | Path, **about) -> Described:
    """Write a checkpoint of whisper-sae v1 (`….pth`) as one of our folders.

    Theirs is f = relu(E x + e), x_hat = D f + d. Ours subtracts b_dec = d first, so b_enc = e + E d; a latent's column
    of D gets length 1, and the latent's codes take up the length. `about` goes into `sae.json`.
    """
    layout = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "decoder.weight": "d_in d_sae",
              "decoder.bias": "d_in"}  # fmt: skip
    theirs, sizes = _fitting(path, _opened(path), layout, alone=True)
    W_enc, b_dec = theirs["encoder.weight"].T, theirs["decoder.bias"]
    b_enc = theirs["encoder.bias"].double() + b_dec.double() @ W_enc.double()
    told = {
        "from": "whisper-sae v1",
        "model": "openai/whisper-tiny",
        "trained_on": "the last hidden state, which is after Whisper's final layer norm; padding included",
        "folded": "b_enc += b_dec W_enc, since theirs subtracts nothing; codes times the lengths of W_dec's rows",
    }
    tensors = _unit_rows(W_enc, b_enc, theirs["decoder.weight"].T, b_dec)
    return _kept(Described("relu", sizes["d_sae"], tensors, told | about), out)


def from_freud(path: str | Path, out: str | Path, **about) -> Described:
    """Write a checkpoint of FREUD (`….pth`, with its `hparams`) as one of our folders.

    Their `l1` is our `tied` with b_dec = 0: it gives its directions length 1 whenever it encodes, which is done here
    once. Their `topk` is our `topk`; its directions stay as long as they are, since codes of another length might
    have another k largest. `about` goes into `sae.json`.
    """
    saved = _opened(path)
    state, hparams = saved.get("model"), saved.get("hparams")
    if not isinstance(state, dict) or not isinstance(hparams, dict):
        raise BadSAE(f"{path}: not a checkpoint of FREUD: it must hold `model` and `hparams`")
    told = {"from": "FREUD"} | _freud_place(hparams)
    if "encoder_bias" in state:
        layout = {"decoder.weight": "d_in d_sae", "encoder_bias": "d_sae"}
        theirs, sizes = _fitting(path, state, layout, alone=True)
        W_dec = torch.nn.functional.normalize(theirs["decoder.weight"].T, dim=1)
        tensors = {
            "W_enc": W_dec.T,
            "b_enc": theirs["encoder_bias"],
            "W_dec": W_dec,
            "b_dec": torch.zeros(sizes["d_in"]),
        }
        told["folded"] = "rows of W_dec at length 1, as theirs has them whenever it encodes"
        return _kept(Described("tied", sizes["d_sae"], tensors | _no_threshold(), told | about), out)
    layout = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
    theirs, sizes = _fitting(path, state, layout, alone=True)
    options = next((hparams[key] for key in ("autoencoder_config", "topk_params") if key in hparams), {})
    if not isinstance(options, dict) or "k" not in options:
        raise BadSAE(f"{path}: its hparams do not say k")
    k = _k(path, options["k"], sizes["d_sae"])
    told["folded"] = "nothing; rows of W_dec are as long as theirs"
    return _kept(Described("topk", k, _linear(theirs), told | about), out)


def from_audiosae(path: str | Path, out: str | Path, threshold: float | None = None, **about) -> Described:
    """Write one of AudioSAE's layers (`layer_6`, or its `ae.pt`) as one of our folders; nothing is folded.

    The layout is dictionary_learning's, whose BatchTopK and TopK are read. `threshold` is for a BatchTopK that was
    saved without its own. Their `layer_n`, counted from 1, of a Whisper is our site `encoder.{n - 1}.resid`. `about`
    goes into `sae.json`.
    """
    path = Path(path) / "ae.pt" if Path(path).is_dir() else Path(path)
    state, config = _opened(path), _trainer(path.with_name("config.json"))
    kinds = {"BatchTopKSAE": "batchtopk", "AutoEncoderTopK": "topk"}
    kind = config.get("dict_class", "BatchTopKSAE")
    if kind not in kinds:
        raise BadSAE(f"{path}: a {str(kind)[:60]}; of dictionary_learning only {', '.join(kinds)} are read")
    layout = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "decoder.weight": "d_in d_sae", "b_dec": "d_in"}
    extras = {name: state[name] for name in ("k", "threshold") if name in state}
    theirs, sizes = _fitting(path, {name: state[name] for name in state if name not in extras}, layout, alone=True)
    counts = {_single(path, "k", value) for value in (extras.get("k"), config.get("k")) if value is not None}
    if len(counts) != 1:
        raise BadSAE(f"{path}: k is {' and '.join(map(str, sorted(counts))) or 'not said'}, in it and in config.json")
    told = {"from": "AudioSAE", "folded": "nothing"}
    told |= {ours: config[name] for name, ours in (("layer", "layer"), ("lm_name", "model")) if name in config}
    if numbered := re.fullmatch(r"layer_([1-9]\d*)", path.parent.name):
        told["layer"] = int(numbered[1])
        if "whisper" in str(told.get("model")).lower():
            told["site"] = f"encoder.{told['layer'] - 1}.resid"
    tensors = _linear(theirs | {"W_dec": theirs["decoder.weight"].T})
    if kinds[kind] == "batchtopk":
        least = _single(path, "threshold", extras.get("threshold") if threshold is None else threshold)
        if least is None:
            raise BadSAE(f"{path}: holds no threshold, so which calls are answered is not known; give threshold=")
        if least < 0:
            told["folded"] = "a threshold below 0, which means none was learnt: every positive call is answered"
        tensors["threshold"] = torch.tensor(max(float(least), 0.0))
    return _kept(Described(kinds[kind], _k(path, counts.pop(), sizes["d_sae"]), tensors, told | about), out)


def _freud_place(hparams: dict) -> dict:
    """Which Whisper and which site FREUD's `whisper_config` means. It names OpenAI's modules, we name sites."""
    config = hparams.get("whisper_config")
    if not isinstance(config, dict):
        return {}
    name, layer = str(config.get("model")), str(config.get("layer_name"))
    told = {"model": name, "layer": layer}
    if re.fullmatch(r"(tiny|base|small|medium)(\.en)?|large(-v[123])?|(large-v3-)?turbo", name):
        name = {"large-v1": "large", "large": "large-v3", "turbo": "large-v3-turbo"}.get(name, name)
        told["model"] = f"openai/whisper-{name}"
    place = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)(?:\.(attn|mlp|mlp\.1))?", layer)
    if place:
        part = {None: "resid", "attn": "attn", "mlp": "mlp", "mlp.1": "mlp_hidden"}[place[3]]
        told["site"] = f"{place[1]}.{place[2]}.{part}"
    return told


def _trainer(path: Path) -> dict:
    """What dictionary_learning's `config.json` says of the trainer; nothing where there is no such file."""
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        trainer = told.get("trainer", told)
        return {name: trainer[name] for name in ("dict_class", "k", "layer", "lm_name") if name in trainer}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadSAE(f"{path}: not a config of dictionary_learning: {_line(error)}") from None


def _kept(described: Described, out: str | Path) -> Described:
    write(described, out)
    return described


def _linear(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of a `torch.nn.Linear` that encodes x - b_dec, and a W_dec."""
    ours = {"W_enc": theirs["encoder.weight"].T, "b_enc": theirs["encoder.bias"]}
    return ours | {name: theirs[name] for name in ("W_dec", "b_dec")} | _no_threshold()


def _unit_rows(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> dict[str, Tensor]:
    """Our tensors of an SAE of ReLU, the rows of W_dec scaled to length 1 and the codes by as much: relu(a y) is
    a relu(y). A row of zeros stays."""
    length = W_dec.double().norm(dim=1)
    length[length == 0] = 1.0
    scaled = {
        "W_enc": W_enc.double() * length,
        "b_enc": b_enc.double() * length,
        "W_dec": W_dec.double() / length[:, None],
    }
    return {name: tensor.float() for name, tensor in scaled.items()} | {"b_dec": b_dec} | _no_threshold()


def _no_threshold() -> dict[str, Tensor]:
    return {"threshold": torch.zeros(())}


# --------------------------------------------------------------------------------------------- what is read


def _opened(path: str | Path) -> dict:
    """What a checkpoint of torch holds, if that is tensors and plain values.

    FREUD keeps its best loss as a number of numpy, so these are let in: they are bytes and a kind, and run nothing.
    """
    scalar = np._core.multiarray.scalar
    numbers = [
        (scalar, "numpy.core.multiarray.scalar"),
        scalar,
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
    ]
    try:
        with torch.serialization.safe_globals(numbers):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)|class (\S+)", str(error)):
            name = next(filter(None, asked.groups()))
            raise BadSAE(
                f"{path}: holds more than tensors and plain values ({name[:80]}), so opening it could run code; "
                "it stays shut: ask its author for the state_dict alone"
            ) from None
        raise BadSAE(f"{path}: not a checkpoint of torch") from None
    except OSError as error:
        raise BadSAE(f"{path}: {error.strerror or _line(error)}") from None
    except Exception as error:  # torch raises a dozen kinds for a broken file; each becomes one line
        raise BadSAE(f"{path}: not a checkpoint of torch: {_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BadSAE(f"{path}: must hold a state_dict, holds a {type(state).__name__}")
    return state


def _fitting(where, tensors: dict, layout: dict[str, str], alone: bool = False) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a layout, `{name: "size size"}`, in float32, and the sizes; BadSAE names the one that does not
    fit. `alone`: other tensors would mean another formula, and are refused."""
    if missing := [name for name in layout if name not in tensors]:
        raise BadSAE(f"{where}: has no {', '.join(missing)}; it has {_listed(tensors)}")
    if alone and (more := [name for name in tensors if name not in layout]):
        raise BadSAE(f"{where}: another layout: besides {', '.join(layout)} it has {_listed(more)}")
    found, sizes = {}, {}
    for name, wanted in layout.items():
        tensor, axes = tensors[name], wanted.split()
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise BadSAE(f"{where}: {name} must be a tensor of floats")
        agree = [sizes.setdefault(axis, size) == size for axis, size in zip(axes, tensor.shape, strict=False)]
        if tensor.ndim != len(axes) or not all(agree):
            known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes)
            raise BadSAE(f"{where}: {name} is {tuple(tensor.shape)}, must be ({', '.join(axes)}) with {known}")
        if not tensor.isfinite().all():
            raise BadSAE(f"{where}: {name} holds numbers that are not finite")
        found[name] = tensor.detach().float()
    return found, sizes


def _k(where, k, d_sae: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
        raise BadSAE(f"{where}: k must be a whole number between 1 and {d_sae}, got {str(k)[:40]}")
    return k


def _single(where, name: str, value):
    """A number, or a tensor that holds one, as a number; None stays."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not number:
        raise BadSAE(f"{where}: {name} must be one number")
    return value


def _listed(names: Iterable) -> str:
    names = [str(name)[:60] for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _line(error: Exception) -> str:
    """An error as one line of at most 300 letters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


# ----------------------------------------------------------------------------------------------- the hub


def push(
    folder: str | Path, repo_id: str, *, license: str = "mit", private: bool = True, token: str | None = None,
    endpoint: str | None = None, **facts,
) -> str:  # fmt: skip
    """Put one of our folders on the Hugging Face hub, with a model card; gives the address of the commit.

    `facts` (fvu=0.12, l0=32.4, model="openai/whisper-tiny") join what `sae.json` says, there and on the card. A new
    repository is private until you say otherwise, here or on its page. `token` and `endpoint`: the hub's own, which
    its `login` and HF_ENDPOINT set too. Raises BadSAE when the hub is out of reach or refuses.
    """
    from huggingface_hub import HfApi  # slow to import, and needed by two functions alone

    with tempfile.TemporaryDirectory() as given:
        prepare(folder, given, repo_id, license, **facts)

        def upload():
            api = HfApi(endpoint=endpoint, token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(repo_id=repo_id, folder_path=given, commit_message="A sparse autoencoder")

        trouble = f"{repo_id}: cannot be pushed; is there a network, and a login (`hf auth login`)?"
        return str(_asked_of_the_hub(trouble, upload).commit_url)


def prepare(folder: str | Path, out: str | Path, repo_id: str, license: str = "mit", **facts) -> Path:
    """Write what `push` would upload: our two files, and the card as README.md. Whatever else is in `folder` stays."""
    said = read(folder)
    said = replace(said, about=said.about | facts)
    write(said, out)
    (Path(out) / "README.md").write_text(card(said, repo_id, license), encoding="utf-8")
    return Path(out)


def pull(
    repo_id: str, folder: str | Path, *, revision: str | None = None, token: str | None = None,
    endpoint: str | None = None,
) -> Described:  # fmt: skip
    """Fetch what `push` put on the hub into a folder that `sae.load` reads. What came is checked before it is written.

    `revision` is a branch, a tag or a commit. Raises BadSAE when the hub is out of reach or has no such thing.
    """
    from huggingface_hub import HfApi

    def download():
        api = HfApi(endpoint=endpoint, token=token)
        return api.snapshot_download(repo_id, revision=revision, allow_patterns=[WEIGHTS, FACTS])

    trouble = f"{repo_id}: cannot be pulled; is there a network, is that its name, may you read it?"
    fetched = _asked_of_the_hub(trouble, download)
    try:
        return _kept(read(fetched), folder)
    except BadSAE as error:
        raise BadSAE(f"{repo_id}: {error}") from None


def _asked_of_the_hub(trouble: str, ask: Callable):
    try:
        return ask()
    except Exception as error:  # the hub's library raises a dozen kinds; each becomes one line
        raise BadSAE(" ".join(f"{trouble} {_line(error)}".split())) from None


def card(said: Described, repo_id: str, license: str = "mit") -> str:
    """The model card of an SAE: what it is, how well it does if that is known, and how to load it.

    What comes from `sae.json` was written by others. At the head it is quoted as JSON, which YAML reads the same way;
    below, every sign that Markdown or HTML could take for one of theirs is spelt as a number.
    """
    head = {
        "license": license,
        "library_name": "whisper_sae",
        "tags": ["sparse-autoencoder", "sae", "interpretability", "whisper", "speech"],
    }
    model, site = said.about.get("model"), said.about.get("site")
    if isinstance(model, str) and re.fullmatch(r"openai/whisper-[a-z0-9.-]{1,40}", model):
        head["base_model"] = model
    rows = {"variant": said.variant, "answers": RULES[said.variant], "width": said.d_in, "latents": said.d_sae}
    if SAELENS[said.variant] != "standard":
        rows["k"] = said.k
    if said.variant in ("batchtopk", "matryoshka"):
        rows["threshold"] = float(said.tensors["threshold"])
    names = {"fvu": "variance unexplained (FVU)", "l0": "latents a frame (L0)"}
    about = {key: value for key, value in said.about.items() if key not in rows and value is not None}
    rows |= {names.get(key, key): value for key, value in about.items() if key != "penalty" or value}
    scored = "" if "fvu" in said.about else "No scores came with it: measure it on your own frames first.\n"
    place = " of ".join(_plain(part) for part in (site, model) if part) or "a speech model's activations"
    return "\n".join([
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in head.items()),
        "---",
        "",
        f"# A sparse autoencoder of {place}",
        "",
        f"It says an activation again as a sum of few of {said.d_sae:,} directions.",
        scored,
        "| | |",
        "|---|---|",
        *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items()),
        "",
        "```",
        "pre   = (x - b_dec) W_enc + b_enc",
        "f     = pre where it is answered, else 0",
        "x_hat = f W_dec + b_dec",
        "```",
        "",
        "## How to load it",
        "",
        "```python",
        "from whisper_sae import interchange, sae",
        "",
        f'interchange.pull({json.dumps(repo_id)}, "the_sae")',
        'coder = sae.load("the_sae")',
        f"f = coder.encode(x)  # (frame, {said.d_sae}) of x, (frame, {said.d_in})",
        "",
        'interchange.to_saelens("the_sae", "for_saelens")  # then SAELens: SAE.load_from_disk("for_saelens")',
        "```",
        "",
    ])  # fmt: skip


def _plain(value) -> str:
    """Somebody's words as words and nothing else, in Markdown and HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(sign for sign in " ".join(text.split())[:300] if sign.isprintable())
    return "".join(sign if sign.isalnum() or sign in " .,-+" else f"&#{ord(sign)};" for sign in text)
