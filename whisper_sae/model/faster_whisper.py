"""Whisper as faster-whisper stores it, in the terms of transformers.

    converted = faster_whisper.read("faster-whisper-tiny.en")
    converted.config        # fields of WhisperConfig; sizes are those of the tensors
    converted.generation    # fields of GenerationConfig
    converted.weights()     # {Hugging Face's name of a tensor: float32 array}

A directory holds `model.bin` in CTranslate2's format, `config.json` (suppressed tokens, alignment heads), the tokens in
`vocabulary.json` or `vocabulary.txt`, and usually `tokenizer.json`. All is checked before it is used.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whisper_sae.model.ctranslate2 import AGAIN, Stored, open_file, shown

WEIGHTS = "model.bin"
SPEC, REVISION = "WhisperSpec", 3
MAX_TEXT = 64 << 20
"""Bytes; the largest tokenizer.json are a sixteenth of it."""
MAX_MEL_BINS = 201
"""Frequencies in a spectrum of 400 samples."""

FLAGS = {"activation": 3, "pre_norm": 1, "scale_embeddings": 0}
"""What these must be in Whisper's decoder: GELU, layer norm before each block, embeddings not scaled."""
OPTIONAL_FLAGS = {"alibi": 0, "start_from_zero_embedding": 0}
"""The same of parts that Whisper's decoder does not have; a file may leave them out."""
IGNORED = {"alibi_use_positive_positions", "scale_alibi", "alignment_layer", "alignment_heads"}
"""Settings of parts that Whisper does not have, or of word times, which are not computed here."""
HEAD_WIDTH = 64
"""Of OpenAI's models; used where a file does not tell the number of heads."""

END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
NO_SPEECH = {"<|nospeech|>", "<|nocaptions|>"}
"""Two names of one token."""
MULTILINGUAL = 51_865
"""Tokens of OpenAI's smallest multilingual model, from which on CTranslate2 takes a model for multilingual."""
FIRST_TIMESTAMP = 50
"""The first timestamp of a transcript is at most 1 s, in steps of 20 ms, as in openai/whisper."""
QKV = ("q_proj", "k_proj", "v_proj")
"""The order in which queries, keys and values are stacked."""


@dataclass(frozen=True)
class Converted:
    """A Whisper in the terms of transformers."""

    stored: Stored
    config: dict
    generation: dict
    stacked: dict[str, tuple[str, ...]]
    """The name of each variable, and Hugging Face's names of the tensors that are stacked in it."""

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors. Raises ValueError for NaN, infinite values and a bias of keys, which Whisper does not have."""
        tensors = {}
        for name, parts in self.stacked.items():
            for part, rows in zip(parts, np.split(self.stored.tensor(name), len(parts)), strict=True):
                if not part.endswith("k_proj.bias"):
                    tensors[part] = rows.copy()
                elif rows.any():
                    raise self.stored.error(f"{name} gives keys a bias, which Whisper's do not have")
        return tensors


def is_model(folder: str | Path) -> bool:
    """Whether a directory holds weights in this format, and none of Hugging Face's."""
    folder = Path(folder)
    return os.path.lexists(folder / WEIGHTS) and not any(folder.glob("*.safetensors*"))


def read(folder: str | Path) -> Converted:
    """What a directory holds; no weights are read yet. Raises ValueError, one line, for what is damaged or unknown."""
    folder = Path(folder)
    stored = open_file(folder / WEIGHTS, SPEC, REVISION)
    sizes = _sizes(stored)
    layout = dict(_layout(sizes))
    _check(stored, layout)
    tokens, generation = _settings(folder, sizes["vocab_size"])
    generation |= {"max_length": sizes["max_target_positions"]}
    return Converted(stored, sizes | tokens, generation, {name: parts for name, (parts, _) in layout.items()})


# --------------------------------------------------------------------------------------- sizes and names


