"""The weights of a model in CTranslate2's format, read with distrust: nothing is used before the whole file is checked.

    stored = ctranslate2.open_file("faster-whisper-tiny.en/model.bin", "WhisperSpec", revision=3)
    stored.variables["encoder/conv1/weight"].shape      # (384, 80, 3)
    stored.tensor("encoder/conv1/weight")               # the same as float32

A file is little-endian:

    u32 version, string, u32 revision, u32 count, then each variable: name, u8 rank, u32 sizes, u8 type, u32 bytes, data
    u32 count, then each alias: its name, the name of the variable that it stands for

A string is a u16 length and bytes that end in NUL. Quantized weights are integers: the weights times `<name>_scale`,
rounded, with one scale for the tensor or one a row (OpenNMT/CTranslate2, `specs/model_spec.py`).
"""

import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

VERSION = 6
"""Of the format; others are not read."""
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
STORED = {"float32": "<f4", "int8": "<i1", "int16": "<i2", "int32": "<i4", "float16": "<f2", "bfloat16": "<u2"}
FLOATS, QUANTIZED = ("float32", "float16", "bfloat16"), ("int8", "int16")
MIN_VARIABLE, MIN_ALIAS = 9, 6
"""Bytes: no variable and no alias takes less."""
AGAIN = "download or convert it again"


@dataclass(frozen=True)
class Variable:
    """Where a tensor lies in a file, and how it is stored."""

    name: str
    shape: tuple[int, ...]
    type: str
    start: int


@dataclass(frozen=True)
class Stored:
    """A file that is whole, and its variables by name, aliases among them."""

    path: Path
    variables: dict[str, Variable]

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {reason}; {AGAIN}")

    def __getitem__(self, name: str) -> Variable:
        """A variable; ValueError where it is missing."""
        if name not in self.variables:
            raise self.error(f"{name} is missing")
        return self.variables[name]

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """ValueError unless a tensor has that shape, and is of floats, or of integers with a scale."""
        variable = self[name]
        if variable.shape != shape:
            raise self.error(f"{name} is {shown(variable.shape)}, {shown(shape)} is expected")
        if variable.type not in (*FLOATS, *QUANTIZED):
            raise self.error(f"{name} is of {variable.type}, not floats, int8 or int16")
        if variable.type in QUANTIZED:
            scale = self[f"{variable.name}_scale"]
            if scale.type not in FLOATS or scale.shape not in ((), shape[:1]):
                raise self.error(f"{scale.name} is {shown(scale.shape)} of {scale.type}, one float a row is expected")

    def flag(self, name: str, default: int | None = None) -> int:
        """A variable that is one whole number; without a default it must be there."""
        if name not in self.variables and default is not None:
            return default
        variable = self[name]
        if variable.shape or not variable.type.startswith("int"):
            raise self.error(f"{name} is {shown(variable.shape)} of {variable.type}, one whole number is expected")
        return int(self._read(variable))

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32; integers are divided by their scale. ValueError for NaN and infinite values."""
        variable = self[name]
        array = self._floats(variable)
        if variable.type in QUANTIZED:
            scale = self._floats(self[f"{variable.name}_scale"])
            if not (scale > 0).all():
                raise self.error(f"{variable.name}_scale is not above 0")
            with np.errstate(over="ignore"):
                array /= scale.reshape(-1, *[1] * (array.ndim - 1)) if scale.ndim else scale
            if not np.isfinite(array).all():
                raise self.error(f"{variable.name} divided by its scale is infinite")
        return array

    def _floats(self, variable: Variable) -> np.ndarray:
        array = self._read(variable)
        if variable.type == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise self.error(f"{variable.name} has NaN or infinite weights")
        return array

    def _read(self, variable: Variable) -> np.ndarray:
        """The numbers of a variable as they are stored."""
        array = np.fromfile(self.path, STORED[variable.type], math.prod(variable.shape), offset=variable.start)
        if array.size < math.prod(variable.shape):
            raise self.error(f"{variable.name} was cut while it was read")
        return array.reshape(variable.shape)


def open_file(path: str | Path, spec: str, revision: int) -> Stored:
    """The variables of a file of one kind of model. Raises ValueError, one line, for a file that is not whole."""
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            return Stored(path, _variables(_Stream(path, file), spec, revision))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def shown(shape: tuple[int, ...]) -> str:
    """A shape as it is written: 384 × 80 × 3."""
    return " × ".join(f"{size:,}" for size in shape[:6]) + (" × …" if len(shape) > 6 else "") or "one number"


# ----------------------------------------------------------------------------------------- from its beginning


class _Stream:
    """A file read from its beginning, never beyond its end."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.left = path, file, os.fstat(file.fileno()).st_size
        self.place = "its head"

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {reason}; {AGAIN}")

    def skip(self, count: int) -> None:
        if count > self.left:
            raise self.error(f"the file ends within {self.place}, {count - self.left:,} bytes too soon")
        self.left -= count
        self.file.seek(count, os.SEEK_CUR)

    def bytes(self, count: int) -> bytes:
        start = self.file.tell()
        self.skip(count)
        self.file.seek(start)
        content = self.file.read(count)
        if len(content) < count:
            raise self.error("it was cut while it was read")
        return content

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(kind)))[0]

    def string(self) -> str:
        content = self.bytes(self.number("H"))
        if not re.fullmatch(rb"[A-Za-z0-9_/.]{1,200}\0", content):
            raise self.error(f"{content[:40]!r} after {self.place} is not a name")
        return content[:-1].decode("ascii")

    def count(self, what: str, min_bytes: int) -> int:
        """How many items follow; no more than there are bytes for."""
        count = self.number("I")
        if count * min_bytes > self.left:
            raise self.error(f"{count:,} {what} are announced, and {self.left:,} bytes are left")
        return count


