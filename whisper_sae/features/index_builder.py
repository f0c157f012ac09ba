"""From codes by row to an index by feature, in a stream: what `index` reads is written here.

Codes come chunk after chunk. So many firings as may be in memory are sorted by side (a counting sort) and put on disk
as a *run*, which gets its name when it is whole; in the end the runs are joined, side by side. Files are read and
written in long stretches and none is mapped, so memory is the same for any corpus; on disk, the runs take 6 bytes a
firing and 12 a passage until they are joined.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from whisper_sae import atomic
from whisper_sae.compiled import jit
from whisper_sae.shards import GrowingArray

COLUMNS = {
    "firings": {"position": np.uint16, "value": np.uint32},
    "passages": {"passage.piece": np.uint32, "passage.firings": np.uint16, "passage.peak": np.uint32,
                 "passage.position": np.uint16},
}  # fmt: skip
"""What a run holds of each firing and passage; values are the bits of a float32 until the scales are known."""

VALUES = ("value", "passage.peak")
STORED = dict.fromkeys(VALUES, np.uint16)
BY_PIECE = ("side", "peak", "position")

PART = ".run.part"
"""The name of a run that is not whole yet, or not any more."""

LONGEST = int(np.iinfo(np.uint16).max)
INFINITE = np.uint32(0x7F800000)  # the bits of this float32
LEAST = np.uint32(0x00800000)  # of the least that is not subnormal
MAGNITUDE = np.uint32(0x7FFFFFFF)  # all but the sign


def build(
    folder: str | Path,
    counts: np.ndarray,
    say: Callable[[int, int], object],
    features: int,
    *,
    signed: bool = False,
    chunk: int = 4096,
    held: int = 4_000_000,
    progress: Callable = iter,
) -> dict:
    """Write the index of all rows into `folder`, and return facts.

    `counts`, (piece,), is the number of rows of each piece, at most 65,535. `say(first, last)` returns the codes of
    these rows: (row, feature), or for speed (row, feature, value), each (firing,), with rows that rise, counted from
    `first`. It is asked about whole pieces, at most `chunk` rows of them where a piece is not longer.

    About `held` firings and rows are in memory at a time. A killed build goes on after the last run that was whole, and
    gives the same bytes. `progress` wraps the iteration over chunks. Raises ValueError for what cannot be: values that
    are not finite or, unless `signed`, negative, a feature that there is not, a row that is told twice.
    """
    folder, starts = Path(folder), begins(np.asarray(counts))
    _check(np.asarray(counts), starts)
    chunks = _chunks(starts, chunk)
    runs = _finished(folder)
    run = Run(folder, starts, features, signed, runs[-1].stop if runs else 0)
    for number, (first, last) in enumerate(progress(chunks[run.begun :]), run.begun):
        run.add(say(int(starts[first]), int(starts[last])), first, last)
        if run.held >= held or number + 1 == len(chunks):
            runs.append(run.publish(number + 1))
            run = Run(folder, starts, features, signed, number + 1)
    if run.begun < len(chunks):
        raise AssertionError("progress must yield what it is given")
    facts = _join(folder, [run.place for run in runs], starts, features, signed, held)
    for run in reversed(runs):  # so that what is left, should this be interrupted, begins at the beginning
        run.remove()
    return facts


def begins(count: np.ndarray) -> np.ndarray:
    """Where each begins and where all end, of how many there are: (n,) -> (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(count, dtype=np.int64)])


def _check(counts: np.ndarray, starts: np.ndarray) -> None:
    if not starts[-1]:
        raise ValueError("counts: there are no rows")
    if counts.max() > LONGEST:
        raise ValueError(f"counts: piece {counts.argmax()} has {counts.max():,} rows; {LONGEST:,} at most: cut it")


