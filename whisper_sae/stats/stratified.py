"""Two groups compared where something else is held fixed, such as gender within accents: partial d.

Where women and men of every accent are there, a difference of accents must not pass for one of gender, and the spread
that accents make is no noise: `within` takes it out. `effects` says what a speaker is and what d is without all this.

    found = crossing.within(cast.means, cast.labels.gender, cast.labels.accent)    # d within accents
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from whisper_sae.stats import effects


class Within(NamedTuple):
    """Two groups compared where other things are held fixed; all but `groups` are (feature,)."""

    groups: tuple[str, str]
    d: np.ndarray
    """The coefficient of the first group over the residual SD: partial d; Cohen's d where nothing is held fixed."""
    t: np.ndarray
    df: np.ndarray
    p: np.ndarray
    """Two-sided, of the coefficient; not corrected for the number of features."""
    left: np.ndarray
    """The share of the grouping's own variance that what is held fixed does not tell: small is little to go by."""
    n: np.ndarray
    """Speakers that count."""
    interaction: np.ndarray | None = None
    """p of F that the difference is not the same in all strata; NaN where strata do not allow to ask."""


def within(means: np.ndarray, labels, strata, groups: tuple[str, str] | None = None) -> Within:
    """Two groups compared within strata, such as gender within accents: two-way least squares without interaction.

    The coefficient is the mean over strata of the difference there, weighted by n₁n₂ / (n₁ + n₂): a stratum that has
    one group only tells nothing. `interaction` asks whether one number says it (Yates 1934). Shapes as in `between`.
    """
    told, (groups, side) = effects.tidy(strata), effects.pair(labels, groups)
    here = (side >= 0) & (told != "")
    x, number = np.asarray(means, dtype=np.float64)[here], np.unique(told[here], return_inverse=True)[1]
    first = side[here] == 0
    if not set(number[first]) & set(number[~first]):
        raise ValueError(f"strata: none has both {groups[0]} and {groups[1]}, so the two cannot be told apart")
    slope, weight, square, inside = 0.0, 0.0, 0.0, 0.0
    n, strata_seen, cells, spread = 0.0, 0.0, 0.0, 0.0
    for one in range(number.max() + 1):
        mine = number == one
        (n1, m1, s1), (n2, m2, s2) = (effects.sums(x[mine & side]) for side in (first, ~first))
        both = np.where((n1 > 0) & (n2 > 0), n1 * n2 / np.maximum(n1 + n2, 1), 0)
        gap = np.where(both > 0, m1 - m2, 0)
        slope, weight, square = slope + both * gap, weight + both, square + s1 + s2 + both * np.square(gap)
        inside, n = inside + s1 + s2, n + n1 + n2
        strata_seen, cells = strata_seen + (n1 + n2 > 0), cells + (n1 > 0) + (n2 > 0)
    spread = _share_left(x, first, weight)
    least = effects.ROUNDING * effects.greatest(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(weight > 0, slope / weight, np.nan)
        rest, df = square - weight * np.square(slope), n - strata_seen - 1
        spare, extra = n - cells, cells - strata_seen - 1
        f = (rest - inside) / extra / (inside / spare)
        crossed = np.where((extra > 0) & (spare > 0) & (inside > least), stats.f.sf(f, extra, spare), np.nan)
    return judged(groups, slope, rest, df, weight, least)._replace(left=spread, n=n, interaction=crossed)


def auc(means: np.ndarray, labels, strata, groups: tuple[str, str] | None = None) -> np.ndarray:
    """The probability that of two speakers of one stratum that of the first group has the greater value, (feature,).

    The mean over strata of `effects.Between.auc`, weighted by n₁n₂, the number of pairs.
    """
    told, (groups, side) = effects.tidy(strata), effects.pair(labels, groups)
    x, total, pairs = np.asarray(means, dtype=np.float64), 0.0, 0.0
    for name in np.unique(told[told != ""]):
        mine = (told == name) & (side >= 0)
        share, weight = effects.superior(x[mine], side[mine] == 0)
        total, pairs = total + np.where(weight > 0, share, 0) * weight, pairs + weight
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, total / pairs, np.nan)


def judged(groups, slope: np.ndarray, rest: np.ndarray, df, weight, least: np.ndarray) -> Within:
    """Partial d, t and p of coefficients (feature,): `rest`: squares left over, `weight`: those of the grouping."""
    rest = np.where(rest <= least, 0, rest)
    slope = np.where((rest == 0) & (np.square(slope) <= least), 0, slope)
    with np.errstate(invalid="ignore", divide="ignore"):
        d = slope / np.sqrt(np.where(df > 0, rest / df, np.nan))
        t = np.where(np.isfinite(d), d, np.nan) * np.sqrt(weight)
        p = 2 * stats.t.sf(np.abs(t), df)
    same = np.full(len(d), np.nan)
    return Within(groups, d, t, df + 0 * d, p, same, same)


def _share_left(x: np.ndarray, first: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What is left of Σ (first - mean)², over the speakers that have a value."""
    known = np.isfinite(x)
    n1, n = known[first].sum(axis=0), known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return weight / (n1 * (n - n1) / n)
