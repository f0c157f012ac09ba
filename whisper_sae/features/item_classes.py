"""Which features go with one of a few classes, such as emotions, by criteria that can fail.

The usual one is *selectivity*: the rate at which a feature fires in its best class over its mean rate in all classes.
With c classes it is never above c, and of a feature that fires twice it is often c. So here a feature has to fire often
enough, in several *units* (items that share what is not to be learnt, such as one phrase); its class is chosen on half
of the units and its selectivity taken on the other half; and it is held against two kinds of chance: classes dealt anew
among units, and features of random dictionaries, which hear the same items and have some selectivity, too. A discovery
has to beat both, at a false discovery rate.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_array

from whisper_sae.stats import null_distribution

FINE = 40
"""Deals to each group of tests alike (`chance.judge`): so fine that one feature alone can be found among all."""


class ByUnit(NamedTuple):
    """How much each feature fires on a unit's items, `rates` (unit, feature), and on how many, `firings`; the unit's
    `names` and `stratum` (unit,), and the number of its class, `label` (unit,), of `classes`."""

    rates: np.ndarray
    firings: np.ndarray
    names: np.ndarray
    label: np.ndarray
    classes: np.ndarray
    stratum: np.ndarray

    def only(self, here: np.ndarray) -> "ByUnit":
        """The same of some units, (unit,) bool or numbers."""
        return ByUnit(self.rates[here], self.firings[here], self.names[here], self.label[here], self.classes,
                      self.stratum[here])  # fmt: skip

    def of_features(self, which: np.ndarray) -> "ByUnit":
        """The same of some features."""
        return self._replace(rates=self.rates[:, which], firings=self.firings[:, which])


def by_unit(fires: np.ndarray, labels, units, strata=None) -> ByUnit:
    """Codes by unit: `fires` (item, feature) says how much a feature fires on an item, such as on what share of its
    tokens, 0 for not at all; labels, units and strata are (item,).

    ValueError where the items of a unit are of two classes or strata.
    """
    number, names = pd.factorize(np.asarray(units).astype(str), sort=True)
    label, classes = pd.factorize(np.asarray(labels).astype(str), sort=True)
    stratum = np.zeros(len(number), int) if strata is None else pd.factorize(np.asarray(strata).astype(str))[0]
    told = pd.DataFrame({"unit": number, "label": label, "stratum": stratum}).drop_duplicates().sort_values("unit")
    if len(told) > len(names):
        twice = names[told.unit[told.unit.duplicated()].iloc[0]]
        raise ValueError(f"units: '{twice}' has items of two classes or strata")
    of_unit = csr_array((np.ones(len(number), np.float32), (number, np.arange(len(number)))))  # (unit, item)
    fires, count = np.asarray(fires, dtype=np.float32), np.bincount(number)
    firings = of_unit @ (fires > 0).astype(np.float32)
    rates, label = of_unit @ fires / count[:, None], told.label.to_numpy()
    return ByUnit(rates, firings, np.asarray(names), label, np.asarray(classes), told.stratum.to_numpy())


def halves(units: ByUnit, seed: int = 0) -> np.ndarray:
    """A mask, (unit,), of half of the units of every class and stratum, drawn at random: where classes are chosen."""
    rng, first = np.random.default_rng(seed), np.zeros(len(units.names), dtype=bool)
    for cell in set(zip(units.label, units.stratum, strict=True)):
        mine = np.flatnonzero((units.label == cell[0]) & (units.stratum == cell[1]))
        first[rng.permutation(mine)[: (len(mine) + 1) // 2]] = True
    return first


def by_class(rates: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """The mean over a class's units of a feature's rate: (class, feature)."""
    one = np.eye(classes)[label]
    return (one.T @ rates) / one.sum(axis=0)[:, None]


def selectivity(rates: np.ndarray) -> np.ndarray:
    """The largest over the mean of rates by class, (class, feature): (feature,), from 1 to the number of classes. NaN
    for a feature that never fires."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return rates.max(axis=0) / rates.mean(axis=0)