def _chunks(starts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The pieces of each chunk: its first and, exclusive, its last."""
    found, first = [], 0
    for last in range(1, len(starts)):
        if last + 1 == len(starts) or starts[last + 1] - starts[first] > most:
            found.append((first, last))
            first = last
    return found


# ------------------------------------------------------------------------------------------------------ runs


class Finished:
    """A run on disk: the firings of the chunks from `begun` to `stop`."""

    def __init__(self, place: Path):
        self.place = place
        self.begun, self.stop = map(int, place.name.split("-")[1:])

    def remove(self) -> None:
        """Delete it; it loses its name before it is no longer whole."""
        part = self.place.with_name(PART)
        shutil.rmtree(part, ignore_errors=True)
        os.rename(self.place, part)
        shutil.rmtree(part)


def _finished(folder: Path) -> list[Finished]:
    """The runs that an interrupted build has left, in order. What does not connect goes."""
    found: list[Finished] = []
    for run in map(Finished, sorted(folder.glob("run-*-*"))):
        if run.begun == (found[-1].stop if found else 0):
            found.append(run)
        else:
            run.remove()
    return found


class Run:
    """Firings of consecutive chunks, held in memory until they are sorted by side and put on disk."""

    def __init__(self, folder: Path, starts: np.ndarray, features: int, signed: bool, begun: int):
        self.folder, self.starts, self.features, self.signed, self.begun = folder, starts, features, signed, begun
        self.count = np.zeros(features * (1 + signed), dtype=np.uint32)  # firings of each side
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.pieces, self.held = (0, 0), 0

    def add(self, codes, first: int, last: int) -> None:
        """Take the codes of the pieces from `first` to `last`, exclusive."""
        self.pieces = (self.pieces[0] if self.parts else first, last)
        base = int(self.starts[first] - self.starts[self.pieces[0]])
        rows = int(self.starts[last] - self.starts[first])
        row, feature, value = _sparse(codes, rows, self.features)
        side, packed = np.empty(len(row), np.int32), np.empty(len(row), np.uint64)
        wrong = _take(
            row, feature, value.view(np.uint32), rows, self.features, self.signed, base, side, packed, self.count
        )
        if wrong >= 0:
            raise ValueError(f"codes: {self._fault(row[wrong], feature[wrong], value[wrong], rows, first)}")
        self.parts.append((side, packed))
        self.held += len(row) + rows

    def _fault(self, row: int, feature: int, value: float, rows: int, first: int) -> str:
        where = f"feature {feature} at row {self.starts[first] + row}"
        if not 0 <= feature < self.features:
            return f"there is no feature {feature}; there are {self.features}"
        if not np.isfinite(value):
            return f"{where} is NaN or infinite"
        if value < 0 and not self.signed:
            return f"{where} is negative; build the index with signed=True"
        return f"rows must rise and lie below {rows}, got {row}"

    def publish(self, stop: int) -> Finished:
        """Sort what is held and put it on disk; it gets its name when it is whole."""
        ends = begins(self.count)
        together, at = np.empty(ends[-1], np.uint64), ends[:-1].copy()
        while self.parts:
            _scatter(*self.parts.pop(0), at, together)
        first, last = self.pieces
        piece = np.repeat(np.arange(first, last, dtype=np.uint32), np.diff(self.starts[first : last + 1]))
        found = _passages(together, ends, piece, self.starts[first : last + 1] - self.starts[first], first)
        if (twice := found[0]) >= 0:
            raise ValueError(f"codes: feature {twice % self.features} is told twice of a row")
        names = ("passages", "strongest", *COLUMNS["firings"], *COLUMNS["passages"])
        return self._write(stop, {"firings": self.count} | dict(zip(names, found[1:], strict=True)))

    def _write(self, stop: int, columns: dict[str, np.ndarray]) -> Finished:
        part, place = self.folder / PART, self.folder / f"run-{self.begun:08d}-{stop:08d}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, values in columns.items():
            values.tofile(part / f"{name}.bin")
        atomic.rename(part, place)
        return Finished(place)


def _sparse(codes, rows: int, features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row, the feature and the value of each firing: (firing,) three times."""
    if isinstance(codes, tuple):
        row, feature, value = map(np.asarray, codes)
    else:
        dense = np.ascontiguousarray(codes, dtype=np.float32)
        if dense.shape != (rows, features):
            raise ValueError(f"codes: {dense.shape} for {rows} rows of {features} features")
        row, feature, value = _entries(dense)
    return row, feature, value.astype(np.float32, copy=False)


@jit
def _entries(dense):
    """Where a matrix is not zero, row by row, and what it is there: `nonzero`, in a fraction of the time."""
    count = 0
    for row in range(len(dense)):
        here = 0
        for value in dense[row]:
            here += value != 0
        count += here
    rows, columns, values, at = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.float32), 0
    for row in range(len(dense)):
        for column in range(dense.shape[1]):
            if dense[row, column] != 0:
                rows[at], columns[at], values[at] = row, column, dense[row, column]
                at += 1
    return rows, columns, values


