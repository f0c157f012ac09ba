"""What many clips made a model say, on disk: shards of frames that can be resumed, mapped and shuffled.

    index.json                      sites and widths, dtype, positions in a window
    spans.npy                       (piece, 3): shard, first row in it, number of rows
    kinds.npy                       (piece, position): padding, silence or speech
    shard-00000/sites.json          the same sites and widths, in the order of the model, and the bytes of each file
    shard-00000/kinds.npy           (window, position), of its own windows
    shard-00000/encoder.1.resid.npy (row, width)

A row is one frame of one window, in order. Frames of padding (kind 0) are never written, so nothing that reads
this folder can meet one. A piece is what a window holds of one clip: all of it, unless clips were packed. A shard
appears under its name only when it is whole: what a killed run left is kept, and the next run goes on from there
and writes the same bytes, in this process or in several (`cluster`). `shards` does the writing, while the model hears
what comes next.
"""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from whisper_sae.activations.dataset import Rows, Source
from whisper_sae.activations.dtypes import itemsize, narrowed, widened
from whisper_sae.shards import GrowingArray, Writer, ahead, facts, finished, link_file, parts, place, write_facts

__all__ = ["Activations", "NoRoom", "Rows", "link", "require_room", "size_of", "valid", "write", "write_index"]


class NoRoom(ValueError):
    """What is to be written is larger than what is free; one line, with the way out."""


def size_of(widths: dict[str, int], frames: int, pieces: int, positions: int, dtype: str) -> int:
    """Bytes that a store of so many frames takes."""
    moments = sum(8 for site in widths if site.endswith(".normed"))
    kinds = 2 * pieces * positions
    return frames * (sum(widths.values()) * itemsize(dtype) + moments) + kinds


def require_room(folder: Path, needed: int) -> None:
    """Raise NoRoom unless `needed` bytes fit, those counted that an interrupted run left in the folder."""
    there = sum(path.stat().st_size for path in Path(folder).rglob("*.npy"))
    free = shutil.disk_usage(folder).free
    if needed > free + there:
        raise NoRoom(
            f"activations: {needed / 1e9:.3g} GB are to be written and {(free + there) / 1e9:.3g} GB are free in "
            f"{folder}; record fewer sites or clips, store float16 or bfloat16, or point WHISPER_SAE_DATA elsewhere"
        )


def write(
    folder: Path,
    windows: int,
    begin: Callable[[], tuple[Callable, Callable]],
    *,
    shard: int,
    batch: int,
    dtype: str = "float16",
    progress: Callable = lambda items, **_how: items,
    pieces: np.ndarray | None = None,
    each: Callable[..., Iterator[tuple]] | None = None,
) -> dict:
    """Write what a model says of every window, shard by shard, and return facts.

    `begin()` gives `hear` and `prepare`: `hear(range, prepare(range))` returns {site: (window, position, width)} and
    the kinds of these frames, (window, position) uint8; threads prepare what comes next. What is said under
    `<site>.moments` is kept in float32. `hear` may return a third value, {name: (row, width)}: arrays that shards keep
    as they are. `pieces`, (piece, 3), has the window, the first position and the number of positions of each clip's
    part, in order; without it every window is one.

    `begin` is called here, once, if anything is left to do. With `each`, which is `cluster.each`, it is called where
    shards are written. `progress(items, unit=)` wraps the iteration over batches, or with `total=` that over shards
    which others write. Raises ValueError for values that are not finite, or too large for `dtype`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-windows // shard)
    todo = [number for number in range(shards) if not finished(folder, number)]
    work = functools.partial(_work, begin, folder, functools.partial(_batches, windows, shard, batch), dtype)
    shutil.rmtree(parts(folder), ignore_errors=True)  # of those who were killed
    heard_on = set()
    if todo and each is None:
        heard_on = work()(todo, progress)
    elif todo:
        found = each(work, [[number] for number in todo], made=lambda one: place(folder, *one))
        heard_on = set().union(*(devices for _, devices in progress(found, total=len(todo), unit=" shards")))
    shutil.rmtree(parts(folder), ignore_errors=True)
    return write_index(folder, shards, dtype, pieces) | ({"device": ", ".join(sorted(heard_on))} if heard_on else {})


def _batches(windows: int, shard: int, batch: int, number: int) -> list[range]:
    """The windows of one shard, as they are heard."""
    last = min(windows, (number + 1) * shard)
    return [range(first, min(first + batch, last)) for first in range(number * shard, last, batch)]


def _work(begin: Callable, folder: Path, batches: Callable[[int], list[range]], dtype: str) -> Callable:
    """A function that writes shards, one after the other, and says on which devices they were heard."""
    hear, prepare = begin()

    def write_shards(numbers: list[int], progress: Callable = lambda items, **_how: items) -> set[str]:
        shards = [(number, batches(number)) for number in numbers if not place(folder, number).exists()]
        todo = [(number, asked, asked is shard[-1]) for number, shard in shards for asked in shard]
        seen, devices = 0, set()
        wanted = progress([asked for _, asked, _ in todo], unit=" batches")
        with Writer(folder) as writer, closing(ahead(wanted, prepare)) as batches_ready:
            for windows, ready in batches_ready:
                number, asked, last = todo[seen]
                if windows is not asked:
                    raise AssertionError("progress must yield what it is given")
                seen += 1
                said, kinds, *more = hear(windows, ready)
                devices |= {str(hidden.device) for hidden in said.values()}
                rows = valid(said, kinds, windows, dtype)
                writer.put(number, rows | dict(*more), kinds, last)
        if seen < len(todo):
            raise AssertionError("progress must yield what it is given")
        return devices

    return write_shards


def valid(said: dict[str, torch.Tensor], kinds: np.ndarray, windows: range, dtype: str) -> dict[str, np.ndarray]:
    """The frames that are no padding, as they are stored: {site: (row, width)}. Chosen where they were heard."""
    rows, found = torch.from_numpy(np.flatnonzero(kinds)), {}
    for site, hidden in said.items():
        chosen = hidden.flatten(0, 1).index_select(0, rows.to(hidden.device))
        what = f"{site}: activations of windows {windows[0]}-{windows[-1]}"
        found[site] = narrowed(chosen, "float32" if site.endswith(".moments") else dtype, what)
    return found


def write_index(folder: Path, shards: int, dtype: str, pieces: np.ndarray | None = None) -> dict:
    """Write what tells where the rows of a folder's shards are, and return facts; `pieces` as in `write`."""
    spans, widths, heard, counts = [], {}, 0, np.zeros(3, dtype=np.int64)
    with GrowingArray(folder / "kinds.npy") as every:
        for number in range(shards):
            kind = np.load(place(folder, number) / "kinds.npy")
            windows, positions = kind.shape
            counts += np.bincount(kind.ravel(), minlength=3)
            mine = np.stack([np.arange(windows), np.zeros(windows, int), np.full(windows, positions)], axis=1)
            if pieces is not None:
                mine = pieces[(pieces[:, 0] >= heard) & (pieces[:, 0] < heard + windows)] - [heard, 0, 0]
            before = np.concatenate([[0], np.cumsum(kind.ravel() > 0)])  # rows before a position
            window, first, count = mine.T
            start, stop = window * positions + first, window * positions + first + count
            spans.append(np.stack([np.full(len(mine), number), before[start], before[stop] - before[start]], axis=1))
            part = np.zeros((len(mine), positions), dtype=np.uint8)
            for row, (w, f, n) in zip(part, mine, strict=True):
                row[:n] = kind[w, f : f + n]
            every.append(part)
            heard += windows
            widths = facts(folder, number)["sites"]
    np.save(folder / "spans.npy", np.concatenate(spans).astype(np.int64))
    index = {"sites": widths, "dtype": dtype, "positions": int(positions), "shards": shards}
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return {
        **index,
        "windows": heard,
        "frames": int(counts[1:].sum()),
        **{f"frames_{name}": int(n) for name, n in zip(("padding", "silence", "speech"), counts, strict=True)},
    }