class Tested(NamedTuple):
    """Selectivity of every feature on units that its class was not chosen on: (feature,), NaN where not tested."""

    chosen: np.ndarray
    """(feature,) the number of its class."""
    support: np.ndarray
    """On how many items it fires in the half where nothing was chosen."""
    selectivity: np.ndarray
    z: np.ndarray
    """Deviations above what classes dealt anew give."""
    p: np.ndarray
    """Against classes dealt anew."""


def tested(units: ByUnit, first: np.ndarray, *, least: int = 10, least_units: int = 3, deals: int = 400,
           seed: int = 0) -> Tested:  # fmt: skip
    """Choose each feature's class on the units of a mask and test its selectivity on the others.

    A feature counts that fires on at least `least` items in both halves, in `least_units` units. Classes are dealt
    `deals` times among the other units, within strata.
    """
    chosen_on, asked = units.only(first), units.only(~first)
    many = len(units.classes)
    enough = np.ones(units.rates.shape[1], dtype=bool)
    for part in (chosen_on, asked):
        enough &= (part.firings.sum(axis=0) >= least) & ((part.firings > 0).sum(axis=0) >= least_units)
    chosen = by_class(chosen_on.rates, chosen_on.label, many).argmax(axis=0)
    told, z, p = (np.full(len(chosen), np.nan) for _ in range(3))
    support = asked.firings.sum(axis=0)
    if enough.any():
        rates, mine = asked.rates[:, enough].astype(np.float64), chosen[enough]
        mean = by_class(rates, asked.label, many).mean(axis=0)
        said = _in_class(rates, asked.label, mine, many) / mean
        rng = np.random.default_rng(seed)
        null = np.stack([_of_deal(rates, asked, mine, many, rng) for _ in range(deals)])
        verdict = null_distribution.judge(said, null, np.full((1, len(mine)), 1e-9), support[None, enough], apart=FINE)
        told[enough], z[enough], p[enough] = said, verdict.z, verdict.p
    return Tested(chosen, support, told, z, p)


def _in_class(rates: np.ndarray, label: np.ndarray, chosen: np.ndarray, classes: int) -> np.ndarray:
    return by_class(rates, label, classes)[chosen, np.arange(len(chosen))]


