"""What a model's directory holds, by content: for the key of a result, and to notice when it is replaced."""

import functools
import hashlib
import json
import os
import stat
from pathlib import Path

from safetensors import SafetensorError, safe_open

FILES = {
    "config.json", "generation_config.json", "preprocessor_config.json", "normalizer.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "spiece.model", "sentencepiece.bpe.model", "vocabulary.json", "vocabulary.txt",
}  # fmt: skip
"""Files that decide what a model does, beside its weights; others, such as a README, decide nothing."""
WEIGHTS = (".safetensors", ".safetensors.index.json")
CTRANSLATE2 = "model.bin"
FLOATS = {"F64", "F32", "F16", "BF16"}
MOST_JSON = 64 << 20
"""Bytes; the largest tokenizer.json are a quarter of it."""


def digest(folder: Path, weights: bool = True, salt: str = "") -> str:
    """Twelve hexadecimal digits for the files of a model. Raises ValueError for one that is not a regular file."""
    total = hashlib.sha256(salt.encode())
    for path in files(folder, weights):
        told = os.stat(path)
        total.update(path.name.encode() + _digest(str(path), told.st_size, told.st_mtime_ns, told.st_ino))
    return total.hexdigest()[:12]


def files(folder: Path, weights: bool = True) -> list[Path]:
    """The files of a model, in order. Raises ValueError for one that is not a regular file, such as a pipe."""
    names = FILES | ({CTRANSLATE2} if weights else set())
    kinds = WEIGHTS if weights else ()
    found = sorted(path for path in Path(folder).iterdir() if path.name in names or path.name.endswith(kinds))
    for path in found:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError(f"{path}: not a regular file")
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    return found


def check(folder: Path) -> None:
    """Raises ValueError for JSON that is none, and for weights that are damaged or no floating-point numbers."""
    for path in files(folder):
        if path.name.endswith(".json"):
            if path.stat().st_size > MOST_JSON:
                raise ValueError(f"{path}: {path.stat().st_size:,} bytes of JSON; {MOST_JSON:,} at most")
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: not JSON: {error}") from None
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "np") as weights:
                    kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: not whole: {error}") from None
            odd = [name for name, kind in kinds.items() if kind not in FLOATS and name.endswith((".weight", ".bias"))]
            if odd:
                raise ValueError(f"{path}: {odd[0]} is {kinds[odd[0]]}; only floats are read, no quantized weights")


@functools.lru_cache(maxsize=4096)
def _digest(path: str, _size: int, _changed: int, _inode: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
