"""What training needs of a processor that torch has no fast form of: choosing few calls, and sums over few pairs.

Plain loops, compiled by numba when first used (a few seconds, kept on disk) and run on as many threads as torch uses.
No result depends on how many those are. `sparse` says what they are for; on other devices torch does the same.

Two ideas. *Choosing without sorting*: positive floats are ordered as the integers with the same bits, so a bound that
exactly so many calls exceed is found by counting and halving, at one comparison of integers a call. *Staying near*: a
row of a dictionary is used by many frames; taking a block of rows that fits into the processor's own memory, for all
frames, before the next block, spares most of the way to it.
"""

import functools
import threading
from pathlib import Path

import numba
import numpy as np
import torch

from whisper_sae.compiled import jit


def second_level() -> int:
    """Bytes of the second-level cache of a core; a megabyte where the system does not say."""
    told = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    kilobytes = told.read_text().strip().removesuffix("K") if told.exists() else ""
    return int(kilobytes) << 10 if kilobytes.isdecimal() else 1 << 20


BLOCK = second_level() // 2
"""Bytes of rows that are used at a time."""

SUMS = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that eight or sixteen go at once
ALONE = threading.Lock()  # numba's simplest threads allow no second caller


def threads() -> int:
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def use_torchs_threads() -> None:
    """Numba, where it starts its threads, may tell torch to use as many: then torch is told its own number again."""
    wanted = torch.get_num_threads()
    numba.set_num_threads(threads())
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def shares(rows) -> tuple[int, int]:
    """Into how many shares the work is divided, and how many of these rows are used at a time."""
    return threads(), max(1, BLOCK // max(1, rows[:1].nbytes))


def compiled(loops):
    """`loops` compiled, called with torch's number of threads."""
    fast = jit(parallel=True, fastmath=SUMS)(loops)

    @functools.wraps(loops)
    def call(*arguments):
        with ALONE:
            use_torchs_threads()
            return fast(*arguments)

    return call


@jit
def how_many_above(values, bound):
    above = np.int32(0)
    for place in range(len(values)):
        above += np.int32(values[place] > bound)
    return above


@jit
def places_above(values, bound, marks, words, places):
    """The places of the values above a bound, written to `places`; how many. `marks` is room for one of each value,
    up to a multiple of eight, `words` for as many numbers, `places` for one more.

    Nothing is asked in between, for a processor guesses answers, and here would guess wrong: what was written is
    written over when it is not wanted.
    """
    for place in range(len(values)):
        marks[place] = values[place] > bound
    eights, some = marks.view(np.uint64), 0
    for eight in range(len(eights)):
        words[some] = eight
        some += np.int64(eights[eight] != 0)
    found = 0
    for word in words[:some]:
        for place in range(8 * word, 8 * word + 8):
            places[found] = place
            found += np.int64(marks[place])
    return found


@jit
def bound_below(values, k, guess, leap):
    """A bound, 0 or more, that k to 4 k of the values exceed, if so many exceed 0; looked for from a guess on."""
    low, high = np.int64(0), np.int64(np.iinfo(values.dtype).max)
    while high - low > 1:
        above = how_many_above(values, values.dtype.type(guess))
        if k <= above <= 4 * k:
            return guess
        if above > k:
            low = guess
            guess = min(guess + leap, (guess + high) // 2)
        else:
            high = guess
            guess = max(guess - leap, (low + guess) // 2)
        leap *= 2
    return low


@jit
def keep_strongest(values, k, keep):
    """Mark the k largest of more than k values, integers of 0 or more, in `keep`; of equals the first. The weakest."""
    low, high = np.int64(-1), np.int64(values.max())  # at least k exceed low, fewer exceed high
    while high - low > 1:
        middle = (low + high) // 2
        if how_many_above(values, values.dtype.type(middle)) >= k:
            low = middle
        else:
            high = middle
    weakest = values.dtype.type(high)
    equal = k - how_many_above(values, weakest)
    for one in range(len(values)):
        keep[one] = values[one] > weakest or (values[one] == weakest and equal > 0)
        equal -= values[one] == weakest
    return weakest


@compiled
def strongest_of_rows(calls, k, latent, count):
    """Where the k largest positive calls of each row are: latent[row, : count[row]], rising. Of equals, the first.

    Calls are integers. Only those that come near the bound of the row before are looked at twice.
    """
    rows, width = calls.shape
    near = (np.iinfo(calls.dtype).max >> 10) + 1  # a quarter of a factor of two
    for part in numba.prange((rows + 63) // 64):
        marks, words = np.zeros((width + 7) // 8 * 8, np.uint8), np.empty(width + 1, np.int64)
        places = np.empty_like(words)
        few, keep = np.empty(width, calls.dtype), np.empty(width, np.uint8)
        guess = np.int64(np.iinfo(calls.dtype).max // 2 + 1)  # a call of 2
        for row in range(part * 64, min(rows, part * 64 + 64)):
            guess = bound_below(calls[row], k, guess, near)
            found = places_above(calls[row], calls.dtype.type(guess), marks, words, places)
            if found <= k:
                count[row] = found
                latent[row, :found] = places[:found]
                continue
            for one in range(found):
                few[one] = calls[row, places[one]]
            guess = np.int64(keep_strongest(few[:found], k, keep))
            at = 0
            for one in range(found):
                if keep[one]:
                    latent[row, at] = places[one]
                    at += 1
            count[row] = at


@compiled
def count_above(calls, bound, count):
    """How many of each row exceed the bound."""
    for row in numba.prange(len(calls)):
        count[row] = how_many_above(calls[row], bound)


@compiled
def all_above(calls, bound, first, latent, strength):
    """Where the calls above a bound are: latent[first[row] : first[row + 1]], rising; and how strong."""
    rows, width = calls.shape
    for part in numba.prange((rows + 63) // 64):
        marks, words = np.zeros((width + 7) // 8 * 8, np.uint8), np.empty(width + 1, np.int64)
        places = np.empty_like(words)
        for row in range(part * 64, min(rows, part * 64 + 64)):
            found = places_above(calls[row], bound, marks, words, places)
            for one in range(found):
                latent[first[row] + one] = places[one]
                strength[first[row] + one] = calls[row, places[one]]


@jit
def sort_by_latent(latent, first, order):
    """Counting sort: the pairs of each latent, in their order, lie at order[first[latent] : first[latent + 1]]."""
    first[:] = 0
    for one in latent:
        first[one + 1] += 1
    for one in range(1, len(first)):
        first[one] += first[one - 1]
    at = first[:-1].copy()
    for pair, one in enumerate(latent):
        order[at[one]] = pair
        at[one] += 1


@compiled
def products(left, right, latent, first, out, shares, size):
    """<left[frame], right[latent]> of each pair; those of a frame are at first[frame] : first[frame + 1], by latent."""
    frames, width = left.shape
    share, at = -(-frames // shares), first[:-1].copy()
    for part in numba.prange(shares):
        for block in range(-(-len(right) // size)):
            end = (block + 1) * size
            for frame in range(part * share, min(frames, (part + 1) * share)):
                pair = at[frame]
                while pair < first[frame + 1] and latent[pair] < end:
                    row = latent[pair]
                    total = right.dtype.type(0)
                    for j in range(width):
                        total += left[frame, j] * right[row, j]
                    out[pair] = total
                    pair += 1
                at[frame] = pair


@compiled
def add_rows(base, rows, index, order, weight, first, out, shares, size):
    """out[i] = base[i] + Σ weight[pair] · rows[index[pair]] over the pairs order[first[i] : first[i + 1]], whose index
    rises. A base of one row stands for all."""
    count, width = out.shape
    share, at = -(-count // shares), first[:-1].copy()
    for part in numba.prange(shares):
        for block in range(max(1, -(-len(rows) // size))):
            end = (block + 1) * size
            for i in range(part * share, min(count, (part + 1) * share)):
                if block == 0:
                    for j in range(width):
                        out[i, j] = base[i % len(base), j]
                place, last = at[i], first[i + 1]
                while place + 1 < last and index[order[place + 1]] < end:  # two at a time
                    one, two = order[place], order[place + 1]
                    for j in range(width):
                        out[i, j] += weight[one] * rows[index[one], j] + weight[two] * rows[index[two], j]
                    place += 2
                if place < last and index[order[place]] < end:
                    one = order[place]
                    for j in range(width):
                        out[i, j] += weight[one] * rows[index[one], j]
                    place += 1
                at[i] = place


@compiled
def shorten(W):
    """Divide every row of W by its length."""
    for row in numba.prange(len(W)):
        total = W.dtype.type(0)
        for j in range(W.shape[1]):
            total += W[row, j] * W[row, j]
        length = max(np.sqrt(total), W.dtype.type(1e-8))
        for j in range(W.shape[1]):
            W[row, j] /= length


@compiled
def drop_along(g, W):
    """Take from each row of g its part along the row of W, which has length 1."""
    for row in numba.prange(len(W)):
        total = W.dtype.type(0)
        for j in range(W.shape[1]):
            total += g[row, j] * W[row, j]
        for j in range(W.shape[1]):
            g[row, j] -= total * W[row, j]
