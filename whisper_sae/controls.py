"""Is an effect more than any feature would have? Matched controls, what they make of an effect, and whether chance is
even.

Whatever fires often and is long changes much when it is silenced. So beside each feature stand others that fire as
often and remove as much, and an effect counts when it is beyond theirs. Of few controls no small p can come; so how far
a feature stands out is measured in their deviations, and compared with how far each control stands out of the rest, of
all tests together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from whisper_sae.intervals import LEAST

LEAST_SPREAD = 0.25
"""A test's deviation counts as no less than this share of the median one: few controls may be alike by accident."""


def matched(rate: np.ndarray, size: np.ndarray, target: int, pool: Sequence[int], k: int, rng) -> np.ndarray:
    """k features of the pool, drawn from the 2 k that are nearest to the target in rate and size: their numbers.

    `rate` (feature,) is how often each fires, `size` (feature,) how much is removed where it is silenced, such as the
    length of its direction times its mean where it fires; both are compared as ratios. ValueError for too small a pool.
    """
    others = np.setdiff1d(pool, [target])
    if len(others) < k:
        raise ValueError(f"pool: {len(others)} features cannot give {k} controls")
    with np.errstate(divide="ignore"):
        far = [np.abs(np.log(part[others]) - np.log(part[target])) for part in (rate, size)]
    near = others[np.argsort(np.nan_to_num(sum(far), nan=np.inf), kind="stable")[: 2 * k]]
    return rng.permutation(near)[:k]


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
