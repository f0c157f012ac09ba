"""Is it the group, or what goes along with it? Effects with duration, level, pitch or text held fixed, or matched.

Two ways, of which each has its own assumption. `adjusted` takes out of both the feature and the grouping what a
straight line through the covariates tells (Frisch & Waugh 1933; Lovell 1963): partial d is what is left, in SDs of
what is left. `matched` and `coarsened` assume no line: they compare speakers who are alike in the covariates, and
leave out those who have no like. Where the groups hardly overlap neither can tell much, and both say so.

None of them shows what causes what. A covariate that the group itself changes, as a voice's pitch is part of what is
recorded as gender, takes a part of the effect with it: that is what "partial d given pitch" asks, and all it answers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from whisper_sae.stats import effects, stratified
from whisper_sae.stats.stratified import Within

OVERLAP = 1e-9
"""A grouping of which the covariates leave a smaller share than this is told by them."""


def of_speakers(table: pd.DataFrame, speaker) -> pd.DataFrame:
    """Covariates of clips, a row a clip, as numbers of speakers, a row a speaker in order of names.

    Of a numeric column, the mean of its known values; of any other, such as the text, the share of the speaker's clips
    that have each value, all but the most frequent (a column `text = hello`): tidied, a missing one is a value too.
    """
    who = effects.named_as(speaker)
    columns = {}
    for name in table:
        if pd.api.types.is_numeric_dtype(table[name]) and table[name].dtype.kind != "b":
            columns[name] = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            told = effects.tidy(table[name])
            often = pd.Series(told).value_counts(sort=True)
            columns |= {f"{name} = {value}": (told == value) * 1.0 for value in sorted(often.index[1:])}
    numbers = pd.DataFrame(columns, index=pd.Index(who, name="speaker"))
    return numbers[who != ""].groupby(level=0, sort=True).mean()


def adjusted(
    means: np.ndarray, labels, covariates: pd.DataFrame, groups: tuple[str, str] | None = None, strata=None
) -> Within:
    """Two groups compared with covariates held fixed: partial d, t, p and more of each feature.

    `means` (speaker, feature), `labels` (speaker,), `covariates` numbers, a row a speaker in the same order; see
    `of_speakers`. With `strata` (speaker,) those are held fixed as well. Speakers who lack a covariate are left out:
    `n` says who is left. `intervals.noncentral(found.d, (found.t / found.d) ** 2, found.df)` is the interval.

    Raises ValueError where covariates tell the groups apart by themselves, or there are as many as speakers.
    """
    held, here, groups, side = _held(labels, covariates, groups, strata)
    x, first = np.asarray(means, dtype=np.float64)[here], (side[here] == 0).astype(np.float64)
    d, t, df, p, left, n = (np.full(x.shape[1], np.nan) for _ in range(6))
    for rows, columns in _patterns(x):
        basis, part = spanned(held[rows]), x[np.ix_(rows, columns)]
        alone = first[rows] - basis @ (basis.T @ first[rows])
        whole, weight, spare = (
            np.square(first[rows] - first[rows].mean()).sum(),
            alone @ alone,
            rows.sum() - basis.shape[1] - 1,
        )
        n[columns], left[columns] = rows.sum(), weight / max(whole, OVERLAP)
        if spare < 1 or weight <= OVERLAP * max(whole, OVERLAP):
            continue
        rest = part - basis @ (basis.T @ part)
        slope = alone @ rest / weight
        least = effects.ROUNDING * np.square(part).max(axis=0) * len(part)
        found = stratified.judged(
            groups, slope, np.square(rest - np.outer(alone, slope)).sum(axis=0), spare, weight, least
        )
        for into, value in zip((d, t, df, p), found[1:5], strict=True):
            into[columns] = value
    return Within(groups, d, t, df, p, left, n)


def _held(labels, covariates: pd.DataFrame, groups, strata) -> tuple:
    """What is held fixed (speaker, column), with a constant; who counts; the groups; who is in which."""
    groups, side = effects.pair(labels, groups)
    if len(covariates) != len(side):
        raise ValueError(f"covariates: {len(covariates)} rows for {len(side)} speakers")
    numbers = covariates.to_numpy(dtype=np.float64)
    told = effects.tidy(strata) if strata is not None else np.full(len(side), "all")
    here = (side >= 0) & (told != "") & np.isfinite(numbers).all(axis=1)
    for number, name in enumerate(groups):
        if (count := int((side[here] == number).sum())) < 2:
            raise ValueError(f"covariates: {count} speakers of {name!r} have them all; at least 2 are needed")
    numbers = numbers[here] - numbers[here].mean(axis=0)
    held = np.column_stack([numbers, pd.get_dummies(pd.Series(told[here])).to_numpy(dtype=np.float64)])
    basis, first = spanned(held), (side[here] == 0) * 1.0
    if basis.shape[1] >= here.sum() - 1:
        raise ValueError(f"covariates: {basis.shape[1]} of them and strata are too many for {here.sum()} speakers")
    if np.square(first - basis @ (basis.T @ first)).sum() <= OVERLAP * len(first):
        names = ", ".join(map(str, covariates.columns)) or "strata"
        raise ValueError(f"covariates: {names} tell {groups[0]} from {groups[1]}, so nothing is left to compare")
    return held, here, groups, side


def _patterns(x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features that the same speakers have values for: (speaker,) bool and the numbers of the features, set by set."""
    known = np.isfinite(x)
    kinds, number = np.unique(known, axis=1, return_inverse=True)
    for kind, rows in enumerate(kinds.T):
        yield rows, np.flatnonzero(np.ravel(number) == kind)


