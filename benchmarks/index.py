"""The feature index: built against a tracker of the loudest, asked against a scan of all clips; its memory and size.

    python benchmarks/index.py [building asking memory profile] [--rounds 5] [--frames 10000000] [--profile demo]

Two rivals, in our own words and code, from what is known of how they work. *A tracker* keeps for every feature a heap
of its 20 strongest activations: for each frame of a clip, for each latent that is not zero, a record is made and pushed
if it is stronger than the weakest there. *A scan* keeps what each frame says, k values and k latents, in one file, and
for each question goes through all clips, takes each one's strongest value of the feature, and sorts. Codes are made up:
each frame says k latents, each for six frames on average, few of them often (latents of speech do likewise: see what
the index of a profile's own dictionary has). Neither the model nor the encoder is counted, on either side.
"""

import argparse
import heapq
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from whisper_sae.activations import store
from whisper_sae.experiments import feature_index
from whisper_sae.features import index, index_builder
from whisper_sae.sae import architectures

FEATURES = 3072
ALWAYS, EQUAL = FEATURES, FEATURES + 1
"""Two more features that fire on every frame, one of them always at 1."""


def spoken(first: int, last: int, k: int, more: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, features and values of made-up codes."""
    rng, rows, group = np.random.default_rng([first, k]), last - first, FEATURES // k
    new = rng.random((rows, k), dtype=np.float32) < 1 / 6
    drawn = (group * rng.random((rows, k), dtype=np.float32) ** 3).astype(np.int32)
    since = np.maximum.accumulate(np.where(new, np.arange(rows)[:, None], 0), axis=0)
    feature = np.take_along_axis(drawn, since, axis=0) + np.arange(k, dtype=np.int32) * group
    value = rng.standard_exponential((rows, k), dtype=np.float32) + np.float32(0.1)
    if more:
        feature = np.concatenate([feature, np.full((rows, 2), [ALWAYS, EQUAL], np.int32)], axis=1)
        always = rng.standard_exponential((rows, 1), dtype=np.float32) + np.float32(0.1)
        value = np.concatenate([value, always, np.ones_like(always)], axis=1)
    return np.repeat(np.arange(rows), feature.shape[1]), feature.ravel(), value.ravel()


# ----------------------------------------------------------------------------------------------------- building


@dataclass
class Record:
    """One activation, as a tracker keeps it."""

    feature: int
    value: float
    clip: int
    frame: int
    seconds: float
    text: str = ""


class Tracker:
    """The 20 strongest activations of each feature. `plainly` takes numbers out of the tensor one by one, as is usual;
    otherwise all of a frame's at once."""

    def __init__(self, plainly: bool, k: int = 20):
        self.plainly, self.k, self.heaps, self.turn = plainly, k, {}, 0

    def add(self, codes: torch.Tensor, clip: int) -> None:
        """Take the codes of a clip, (frame, feature)."""
        for frame in range(len(codes)):
            said = codes[frame]
            on = torch.nonzero(said).flatten()
            pairs = ((int(f), float(said[f])) for f in on)
            if not self.plainly:
                pairs = zip(on.tolist(), said[on].tolist(), strict=True)
            for feature, value in pairs:
                record = Record(feature, value, clip, frame, 0.02 * frame)
                self.turn += 1  # two records cannot be compared
                heap = self.heaps.setdefault(feature, [])
                if len(heap) < self.k:
                    heapq.heappush(heap, (value, self.turn, record))
                elif value > heap[0][0]:
                    heapq.heapreplace(heap, (value, self.turn, record))


def building(rounds: int, clips: int = 120, k: int = 32, frames: int = 1500) -> None:
    """Seconds of processor time a clip of 30 s, of every way, in turn; ratios are taken within a round."""
    made = {first: spoken(first, first + 2 * frames, k) for first in range(0, clips * frames, 2 * frames)}
    row, feature, value = made[0]
    dense = torch.zeros(2 * frames, FEATURES)
    dense[row, feature] = torch.from_numpy(value)

    def ours(say) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return worked(lambda: index_builder.build(folder, np.full(clips, frames), say, FEATURES)) / clips

    def track(plainly: bool) -> float:
        tracker = Tracker(plainly)
        return worked(lambda: [tracker.add(codes, clip) for clip, codes in enumerate(dense.split(frames))]) / 2

    ways = {
        "tracker": lambda: track(True),
        "quicker tracker: a frame's numbers at once": lambda: track(False),
        "ours, from dense codes": lambda: ours(lambda _first, _last: dense),
        "ours": lambda: ours(lambda first, _last: made[first]),
    }
    ways["ours"](), ways["ours, from dense codes"]()  # compiles
    spent = {name: [] for name in ways}
    for _round in range(rounds):
        for name, way in ways.items():
            spent[name].append(way())
    print(f"Building: {k} latents a frame, clips of {frames} frames, {rounds} rounds.\n")
    print("| way | ms of processor time a clip | tracker ÷ this: median (least – most) | quicker tracker ÷ this |")
    print("|---|--:|--:|--:|")
    for name, found in spent.items():
        ratios = [sorted(a / b for a, b in zip(spent[rival], found, strict=True)) for rival in list(ways)[:2]]
        told = [f"{statistics.median(each):,.1f} ({each[0]:,.1f} – {each[-1]:,.1f})" for each in ratios]
        print(f"| {name} | {1000 * statistics.median(found):,.1f} | {told[0]} | {told[1]} |")
    print()


def worked(work) -> float:
    """Seconds of processor time it takes: other programs on the machine change it little."""
    started = time.process_time()
    work()
    return time.process_time() - started


def taken(work) -> float:
    """Seconds it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ------------------------------------------------------------------------------------------------------- asking


def asking(frames: int, folder: Path, k: int = 8, length: int = 250) -> None:
    """How long questions take in an index of so many frames, and in a scan of the same codes."""
    counts = np.full(frames // length, length)
    bar = lambda chunks: tqdm(chunks, desc="building", unit=" chunks")  # noqa: E731
    say = lambda first, last: spoken(first, last, k, more=True)  # noqa: E731
    spent = taken(lambda: index_builder.build(folder, counts, say, FEATURES + 2, progress=bar))
    found = index.Index(folder)
    print(
        f"Asking: {found.rows:,} frames in {len(counts):,} clips of {length} frames, {k} latents a frame and two that "
        f"always fire;\n{found.firings[-1]:,} firings, built in {spent:.0f} s, drawing the codes included.\n"
        f"{sizes(folder)}\n"
    )
    scan(folder, counts, k)
    latents = np.memmap(folder / "scan.latents", np.int32, "r").reshape(-1, k)
    values = np.memmap(folder / "scan.values", np.float32, "r").reshape(-1, k)
    order = np.argsort(found.rates[:FEATURES])
    chosen = {
        "a rare feature": order[FEATURES // 10], "the median feature": order[FEATURES // 2],
        "the most frequent": order[-1], "one that always fires": ALWAYS, "always, and equal": EQUAL,
    }  # fmt: skip
    print("| question | of | its firings | ms, first time | ms, again | scan, ms | scan ÷ ours, again |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, feature in chosen.items():
        theirs = taken(lambda f=feature: scanned(latents, values, length, f)) if feature < FEATURES else None
        for what, ask in {
            "top 20 frames": lambda it, f=feature: it.top(f, 20),
            "peak of every clip": lambda it, f=feature: it.peaks(f),
            "values from 1 to 2": lambda it, f=feature: it.between(f, 1, 2),
        }.items():
            first, again = asked_of(folder, ask)
            rival = f"{1000 * theirs:,.0f} | {theirs / again:,.0f}" if theirs and "clip" in what else " | "
            print(f"| {what} | {name} | {found.count(feature):,} | {1000 * first:.1f} | {1000 * again:.1f} | {rival} |")
    first, again = asked_of(folder, lambda it: it.of_piece(len(counts) // 2))
    print(f"| features of a clip | all | | {1000 * first:.1f} | {1000 * again:.1f} | | |\n")


def asked_of(folder: Path, ask) -> tuple[float, float]:
    """Seconds an answer takes when nothing of the index is in memory, and the median of seven more."""
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found = index.Index(folder)
    first = taken(lambda: ask(found))
    return first, statistics.median(taken(lambda: ask(found)) for _ in range(7))


def sizes(folder: Path) -> str:
    """What an index takes on disk, in bytes a non-zero."""
    told = json.loads((folder / "index.json").read_text())
    size = {path.name: path.stat().st_size for path in folder.glob("*.npy")}
    firings = size["position.npy"] + size["value.npy"]
    by_feature = sum(n for name, n in size.items() if name.startswith("passage"))
    by_piece = sum(n for name, n in size.items() if name.startswith("by_piece"))
    each = lambda n: f"{n / told['firings']:.2f}"  # noqa: E731
    total, often = sum(size.values()), told["firings"] / told["passages"]
    return (
        f"Bytes a non-zero: {each(firings)} for firings, {each(by_feature)} for peaks by feature, {each(by_piece)} for "
        f"peaks by clip,\n{each(total - firings - by_feature - by_piece)} for the rest: {each(total)} in all. "
        f"A feature fires {often:.1f} times in a clip in which it fires."
    )


def scan(folder: Path, counts: np.ndarray, k: int) -> None:
    """Write what a scan reads: the k latents and values of each frame."""
    with open(folder / "scan.latents", "wb") as latents, open(folder / "scan.values", "wb") as values:
        for first in tqdm(range(0, counts.sum(), 4000), desc="writing what a scan reads", unit=" parts"):
            _, feature, value = spoken(first, min(first + 4000, counts.sum()), k)
            feature.tofile(latents)
            value.tofile(values)


def scanned(latents: np.ndarray, values: np.ndarray, length: int, feature: int, n: int = 20) -> list[tuple[float, int]]:
    """The n clips in which a feature is strongest, after a look at each clip."""
    best = []
    for first in range(0, len(latents), length):
        here = latents[first : first + length] == feature
        if here.any():
            best.append((float(values[first : first + length][here].max()), first))
    return sorted(best, reverse=True)[:n]


# ------------------------------------------------------------------------------------------------------- memory


def memory(frames: int) -> None:
    """Peak memory of a build over 1, 2 and 4 times the frames, each in a process of its own."""
    for what in ("codes", "store"):
        found = []
        for times in (1, 2, 4):
            command = [sys.executable, __file__, "--memory", what, str(times * frames // (1 if what == "codes" else 2))]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found.append(json.loads(done.stdout))
        print(
            {"codes": "Memory of a build, codes made up:", "store": "The same from a store, encoded by a dictionary:"}[
                what
            ]
        )
        for row in found:
            print(
                f"- {row['frames']:,} frames, {row['firings']:,} firings, {row['store MB']} MB of store, "
                f"{row['index MB']} MB of index: peak {row['peak MB']} MB, {row['mapped MB']} MB of files mapped"
            )
        print()


def one_memory(what: str, frames: int, length: int = 250, width: int = 64, k: int = 8) -> dict:
    """Build one index here and say what it took."""
    with tempfile.TemporaryDirectory() as folder:
        place, counts, say, features = Path(folder), np.full(frames // length, length), None, FEATURES
        if what == "codes":
            say = lambda first, last: spoken(first, last, k)  # noqa: E731
        else:
            written(place / "store", len(counts), length, width)
            features, coder = 8 * width, feature_index.Calls(architectures.create("topk", width, 8 * width, k).eval())

            @torch.no_grad()
            def say(first, last):
                return coder(store.Activations(place / "store").rows("site").take(np.arange(first, last)))

        (place / "index").mkdir()
        facts = index_builder.build(place / "index", counts, say, features)
        told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        peak, mapped = (int(told[name].split()[0]) >> 10 for name in ("VmHWM", "RssFile"))
        size = {name: sum(p.stat().st_size for p in (place / name).rglob("*.npy")) for name in ("store", "index")}
    return {"frames": facts["rows"], "firings": facts["firings"], "peak MB": peak, "mapped MB": mapped,
            "store MB": size["store"] >> 20, "index MB": size["index"] >> 20}  # fmt: skip


def written(folder: Path, clips: int, length: int, width: int) -> None:
    """A store of made-up activations, 64 clips a shard."""
    folder.mkdir()

    def hear(numbers):
        rng = torch.Generator().manual_seed(numbers[0])
        x = torch.randn(len(numbers), length, width, generator=rng)
        return {"site": x}, np.full((len(numbers), length), 2, np.uint8)

    store.write(folder, clips, hear, shard=64, batch=16)


# --------------------------------------------------------------------------------------------------- a profile


def of_a_profile(name: str) -> None:
    """The index of a profile's own dictionary: how large it is, and how long it took with and without the encoder."""
    from whisper_sae import cache, profiles
    from whisper_sae.experiments import pipeline, sae_comparison

    run = profiles.choose(name)
    with tempfile.TemporaryDirectory() as data:
        os.environ.setdefault("WHISPER_SAE_DATA", data)
        cache.make(pipeline.clips(run, 0))
        cache.make(pipeline.activations(run, 0))
        cache.make(sae_comparison.dictionary(run, 0, run.focus))
        made = cache.make(feature_index.codes(run, 0, run.focus))
        facts, label = made.facts, f"{run.name}, {run.focus}, {sae_comparison.asks(run)}"
        print(
            f"{label}: {facts['rows']:,} frames in {facts['pieces']:,} clips, {facts['firings'] / facts['rows']:.1f} "
            f"firings a frame; made in {made.manifest['seconds']:.1f} s, the encoder included.\n{sizes(made.path)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["building", "asking", "memory", "profile"], help="all, if none")
    parser.add_argument("--rounds", type=int, default=5, help="of building")
    parser.add_argument("--frames", type=int, default=10_000_000, help="in the index that is asked")
    parser.add_argument("--profile", default="demo", help="whose own dictionary is indexed")
    parser.add_argument("--folder", help="where to work; 2 GB are needed for ten million frames")
    parser.add_argument("--memory", nargs=2, metavar=("WHAT", "FRAMES"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory:
        print(json.dumps(one_memory(asked.memory[0], int(asked.memory[1]))))
        return
    tempfile.tempdir = asked.folder
    if "building" in asked.parts:
        building(asked.rounds)
    if "asking" in asked.parts:
        with tempfile.TemporaryDirectory() as folder:
            asking(asked.frames, Path(folder))
    if "memory" in asked.parts:
        memory(asked.frames // 10)
    if "profile" in asked.parts:
        of_a_profile(asked.profile)


if __name__ == "__main__":
    main()
