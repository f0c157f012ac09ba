"""Effect sizes with intervals of thousands of features at once, against a loop over scipy's bootstrap.

    OMP_NUM_THREADS=2 python benchmarks/effects.py [--features 6144] [--speakers 250] [--draws 2000] [--loop 4]

The loop is what the documentation of `scipy.stats.bootstrap` suggests: Cohen's d of two samples as a function of axis,
BCa or percentile, a feature at a time. It is timed on `--loop` features. Ratios are taken within a round, of processor
time, which other programs on the machine change little.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from whisper_sae.stats import effects, intervals, permutation


def made_up(speakers: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of speakers that are zero in three of ten, and skewed otherwise; half of the speakers in each group."""
    rng = np.random.default_rng(0)
    x = rng.standard_exponential((speakers, features)) * (rng.random((speakers, features)) < 0.7)
    return x, np.resize(["f", "m"], speakers)


def cohen(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """Cohen's d, as `scipy.stats.bootstrap` wants it."""
    n1, n2 = one.shape[axis], other.shape[axis]
    square = (n1 - 1) * one.var(axis=axis, ddof=1) + (n2 - 1) * other.var(axis=axis, ddof=1)
    return (one.mean(axis=axis) - other.mean(axis=axis)) / np.sqrt(square / (n1 + n2 - 2))


def taken(work) -> tuple[float, float]:
    """Seconds of processor time it takes, and seconds on the clock."""
    worked, started = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - worked, time.perf_counter() - started


def one_run(what: str, speakers: int, features: int, draws: int) -> dict:
    """Do one thing here, and say how long it took and how much memory the process had at most."""
    x, labels = made_up(speakers, features)
    ways = {
        "effects.between": lambda: effects.between(x, labels),
        "intervals.of_d": lambda: intervals.of_d(x, labels, draws=draws),
        "relabelling.relabelled": lambda: permutation.relabelled(x, labels, deals=5 * draws),
    }
    worked, seconds = taken(ways[what])
    told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {"worked": worked, "seconds": seconds, "MB": int(told["VmHWM"].split()[0]) >> 10}


def loop(speakers: int, features: int, draws: int, method: str) -> float:
    """Seconds of processor time that a feature takes in a loop over scipy's bootstrap."""
    x, labels = made_up(speakers, features)
    groups = x[labels == "f"], x[labels == "m"]

    def each():
        for feature in range(features):
            parts = tuple(part[:, feature] for part in groups)
            stats.bootstrap(parts, cohen, n_resamples=draws, method=method, vectorized=True, rng=feature)

    return taken(each)[0] / features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("features", 6144), ("speakers", 250), ("draws", 2000), ("loop", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one_run(asked.one, asked.speakers, asked.features, asked.draws)))
        return
    sizes = [f"--{name}={getattr(asked, name)}" for name in ("features", "speakers", "draws")]
    found, rivals = {}, {}
    for _round in range(asked.rounds):
        for what in ("effects.between", "intervals.of_d", "relabelling.relabelled"):
            done = subprocess.run([sys.executable, __file__, "--one", what, *sizes], stdout=subprocess.PIPE, check=True)
            found.setdefault(what, []).append(json.loads(done.stdout))
        for method in ("BCa", "percentile"):
            rivals.setdefault(method, []).append(loop(asked.speakers, asked.loop, asked.draws, method))
    print(f"{asked.features:,} features × {asked.speakers} speakers × {asked.draws:,} draws, {asked.rounds} rounds:\n")
    print("| way | s of processor time | s on the clock | peak MB | ÷ intervals.of_d: median (least – most) |")
    print("|---|--:|--:|--:|--:|")
    for what, runs in found.items():
        worked, seconds, most = ([run[name] for run in runs] for name in ("worked", "seconds", "MB"))
        deals = f", {5 * asked.draws:,} deals" if "relabelling" in what else ""
        print(
            f"| `{what}`{deals} | {statistics.median(worked):.1f} | {statistics.median(seconds):.1f} | {max(most)} | |"
        )
    ours = [run["worked"] for run in found["intervals.of_d"]]
    for method, runs in rivals.items():
        whole = [each * asked.features for each in runs]
        ratios = sorted(theirs / mine for theirs, mine in zip(whole, ours, strict=True))
        told = f"{statistics.median(ratios):,.0f} ({ratios[0]:,.0f} – {ratios[-1]:,.0f})"
        name = f"a loop over `scipy.stats.bootstrap`, {method}, from {asked.loop} features"
        print(f"| {name} | {statistics.median(whole):,.0f} | | | {told} |")


if __name__ == "__main__":
    main()
