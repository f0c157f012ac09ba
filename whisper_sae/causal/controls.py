"""Is an effect larger than that of other features? Matched controls, tests against them, and a check of their p-values.

A feature that fires often and has large activations changes much when it is ablated. So each target is compared with
controls: other features whose firing rate, and whose rate × size, are within a caliper of the target's on a log scale
(`matched`). `covering` chooses which features to ablate so that many targets share few controls; `balance` reports the
ratios that were achieved. A few controls cannot give a small p by rank alone, so an effect is measured in the standard
deviations of its controls and compared with the leave-one-out deviations of the controls of all tests (`beyond`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from whisper_sae.stats.intervals import LEAST

CALIPER = 0.5
"""How far a control may be from its target in firing rate and in rate × size: |log ratio|, a factor of 1.65."""

MOST_IMBALANCE = 0.3
"""Above this median |log ratio| of targets to their controls, controls are not matched, and no test is made."""

LEAST_SPREAD = 1.0
"""A test's deviation counts as no less than this share of the median one: few controls may be alike by accident, and
then any control that is left out stands out. With 0.25 the number of phones in the demo went from 0 to 20 and back as k
went from 8 to 15; with 1 it stays within a third."""


def distance(rate: np.ndarray, size: np.ndarray, target: int) -> np.ndarray:
    """How far each feature is from the target: the larger |log ratio| of firing rate and of rate × size, (feature,).

    `rate` (feature,) is the share of frames on which a feature fires; `size` (feature,) is what is removed there when
    it is ablated, such as its mean activation times the norm of its decoder direction. Infinite for the target itself
    and for a feature that never fires.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        far = [np.abs(np.log(part / part[target])) for part in (rate, rate * size)]
    far = np.nan_to_num(np.maximum(*far), nan=np.inf, posinf=np.inf)
    far[target] = np.inf
    return far


def matched(
    rate: np.ndarray, size: np.ndarray, target: int, pool: Sequence[int], k: int, caliper: float = CALIPER
) -> np.ndarray:
    """The k features of the pool nearest to the target by `distance`, none beyond the caliper: fewer where there are
    fewer. Their numbers, the nearest first."""
    pool = np.unique(np.asarray(pool, dtype=int))
    far = distance(rate, size, target)[pool]
    order = np.argsort(far, kind="stable")[:k]
    return pool[order[far[order] <= caliper]]


def disjoint(
    rate: np.ndarray, size: np.ndarray, targets: Sequence[int], pool: Sequence[int], k: int, caliper: float = CALIPER
) -> list[np.ndarray]:
    """Controls of targets that are changed together: at most k of each, none of them a target or a control of two.

    In k rounds each target in turn takes the nearest feature of the pool that is still free (`matched`).
    """
    free, chosen = np.setdiff1d(pool, targets), [[] for _ in targets]
    for _ in range(k):
        for target, mine in zip(targets, chosen, strict=True):
            nearest = matched(rate, size, target, free, 1, caliper).tolist()
            free, mine[:] = np.setdiff1d(free, nearest), [*mine, *nearest]
    return [np.array(mine, dtype=int) for mine in chosen]


def covering(
    rate: np.ndarray, size: np.ndarray, targets: Sequence[int], each: int, caliper: float = CALIPER
) -> np.ndarray:
    """Features, few of them, that give each target `each` controls within the caliper, or all that there are.

    Targets are controls of one another. The rest is chosen greedily from all features: next comes the one that is
    nearest to most of the targets that still lack controls. Their numbers, sorted, the targets not among them.
    """
    targets = np.unique(np.asarray(targets, dtype=int))
    far = np.stack([distance(rate, size, target) for target in targets]) if len(targets) else np.zeros((0, len(rate)))
    near = np.clip(1 - far / caliper, 0, None)
    chosen = np.isin(np.arange(len(rate)), targets)
    while len(targets):
        lacking = (near[:, chosen] > 0).sum(axis=1) < each
        gain = np.where(chosen, 0, near[lacking].sum(axis=0))
        if gain.max() <= 0:
            break
        chosen[gain.argmax()] = True
    return np.setdiff1d(np.flatnonzero(chosen), targets)


