"""Do points lie in clumps, or in one cloud that k-means cuts into pieces? And what are the clumps of?

k-means always finds as many clusters as it is asked for. Their silhouette (how much nearer a point is to its own
cluster than to the next, from -1 to 1) says little by itself: one long cloud cut in the middle has a large one. So it
is set against clouds without clumps that are as long and as wide: the same mean, the same variance along every
principal direction, and the points dealt anew by a random rotation (Langsrud 2005). Where the points are draws of any
one normal cloud, whatever its shape, that is exact. Dealing each feature's values anew instead would also take away
the shape, and then every long cloud would seem to have clumps; `tests/test_clusters.py` has both.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances, silhouette_score

DRAWS = 40
"""Clouds without clumps; with so many the smallest p is 1 in 41."""

KEPT = 0.99
"""The share of the variance that is looked at, along as few principal directions as hold it; the rest costs most."""


class Found(NamedTuple):
    """What k-means made of some points."""

    table: pd.DataFrame
    """A row a number of `clusters`: its `silhouette`, `chance` (the mean of clouds without clumps), `chance_95` (what
    one in twenty of them reaches) and the size of the `smallest` cluster."""
    clusters: int
    """The number whose silhouette lies farthest above its chance."""
    cluster: np.ndarray
    """(point,) the cluster of each, 0 the largest."""
    p: float
    """How often a cloud without clumps stands out as far, at whichever number it does so most."""


def find(x: np.ndarray, most: int = 8, draws: int = DRAWS, seed: int = 0, progress: Callable = iter) -> Found:
    """k-means of points (point, width) for 2 to `most` clusters, each beside `draws` clouds without clumps.

    Features that do not vary count for nothing. Raises ValueError where fewer than 4 points differ.
    """
    y, lengths = _turned(x)
    near = np.round(y / max(np.abs(y).max(initial=0), 1e-300), 9)
    distinct = len(np.unique(near, axis=0)) if near.size else min(1, len(x))
    if distinct < 4:
        raise ValueError(f"points: {distinct} of {len(x)} differ, too few to look for clusters")
    numbers = range(2, min(most, distinct - 1) + 1)
    rng = np.random.default_rng(seed)
    labels, seen = _silhouettes(y, numbers, seed)
    clouds = (_dealt_anew(len(y), lengths, rng) for _ in range(draws))
    chance = np.array([_silhouettes(cloud, numbers, seed)[1] for cloud in progress(clouds)])
    centre, spread = chance.mean(axis=0), np.maximum(chance.std(axis=0, ddof=1), 1e-6)
    reached = ((chance - centre) / spread).max(axis=1)
    p = (1 + (reached >= ((seen - centre) / spread).max()).sum()) / (1 + draws)
    best = int(np.argmax(seen - centre))
    table = pd.DataFrame({
        "clusters": list(numbers), "silhouette": seen, "chance": centre, "chance_95": np.quantile(chance, 0.95, axis=0),
        "smallest": [int(np.bincount(label).min()) for label in labels],
    })  # fmt: skip
    return Found(table, numbers[best], _by_size(labels[best]), float(p))


def medoids(x: np.ndarray, cluster: np.ndarray, n: int = 3, units=None) -> dict[int, np.ndarray]:
    """The `n` points nearest to the mean of each cluster, nearest first: {cluster: numbers of points}.

    With `units`, (point,), such as speakers, no unit is there twice while there are others; "" is no unit.
    """
    found = {}
    for name in np.unique(cluster):
        mine = np.flatnonzero(cluster == name)
        away = np.linalg.norm(x[mine] - x[mine].mean(axis=0), axis=1)
        order = mine[np.argsort(away, kind="stable")]
        if units is not None:
            unit = pd.Series(np.asarray(units, dtype=object)[order])
            again = unit.duplicated().to_numpy() & (unit != "").to_numpy()
            order = np.concatenate([order[~again], order[again]])
        found[int(name)] = order[:n]
    return found


# ------------------------------------------------------------------------------------------ what they are of


class Told(NamedTuple):
    """How much of the cluster of a point a label tells."""

    share: float
    """Mutual information over the entropy of the clusters: 0 tells nothing, 1 tells the cluster."""
    chance: float
    """The mean of that where labels were dealt anew."""
    chance_95: float
    """What one in twenty dealings reaches."""
    p: float
    units: int
    """Speakers where the label is the speakers', or else points."""


