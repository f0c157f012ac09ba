"""Writes Whisper in faster-whisper's format: the same bytes as CTranslate2 4.8, or damaged ones."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
STORED = {"float32": "f4", "int8": "i1", "int16": "i2", "int32": "i4", "float16": "f2", "bfloat16": "u2"}
VALUES = {"int8": 127, "int16": 1024}
"""What the largest weight of a row (int8), or of a tensor (int16), becomes."""


def variables(folder: Path, kind: str = "float16") -> dict[str, tuple[str, np.ndarray]]:
    """The variables of a directory in Hugging Face's format: {name: (type, numbers)}."""
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    floats, stored = "float32" if kind in VALUES else kind, {}

    def put(name: str, *parts: str, quantized: bool = False) -> None:
        whole = np.concatenate([tensors[f"model.{part}"] for part in parts])
        if quantized and kind in VALUES:
            largest = np.abs(whole).reshape(len(whole), -1).max(axis=1) if kind == "int8" else np.abs(whole).max()
            scale = np.float32(VALUES[kind]) / np.where(largest == 0, VALUES[kind], largest).astype(np.float32)
            stored[f"{name}_scale"] = ("float32", scale)
            rows = scale.reshape(-1, *[1] * (whole.ndim - 1)) if scale.ndim else scale
            stored[name] = (kind, np.rint(whole * rows).astype(STORED[kind]))
        else:
            stored[name] = (floats, narrowed(whole, floats))

    def linear(name: str, *parts: str) -> None:
        put(f"{name}/weight", *(f"{part}.weight" for part in parts), quantized=True)
        for part in parts:
            if part.endswith("k_proj"):  # has no bias in Hugging Face's format
                tensors[f"model.{part}.bias"] = np.zeros(config["d_model"], np.float32)
        put(f"{name}/bias", *(f"{part}.bias" for part in parts))

    def norm(name: str, part: str) -> None:
        put(f"{name}/layer_norm/gamma", f"{part}.weight")
        put(f"{name}/layer_norm/beta", f"{part}.bias")

    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    put("decoder/embeddings/weight", "decoder.embed_tokens.weight", quantized=True)
    for side in ("encoder", "decoder"):
        stored[f"{side}/num_heads"] = ("int16", np.int16(config[f"{side}_attention_heads"]))
        put(f"{side}/position_encodings/encodings", f"{side}.embed_positions.weight")
        norm(side, f"{side}.layer_norm")
        for layer in range(config[f"{side}_layers"]):
            name, part = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            norm(f"{name}/self_attention", f"{part}.self_attn_layer_norm")
            linear(f"{name}/self_attention/linear_0", *(f"{part}.self_attn.{one}_proj" for one in "qkv"))
            linear(f"{name}/self_attention/linear_1", f"{part}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{name}/attention", f"{part}.encoder_attn_layer_norm")
                linear(f"{name}/attention/linear_0", f"{part}.encoder_attn.q_proj")
                linear(f"{name}/attention/linear_1", *(f"{part}.encoder_attn.{one}_proj" for one in "kv"))
                linear(f"{name}/attention/linear_2", f"{part}.encoder_attn.out_proj")
            norm(f"{name}/ffn", f"{part}.final_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{part}.fc1")
            linear(f"{name}/ffn/linear_1", f"{part}.fc2")
    flags = {"activation": 3, "pre_norm": 1, "alibi": 0, "alibi_use_positive_positions": 0, "scale_alibi": 0,
             "scale_embeddings": 0, "start_from_zero_embedding": 0}  # fmt: skip
    stored |= {f"decoder/{name}": ("int8", np.int8(value)) for name, value in flags.items()}
    stored |= {f"decoder/alignment_{name}": ("int16", np.int16(n)) for name, n in {"heads": 1, "layer": -1}.items()}
    return dict(sorted(stored.items()))


def narrowed(whole: np.ndarray, kind: str) -> np.ndarray:
    if kind != "bfloat16":
        return whole.astype(STORED[kind])
    bits = whole.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even


def aliased(stored: dict) -> tuple[dict, dict[str, str]]:
    """What is stored, and {name: what it stands for}: of equal tensors the first alone is stored, as by CTranslate2."""
    kept, aliases, first = {}, {"decoder/projection/weight": "decoder/embeddings/weight"}, {}
    for name, (kind, numbers) in stored.items():
        key = (kind, numbers.shape, numbers.tobytes())
        if numbers.ndim and kind not in VALUES and not name.endswith("_scale") and key in first:
            aliases[name] = first[key]
        else:
            kept[name] = (kind, numbers)
            first.setdefault(key, name)
    return kept, dict(sorted(aliases.items()))


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def entry(name: str, kind: str, numbers: np.ndarray) -> bytes:
    """A variable as it is written."""
    content = numbers.astype(f"<{STORED[kind]}").tobytes()
    sizes = struct.pack(f"<B{numbers.ndim}I", numbers.ndim, *numbers.shape)
    return string(name) + sizes + struct.pack("<BI", TYPES.index(kind), len(content)) + content


def packed(entries: list[bytes], aliases: dict[str, str], version=6, spec="WhisperSpec", revision=3) -> bytes:
    head = struct.pack("<I", version) + string(spec) + struct.pack("<II", revision, len(entries))
    ends = [string(name) + string(target) for name, target in aliases.items()]
    return head + b"".join(entries) + struct.pack("<I", len(ends)) + b"".join(ends)


def content(folder: Path, kind: str = "float16") -> bytes:
    """A `model.bin` of a directory in Hugging Face's format."""
    kept, aliases = aliased(variables(folder, kind))
    return packed([entry(name, *one) for name, one in kept.items()], aliases)


def vocabulary(count: int) -> list[str]:
    """Invented tokens and the special ones that are needed, at the numbers that the small Whisper has for them."""
    tokens = [f"t{number}" for number in range(count)]
    tokens[1:5] = ["<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>", "<|startofprev|>"]
    return tokens


def write(folder: Path, target: Path, kind: str = "float16", tokens: list[str] | None = None) -> Path:
    """A directory of faster-whisper with the weights, and any tokenizer, of one in Hugging Face's format."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.bin").write_bytes(content(folder, kind))
    config = json.loads((folder / "config.json").read_text())
    if (folder / "generation_config.json").exists():
        config |= json.loads((folder / "generation_config.json").read_text())
    names = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    settings = {ours: config.get(theirs) for ours, theirs in names.items()}
    settings |= {"lang_ids": [], "alignment_heads": config.get("alignment_heads") or [[0, 0]]}
    (target / "config.json").write_text(json.dumps(settings))
    if (folder / "tokenizer.json").exists():
        (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    else:
        (target / "vocabulary.json").write_text(json.dumps(tokens or vocabulary(config["vocab_size"])))
    return target
