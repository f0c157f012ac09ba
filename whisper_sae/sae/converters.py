"""What others have trained, as one of our folders: FREUD's, whisper-sae v1's and AudioSAE's checkpoints.

Some of them say it differently: they subtract nothing before encoding, or leave the rows of W_dec at any length.
That is folded into the numbers, so that what is read here says what it said there: the same reconstructions, and the
same codes up to a factor of each latent's own. What was folded is written down in `sae.json`, under `folded`.

Nothing that is read here can run code: checkpoints of torch are opened with `weights_only`.
"""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whisper_sae.sae.io import (
    MOST_WEIGHTS,
    BadSAE,
    Described,
    checked_k,
    fitting,
    one_line,
    require_file,
    write,
)


def from_v1(path: str | Path, out: str | Path, **about) -> Described:
    """Write a checkpoint of whisper-sae v1 (`….pth`) as one of our folders.

    Theirs is f = relu(E x + e), x_hat = D f + d. Ours subtracts b_dec = d first, so b_enc = e + E d; a latent's column
    of D gets length 1, and the latent's codes take up the length. `about` goes into `sae.json`.
    """
    layout = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "decoder.weight": "d_in d_sae",
              "decoder.bias": "d_in"}  # fmt: skip
    theirs, sizes = fitting(path, _opened(path), layout, alone=True)
    W_enc, b_dec = theirs["encoder.weight"].T, theirs["decoder.bias"]
    b_enc = theirs["encoder.bias"].double() + b_dec.double() @ W_enc.double()
    told = {
        "from": "whisper-sae v1",
        "model": "openai/whisper-tiny",
        "trained_on": "the last hidden state, which is after Whisper's final layer norm; padding included",
        "folded": "b_enc += b_dec W_enc, since theirs subtracts nothing; codes times the lengths of W_dec's rows",
    }
    tensors = _unit_rows(W_enc, b_enc, theirs["decoder.weight"].T, b_dec)
    return _kept(out, "relu", sizes["d_sae"], tensors, told | about)


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
        theirs, sizes = fitting(path, state, layout, alone=True)
        W_dec = torch.nn.functional.normalize(theirs["decoder.weight"].T, dim=1)
        tensors = {
            "W_enc": W_dec.T,
            "b_enc": theirs["encoder_bias"],
            "W_dec": W_dec,
            "b_dec": torch.zeros(sizes["d_in"]),
        }
        told["folded"] = "rows of W_dec at length 1, as theirs has them whenever it encodes"
        return _kept(out, "tied", sizes["d_sae"], tensors, told | about)
    layout = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
    theirs, sizes = fitting(path, state, layout, alone=True)
    options = next((hparams[key] for key in ("autoencoder_config", "topk_params") if key in hparams), {})
    if not isinstance(options, dict) or "k" not in options:
        raise BadSAE(f"{path}: its hparams do not say k")
    k = checked_k(path, options["k"], sizes["d_sae"])
    told["folded"] = "nothing; rows of W_dec are as long as theirs"
    return _kept(out, "topk", k, _linear(theirs), told | about)


def from_audiosae(path: str | Path, out: str | Path, threshold: float | None = None, **about) -> Described:
    """Write one of AudioSAE's layers (`layer_6`, or its `ae.pt`) as one of our folders; nothing is folded.

    The layout is dictionary_learning's, whose BatchTopK and TopK are read. `threshold` is for a BatchTopK that was
    saved without its own. Their `layer_n`, counted from 1, of a Whisper is our site `encoder.{n - 1}.resid`. `about`
    goes into `sae.json`.
    """
    path = Path(path) / "ae.pt" if Path(path).is_dir() else Path(path)
    state, config = _opened(path), _trainer(path.with_name("config.json"))
    kinds = {"BatchTopKSAE": "batchtopk", "AutoEncoderTopK": "topk"}
    kind = str(config.get("dict_class", "BatchTopKSAE"))
    if kind not in kinds:
        raise BadSAE(f"{path}: a {kind[:60]}; of dictionary_learning only {', '.join(kinds)} are read")
    variant = kinds[kind]
    layout = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "decoder.weight": "d_in d_sae", "b_dec": "d_in"}
    extras = {name: state[name] for name in ("k", "threshold") if name in state}
    theirs, sizes = fitting(path, {name: state[name] for name in state if name not in extras}, layout, alone=True)
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
    if variant == "batchtopk":
        least = _single(path, "threshold", extras.get("threshold") if threshold is None else threshold)
        if least is None:
            raise BadSAE(f"{path}: holds no threshold, so which calls are answered is not known; give threshold=")
        if least < 0:
            told["folded"] = "a threshold below 0, which means none was learnt: every positive call is answered"
        tensors["threshold"] = torch.tensor(max(float(least), 0.0))
    return _kept(out, variant, checked_k(path, counts.pop(), sizes["d_sae"]), tensors, told | about)


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
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadSAE(f"{path}: not a config of dictionary_learning: {one_line(error)}") from None


def _kept(out: str | Path, variant: str, k: int, tensors: dict[str, Tensor], told: dict) -> Described:
    """What was read, once it is written. Where no threshold came with it, 0: every positive call is answered."""
    described = Described(variant, k, {"threshold": torch.zeros(())} | tensors, told)
    write(described, out)
    return described


def _linear(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of a `torch.nn.Linear` that encodes x - b_dec, and a W_dec."""
    ours = {"W_enc": theirs["encoder.weight"].T, "b_enc": theirs["encoder.bias"]}
    return ours | {name: theirs[name] for name in ("W_dec", "b_dec")}


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
    return {name: tensor.float() for name, tensor in scaled.items()} | {"b_dec": b_dec}


# ------------------------------------------------------------------------------------------------------ what is opened


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
    require_file(Path(path), MOST_WEIGHTS)
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
        raise BadSAE(f"{path}: {error.strerror or one_line(error)}") from None
    except Exception as error:  # torch raises a dozen kinds for a broken file; each becomes one line
        raise BadSAE(f"{path}: not a checkpoint of torch: {one_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BadSAE(f"{path}: must hold a state_dict, holds a {type(state).__name__}")
    return state


def _single(where: str | Path, name: str, value) -> float | None:
    """A number, or a tensor that holds one, as a number; None stays."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38  # as float32 has it
    if value is not None and not number:
        raise BadSAE(f"{where}: {name} must be one number")
    return value
