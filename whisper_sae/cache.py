"""One folder of results, each under a key made of its content: what made it, from what, with which code.

    data/steps/activations/76b17024d865/manifest.json

A `Recipe` says how a result is made. `make` makes it unless it is there already; `need` only finds it. Work
goes on in a hidden folder beside the result and is renamed when done, so nobody ever reads a half-written
step; what a killed run left in the hidden folder is offered to the next run, which may go on from there.
"""

import errno
import functools
import hashlib
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import filelock
import numpy as np
import pandas as pd

from whisper_sae import atomic, code_hash, memory, private_paths

BEGUN = "begun.json"
"""In the folder of a result in the making: the versions and the processor that began it."""
FORGOTTEN = 7 * 86400
"""Seconds after which the folder of a killed run is removed."""
PATIENCE = 5
"""Seconds that another process may hold a result before it is said that this one waits."""
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "scikit-learn", "numba", "soxr",
             "soundfile", "datasets")  # fmt: skip


class NotMade(LookupError):
    """A result that is needed here has not been made yet; the message says what makes it."""


@dataclass(frozen=True)
class Recipe:
    """How a result is made: `make(folder, **needs)` writes files into `folder` and returns facts about them.

    `params` must be JSON; `needs` are the recipes of what it is made from, handed to `make` as steps of the same names;
    `by` is the command that makes it, empty for a source, which is made whenever it is needed; `label` is what a reader
    calls it. The code that makes it, and the constants that this reads, are found by `fingerprints`; `code` names
    functions that it is given to call.
    """

    name: str
    make: Callable = field(compare=False)
    params: dict
    code: tuple = ()
    needs: dict = field(default_factory=dict)
    by: str = ""
    label: str = ""

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits that change whenever the result would."""
        return _digest(self.described)[:12]

    @cached_property
    def described(self) -> dict:
        """All that the key stands for, read once: an edit under a running process changes nothing half-way."""
        return {
            "step": self.name,
            "params": self.params,
            "code": code_hash.of(self.make, *self.code),
            "needs": {name: recipe.key for name, recipe in self.needs.items()},
        }


@dataclass(frozen=True)
class Step:
    """A finished result: a folder that is never written to again."""

    path: Path
    manifest: dict
    label: str

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def facts(self) -> dict:
        """What the maker said about it, such as counts and seconds."""
        return self.manifest["facts"]

    def array(self, name: str) -> np.ndarray:
        """A `.npy` file, memory-mapped and read-only."""
        return np.load(self.path / name, mmap_mode="r", allow_pickle=False)

    def table(self, name: str, **options) -> pd.DataFrame:
        """A `.csv` file as text and numbers: an empty field is an empty string, and `NA` is a word."""
        return pd.read_csv(self.path / name, **{"keep_default_na": False, "na_values": {}} | options)

    @property
    def other_versions(self) -> dict[str, tuple[str, str]]:
        """Libraries of which another version made it than the one that runs: {name: (then, now)}."""
        then, now = self.manifest.get("versions", {}), versions()
        return {name: (then[name], now[name]) for name in now if name in then and then[name] != now[name]}

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Read every file again, or some, and compare it with the manifest; ValueError names the first that differs."""
        for name in self.manifest["files"] if files is None else files:
            path = self.path / name
            if not path.exists() or file_digest(path) != self.manifest["files"][name]:
                raise ValueError(f"{path}: not what was written; delete {self.path} and make it again")


def root() -> Path:
    """The data folder: WHISPER_SAE_DATA, or the project's own `data`."""
    return private_paths.data()


def where(recipe: Recipe) -> Path:
    """The folder in which the result of `recipe` lies, or will lie."""
    return root() / "steps" / recipe.name / recipe.key


def make(recipe: Recipe) -> Step:
    """The result of `recipe`, made now if it is not there.

    What it needs must have been made before, except sources (recipes without `by`), which are made on the way.

    Two processes that ask at once do not collide: one makes, the other waits and reads.
    Raises NotMade when something it needs is missing, OSError (one line, with the way out) on a full disk.
    """
    key, place = recipe.key, where(recipe)
    if found := _open(place, recipe):
        return found
    needs = {name: need(upstream) if upstream.by else make(upstream) for name, upstream in recipe.needs.items()}
    work = place.with_name(f".{key}.work")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f".{key}.lock"), recipe):
            if found := _open(place, recipe):  # made by another process while this one waited
                return found
            _begin(work)
            _clean(work.parent)
            started = time.perf_counter()
            facts = recipe.make(work, **needs) or {}
            _publish(recipe, work, place, facts, time.perf_counter() - started)
        memory.release()
    except Exception as error:
        if not _is_full(error, work):
            raise
        raise OSError(
            errno.ENOSPC,
            f"no space left on the device while making '{recipe.name}' in {work}; free some, or point "
            "WHISPER_SAE_DATA elsewhere; what was finished before is kept",
        ) from error
    return _open(place, recipe)