@jit
def _take(row, feature, bits, rows, features, signed, base, side, packed, count):
    """Write the side of each firing, -1 where it is zero, and its row and magnitude as one number; return the first
    that cannot be, or -1. Magnitudes are rounded to 11 significant bits: to make float16 of them changes none."""
    before = 0
    for one in range(len(row)):
        magnitude = bits[one] & MAGNITUDE
        rounded = (magnitude + np.uint32(0xFFF) + (magnitude >> np.uint32(13) & np.uint32(1))) & np.uint32(0xFFFFE000)
        negative = bits[one] != magnitude and magnitude != 0
        outside = row[one] < before or row[one] >= rows or feature[one] < 0 or feature[one] >= features
        if outside or rounded >= INFINITE or (negative and not signed):
            return one
        before = row[one]
        packed[one] = (np.uint64(base + before) << np.uint64(32)) | np.uint64(max(rounded, LEAST))
        side[one] = -1
        if magnitude:
            side[one] = feature[one] + negative * features
            count[side[one]] += 1
    return -1


@jit
def _scatter(side, packed, at, out):
    """Put the firings of a chunk where those of their side go on."""
    for one in range(len(side)):
        if side[one] >= 0:
            out[at[side[one]]] = packed[one]
            at[side[one]] += 1


@jit
def _passages(packed, ends, piece, starts, least):
    """Of firings sorted by side: a side that is told twice of a row, or -1; the passages of each side, its strongest
    value, and the columns of firings and passages."""
    sides, total, twice = len(ends) - 1, 0, -1
    passages, strongest = np.zeros(sides, np.uint32), np.zeros(sides, np.uint32)
    for side in range(sides):
        before = -1
        for one in range(ends[side], ends[side + 1]):
            here = np.int64(piece[packed[one] >> np.uint64(32)])
            passages[side] += here != before
            before = here
        total += passages[side]
    position, value = np.empty(len(packed), np.uint16), np.empty(len(packed), np.uint32)
    pieces, count = np.empty(total, np.uint32), np.zeros(total, np.uint16)
    peak, place, at = np.zeros(total, np.uint32), np.empty(total, np.uint16), -1
    for side in range(sides):
        before, row_before = -1, -1
        for one in range(ends[side], ends[side + 1]):
            row, bits = np.int64(packed[one] >> np.uint64(32)), np.uint32(packed[one] & np.uint64(0xFFFFFFFF))
            here = np.int64(piece[row])
            position[one], value[one] = row - starts[here - least], bits
            if row == row_before:
                twice = side
            if here != before:
                at += 1
                pieces[at] = here
            count[at] += np.uint16(1)
            if bits > peak[at]:
                peak[at], place[at] = bits, position[one]
                strongest[side] = max(strongest[side], bits)
            before, row_before = here, row
    return twice, passages, strongest, position, value, pieces, count, peak, place


# --------------------------------------------------------------------------------------------------- joining


