"""Frames that are heard when they are asked for, and never written down: a `rows.Source` on a Whisper.

The model runs as in `activations.write`, in batches of one size, and activations are rounded to the dtype of the store.
Read in order they have the bits of a stored recording whose shards hold whole batches; otherwise, and in another order,
a window may have another place in its batch, and float32 activations may differ by about 1e-6 of their size before they
are rounded.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
from tqdm import tqdm

from whisper_sae.activations.dataset import Source
from whisper_sae.activations.dtypes import narrowed, widened
from whisper_sae.shards import ahead


class Live(Source):
    """What some sites say of windows, heard anew whenever it is asked for and not remembered.

    `hear`, `prepare`, `batch` and `pieces` are as for `activations.write`, and what is a piece there is a window here;
    `sites` has the widths of what `hear` says. About `keep` rows are remembered, those heard last, in `dtype`; at least
    two batches of windows are, so that nobody who reads in order has a window heard twice. With `padded` each window,
    which then is one piece, has all its positions, of which `valid` come first and the rest is padding.
    """

    def __init__(
        self,
        hear: Callable[..., tuple[dict[str, torch.Tensor], np.ndarray]],
        pieces: np.ndarray,
        sites: dict[str, int],
        *,
        batch: int,
        dtype: str = "float16",
        prepare: Callable[[list[int]], object] | None = None,
        positions: int = 0,
        padded: bool = False,
        keep: int = 0,
    ):
        self.hear, self.prepare, self.sites, self.batch, self.dtype = hear, prepare, sites, batch, dtype
        self.of_window, _, self.valid = pieces.T
        self.total = int(self.of_window[-1]) + 1
        self.padded = padded
        if padded and self.total < len(pieces):
            raise ValueError("padded: whose is the padding of a window with several clips? windows must be clip")
        self.counts = np.full(len(pieces), positions) if padded else self.valid
        before = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.first = before - before[np.searchsorted(self.of_window, self.of_window)]  # row of a piece in its window
        self.in_window = np.bincount(self.of_window, self.counts).astype(np.int64)
        self.memory = _Memory(keep, 2 * batch)

    def without_padding(self) -> "Live":
        """The same windows less their padding; what one of the two has heard, the other remembers."""
        other = copy.copy(self)
        other.counts = self.valid
        return other

    def is_padding(self, rows) -> np.ndarray:
        """Which of these `Rows`, all in their order, are padding: (row,) bool."""
        valid = self.valid[rows.windows]
        return np.concatenate([np.arange(n) >= v for n, v in zip(rows.counts, valid, strict=True)])

    def fill(self, into: np.ndarray, at: np.ndarray, sites: list[str], window: np.ndarray, inside: np.ndarray):
        ends = dict(zip(self.sites, np.cumsum(list(self.sites.values())), strict=True))
        columns = np.concatenate([np.arange(ends[one] - self.sites[one], ends[one]) for one in sites])
        number, row = self.of_window[window], self.first[window] + inside
        order = np.argsort(number, kind="stable")
        asked, start = np.unique(number[order], return_index=True)
        of = dict(zip(asked.tolist(), np.split(order, start[1:]), strict=True))  # {window: what is asked of it}
        for one, said in self._said(list(of)):
            into[at[of[one]]] = widened(said[row[of[one]]][:, columns])

    def _said(self, windows: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Each of the windows with what was said in it, (row, Σ width): first those that are remembered."""
        unknown = [one for one in windows if one not in self.memory]
        yield from ((one, self.memory.recall(one)) for one in windows if one in self.memory)
        groups = [unknown[first : first + self.batch] for first in range(0, len(unknown), self.batch)]
        if groups and (lacking := self.batch - len(groups[-1])):  # what is likely to be asked for next
            after = groups[-1][-1] + 1
            groups[-1] += [one for one in range(after, min(after + lacking, self.total)) if one not in self.memory]
        asked = set(unknown)
        bar = tqdm(groups, desc="hearing", unit=" batches", leave=False, disable=len(groups) < 3)
        with closing(ahead(bar, self.prepare)) as ready:
            for group, made in ready:
                for one, rows in zip(group, self._heard(group, made), strict=True):
                    self.memory.put(one, rows)
                    if one in asked:
                        yield one, rows

    def _heard(self, group: list[int], made) -> list[np.ndarray]:
        """What is said in each window of a group: (row, Σ width) as it is stored."""
        said, kinds = self.hear(group, made) if self.prepare else self.hear(group)
        keep = np.ones_like(kinds, dtype=bool) if self.padded else kinds > 0
        for one, count in zip(group, keep.sum(axis=1), strict=True):
            if count != self.in_window[one]:
                raise ValueError(f"window {one}: {count} frames were heard where {self.in_window[one]} were foretold")
        rows = torch.from_numpy(np.flatnonzero(keep))
        parts = []
        for site in self.sites:
            chosen = said[site].flatten(0, 1).index_select(0, rows.to(said[site].device))
            parts.append(narrowed(chosen, self.dtype, f"{site}: activations of windows {group[0]}-{group[-1]}"))
        every, ends = np.concatenate(parts, axis=1), np.cumsum(keep.sum(axis=1))
        return [part.copy() for part in np.split(every, ends[:-1])]


class _Memory(OrderedDict):
    """The windows heard last: at most `rows` rows of them, but at least `windows` windows."""

    def __init__(self, rows: int, windows: int):
        super().__init__()
        self.most, self.least, self.held = rows, windows, 0

    def put(self, window: int, rows: np.ndarray) -> None:
        self[window] = rows
        self.held += len(rows)
        while self.held > self.most and len(self) > self.least:
            self.held -= len(self.popitem(last=False)[1])

    def recall(self, window: int) -> np.ndarray:
        self.move_to_end(window)
        return self[window]