def _sizes(stored: Stored) -> dict[str, int]:
    """The fields of WhisperConfig that follow from the tensors."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        sizes = stored[name].shape
        if len(sizes) != rank or 0 in sizes:
            raise stored.error(f"{name} is {shown(sizes)}; {rank} sizes above 0 are expected")
        return sizes

    vocabulary, width = shape("decoder/embeddings/weight", 2)
    bins = shape("encoder/conv1/weight", 3)[1]
    if bins > MAX_MEL_BINS:
        raise stored.error(f"encoder/conv1/weight takes {bins:,} mel bins, {MAX_MEL_BINS} at most")
    sizes = {"vocab_size": vocabulary, "d_model": width, "num_mel_bins": bins}
    sizes["max_source_positions"] = shape("encoder/position_encodings/encodings", 2)[0]
    sizes["max_target_positions"] = shape("decoder/position_encodings/encodings", 2)[0]
    for side in ("encoder", "decoder"):
        numbered = re.compile(rf"{side}/layer_(\d{{1,6}})/")
        layers = {int(match[1]) for match in map(numbered.match, stored.variables) if match}
        if missing := sorted(set(range(max(len(layers), 1))) - layers):
            raise stored.error(f"{side}/layer_{missing[0]} is missing")
        heads = stored.flag(f"{side}/num_heads", width // HEAD_WIDTH)
        if heads < 1 or width % heads:
            raise stored.error(f"{side}/num_heads is {heads}, which does not divide the width, {width}")
        sizes |= {f"{side}_layers": len(layers), f"{side}_attention_heads": heads}
        sizes[f"{side}_ffn_dim"] = shape(f"{side}/layer_0/ffn/linear_0/weight", 2)[0]
    return sizes


def _layout(sizes: dict[str, int]) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """(variable, (Hugging Face's names of the tensors that are stacked in it, its shape))."""
    width = sizes["d_model"]

    def linear(variable: str, module: str, parts: tuple[str, ...], rows: int, *columns: int):
        for kind, shape in (("weight", (rows, *columns)), ("bias", (rows,))):
            yield f"{variable}/{kind}", (tuple(f"model.{module}.{part}.{kind}" for part in parts), shape)

    def norm(variable: str, module: str):
        for kind, name in (("gamma", "weight"), ("beta", "bias")):
            yield f"{variable}/layer_norm/{kind}", ((f"model.{module}.{name}",), (width,))

    yield from linear("encoder/conv1", "encoder", ("conv1",), width, sizes["num_mel_bins"], 3)
    yield from linear("encoder/conv2", "encoder", ("conv2",), width, width, 3)
    yield "decoder/embeddings/weight", (("model.decoder.embed_tokens.weight",), (sizes["vocab_size"], width))
    for side, kind in (("encoder", "source"), ("decoder", "target")):
        positions = (f"model.{side}.embed_positions.weight",), (sizes[f"max_{kind}_positions"], width)
        yield f"{side}/position_encodings/encodings", positions
        yield from norm(side, f"{side}.layer_norm")
        for layer in range(sizes[f"{side}_layers"]):
            variable, module = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            own, cross, mlp = f"{variable}/self_attention", f"{variable}/attention", f"{variable}/ffn"
            yield from norm(own, f"{module}.self_attn_layer_norm")
            yield from linear(f"{own}/linear_0", f"{module}.self_attn", QKV, 3 * width, width)
            yield from linear(f"{own}/linear_1", f"{module}.self_attn", ("out_proj",), width, width)
            if side == "decoder":
                yield from norm(cross, f"{module}.encoder_attn_layer_norm")
                yield from linear(f"{cross}/linear_0", f"{module}.encoder_attn", ("q_proj",), width, width)
                yield from linear(f"{cross}/linear_1", f"{module}.encoder_attn", QKV[1:], 2 * width, width)
                yield from linear(f"{cross}/linear_2", f"{module}.encoder_attn", ("out_proj",), width, width)
            yield from norm(mlp, f"{module}.final_layer_norm")
            yield from linear(f"{mlp}/linear_0", module, ("fc1",), sizes[f"{side}_ffn_dim"], width)
            yield from linear(f"{mlp}/linear_1", module, ("fc2",), width, sizes[f"{side}_ffn_dim"])


def _check(stored: Stored, layout: dict[str, tuple]) -> None:
    """ValueError unless the variables are those of the layout, in shape and type, and the flags those of Whisper."""
    for name, (_, shape) in layout.items():
        stored.require(name, shape)
    tied = "decoder/projection/weight"
    if stored[tied] != stored["decoder/embeddings/weight"]:
        raise stored.error(f"{tied} is not decoder/embeddings/weight, as in Whisper")
    for name, value in (FLAGS | OPTIONAL_FLAGS).items():
        if (flag := stored.flag(f"decoder/{name}", OPTIONAL_FLAGS.get(name))) != value:
            raise stored.error(f"decoder/{name} is {flag}, Whisper has {value}")
    expected = {*layout, tied, "encoder/num_heads", "decoder/num_heads"}
    expected |= {f"decoder/{name}" for name in (*FLAGS, *OPTIONAL_FLAGS, *IGNORED)}
    if unknown := sorted(name for name in stored.variables if name.removesuffix("_scale") not in expected):
        raise stored.error(f"{unknown[0]} has no place in Whisper ({len(unknown)} such variables)")


# -------------------------------------------------------------------------------------- tokens and settings


def _settings(folder: Path, vocab_size: int) -> tuple[dict, dict]:
    """The fields of WhisperConfig that are about tokens, and those of GenerationConfig."""
    ids, path = _token_ids(folder, vocab_size), folder / "config.json"
    for token in (END, START, NO_TIMESTAMPS):
        if token not in ids:
            raise ValueError(f"{folder}: no token {token} in its vocabulary; {AGAIN}")
    settings = _object(path)
    tokens = {name: ids[END] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tokens["decoder_start_token_id"] = ids[START]
    for ours, name in (("suppress_tokens", "suppress_ids"), ("begin_suppress_tokens", "suppress_ids_begin")):
        tokens[ours] = settings.get(name)
        if tokens[ours] is not None and not _are_below(tokens[ours], vocab_size):
            raise ValueError(f"{path}: {name} is not a list of numbers of the {vocab_size:,} tokens; {AGAIN}")
    generation = tokens | {
        "no_timestamps_token_id": ids[NO_TIMESTAMPS],
        "prev_sot_token_id": ids.get("<|startofprev|>"),
        "max_initial_timestamp_index": FIRST_TIMESTAMP,
        "return_timestamps": False,
        "is_multilingual": vocab_size >= MULTILINGUAL,
    }
    if heads := settings.get("alignment_heads"):
        if not isinstance(heads, list) or not all(_are_below(pair, 1 << 16) and len(pair) == 2 for pair in heads):
            raise ValueError(f"{path}: alignment_heads is not a list of pairs, layer and head; {AGAIN}")
        generation["alignment_heads"] = heads
    if generation["is_multilingual"]:
        spoken = sorted((ids[token], token) for token in ids if re.fullmatch(r"<\|[a-z]{2,3}\|>", token))
        tasks = {task: ids.get(f"<|{task}|>") for task in ("transcribe", "translate")}
        if not spoken or None in tasks.values():
            raise ValueError(f"{folder}: multilingual, and without tokens for languages and tasks; {AGAIN}")
        generation |= {"lang_to_id": {token: number for number, token in spoken}, "task_to_id": tasks}
    return tokens, generation


def _are_below(numbers, end: int) -> bool:
    """Whether these are a list of whole numbers from 0 on, all below the end."""
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < end for number in numbers)


def _token_ids(folder: Path, vocab_size: int) -> dict[str, int]:
    """The number of each token, by vocabulary.json or .txt, which tokenizer.json must not contradict, or by that."""
    tokenizer = folder / "tokenizer.json"
    ids = _tokenizer_ids(tokenizer) if os.path.lexists(tokenizer) else {}
    if beyond := [token for token, number in ids.items() if not 0 <= number < vocab_size]:
        token = f"{beyond[0][:40]!r} is beyond the {vocab_size:,} tokens of {WEIGHTS}"
        raise ValueError(f"{tokenizer}: {token}: another model's")
    listed = (folder / "vocabulary.json", folder / "vocabulary.txt")
    path = next(filter(os.path.lexists, listed), None)
    if path is None and not ids:
        raise ValueError(f"{folder}: no vocabulary.json, vocabulary.txt or tokenizer.json; they belong to {WEIGHTS}")
    if path is None:
        return ids
    tokens = _json(path) if path.suffix == ".json" else _text(path).removesuffix("\n").split("\n")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{path}: not a list of tokens; {AGAIN}")
    if len(tokens) != vocab_size:
        raise ValueError(f"{path}: {len(tokens):,} tokens, and {vocab_size:,} in {WEIGHTS}: another model's")
    for token, number in ids.items():
        if tokens[number] != token and not {tokens[number], token} <= NO_SPEECH:
            pair = f"{tokens[number][:40]!r} in {path.name}, {token[:40]!r} in tokenizer.json"
            raise ValueError(f"{folder}: token {number} is {pair}: one of them is another model's")
    return {token: number for number, token in enumerate(tokens)}


def _tokenizer_ids(path: Path) -> dict[str, int]:
    """The number of each token of a tokenizer.json."""
    settings = _object(path)
    model, added = settings.get("model"), settings.get("added_tokens", [])
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(words, dict) or not isinstance(added, list) or not all(isinstance(one, dict) for one in added):
        raise ValueError(f"{path}: not a tokenizer of transformers; {AGAIN}")
    pairs = [*words.items(), *((token.get("content"), token.get("id")) for token in added)]
    if not all(isinstance(token, str) and type(number) is int for token, number in pairs):
        raise ValueError(f"{path}: a token that is no text, or has no number; {AGAIN}")
    return dict(pairs)


def _object(path: Path) -> dict:
    if not isinstance(content := _json(path), dict):
        raise ValueError(f"{path}: not a table of settings; {AGAIN}")
    return content


def _json(path: Path):
    try:
        return json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}; {AGAIN}") from None


def _text(path: Path) -> str:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: not a regular file")
        if (size := status.st_size) > MAX_TEXT:
            raise ValueError(f"{path}: {size:,} bytes of text, {MAX_TEXT:,} at most; {AGAIN}")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not text in UTF-8; {AGAIN}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