def _variables(stream: _Stream, spec: str, revision: int) -> dict[str, Variable]:
    if (version := stream.number("I")) != VERSION:
        raise stream.error(f"not CTranslate2's format, or version {version} of it; version {VERSION} is read")
    if (found := stream.string()) != spec:
        raise stream.error(f"the model is a {found[:40]}, not a {spec}")
    if (found := stream.number("I")) != revision:
        raise stream.error(f"revision {found} of {spec}; revision {revision} is read")
    variables: dict[str, Variable] = {}
    for _ in range(stream.count("variables", MIN_VARIABLE)):
        variable = _variable(stream)
        if variable.name in variables:
            raise stream.error(f"{variable.name} is there twice")
        variables[variable.name] = variable
    aliases = {}
    stream.place = "its aliases"
    for _ in range(stream.count("aliases", MIN_ALIAS)):
        name, target = stream.string(), stream.string()
        if name in variables or name in aliases:
            raise stream.error(f"{name} is there twice")
        if target not in variables:
            raise stream.error(f"{name} stands for {target}, which is missing")
        aliases[name] = variables[target]
    if stream.left:
        raise stream.error(f"{stream.left:,} bytes follow after its end")
    return variables | aliases


def _variable(stream: _Stream) -> Variable:
    name = stream.place = stream.string()
    rank = stream.number("B")
    shape = struct.unpack(f"<{rank}I", stream.bytes(4 * rank))
    number = stream.number("B")
    if number >= len(TYPES):
        raise stream.error(f"{name} is of type {number}; 0 to {len(TYPES) - 1} are known")
    kind, size = TYPES[number], stream.number("I")
    if size != math.prod(shape) * np.dtype(STORED[kind]).itemsize:
        raise stream.error(f"{name} has {size:,} bytes, which do not make {shown(shape)} of {kind}")
    start = stream.file.tell()
    stream.skip(size)
    return Variable(name, shape, kind, start)
