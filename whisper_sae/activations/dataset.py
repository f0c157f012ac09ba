"""Frames that can be counted, sampled, walked through and shuffled, wherever they come from; never all at once.

A `Source` knows how many rows each of its windows has, and gives those that are asked for: `activations` reads them
from a store, `live` has them said again. `Rows` decides which are asked for and when, from seeds alone, so that it is
the same whichever source they come from.
"""

from collections.abc import Iterator

import numpy as np
import torch


class Source:
    """Where frames come from: `sites`, {name: width}, and `counts`, the number of rows of each window, (window,)."""

    sites: dict[str, int]
    counts: np.ndarray

    def fill(self, into: np.ndarray, at: np.ndarray, sites: list[str], window: np.ndarray, inside: np.ndarray):
        """Write row `inside[i]` of `window[i]`, the sites side by side, to `into[at[i]]`, (row, Σ width) float32."""
        raise NotImplementedError

    def rows(
        self,
        site: str | tuple[str, ...],
        windows: np.ndarray | None = None,
        *,
        together: np.ndarray | None = None,
        buffer: int = 0,
    ) -> "Rows":
        """All frames of a site, or of several side by side, in the given windows (numbers or a mask; default all).

        `together`, (window,) over all windows, numbers what was heard in one go, as packed clips are. With a `buffer`
        `Rows` asks for whole windows. KeyError for a site that is not there, ValueError for no windows.
        """
        chosen = np.arange(len(self.counts)) if windows is None else np.asarray(windows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if not len(chosen):
            raise ValueError(f"{site if isinstance(site, str) else ', '.join(site)}: no windows were chosen")
        return Rows(self, site, chosen, None if together is None else np.asarray(together)[chosen], buffer)

    def width(self, site: str) -> int:
        """The width of a site, or of what undoes the layer norm of one, `<site>.moments`."""
        if site.removesuffix(".moments") not in self.sites:
            raise KeyError(f"site {site!r} was not recorded; recorded: {', '.join(self.sites)}")
        return 2 if site.endswith(".moments") else self.sites[site]


class Rows:
    """Frames of one site, or of several side by side, in some windows of a source.

    `buffer` is how many rows may be held to be shuffled; 0 is all of them.
    """

    def __init__(self, source: Source, site, windows: np.ndarray, together: np.ndarray | None = None, buffer: int = 0):
        self.source, self.site, self.windows, self.buffer = source, site, windows, buffer
        self.widths = {one: source.width(one) for one in ([site] if isinstance(site, str) else site)}
        self.width = sum(self.widths.values())
        self.counts = source.counts[windows]
        self.ends = np.cumsum(self.counts)
        alone = np.arange(len(windows))
        self.group = alone if together is None else np.unique(together, return_inverse=True)[1]  # (window,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, which: np.ndarray) -> torch.Tensor:
        """The rows of these numbers, in this order: (row, width) float32."""
        order = np.argsort(which, kind="stable")
        ranked = which[order]
        place = np.searchsorted(self.ends, ranked, side="right")  # which of the windows
        inside = ranked - (self.ends[place] - self.counts[place])
        found = np.empty((len(which), self.width), dtype=np.float32)
        self.source.fill(found, order, list(self.widths), self.windows[place], inside)
        return torch.from_numpy(found)

    def apart(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows of several sites side by side, (row, width), as {site: (row, its width)}."""
        parts = x.split(list(self.widths.values()), dim=1)
        return {site: part.contiguous() for site, part in zip(self.widths, parts, strict=True)}

    def per_window(self, values: np.ndarray) -> np.ndarray:
        """One value a window, repeated for each of its rows: (window,) -> (row,)."""
        return np.repeat(values, self.counts)

    def sample(self, most: int, seed: int) -> torch.Tensor:
        """At most `most` rows, drawn without replacement: (row, width) float32.

        With a buffer they are drawn from windows that were drawn before, as many as fill it, or make `most` rows.
        """
        rng = np.random.default_rng(seed)
        if not self.buffer:
            return self.take(rng.choice(len(self), size=min(most, len(self)), replace=False))
        size = np.bincount(self.group, self.counts)
        order = rng.permutation(len(size))
        enough = np.searchsorted(np.cumsum(size[order]), max(most, self.buffer)) + 1
        among = self._of(order[:enough])
        return self.take(rng.choice(among, size=min(most, len(among)), replace=False))

    def chunks(self, size: int = 16_384) -> Iterator[torch.Tensor]:
        """All rows once, in order, in pieces of at most `size`: (row, width) float32."""
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))))

    def batches(
        self, size: int, steps: int, seed: int, start: int = 0, buffer: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Batches `start` to `steps` of an endless shuffled reading: (size, width) float32.

        Each pass over the rows is a permutation of its own, drawn from (seed, pass): batch s is the same whether the
        reading began at 0 or at s, which is what makes an interrupted training equal an uninterrupted one.

        With a buffer (by default that of these rows) the windows are permuted, and rows only within so many rows of
        consecutive ones, and no window is read more than once a pass. So many rows of float32 are held.
        """
        if buffer or (buffer is None and self.buffer):
            yield from self._buffered(size, steps, seed, start, buffer or self.buffer)
            return
        order, drawn = None, -1
        for step in range(start, steps):
            where = np.arange(step * size, (step + 1) * size)
            parts = []
            for turn in np.unique(where // len(self)):
                if turn != drawn:
                    order, drawn = np.random.default_rng([seed, int(turn)]).permutation(len(self)), turn
                parts.append(order[where[where // len(self) == turn] % len(self)])
            yield self.take(np.concatenate(parts))

    def _buffered(self, size: int, steps: int, seed: int, start: int, buffer: int) -> Iterator[torch.Tensor]:
        count = np.bincount(self.group, self.counts).astype(np.int64)
        place, drawn, filled, held = start * size, -1, (-1, -1), None
        for _step in range(start, steps):
            parts, missing = [], size
            while missing:
                turn, offset = divmod(place, len(self))
                if turn != drawn:
                    order, drawn = np.random.default_rng([seed, turn]).permutation(len(count)), turn
                    ends = np.cumsum(count[order])
                    pool_of = (ends - 1) // buffer  # of each group, in this turn's order
                pool = pool_of[np.searchsorted(ends, offset, side="right")]
                inside = np.flatnonzero(pool_of == pool)
                first = ends[inside[0]] - count[order[inside[0]]]
                if filled != (turn, pool):
                    held = None  # before the next one is filled
                    held, filled = self._pool(order[inside], [seed, turn, int(pool)]), (turn, pool)
                parts.append(held[offset - first : offset - first + missing].clone())
                place, missing = place + len(parts[-1]), missing - len(parts[-1])
            yield torch.cat(parts)

    def _pool(self, groups: np.ndarray, seed: list[int]) -> torch.Tensor:
        """All rows of some groups of windows, in an order of chance."""
        return self.take(np.random.default_rng(seed).permutation(self._of(groups)))

    def _of(self, groups: np.ndarray) -> np.ndarray:
        """The numbers of all rows of some groups of windows, in order."""
        windows = np.flatnonzero(np.isin(self.group, groups))
        return np.concatenate([np.arange(self.ends[w] - self.counts[w], self.ends[w]) for w in windows])