def _of_deal(rates, asked: ByUnit, chosen, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Selectivity of the chosen class, classes dealt anew within strata."""
    label = asked.label.copy()
    for one in np.unique(asked.stratum):
        here = asked.stratum == one
        label[here] = rng.permutation(label[here])
    means = by_class(rates, label, classes)
    return means[chosen, np.arange(len(chosen))] / means.mean(axis=0)


def discoveries(found: Tested, decoys: list[Tested], classes, level: float = 0.05) -> pd.DataFrame:
    """A row a feature that was tested: `feature class support selectivity z p p_random q found`.

    `p_random` is the share of the features of `decoys`, tested in the same way on random dictionaries, with a z as
    large. The larger of both p counts, and q is over all tested features (Benjamini & Hochberg 1995). Without decoys
    classes dealt anew alone are chance.
    """
    here = np.flatnonzero(np.isfinite(found.p))
    others = np.sort(np.concatenate([one.z[np.isfinite(one.z)] for one in decoys])) if decoys else np.empty(0)
    z, p = found.z[here], found.p[here]
    reached = len(others) - np.searchsorted(others, z, side="left")
    p_random = (1 + reached) / (1 + len(others)) if decoys else np.zeros(len(z))
    q = stats.false_discovery_control(np.maximum(p, p_random)) if len(here) else np.empty(0)
    return pd.DataFrame({
        "feature": here, "class": np.asarray(classes)[found.chosen[here]], "support": found.support[here].astype(int),
        "selectivity": found.selectivity[here], "z": z, "p": p, "p_random": p_random, "q": q, "found": q <= level,
    })  # fmt: skip


def naive(fires: np.ndarray, labels, above: float = 2.0) -> int:
    """How many features the usual criterion lets through: selectivity above a bound on all items, however rarely a
    feature fires. For comparison: nearly any dictionary passes it."""
    label, classes = pd.factorize(np.asarray(labels).astype(str), sort=True)
    with np.errstate(invalid="ignore"):
        return int((selectivity(by_class((np.asarray(fires) > 0).astype(float), label, len(classes))) >= above).sum())


# ------------------------------------------------------------------------------------------------- embeddings


class Likeness(NamedTuple):
    """Mean cosine of pairs within and between classes, and what dealing classes anew makes of their difference."""

    within: float
    between: float
    p: float
    chance_spread: float
    """The standard deviation of the difference over deals; `chance_most` is its largest."""
    chance_most: float

    @property
    def difference(self) -> float:
        return self.within - self.between


def likeness(x: np.ndarray, labels, units=None, *, deals: int = 2000, seed: int = 0) -> Likeness:
    """How alike embeddings, (item, width), of a class are, against those of two classes, by pairs of two units.

    Pairs share items, so no t-test is made of them: the classes are dealt anew among units, and p is exact.
    """
    unit = pd.factorize(np.asarray(units if units is not None else np.arange(len(x))).astype(str))[0]
    label = pd.factorize(np.asarray(labels).astype(str), sort=True)[0]
    rows = x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    sums = np.zeros((unit.max() + 1, x.shape[1]))
    np.add.at(sums, unit, rows)
    count = np.bincount(unit)
    cosines, pairs = sums @ sums.T, np.outer(count, count).astype(float)  # of all items of two units
    np.fill_diagonal(cosines, 0)
    np.fill_diagonal(pairs, 0)
    of_unit = np.zeros(len(count), dtype=int)
    of_unit[unit] = label
    if (of_unit[unit] != label).any():
        raise ValueError("units: one has items of two classes")
    rng = np.random.default_rng(seed)
    within, between = _split(cosines, pairs, of_unit)
    null = np.array([np.subtract(*_split(cosines, pairs, rng.permutation(of_unit))) for _ in range(deals)])
    p = (1 + (null >= within - between - 1e-12).sum()) / (1 + deals)
    return Likeness(within, between, float(p), float(null.std()), float(null.max()))


def _split(cosines: np.ndarray, pairs: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    same = label[:, None] == label
    return float(cosines[same].sum() / pairs[same].sum()), float(cosines[~same].sum() / pairs[~same].sum())


def shares(x: np.ndarray, labels) -> np.ndarray:
    """The share of each dimension's variance that lies between classes, η²: (width,), from 0 to 1.

    The reference calls this a signal-to-noise ratio and asks for more than 1, which it can never be.
    """
    label, classes = pd.factorize(np.asarray(labels).astype(str), sort=True)
    x = x.astype(np.float64)
    centre = by_class(x, label, len(classes))
    weight = np.bincount(label) / len(label)
    between = (weight[:, None] * np.square(centre - weight @ centre)).sum(axis=0)
    return between / np.maximum(x.var(axis=0), 1e-300)


# ------------------------------------------------------------------------------------------------- dictionaries


def matched(one: np.ndarray, other: np.ndarray, near: float = 0.7) -> tuple[float, np.ndarray]:
    """The share of directions, (feature, width), that have one of another dictionary with a cosine of at least `near`;
    and the largest cosine of each, (feature,)."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (one, other)]
    best = (unit[0] @ unit[1].T).max(axis=1)
    return float((best >= near).mean()), best


def counterparts(directions: np.ndarray, others: np.ndarray, rates: np.ndarray, near: float = 0.7) -> dict:
    """How many of a dictionary's directions, (latent, width), another one has, too: those of `matched`.

    `found`: a share of the latents; `found_by_firing`: weighted by how often each fires, `rates` (latent,); `median` of
    the largest cosines; and `chance`: the same share for as many random directions as the others are.
    """
    found, best = matched(directions, others, near)
    random = np.random.default_rng(0).normal(size=others.shape)
    return {
        "latents": len(best), "found": found, "median": float(np.median(best)),
        "found_by_firing": float(((best >= near) * rates).sum() / rates.sum()),
        "chance": matched(directions, random, near)[0],
    }  # fmt: skip


def correlations(values: np.ndarray, groups) -> np.ndarray:
    """|r| of every pair of features, (item, feature), of two different groups, (feature,): (pair,)."""
    groups = np.asarray(groups)
    spread = values.std(axis=0)
    keep = spread > 0
    r = np.abs(np.corrcoef(values[:, keep].T)) if keep.sum() > 1 else np.zeros((1, 1))
    mine = groups[keep] if keep.sum() > 1 else groups[:1]
    above = np.triu(mine[:, None] != mine, k=1)
    return r[above]