def balance(rate: np.ndarray, size: np.ndarray, target: int, others: Sequence[int]) -> dict[str, float]:
    """The target's firing rate, size and rate × size, each divided by the median of its controls'."""
    parts = {"rate": rate, "size": size, "rate × size": rate * size}
    return {name: float(part[target] / np.median(part[list(others)])) for name, part in parts.items()}


def imbalance(ratios: pd.DataFrame) -> pd.Series:
    """The median over targets of |log ratio| of each column of `balance`."""
    return np.log(ratios.astype(float)).abs().median()


def refusal(ratios: pd.DataFrame) -> str:
    """Why controls with these ratios (rows of `balance`) are not matched, in one sentence; "" if they are."""
    apart = imbalance(ratios[["rate", "rate × size"]]).max()
    if apart > MOST_IMBALANCE:
        return f"No matched controls: the median |log ratio| is {apart:.2f}, above {MOST_IMBALANCE}."
    return ""


class Judged(NamedTuple):
    """How far each test's effect is beyond its controls': (test,) each."""

    z: np.ndarray
    p: np.ndarray
    by_chance: np.ndarray
    """The z of every control among the others of its test, sorted: what p is read from."""


def beyond(effect: np.ndarray, controls: np.ndarray) -> Judged:
    """Effects (test,) in the deviations of their controls (test, control), and the share of controls as far out.

    A control's own z leaves it out of mean and deviation, and stands for a feature that is no target; larger is
    further. On average over tests p is even where targets are like their controls; ValueError for fewer than 5
    controls.
    """
    effect, controls = np.asarray(effect, float), np.asarray(controls, float)
    k = controls.shape[1]
    if k < 5:
        raise ValueError(f"controls: {k} are too few; 5 at least")
    mean, deviation = controls.mean(axis=1), controls.std(axis=1, ddof=1)
    least = LEAST_SPREAD * np.median(deviation)
    z = (effect - mean) / np.maximum(deviation, least) / np.sqrt(1 + 1 / k)
    total, square = controls.sum(axis=1, keepdims=True), np.square(controls).sum(axis=1, keepdims=True)
    others = (total - controls) / (k - 1)
    variance = (square - controls**2 - (k - 1) * others**2) / (k - 2)
    spread = np.maximum(np.sqrt(np.maximum(variance, 0)), least)
    null = np.sort(((controls - others) / np.maximum(spread, 1e-300) / np.sqrt(1 + 1 / (k - 1))).ravel())
    p = (1 + len(null) - np.searchsorted(null, z)) / (1 + len(null))
    return Judged(z, p, null)


def flipped(values: np.ndarray, draws: int = 4096, seed: int = 0) -> float:
    """The probability that the mean of `values`, one a speaker, is as high if each were as likely to have the other
    sign.

    All 2ⁿ signs where they are no more than `draws`, else so many at random. NaN values are left out; 1 without any.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = len(values)
    if 2**n <= draws:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((signs @ values >= values.sum() - 1e-12 * np.abs(values).sum()).mean())
    signs = np.random.default_rng(seed).choice([-1, 1], (draws, n))
    return float((1 + (signs @ values >= values.sum()).sum()) / (1 + draws))


def discoveries(p: np.ndarray) -> np.ndarray:
    """The false discovery rate at which each is found (Benjamini & Hochberg 1995): (test,); NaN stays NaN."""
    p, q = np.asarray(p, float), np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def evenness(p: np.ndarray) -> float:
    """The probability of p-values as uneven as these where they should be even on 0 to 1 (Kolmogorov and Smirnov)."""
    return float(stats.kstest(np.asarray(p, float), "uniform").pvalue)


def reach(values: np.ndarray, level: float = 0.95) -> float:
    """Half the width of Student's interval of the mean of `values`, one a speaker; NaN for fewer than LEAST."""
    values = np.asarray(values, float)
    n = len(values)
    return float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n >= LEAST else float("nan")
