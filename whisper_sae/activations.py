"""What many clips made a model say, on disk: shards of frames that can be resumed, mapped and shuffled.

    index.json                      sites and widths, dtype, positions in a window
    spans.npy                       (window, 3): shard, first row in it, number of rows
    kinds.npy                       (window, position): padding, silence or speech
    shard-00000/sites.json          the same sites and widths, in the order of the model
    shard-00000/kinds.npy           the same kinds, of its own windows
    shard-00000/encoder.1.resid.npy (row, width)

A row is one frame of one window, in order. Frames of padding (kind 0) are never written, so nothing that reads
this folder can meet one. A shard appears under its name only when it is whole: what a killed run left is kept,
and the next run goes on from there and writes the same bytes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch


def write(
    folder: Path,
    windows: int,
    hear: Callable[[range], tuple[dict[str, torch.Tensor], np.ndarray]],
    *,
    shard: int,
    batch: int,
    dtype: str = "float16",
    progress: Callable = iter,
) -> dict:
    """Write what `hear` says of every window, shard by shard, and return facts.

    `hear(range)` returns {site: (window, position, width)} and the kinds of these frames, (window, position) uint8.
    `progress` wraps the iteration over batches. Raises ValueError for values that are not finite, or too large
    for `dtype`.
    """
    folder = Path(folder)
    batches = [
        [range(first, min(first + batch, last)) for first in range(start, last, batch)]
        for start in range(0, windows, shard)
        for last in [min(start + shard, windows)]
    ]
    done = [_shard(folder, number).exists() for number in range(len(batches))]
    todo = iter(progress([b for group, there in zip(batches, done, strict=True) if not there for b in group]))
    for number, group in enumerate(batches):
        if not done[number]:
            _write_shard(folder, number, islice(todo, len(group)), hear, dtype)
    for _ in todo:
        raise AssertionError("progress must yield what it is given")
    return _write_index(folder, len(batches), dtype)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}"


def _write_shard(folder: Path, number: int, group: Iterator[range], hear: Callable, dtype: str) -> None:
    part = folder / f".shard-{number:05d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rows: dict[str, list[np.ndarray]] = {}
    kinds = []
    for windows in group:
        said, kind = hear(windows)
        valid = torch.from_numpy(kind > 0)
        for site, hidden in said.items():
            rows.setdefault(site, []).append(_narrowed(site, windows, hidden[valid.to(hidden.device)], dtype))
        kinds.append(kind)
    for site, parts in rows.items():
        np.save(part / f"{site}.npy", np.concatenate(parts))
    np.save(part / "kinds.npy", np.concatenate(kinds))
    widths = {site: parts[0].shape[1] for site, parts in rows.items()}
    (part / "sites.json").write_text(json.dumps(widths), encoding="utf-8")
    os.rename(part, _shard(folder, number))


def _narrowed(site: str, windows: range, hidden: torch.Tensor, dtype: str) -> np.ndarray:
    narrow = hidden.to("cpu", getattr(torch, dtype))
    if not torch.isfinite(narrow).all():
        why = "NaN or infinite" if not torch.isfinite(hidden).all() else f"too large for {dtype}: use float32"
        raise ValueError(f"{site}: activations of windows {windows[0]}-{windows[-1]} are {why}")
    return narrow.numpy()


def _write_index(folder: Path, shards: int, dtype: str) -> dict:
    spans, kinds, widths = [], [], {}
    for number in range(shards):
        path = _shard(folder, number)
        kind = np.load(path / "kinds.npy")
        rows = (kind > 0).sum(axis=1)
        spans.append(np.stack([np.full(len(rows), number), np.cumsum(rows) - rows, rows], axis=1))
        kinds.append(kind)
        widths = json.loads((path / "sites.json").read_text(encoding="utf-8"))
    kinds = np.concatenate(kinds)
    np.save(folder / "spans.npy", np.concatenate(spans).astype(np.int64))
    np.save(folder / "kinds.npy", kinds)
    counts = np.bincount(kinds.ravel(), minlength=3)
    index = {"sites": widths, "dtype": dtype, "positions": int(kinds.shape[1]), "shards": shards}
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return {
        **index,
        "windows": len(kinds),
        "frames": int(counts[1:].sum()),
        **{f"frames_{name}": int(n) for name, n in zip(("padding", "silence", "speech"), counts, strict=True)},
    }


class Activations:
    """A folder that `write` has made, memory-mapped.

    `sites` maps names to widths; `spans` is (window, 3), `kinds` (window, position).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self.sites: dict[str, int] = index["sites"]
        self.spans = np.load(self.folder / "spans.npy")
        self.kinds = np.load(self.folder / "kinds.npy")
        self._maps: dict[tuple[str, int], np.ndarray] = {}

    def window(self, site: str, window: int) -> np.ndarray:
        """What a site said in one window, without its padding: (frame, width)."""
        shard, first, rows = self.spans[window]
        return self._map(site, shard)[first : first + rows]

    def rows(self, site: str, windows: np.ndarray | None = None) -> "Rows":
        """All frames of a site in the given windows (numbers or a mask; default all), in order."""
        chosen = np.arange(len(self.spans)) if windows is None else np.asarray(windows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if not len(chosen):
            raise ValueError(f"{site}: no windows were chosen")
        return Rows(self, site, chosen)

    def valid_kinds(self, windows: np.ndarray | None = None) -> np.ndarray:
        """The kind of each row that `rows` gives for the same windows: (row,)."""
        kinds = self.kinds if windows is None else self.kinds[windows]
        return kinds[kinds > 0]

    def _map(self, site: str, shard: int) -> np.ndarray:
        if site not in self.sites:
            raise KeyError(f"site {site!r} was not recorded; recorded: {', '.join(self.sites)}")
        if (site, int(shard)) not in self._maps:
            path = _shard(self.folder, int(shard)) / f"{site}.npy"
            self._maps[site, int(shard)] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._maps[site, int(shard)]


class Rows:
    """Frames of one site that can be counted, sampled, walked through and shuffled; never all in memory at once."""

    def __init__(self, activations: Activations, site: str, windows: np.ndarray):
        self.activations, self.site, self.windows = activations, site, windows
        self.width = activations.sites.get(site, 0)
        self.ends = np.cumsum(activations.spans[windows, 2])
        activations._map(site, activations.spans[windows[0], 0])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, which: np.ndarray) -> torch.Tensor:
        """The rows of these numbers, in this order: (row, width) float32."""
        order = np.argsort(which, kind="stable")
        ranked = which[order]
        place = np.searchsorted(self.ends, ranked, side="right")  # which of the windows
        shard, first, count = self.activations.spans[self.windows[place]].T
        inside = first + ranked - (self.ends[place] - count)
        found = np.empty((len(which), self.width), dtype=np.float32)
        for number in np.unique(shard):
            here = shard == number
            found[order[here]] = self.activations._map(self.site, number)[inside[here]]
        return torch.from_numpy(found)

    def per_window(self, values: np.ndarray) -> np.ndarray:
        """One value a window, repeated for each of its rows: (window,) -> (row,)."""
        return np.repeat(values, self.activations.spans[self.windows, 2])

    def sample(self, most: int, seed: int) -> torch.Tensor:
        """At most `most` rows, drawn without replacement: (row, width) float32."""
        rng = np.random.default_rng(seed)
        return self.take(rng.choice(len(self), size=min(most, len(self)), replace=False))

    def chunks(self, size: int = 16_384) -> Iterator[torch.Tensor]:
        """All rows once, in order, in pieces of at most `size`: (row, width) float32."""
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))))

    def batches(self, size: int, steps: int, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
        """Batches `start` to `steps` of an endless shuffled reading: (size, width) float32.

        Each pass over the rows is a permutation of its own, drawn from (seed, pass): batch s is the same whether the
        reading began at 0 or at s, which is what makes an interrupted training equal an uninterrupted one.
        """
        order, drawn = None, -1
        for step in range(start, steps):
            where = np.arange(step * size, (step + 1) * size)
            parts = []
            for turn in np.unique(where // len(self)):
                if turn != drawn:
                    order, drawn = np.random.default_rng([seed, int(turn)]).permutation(len(self)), turn
                parts.append(order[where[where // len(self) == turn] % len(self)])
            yield self.take(np.concatenate(parts))