def need(recipe: Recipe) -> Step:
    """The result of `recipe` if it has been made; otherwise NotMade, which says what to run."""
    if found := _open(where(recipe), recipe):
        return found
    raise NotMade(
        f"'{recipe.label or recipe.name}' has not been made with these settings and this code "
        f"(key {recipe.key}); run first: {recipe.by}"
    )


@contextmanager
def _locked(path: Path, recipe: Recipe) -> Iterator[None]:
    """Hold a lock; whoever waits longer than PATIENCE is told what for."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        _say(f"'{recipe.label or recipe.name}' is being made by another process; waiting for it (lock {path})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _begin(work: Path) -> None:
    """The folder of a result in the making, with what a killed run has left in it unless other versions, or another
    processor, made that."""
    here = {"versions": versions(), "machine": platform.machine(), "processor": processor()}
    if work.exists():
        try:
            before = json.loads((work / BEGUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before == here:
            return
        _say(f"{work}: begun with other versions or on another processor; begun anew")
        shutil.rmtree(work)
    work.mkdir()
    atomic.write(work / BEGUN, json.dumps(here))


def _clean(folder: Path) -> None:
    """Remove what runs that were killed long ago have left beside results: nobody has gone on from there."""
    for old in folder.glob(".*.work"):
        with suppress(OSError, filelock.Timeout):
            if old.stat().st_mtime < time.time() - FORGOTTEN:
                with filelock.FileLock(old.with_suffix(".lock"), timeout=0):
                    shutil.rmtree(old)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _open(place: Path, recipe: Recipe) -> Step | None:
    """A finished result; None if there is none, or if a file of it is not as long as it was written."""
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{place / 'manifest.json'}: not JSON ({error}); delete {place} and make it again") from None
    for name, size in manifest.get("bytes", {}).items():
        try:
            found = (place / name).stat().st_size
        except OSError:
            found = "no"
        if found != size:
            _say(f"{place / name}: {found} bytes, {size} were written; the result counts as not made")
            return None
    return Step(place, manifest, recipe.label or recipe.name)


def _is_full(error: Exception, work: Path) -> bool:
    """Whether a full disk is what failed. numpy and torch say it without saying so, so the disk is asked itself."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    if not isinstance(error, RuntimeError) and (not isinstance(error, OSError) or error.errno):
        return False
    try:
        with tempfile.TemporaryFile(dir=work, buffering=0) as probe:
            return probe.write(bytes(1 << 16)) < 1 << 16
    except OSError as refused:
        return refused.errno in (errno.ENOSPC, errno.EDQUOT)


def _publish(recipe: Recipe, work: Path, place: Path, facts: dict, seconds: float) -> None:
    """Hash what was written, add the manifest, and give the folder its name in one rename."""
    for part in work.rglob(f".*{atomic.PART}"):  # a killed run was writing it
        part.unlink()
    own = {work / "manifest.json", work / BEGUN}
    files = sorted(path for path in work.rglob("*") if path.is_file() and path not in own)
    manifest = {
        **recipe.described,
        "key": recipe.key,
        "files": {path.relative_to(work).as_posix(): file_digest(path) for path in files},
        "bytes": {path.relative_to(work).as_posix(): path.stat().st_size for path in files},
        "facts": facts,
        "seconds": round(seconds, 2),
        "versions": versions(),
    }
    (work / BEGUN).unlink()
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    if place.exists():  # without a manifest, or with files that have lost bytes
        shutil.rmtree(place)
    atomic.rename(work, place)


@functools.cache
def versions() -> dict[str, str]:
    """The versions of what decides numbers: of Python and of LIBRARIES, without those that are not installed."""
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@functools.cache
def processor() -> str:
    """The kind of processor, as the system calls it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


# ------------------------------------------------------------------------------------------------ digests


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(table: pd.DataFrame) -> str:
    """What a table says, as twelve hexadecimal digits: for the key of a result that is made of it."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:12]


def _digest(described: dict) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