def _join(folder: Path, runs: list[Path], starts: np.ndarray, features: int, signed: bool, held: int) -> dict:
    """Make one index of the runs."""
    sides = features * (1 + signed)
    strongest, total = np.zeros(sides, np.uint32), {kind: np.zeros(sides, np.int64) for kind in COLUMNS}
    for run in runs:
        np.maximum(strongest, np.fromfile(run / "strongest.bin", np.uint32), out=strongest)
        for kind in COLUMNS:
            total[kind] += np.fromfile(run / f"{kind}.bin", np.uint32)
    exponent = np.maximum(strongest >> 23, 30).astype(np.int64)  # is to become 30, the greatest of float16
    lower = ((exponent - 30) << 10).astype(np.int32)
    for kind in COLUMNS:
        np.save(folder / f"{kind}.npy", begins(total[kind]))
        _join_columns(folder, runs, kind, total[kind], lower, held)
    _join_pieces(folder, runs, len(starts) - 1, sides, lower)
    np.save(folder / "starts.npy", starts)
    np.save(folder / "scale.npy", np.ldexp(1.0, exponent - 127 - 15).astype(np.float32))
    np.save(folder / "strongest.npy", strongest.view(np.float32))
    told = {"features": features, "signed": signed, "pieces": len(starts) - 1, "rows": int(starts[-1])}
    told |= {kind: int(total[kind].sum()) for kind in COLUMNS}
    (folder / "index.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return told


def _join_columns(folder: Path, runs: list[Path], kind: str, total: np.ndarray, lower: np.ndarray, held: int) -> None:
    """Write the columns of all firings or passages, some sides at a time, so that no more than `held` are in memory."""
    read = np.zeros(len(runs), dtype=np.int64)  # of each run
    with ExitStack() as files:
        out = {name: files.enter_context(GrowingArray(folder / f"{name}.npy")) for name in COLUMNS[kind]}
        for first, last in _blocks(total, held):
            alone = last - first == 1  # there may be more than can be held, and they need no sorting
            to = begins(total[first:last])
            room = 0 if alone else to[-1]
            block = {name: np.empty(room, STORED.get(name, dtype)) for name, dtype in COLUMNS[kind].items()}
            for number, run in enumerate(runs):
                count = np.fromfile(run / f"{kind}.bin", np.uint32, last - first, offset=4 * first)
                for name, dtype in COLUMNS[kind].items():
                    part = _read(run, name, dtype, int(read[number]), count, lower[first:last])
                    if alone:
                        out[name].append(_halves(name, part))
                    else:
                        _spread(part, count, to, block[name])
                to[:-1] += count
                read[number] += count.sum(dtype=np.int64)
            for name, values in block.items():
                out[name].append(_halves(name, values))


def _blocks(total: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Consecutive sides that have at most so many together, or one that has more."""
    found, first, held = [], 0, 0
    for side, count in enumerate(total.tolist()):
        if held + count > most and side > first:
            found.append((first, side))
            first, held = side, 0
        held += count
    return [*found, (first, len(total))]


def _read(run: Path, name: str, dtype: type, first: int, count: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The next values of a column of a run, so many of each side, as they are stored: bits of float16 if of float32."""
    part = np.fromfile(run / f"{name}.bin", dtype, int(count.sum(dtype=np.int64)), offset=first * dtype().itemsize)
    return _narrow(part, count, lower) if name in VALUES else part


def _halves(name: str, values: np.ndarray) -> np.ndarray:
    return values.view(np.float16) if name in VALUES else values


@jit
def _narrow(part, count, lower):
    """Bits of float32, so many of each side, as bits of float16, with exponents lowered by what belongs to the side.
    What would fall below the least normal number is raised to it."""
    out, at = np.empty(len(part), np.uint16), 0
    for side in range(len(count)):
        for _ in range(count[side]):
            out[at] = max(np.int64(part[at] >> np.uint32(13)) - lower[side], 1 << 10)
            at += 1
    return out


@jit
def _spread(part, count, to, out):
    """Put so many of each side where those of that side go on."""
    at = 0
    for side in range(len(count)):
        for one in range(count[side]):
            out[to[side] + one] = part[at]
            at += 1


def _join_pieces(folder: Path, runs: list[Path], pieces: int, sides: int, lower: np.ndarray) -> None:
    """Write the passages in the order of pieces."""
    number = np.uint16 if sides <= 1 << 16 else np.uint32
    every = np.zeros(pieces, dtype=np.int64)
    with ExitStack() as files:
        out = {name: files.enter_context(GrowingArray(folder / f"by_piece.{name}.npy")) for name in BY_PIECE}
        for run in runs:
            count = np.fromfile(run / "passages.bin", np.uint32)
            piece, peak, place = (
                _read(run, f"passage.{name}", COLUMNS["passages"][f"passage.{name}"], 0, count, lower)
                for name in ("piece", "peak", "position")
            )
            here = np.bincount(piece, minlength=pieces)
            every += here
            side = np.empty(len(piece), number)
            columns = _by_piece(piece, count, peak, place, begins(here)[:-1], side)
            for name, values in zip(BY_PIECE, columns, strict=True):
                out[name].append(values.view(np.float16) if name == "peak" else values)
    np.save(folder / "by_piece.first.npy", begins(every))


@jit
def _by_piece(piece, count, peak, place, at, sides):
    """Passages sorted by side, sorted by piece: their sides, peaks and positions. `at` says where pieces begin."""
    peaks, places, one = np.empty_like(peak), np.empty_like(place), 0
    for side in range(len(count)):
        for _ in range(count[side]):
            to = at[piece[one]]
            sides[to], peaks[to], places[to] = side, peak[one], place[one]
            at[piece[one]] += 1
            one += 1
    return sides, peaks, places