def link(sources: dict[str, Path], folder: Path, names: dict[str, str], number: int) -> None:
    """Make a shard of files that other folders hold in theirs of the same number: file `names[name]` is `name` in
    `sources[name]`, a hard link where the file system has them."""
    target = place(folder, number)
    shutil.rmtree(target, ignore_errors=True)  # of a killed run
    target.mkdir(parents=True)
    widths = {}
    for name, renamed in names.items():
        source = place(sources[name], number) / f"{name}.npy"
        link_file(source, target / f"{renamed}.npy")
        if renamed != "kinds" and not renamed.endswith(".moments"):
            widths[renamed] = facts(sources[name], number)["sites"][name]
    write_facts(target, widths)


class Activations(Source):
    """A folder that `write` has made, memory-mapped.

    `sites` maps names to widths; `spans` is (piece, 3), `kinds` (piece, position). What is called a window here is a
    piece of one clip, as `windows.csv` tells them, whether it was heard alone or packed with others.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self.sites: dict[str, int] = index["sites"]
        self.spans = np.load(self.folder / "spans.npy")
        self.counts = self.spans[:, 2]
        self.kinds = np.load(self.folder / "kinds.npy", mmap_mode="r")
        self._maps: dict[tuple[str, int], np.ndarray] = {}

    def window(self, site: str, window: int) -> np.ndarray:
        """What a site said in one window, without its padding: (frame, width); bfloat16 as float32."""
        shard, first, count = self.spans[window]
        return widened(self._map(site, shard)[first : first + count])

    def moments(self, site: str, window: int) -> np.ndarray:
        """What undoes the final layer norm of a `normed` site: the mean and deviation of each frame, (frame, 2)."""
        return self.window(f"{site}.moments", window)

    def valid_kinds(self, windows: np.ndarray | None = None) -> np.ndarray:
        """The kind of each row that `rows` gives for the same windows: (row,)."""
        kinds = self.kinds if windows is None else self.kinds[windows]
        return kinds[kinds > 0]

    def fill(self, into: np.ndarray, at: np.ndarray, sites: list[str], window: np.ndarray, inside: np.ndarray):
        shard, first, _ = self.spans[window].T
        for number in np.unique(shard):
            here, column = shard == number, 0
            for one in sites:
                rows = widened(self._map(one, number)[(first + inside)[here]])
                into[at[here], column : column + rows.shape[1]] = rows
                column += rows.shape[1]

    def _map(self, site: str, shard: int) -> np.ndarray:
        self.width(site)
        if (site, int(shard)) not in self._maps:
            path = place(self.folder, int(shard)) / f"{site}.npy"
            self._maps[site, int(shard)] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._maps[site, int(shard)]