def told(cluster, label, unit=None, draws: int = 500, seed: int = 0) -> Told:
    """How much of the clusters (point,) the labels (point,) tell, beside labels that were dealt anew; see `dealt`.

    Points labelled "" are left out. Raises ValueError where what is left has one label, has
    as many labels as points, or lies in one cluster.
    """
    cluster, label, unit = _known(cluster, label, unit)
    cluster, label = (np.unique(one, return_inverse=True)[1] for one in (cluster, label))
    seen = _share(cluster, label)
    chance = np.array([_share(cluster, other) for other in dealt(label, unit, draws, seed)])
    p = (1 + (chance >= seen - 1e-12).sum()) / (1 + draws)
    units = len(np.unique(unit)) if _of_units(label, unit) else len(label)
    return Told(seen, float(chance.mean()), float(np.quantile(chance, 0.95)), float(p), units)


def told_by(cluster, labels: pd.DataFrame, unit=None, draws: int = 500, seed: int = 0) -> tuple[pd.DataFrame, dict]:
    """`told` of every column of `labels`, a row each, what tells most beyond chance first; why others were not asked.

    `q` is the false discovery rate at which a label is found (Benjamini & Hochberg 1995), over all that were asked.
    """
    rows, unasked = [], {}
    for name in labels:
        try:
            rows.append({"label": name, **told(cluster, labels[name], unit, draws, seed)._asdict()})
        except ValueError as why:
            unasked[name] = str(why)
    found = pd.DataFrame(rows, columns=["label", *Told._fields])
    found["q"] = stats.false_discovery_control(found.p) if len(found) else found.p
    best = (found.chance - found.share).sort_values(kind="stable").index
    return found.loc[best].reset_index(drop=True), unasked


