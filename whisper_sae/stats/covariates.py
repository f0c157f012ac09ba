"""Any number of groups, with covariates held fixed: which features differ, and how many would by chance.

Speakers of unlike level or pitch cannot just change places. So what covariates tell of a feature is taken out, what is
left changes places among the speakers, and groups are compared with the covariates held fixed, again each time
(Freedman & Lane 1983; of the ways that Winkler et al. 2014 compare, the one that kept its promise best). It is near the
level, and without covariates, where labels are dealt as in `relabelling`, exact.

    found = held_fixed.dealt(cast.means, cast.labels.accent)                             # η² of each feature
    found = held_fixed.dealt(cast.means, cast.labels.mic, covariates[["level_db"]])      # partial η² given level
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from whisper_sae.stats import effects, matching
from whisper_sae.stats.permutation import Relabelled

AT_ONCE = 2**21
"""Deals times features times columns that are worked on at a time."""

ALIKE = 1e-5
"""A deal whose η² falls short by no more than so much of it is as great: products are of single precision."""


class Dealt(NamedTuple):
    """What was found and what chance gives. Arrays are (feature,), NaN or False where a feature was not tested."""

    groups: tuple[str, ...]
    eta_squared: np.ndarray
    """Partial η²: of the variance that covariates and strata leave, the share that lies between the groups."""
    f: np.ndarray
    df: tuple[int, int]
    p: np.ndarray
    """The share of deals with an η² as great."""
    p_family: np.ndarray
    """The share of deals in which any feature has one as great (Westfall & Young 1993)."""
    q: np.ndarray
    """The false discovery rate at which it is found (Benjamini & Hochberg 1995)."""
    threshold: float
    """η² that chance alone exceeds, anywhere among the features, in a share `level` of the deals."""
    nominal: int
    """How many features have an F-test's p of at most `level`."""
    by_chance: np.ndarray
    """(deal,) how many have it in each deal."""
    left: float
    """The share of the grouping's own variance that is not told by what is held fixed: small is little to go by."""
    n: int
    """Speakers who count."""
    level: float

    tested, found, beyond = Relabelled.tested, Relabelled.found, Relabelled.beyond  # asked of the same fields


def dealt(
    means: np.ndarray, labels, covariates: pd.DataFrame | None = None, strata=None, *,
    groups: tuple[str, ...] | None = None, tested: np.ndarray | None = None, deals: int = 10_000, level: float = 0.05,
    seed: int = 0,
) -> Dealt:  # fmt: skip
    """Groups of speakers compared in every feature that all speakers have a value for.

    `means` (speaker, feature); `labels` and `strata` (speaker,); `covariates` numbers, a row a speaker. Strata are
    held fixed and speakers change places within them. Speakers without any of these are left out, and so are those of
    other than the named `groups`. Raises ValueError where what is held fixed tells the groups by itself.
    """
    told = effects.tidy(labels)
    names = tuple(effects.tidy(groups).tolist() if groups else np.unique(told[told != ""]).tolist())
    numbers = np.empty((len(told), 0)) if covariates is None else covariates.to_numpy(dtype=np.float64)
    by = effects.tidy(strata) if strata is not None else np.full(len(told), "all")
    here = np.isin(told, names) & (by != "") & np.isfinite(numbers).all(axis=1)
    if len(names) < 2 or min((told[here] == name).sum() for name in names) < 2:
        raise ValueError(
            f"labels: two groups of two speakers or more are needed; here are {', '.join(names) or 'none'}"
        )
    base = matching.spanned(_columns(by[here]))
    fixed = _beyond(numbers[here], base)
    held = np.column_stack([base, fixed])
    side = _columns(told[here])
    alone = side - held @ (held.T @ side)
    left = float(np.square(alone).sum() / np.square(side - side.mean(axis=0)).sum())
    if left <= matching.OVERLAP:
        raise ValueError(f"covariates: they tell {', '.join(names)} apart, so nothing is left to compare")
    alone = _beyond(side, held)
    df = alone.shape[1], int(here.sum()) - held.shape[1] - alone.shape[1]
    if df[1] < 1:
        raise ValueError(f"covariates: {held.shape[1]} of them and strata are too many for {here.sum()} speakers")
    x = np.asarray(means, dtype=np.float64)[here]
    able = np.isfinite(x).all(axis=0) & (True if tested is None else np.asarray(tested, dtype=bool))
    rest, able = _rest(x, held, able)
    orders = _orders(np.unique(by[here], return_inverse=True)[1], deals, np.random.default_rng(seed))
    return _judged(names, rest, able, alone, fixed, df, orders, left, level)


