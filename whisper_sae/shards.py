"""Arrays that grow on disk, written by a thread of its own, each shard under its name only when it is whole."""

import json
import os
import queue
import shutil
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from whisper_sae import atomic

FACTS = "sites.json"


def place(folder: Path, number: int) -> Path:
    """Where a finished shard lies."""
    return folder / f"shard-{number:05d}"


def facts(folder: Path, number: int) -> dict:
    """`sites`, {site: width} in the order of the model, and `bytes`, {file: size}, of a finished shard."""
    return json.loads((place(folder, number) / FACTS).read_text(encoding="utf-8"))


def write_facts(shard: Path, widths: dict[str, int]) -> None:
    """Write what `facts` reads, from the files that a shard has."""
    sizes = {path.name: path.stat().st_size for path in sorted(shard.iterdir())}
    (shard / FACTS).write_text(json.dumps({"sites": widths, "bytes": sizes}), encoding="utf-8")


def link_file(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def finished(folder: Path, number: int) -> bool:
    """Whether a shard is there. One whose files are not as long as they were written is deleted, with one line."""
    shard = place(folder, number)
    if not shard.exists():
        return False
    try:
        told = facts(folder, number)["bytes"]
        sizes = {name: (shard / name).stat().st_size if (shard / name).exists() else 0 for name in told}
    except (OSError, ValueError, KeyError, TypeError):
        told, sizes = {FACTS: 1}, {}
    if wrong := [name for name in told if sizes.get(name) != told[name]]:
        print(f"{shard / wrong[0]}: not as it was written; the shard is made again", file=sys.stderr)
        shutil.rmtree(shard)
    return not wrong


def parts(folder: Path) -> Path:
    """Where shards lie that are not whole yet: beside their folder, in which nothing else can then be left."""
    return folder.with_name(f"{folder.name}.parts")


def ahead(items: Iterable, work: Callable | None) -> Iterator[tuple]:
    """Each item with what `work` makes of it; threads make what comes next meanwhile. None where there is no work."""
    if work is None:
        yield from ((item, None) for item in items)
        return
    threads = max(1, min(8, (os.cpu_count() or 2) // 2))
    pool, waiting = ThreadPoolExecutor(threads, "reading"), deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > threads:
                item, made = waiting.popleft()
                yield item, made.result()
        for item, made in waiting:
            yield item, made.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class GrowingArray:
    """A `.npy` file to which rows are added; the same bytes as `np.save` of them all, never in memory at once."""

    def __init__(self, path: Path):
        self.path, self.rows, self.row = path, 0, None

    def append(self, rows: np.ndarray) -> None:
        """Write more rows: (row, …)."""
        if self.row is None:
            self.row = (rows.dtype, rows.shape[1:])
            self.file = open(self.path, "wb")  # noqa: SIM115
            self._header()
        if (rows.dtype, rows.shape[1:]) != self.row:
            raise ValueError(f"{self.path}: rows of {rows.dtype} {rows.shape[1:]} after {self.row[0]} {self.row[1]}")
        self.file.write(memoryview(np.ascontiguousarray(rows)).cast("B") if rows.size else b"")
        self.rows += len(rows)

    def close(self) -> None:
        """Write the number of rows where it belongs; numpy leaves room for it."""
        if self.row is not None and not self.file.closed:
            self.file.seek(0)
            self._header()
            self.file.close()

    def abandon(self) -> None:
        """Let go of the file, which stays without a count of its rows."""
        if self.row is not None:
            with suppress(OSError):  # of a full disk it has been told
                self.file.close()

    def _header(self) -> None:
        dtype, shape = self.row
        told = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (self.rows, *shape)}
        np.lib.format.write_array_header_1_0(self.file, told)

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, *_error) -> None:
        self.close()


class Writer:
    """A thread that writes batches into shards while the next ones are being heard.

    At most two batches wait, so memory does not grow with the shard or the corpus. What goes wrong in the thread is
    raised by the next `put`, or at the end; what was put before an error of the caller's is still written.
    """

    def __init__(self, folder: Path):
        self.folder, self.wrong, self.open = folder, None, None
        self.waiting: queue.Queue = queue.Queue(maxsize=2)
        self.thread = threading.Thread(target=self._work, name="writing", daemon=True)

    def put(self, shard: int, rows: dict[str, np.ndarray], kinds: np.ndarray, last: bool) -> None:
        """Have a batch added to a shard, which gets its name after its last one."""
        if self.wrong is None:
            self.waiting.put((shard, rows, kinds, last))
        if self.wrong is not None:
            raise self.wrong

    def __enter__(self) -> "Writer":
        self.thread.start()
        return self

    def __exit__(self, kind, _error, _trace) -> None:
        self.waiting.put(None)
        self.thread.join()
        if self.open:
            self.open.abandon()
        if kind is None and self.wrong is not None:
            raise self.wrong

    def _work(self) -> None:
        while (batch := self.waiting.get()) is not None:
            if self.wrong is None:
                try:
                    self._write(*batch)
                except BaseException as error:
                    self.wrong = error

    def _write(self, shard: int, rows: dict[str, np.ndarray], kinds: np.ndarray, last: bool) -> None:
        if self.open is None:
            self.open = _Part(self.folder, shard)
        self.open.append(rows, kinds)
        if last:
            part, self.open = self.open, None
            part.publish()


class _Part:
    """A shard that is not whole yet."""

    def __init__(self, folder: Path, number: int):
        self.target = place(folder, number)
        self.part = parts(folder) / f"{self.target.name}-{uuid.uuid4().hex}"  # another worker may write it, too
        self.part.mkdir(parents=True)
        self.files: dict[str, GrowingArray] = {}
        self.widths: dict[str, int] = {}

    def append(self, rows: dict[str, np.ndarray], kinds: np.ndarray) -> None:
        """Add the rows of one batch: {site: (row, width)} and (window, position)."""
        for name, values in {**rows, "kinds": kinds}.items():
            if name not in self.files:
                self.files[name] = GrowingArray(self.part / f"{name}.npy")
            self.files[name].append(values)
        self.widths = {site: values.shape[1] for site, values in rows.items() if not site.endswith(".moments")}

    def publish(self) -> None:
        """Give the shard its name, which says that it is whole. Where another worker was faster, it is there."""
        for file in self.files.values():
            file.close()
        write_facts(self.part, self.widths)
        try:
            atomic.rename(self.part, self.target)
        except OSError:
            shutil.rmtree(self.part, ignore_errors=True)
            if not self.target.exists():
                raise

    def abandon(self) -> None:
        """Let go of files that will not be finished."""
        for file in self.files.values():
            file.abandon()
        shutil.rmtree(self.part, ignore_errors=True)