def foremost(cluster, label, unit=None, draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """Which label is in each cluster more than it is everywhere: a row a cluster.

    `value`, its `share` of the cluster's points, its share `everywhere`, and `chance_95`, the share that one in twenty
    dealings gives to whichever label then is most above its own share. As `told` does, raises ValueError.
    """
    cluster, label, unit = _known(cluster, label, unit)
    names, number = np.unique(label, return_inverse=True)
    everywhere = np.bincount(number) / len(number)
    groups = np.unique(cluster)
    above = _shares(cluster, number, groups, len(names)) - everywhere  # (cluster, label)
    best = above.argmax(axis=1)
    chance = []
    for other in dealt(number, unit, draws, seed):
        chance.append((_shares(cluster, other, groups, len(names)) - everywhere).max(axis=1))
    return pd.DataFrame({
        "cluster": groups, "value": names[best], "share": above[np.arange(len(groups)), best] + everywhere[best],
        "everywhere": everywhere[best], "chance_95": np.quantile(chance, 0.95, axis=0) + everywhere[best],
    })  # fmt: skip


def foremost_by(cluster, labels: pd.DataFrame, unit=None, draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """`foremost` of every column of `labels`, by cluster; columns of which nothing can be asked are left out."""
    parts = []
    for name in labels:
        with contextlib.suppress(ValueError):
            found = foremost(cluster, labels[name], unit, draws, seed)
            found.insert(1, "label", name)
            parts.append(found)
    if not parts:
        return pd.DataFrame(columns=["cluster", "label", "value", "share", "everywhere", "chance_95"])
    return pd.concat(parts).sort_values("cluster", kind="stable", ignore_index=True)


def dealt(label: np.ndarray, unit: np.ndarray | None = None, draws: int = 500, seed: int = 0) -> Iterator[np.ndarray]:
    """Labels dealt anew, (point,) `draws` times, so that all else that makes points alike stays as it is.

    With `unit`, (point,): labels that all points of a unit share, such as the accent of a speaker, go to another unit
    as a whole. Labels that differ within units are dealt within each; units of a single point are one. Where every unit
    has a label of its own, as the speaker has its name, and without units, all points are dealt. A point of unit "",
    such as a sound without a speaker, is a unit by itself.
    """
    rng = np.random.default_rng(seed)
    if unit is not None and _of_units(label, unit):
        _, first, number = np.unique(unit, return_index=True, return_inverse=True)
        for _ in range(draws):
            yield label[first][rng.permutation(len(first))][number]
        return
    groups = np.zeros(len(label), dtype=int)
    if unit is not None and not _one_to_one(label, unit):
        _, groups, size = np.unique(unit, return_inverse=True, return_counts=True)
        groups = np.where(size[groups] > 1, groups + 1, 0)
    home = np.argsort(groups, kind="stable")
    for _ in range(draws):
        order = np.empty(len(label), dtype=int)
        order[home] = np.lexsort([rng.random(len(label)), groups])
        yield label[order]


def quarters(values, unit: str = "") -> np.ndarray:
    """Numbers (point,) as labels: the quarter in which each lies, as "1.2 to 1.9 s"; "" where it is not a number.

    Fewer parts where many are equal, and all the same label where all are.
    """
    values = pd.to_numeric(pd.Series(np.asarray(values, dtype=object)), errors="coerce").astype(float)
    told = values.dropna()
    edges = np.unique(np.quantile(told, np.linspace(0, 1, 5))) if len(told) else np.zeros(1)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    names = [f"{low:.3g} to {high:.3g}{unit and ' ' + unit}" for low, high in itertools.pairwise(edges)]
    names = names or [f"{edges[0]:.3g}{unit and ' ' + unit}"]
    return np.where(values.isna(), "", np.array(names, dtype=object)[place]).astype(str)


# ------------------------------------------------------------------------------------------------- inside


def _turned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points along the principal directions that hold KEPT of their variance, and the length of each of these."""
    x = np.asarray(x, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("points: some hold what is not a number")
    if not x.size:
        return np.zeros((len(x), 0)), np.zeros(0)
    left, lengths, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    lengths = np.where(lengths > 1e-12 * np.abs(x).max(initial=0) * x.size**0.5, lengths, 0)
    share = np.cumsum(lengths**2) / max((lengths**2).sum(), 1e-300)
    some = int(np.searchsorted(share, KEPT) + 1) if lengths.any() else 0
    return left[:, :some] * lengths[:some], lengths[:some]


def _dealt_anew(points: int, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cloud without clumps, with these lengths along its principal directions: (point, direction)."""
    cloud = rng.standard_normal((points, len(lengths)))
    return np.linalg.qr(cloud - cloud.mean(axis=0))[0] * lengths


def _silhouettes(y: np.ndarray, numbers: Iterable[int], seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    apart = pairwise_distances(y)
    np.fill_diagonal(apart, 0)
    labels = [KMeans(k, n_init=4, random_state=seed).fit_predict(y) for k in numbers]
    return labels, np.array([silhouette_score(apart, label, metric="precomputed") for label in labels])


def _by_size(label: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(-np.bincount(label), kind="stable"), kind="stable")[label]


def _known(cluster, label, unit) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    cluster, label = np.asarray(cluster), np.asarray(label)
    here = label.astype(str) != ""
    if len(np.unique(label[here])) < 2 or len(np.unique(cluster[here])) < 2:
        raise ValueError("labels: two labels and two clusters are needed, to ask whether they go together")
    if len(np.unique(label[here])) == here.sum():
        raise ValueError("labels: every point has its own, which tells its cluster whatever that is")
    if unit is not None:
        unit = np.asarray(unit).astype(str)
        unit = np.where(unit == "", np.char.add("\0", np.arange(len(unit)).astype(str)), unit)[here]
    return cluster[here], label[here].astype(str), unit


def _share(cluster: np.ndarray, label: np.ndarray) -> float:
    """Mutual information of numbers (point,) over the entropy of the first."""
    width = label.max() + 1
    table = np.bincount(cluster * width + label, minlength=(cluster.max() + 1) * width).reshape(-1, width) / len(label)
    rows, columns = table.sum(axis=1, keepdims=True), table.sum(axis=0, keepdims=True)
    some = table > 0
    mutual = (table[some] * np.log(table[some] / (rows * columns)[some])).sum()
    return float(mutual / -(rows * np.log(rows)).sum())


def _shares(cluster: np.ndarray, number: np.ndarray, groups: np.ndarray, labels: int) -> np.ndarray:
    place = np.searchsorted(groups, cluster)
    counts = np.bincount(place * labels + number, minlength=len(groups) * labels).reshape(-1, labels)
    return counts / counts.sum(axis=1, keepdims=True)


def _of_units(label: np.ndarray, unit: np.ndarray | None) -> bool:
    """Whether all points of a unit have one label, and units share labels."""
    return unit is not None and pd.Series(label).groupby(unit).nunique().max() == 1 and not _one_to_one(label, unit)


def _one_to_one(label: np.ndarray, unit: np.ndarray) -> bool:
    """Whether a unit is known by its label."""
    pairs = pd.DataFrame({"label": label, "unit": unit}).drop_duplicates()
    return pairs.label.is_unique and pairs.unit.is_unique