def _columns(names: np.ndarray) -> np.ndarray:
    return pd.get_dummies(pd.Series(names)).to_numpy(dtype=np.float64)


def _beyond(columns: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span what `held`, orthonormal too, does not tell of these."""
    size = np.square(columns - columns.mean(axis=0)).sum(axis=0)
    rest = columns - held @ (held.T @ columns)
    return matching.spanned(rest[:, np.square(rest).sum(axis=0) > matching.OVERLAP * size])


def _rest(x: np.ndarray, held: np.ndarray, able: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is not told by `held` of each feature that varies beyond it, and which those are."""
    rest = np.zeros_like(x)
    rest[:, able] = x[:, able] - held @ (held.T @ x[:, able])
    able = able & (np.square(rest).sum(axis=0) > effects.ROUNDING * effects.greatest(x))
    if not able.any():
        raise ValueError("means: no feature can be tested; all are constant, or lack a value in some speaker")
    return rest[:, able], able


def _orders(stratum: np.ndarray, deals: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Orders of speakers, (deal, speaker), within strata, some at a time; the true one first."""
    yield np.arange(len(stratum))[None]
    for start in range(0, deals, 256):
        order = np.tile(np.arange(len(stratum)), (min(256, deals - start), 1))
        for one in np.unique(stratum):
            mine = np.flatnonzero(stratum == one)
            order[:, mine] = rng.permuted(order[:, mine], axis=1)
        yield order


def _judged(names, rest, able, alone, fixed, df, orders, left, level) -> Dealt:
    x = rest / np.sqrt(np.square(rest).sum(axis=0))  # (speaker, feature), of length 1: what is told of it is a share
    known = np.square(alone.T @ x).sum(axis=0)
    least, small = (known * (1 - ALIKE)).astype(np.float32), x.astype(np.float32)
    f_least = stats.f.ppf(1 - level, *df)
    critical = f_least / (f_least + df[1] / df[0])
    both = np.concatenate([alone, fixed], axis=1).astype(np.float32)  # (speaker, column)
    reached, greatest, many = 0.0, [], []
    rows = max(1, AT_ONCE // (x.shape[1] * both.shape[1]))
    for order in (part[i : i + rows] for part in orders for i in range(0, len(part), rows)):
        turned = both[order].transpose(0, 2, 1).reshape(-1, len(x))  # (deal · column, speaker)
        told = (turned @ small).reshape(len(order), both.shape[1], -1)
        told *= told
        share = told[:, : df[0]].sum(axis=1)
        if fixed.shape[1]:
            share /= np.maximum(1 - told[:, df[0] :].sum(axis=1), 1e-12)
        reached = reached + (share >= least).sum(axis=0)
        greatest.append(share.max(axis=1))
        many.append((share >= critical).sum(axis=1))
    greatest, many = np.concatenate(greatest), np.concatenate(many)
    eta, p, p_family, q = (np.full(len(able), np.nan) for _ in range(4))
    eta[able], p[able] = known, reached / len(greatest)
    above = np.searchsorted(np.sort(greatest), least)
    p_family[able], q[able] = (len(greatest) - above) / len(greatest), stats.false_discovery_control(p[able])
    with np.errstate(divide="ignore"):
        f = eta / df[0] / ((1 - eta) / df[1])
    threshold = float(np.sort(greatest)[::-1][min(int(level * len(greatest) + 1e-9), len(greatest) - 1)])
    return Dealt(names, eta, f, df, p, p_family, q, threshold, int((known >= critical).sum()), many, left,
                 len(rest), level)  # fmt: skip