def spanned(design: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of `design` (speaker, column), as many as its rank."""
    size = np.linalg.norm(design, axis=0)
    turned, strength, _ = np.linalg.svd(design[:, size > 0] / size[size > 0], full_matrices=False)
    return turned[:, strength > 1e-10 * max(strength.max(initial=0), 1e-300)]


# -------------------------------------------------------------------------------------------------- matching


class Matched(NamedTuple):
    """Speakers of two groups, in pairs that are alike."""

    groups: tuple[str, str]
    pairs: np.ndarray
    """(pair, 2) rows of the first and the second group."""
    balance: pd.DataFrame
    """Cohen's d of each covariate `before` and `after`: what is left of it was not matched away."""

    @property
    def kept(self) -> np.ndarray:
        """The rows of all who have a like."""
        return np.sort(self.pairs.ravel())


def matched(
    labels, covariates: pd.DataFrame, groups: tuple[str, str] | None = None, caliper: float = 0.25, strata=None
) -> Matched:
    """Pairs of speakers, one of each group, as alike in the covariates as can be: optimal matching (Rosenbaum 1989).

    A pair is allowed where no covariate differs by more than `caliper` SDs, pooled within groups (Cochran & Rubin
    1973), and both are of one of the `strata` (speaker,), if there are any; as many pairs as possible are made, with
    the least sum of squared differences. Then compare as ever:
    `effects.between(means[found.kept], labels[found.kept])`. Raises ValueError where fewer than two pairs are alike.
    """
    groups, side = effects.pair(labels, groups)
    numbers = covariates.to_numpy(dtype=np.float64)
    here = np.isfinite(numbers).all(axis=1)
    one, other = (np.flatnonzero((side == number) & here) for number in (0, 1))
    n, _, square = zip(*(effects.sums(numbers[rows]) for rows in (one, other)), strict=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(sum(square) / np.maximum(sum(n) - 2, 1))
    apart = (numbers[one][:, None] - numbers[other][None]) / np.where(scale > 0, scale, 1)  # (first, second, covariate)
    allowed = (np.abs(apart) <= caliper).all(axis=2)
    if strata is not None:
        told = effects.tidy(strata)
        allowed &= np.equal.outer(told[one], told[other]) & (told[one] != "")[:, None]
    cost = np.square(apart).sum(axis=2)
    forbidden = 1 + cost[allowed].sum() if allowed.any() else 1.0  # dearer than all that are allowed together
    rows, columns = linear_sum_assignment(np.where(allowed, cost, forbidden))
    good = allowed[rows, columns]
    if good.sum() < 2:
        raise ValueError(
            f"covariates: {good.sum()} pairs of {groups[0]} and {groups[1]} are alike within {caliper:g} SD"
        )
    pairs = np.column_stack([one[rows[good]], other[columns[good]]])
    before = effects.between(numbers[here], np.asarray(labels)[here], groups).d
    after = effects.between(numbers[pairs.T.ravel()], np.repeat(groups, len(pairs)), groups).d
    balance = pd.DataFrame({"covariate": list(covariates.columns), "before": before, "after": after})
    return Matched(groups, pairs, balance)


def coarsened(covariates: pd.DataFrame, bins: int = 4) -> np.ndarray:
    """Strata of speakers who are alike: each covariate cut into `bins` of equal number (Iacus, King & Porro 2012).

    (speaker,) str, "" where a covariate is missing: to be used as `strata` of `crossing.within` or
    `relabelling.relabelled`, where a stratum of one group only tells nothing.
    """
    numbers = covariates.to_numpy(dtype=np.float64)
    cuts = np.nanquantile(numbers, np.linspace(0, 1, bins + 1)[1:-1], axis=0)  # (cut, covariate)
    place = (numbers[None] > cuts[:, None]).sum(axis=0)
    names = np.array([" ".join(map(str, row)) for row in place], dtype=object)
    return np.where(np.isfinite(numbers).all(axis=1), names, "").astype(str)
