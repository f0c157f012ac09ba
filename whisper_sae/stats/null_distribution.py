"""What chance alone gives: alignments shifted in time or swapped between clips, and how far the true one stands out.

Frames are no independent draws: a phone lasts several, a feature too, and both depend on the voice and the clip. So
labels are not shuffled but shifted: the frames of a clip that have a label are joined to a circle, and the labels go
round by a random amount, each clip by its own. Every run of a label stays as it is, and so does how much each speaker
and each clip has of it, and of the feature; only the connection in time is gone.

Two other ways were tried on simulated codes that have nothing to do with their labels. One circle for all clips of a
speaker finds too much where clips differ, because a clip's labels then meet two clips' codes. Leaving out short shifts
finds far too much: a circle's shifts have a fixed sum, so those left tell what the true one is. `tests/test_chance.py`
has both.

Shifts do not keep where in a clip a phone is. Where many read the same sentence, a feature that knows nothing but the
time since the window began goes with the phones that are said then, and stands out from all shifts. So there is a
second null, which keeps the time: clips of about the same length swap their alignments (`swaps`). It keeps less than
shifts do of what a clip or a speaker has of each label, so neither replaces the other: a discovery must be beyond both
(`both`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

APART = 20
"""Shifts to each group of tests alike: with so many, one finding alone can pass a false discovery rate of 1 in 20."""


def shifts(clip: np.ndarray, count: int = 100, seed: int = 0) -> Iterator[np.ndarray]:
    """`count` orders of the frames, (frame,) each: `label[order]` are the labels, gone round in every clip.

    `clip` is (frame,), the frames of a clip together and in order of time. All shifts are equally likely, none too.
    """
    rng = np.random.default_rng(seed)
    first = np.flatnonzero(np.append(True, clip[1:] != clip[:-1]))
    length = np.diff(np.append(first, len(clip)))
    start, whole = np.repeat(first, length), np.repeat(length, length)
    for _ in range(count):
        yield start + (np.arange(len(clip)) - start + np.repeat(rng.integers(0, length), length)) % whole


def swaps(
    window: np.ndarray, position: np.ndarray, count: int = 50, alike: int = 10, reach: int = 2, seed: int = 0
) -> Iterator[np.ndarray]:
    """`count` orders of the frames, (frame,) each: `label[order]` are the labels that another window has at that time.

    `window` (frame,) is what each frame was heard in, `position` (frame,) its number there. Windows are permuted among
    the `alike` or more whose last frames are at about the same time, all permutations being equally likely. A frame
    gets the label of the frame nearest in time that the other window, which may be the same, has here. Where none is
    within `reach` frames, in a pause or after the end of the other window, it keeps its own: anything else there would
    be wrong more often than the time alone makes it, and a feature of the time would stand out.
    """
    order = np.lexsort([position, window])
    number = np.unique(window[order], return_inverse=True)[1]
    time = position[order].astype(np.int64)
    first = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    last = np.append(first[1:], len(number)) - 1
    step = 2 * int(time.max(initial=0)) + 2  # further than any two frames of a window are apart
    key = number * step + time
    by_length = np.argsort(time[last], kind="stable")
    groups = np.array_split(by_length, max(1, len(first) // alike))
    rng, place = np.random.default_rng(seed), np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    for _ in range(count):
        partner = np.empty(len(first), dtype=np.int64)
        for group in groups:
            partner[group] = rng.permutation(group)
        other = partner[number]
        after = np.clip(np.searchsorted(key, other * step + time), first[other], last[other])
        before = np.maximum(after - 1, first[other])
        nearest = np.where(np.abs(time[before] - time) <= np.abs(time[after] - time), before, after)
        there = np.abs(time[nearest] - time) <= reach
        yield order[np.where(there, nearest, np.arange(len(order)))][place]


def null(statistic: Callable[[np.ndarray], np.ndarray], label: np.ndarray, orders: Iterable[np.ndarray]) -> np.ndarray:
    """The statistic, an array of tests, of `label` in each of the orders: (order, …) float32."""
    return np.stack([np.asarray(statistic(label[order]), dtype=np.float32) for order in orders])


CACHED = 512
"""Tests that are looked at together, so that they stay near the processor."""


class Verdict(NamedTuple):
    """How far each test stands out; the shape of the tests, NaN where nothing can be said."""

    z: np.ndarray
    """Deviations above the mean of the shifts."""
    p: np.ndarray
    """The probability of a z as large by chance, larger is further."""
    q: np.ndarray
    """The false discovery rate at which it is found (Benjamini & Hochberg 1995), over all tests."""

    def found(self, rate: float = 0.05) -> np.ndarray:
        """Which tests are discoveries at a false discovery rate."""
        with np.errstate(invalid="ignore"):
            return self.q <= rate


def judge(
    observed: np.ndarray, chance: np.ndarray, spread: np.ndarray, size: np.ndarray, apart: int = APART
) -> Verdict:
    """What of `observed`, an array of tests, is above `chance`, (shift, …), what as many shifts gave.

    Each test is measured in its own deviations: those of its shifts, a shift left out of its own, and no less than
    `spread`, what independent frames would give (a test that hardly ever moves must not look certain). p is the share
    of shifts, of all tests of about the same `size` (frames expected by chance), that reach as far: few shifts
    thus make small p, and a rare feature, whose chance is skewed, is compared with rare ones. On average over tests
    this is exact where nothing is to be found; of a single test it holds as far as those of its size are alike. The
    more shifts there are to each group of tests alike, `apart`, the finer is p.

    Raises ValueError for fewer than APART shifts.
    """
    if len(chance) < APART:
        raise ValueError(f"chance: {len(chance)} shifts are too few, {APART} are needed")
    shape, observed = observed.shape, observed.ravel().astype(np.float64)
    chance, spread, size = (part.reshape(-1, observed.size) for part in (chance, spread, size))
    z, p, q = (np.full(observed.size, np.nan) for _ in range(3))
    possible = np.isfinite(observed) & np.isfinite(chance).all(axis=0) & (size[0] > 0) & (spread[0] > 0)
    chance = np.ascontiguousarray(chance.T)  # a row a test
    order = np.flatnonzero(possible)[np.argsort(size[0][possible], kind="stable")]
    for tests in np.array_split(order, max(1, chance.shape[1] // apart)):
        if len(tests):
            some = np.array_split(tests, -(-len(tests) // CACHED))
            parts = [_standardised(observed[few], chance[few], spread[0][few]) for few in some]
            z[tests] = np.concatenate([mine for mine, _ in parts])
            by_chance = np.concatenate([theirs.ravel() for _, theirs in parts])
            by_chance.sort()
            tests = tests[np.argsort(z[tests])]  # are looked up faster in order
            reached = by_chance.size - np.searchsorted(by_chance, z[tests])
            p[tests] = (1 + reached) / (1 + by_chance.size)
    if possible.any():
        q[possible] = stats.false_discovery_control(p[possible])
    return Verdict(*(part.reshape(shape) for part in (z, p, q)))


def both(one: Verdict, other: Verdict) -> Verdict:
    """What stands out from two nulls: the smaller z and the larger p of each test, and q of these p over all tests.

    The larger of two p is one for "either null holds" (intersection-union test; Berger 1982). None is smaller than a
    normal z has: p is a rank, and where a null hardly moves, as swaps of clips that all say the same at the same time,
    a hair's breadth would be the first of all.
    """
    z = np.minimum(one.z, other.z)
    p, q = np.maximum(np.maximum(one.p, other.p), stats.norm.sf(z)), np.full(one.p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return Verdict(z, p, q)


def _standardised(observed: np.ndarray, chance: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed, (test,), and chance, (test, shift), in deviations from the mean of the shifts, a shift from that of all
    others."""
    n, mean = chance.shape[1], chance.mean(axis=1, dtype=np.float64)
    off = chance - mean[:, None]
    squares = np.square(off)
    total = squares.sum(axis=1)
    z = (observed - mean) / np.maximum(np.sqrt(total / (n - 1)), least)
    off *= n / (n - 1)  # from the mean of all others, who lie around their own by as much less:
    squares *= n / (n - 1)
    deviation = np.sqrt(np.maximum(total[:, None] - squares, 0) / (n - 2))
    return z, (off / np.maximum(deviation, least[:, None])).astype(np.float32)
