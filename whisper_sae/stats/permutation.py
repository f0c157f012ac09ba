"""What chance gives when speakers' labels are dealt anew: which features differ between groups, and how many would.

A group's labels are dealt among its speakers, all their clips with them, and within strata where two labels are
crossed: women and men change places within their accent. What is found then is chance. Every ordering that the design
allows is equally likely, so p is exact (Fisher 1935; Phipson & Smyth 2010), whatever the features look like, and all
features are dealt alike, so what they have in common is kept.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from whisper_sae.stats import effects

AT_ONCE = 2**21
"""Deals times features that are worked on at a time."""


class Relabelled(NamedTuple):
    """What was found and what chance gives. Arrays are (feature,), NaN or False where a feature was not tested."""

    groups: tuple[str, str]
    d: np.ndarray
    """Cohen's d, within strata where there are any: as `effects.between` or `crossing.within` has it."""
    p: np.ndarray
    """The share of deals with |d| as great."""
    p_family: np.ndarray
    """The share of deals in which any feature has a |d| as great (Westfall & Young 1993)."""
    q: np.ndarray
    """The false discovery rate at which it is found (Benjamini & Hochberg 1995), over all that were tested."""
    threshold: float
    """|d| that chance alone exceeds, anywhere among the features, in a share `level` of the deals."""
    nominal: int
    """How many features have a t-test's p of at most `level`."""
    by_chance: np.ndarray
    """(deal,) how many have it in each deal: compare `nominal` with its mean and its 95th percentile."""
    deals: int
    exact: bool
    """Whether every possible deal was made; otherwise so many were drawn."""
    level: float

    @property
    def tested(self) -> np.ndarray:
        """(feature,) bool."""
        return np.isfinite(self.p)

    @property
    def found(self) -> np.ndarray:
        """(feature,) bool: discoveries at a false discovery rate of `level`."""
        return np.nan_to_num(self.q, nan=1.0) <= self.level

    @property
    def beyond(self) -> np.ndarray:
        """(feature,) bool: beyond the threshold; the chance that any of them is none is at most `level`."""
        return np.nan_to_num(self.p_family, nan=1.0) <= self.level

    @property
    def least_found(self) -> int:
        """So many features at least have to be found together: p is no smaller than 1 / deals. More deals lower it."""
        return max(1, math.ceil(self.tested.sum() * np.nanmin(self.p, initial=1.0) / self.level - 1e-9))


def relabelled(
    means: np.ndarray, labels, groups: tuple[str, str] | None = None, strata=None, *,
    tested: np.ndarray | None = None, deals: int = 10_000, level: float = 0.05, seed: int = 0,
) -> Relabelled:  # fmt: skip
    """Two groups of speakers compared in every feature, and what `deals` random labellings give.

    `means` (speaker, feature), `labels` and `strata` (speaker,); speakers without either are left out. `tested`
    (feature,) says which features count, such as `effects.live(means)`. Where `deals` or fewer are possible, all are
    made. Raises ValueError where labels can be dealt in fewer than 1 / `level` ways, so that nothing could be found.
    """
    groups, side = effects.pair(labels, groups)
    told = effects.tidy(strata) if strata is not None else np.full(len(side), "all")
    here = (side >= 0) & (told != "")
    first, stratum = side[here] == 0, np.unique(told[here], return_inverse=True)[1]
    ways = math.prod(math.comb(int((mine := stratum == s).sum()), int(first[mine].sum())) for s in np.unique(stratum))
    if ways < 1 / level:
        raise ValueError(
            f"labels: {', '.join(groups)} can be dealt in {ways} ways, so p is never below {1 / ways:.2g} and nothing "
            f"can be found at {level:g}; more speakers are needed, or a stratum less"
        )
    x = np.asarray(means, dtype=np.float64)[here]
    design = _design(x, stratum)
    with np.errstate(invalid="ignore"):
        able = ~np.isnan(design.d(_sums(first[None], design.z), design.weight(first[None])))[0]
    able &= np.ones(x.shape[1], dtype=bool) if tested is None else np.asarray(tested, dtype=bool)
    if not able.any():
        raise ValueError("means: no feature can be tested; all are constant, or too few speakers have a value")
    exact = ways <= deals
    orders = _every(first, stratum) if exact else _drawn(first, stratum, deals, np.random.default_rng(seed))
    return _judged(groups, design.of(able), able, first, orders, exact, level)


class Design(NamedTuple):
    """What does not change from deal to deal. `z` (speaker, feature) is centred in its stratum, 0 without a value."""

    z: np.ndarray
    known: np.ndarray | None
    """(speaker, feature) bool, or None where every speaker has every value."""
    stratum: np.ndarray
    square: np.ndarray
    df: np.ndarray

    def of(self, features: np.ndarray) -> "Design":
        """The same of some of the features, (feature,) bool."""
        known = None if self.known is None else self.known[:, features]
        return self._replace(z=self.z[:, features], known=known, square=self.square[features], df=self.df[features])

    def weight(self, first: np.ndarray) -> np.ndarray:
        """Σ n₁n₂ / (n₁ + n₂) over strata, of deals `first` (deal, speaker): (deal or 1, feature or 1)."""
        total = 0.0
        for one in np.unique(self.stratum):
            mine = self.stratum == one
            if self.known is None:
                n1, n = first[:1, mine].sum(axis=1, keepdims=True).astype(np.float64), mine.sum()
            else:
                n1, n = _sums(first[:, mine], self.known[mine].astype(np.float64)), self.known[mine].sum(axis=0)
            total = total + n1 * (1 - n1 / np.maximum(n, 1))
        return total

    def d(self, sums: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """d of the sums of the first group, (deal, feature), and of `weight`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / weight / np.sqrt(np.maximum(self.square - np.square(sums) / weight, 0) / self.df)


def _design(x: np.ndarray, stratum: np.ndarray) -> Design:
    known, z = np.isfinite(x), np.zeros_like(x)
    seen = 0.0
    for one in np.unique(stratum):
        mine = stratum == one
        n, mean, _ = effects.sums(x[mine])
        z[mine], seen = np.where(known[mine], x[mine] - mean, 0), seen + (n > 0)
    square = np.square(z).sum(axis=0)
    square[square <= effects.ROUNDING * np.square(np.where(known, x, 0)).max(axis=0) * len(x)] = np.nan
    df = known.sum(axis=0) - seen - 1.0
    return Design(z, None if known.all() else known, stratum, square, np.where(df > 0, df, np.nan))


def _sums(first: np.ndarray, z: np.ndarray) -> np.ndarray:
    return first.astype(np.float64) @ z


def _drawn(first: np.ndarray, stratum: np.ndarray, deals: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Deals at random within strata, (deal, speaker) bool, some at a time; the true one first."""
    yield first[None]
    for start in range(0, deals, 256):
        dealt = np.tile(first, (min(256, deals - start), 1))
        for one in np.unique(stratum):
            mine = stratum == one
            dealt[:, mine] = rng.permuted(dealt[:, mine], axis=1)
        yield dealt


def _every(first: np.ndarray, stratum: np.ndarray) -> Iterator[np.ndarray]:
    """Every deal within strata, the true one among them, (deal, speaker) bool, some at a time."""
    places = [np.flatnonzero(stratum == one) for one in np.unique(stratum)]
    choices = [list(itertools.combinations(mine, int(first[mine].sum()))) for mine in places]
    every = itertools.product(*choices)
    while some := list(itertools.islice(every, 256)):
        dealt = np.zeros((len(some), len(first)), dtype=bool)
        for row, chosen in zip(dealt, some, strict=True):
            row[list(itertools.chain(*chosen))] = True
        yield dealt


def nothing(
    means: np.ndarray, labels, groups: tuple[str, str] | None = None, strata=None, *, tested: np.ndarray | None = None,
    relabelings: int = 200, deals: int = 10_000, level: float = 0.05, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """How often chance is found: speakers change places `relabelings` times, and each time `relabelled` is asked.

    With `strata` (speaker,) they do so within these, as in `relabelled`. A row a relabelling: `found` and `beyond`, how
    many features, and the least `q` and `p_family`. What any labelling is compared with is the same, the labellings
    themselves, so `deals` are drawn once for all.
    """
    groups, side = effects.pair(labels, groups)
    told = effects.tidy(strata) if strata is not None else np.full(len(side), "all")
    here = (side >= 0) & (told != "")
    x, first = np.asarray(means, dtype=np.float64)[here], side[here] == 0
    design, rng = _design(x, np.unique(told[here], return_inverse=True)[1]), np.random.default_rng(seed)
    able = np.isfinite(design.square) & (True if tested is None else np.asarray(tested, dtype=bool))
    design = design.of(able)
    dealt, asked = (np.concatenate([*_drawn(first, design.stratum, n, rng)][1:]) for n in (deals, relabelings))
    p, most, reached = np.empty((relabelings, able.sum())), np.zeros(deals), np.zeros(relabelings)
    step = max(1, 8 * AT_ONCE // deals)
    for start in range(0, int(able.sum()), step):
        few = np.isin(np.arange(able.sum()), np.arange(start, start + step))
        part = design.of(few)
        each, own = (np.nan_to_num(np.abs(part.d(_sums(d, part.z), part.weight(d)))) for d in (dealt, asked))
        most, reached = np.maximum(most, each.max(axis=1)), np.maximum(reached, own.max(axis=1))
        for column, sizes, values in zip(np.flatnonzero(few), own.T, np.sort(each, axis=0).T, strict=True):
            p[:, column] = (1 + deals - np.searchsorted(values, sizes * (1 - 1e-9) - 1e-12)) / (1 + deals)
    q = stats.false_discovery_control(p, axis=1)
    family = (1 + deals - np.searchsorted(np.sort(most), reached * (1 - 1e-9) - 1e-12)) / (1 + deals)
    bound = _threshold(most, level)
    beyond = np.zeros(relabelings, dtype=int)
    for row, order in enumerate(asked):
        own = np.abs(design.d(_sums(order[None], design.z), design.weight(order[None])))[0]
        beyond[row] = int((np.nan_to_num(own) > bound).sum())
    return pd.DataFrame({"found": (q <= level).sum(axis=1), "beyond": beyond, "q": q.min(axis=1), "p_family": family})


def _judged(groups, design: Design, able: np.ndarray, first, orders, exact: bool, level: float) -> Relabelled:
    weight = design.weight(first[None])
    d = design.d(_sums(first[None], design.z), weight)[0]
    size = np.abs(d) * (1 - 1e-9) - 1e-12  # equal but for rounding is equal, also where nothing differs
    critical = stats.t.ppf(1 - level / 2, design.df)
    reached, greatest, many = np.zeros(len(d)), [], []
    rows = max(1, AT_ONCE // len(d))
    for dealt in (part[i : i + rows] for part in orders for i in range(0, len(part), rows)):
        weights = weight if design.known is None else design.weight(dealt)
        each = np.abs(design.d(_sums(dealt, design.z), weights))
        each = np.where(np.isnan(each), 0, each)  # a deal in which one group has nobody left with a value
        reached += (each >= size).sum(axis=0)
        greatest.append(each.max(axis=1))
        with np.errstate(invalid="ignore"):  # an infinite d of nobody
            many.append((each * np.sqrt(weights) >= critical).sum(axis=1))
    greatest, many = np.concatenate(greatest), np.concatenate(many)
    p = np.full(len(able), np.nan)
    p_family, q, told = p.copy(), p.copy(), p.copy()
    p[able] = reached / len(greatest)
    p_family[able] = (len(greatest) - np.searchsorted(np.sort(greatest), size)) / len(greatest)
    q[able], told[able] = stats.false_discovery_control(p[able]), d
    with np.errstate(invalid="ignore"):
        nominal = int((np.abs(d) * np.sqrt(weight[0]) >= critical).sum())
    threshold = _threshold(greatest, level)
    return Relabelled(groups, told, p, p_family, q, threshold, nominal, many, len(greatest), exact, level)


def _threshold(greatest: np.ndarray, level: float) -> float:
    """The least of the greatest |d| that no more than a share `level` of the deals reach."""
    descending = np.sort(greatest)[::-1]
    allowed = math.floor(level * len(descending) + 1e-9)
    return float(descending[min(allowed, len(descending) - 1)])
