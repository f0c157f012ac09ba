"""Maps: points of many dimensions laid out in two, to be looked at and never to be measured on.

t-SNE keeps near points near and promises nothing else: how far clumps lie apart, how large they are and which of them
are beside each other means nothing, and another seed draws another map. So every map comes with its trustworthiness,
and with how many neighbours another seed gives the same point. Clusters are looked for where the points really are.
"""

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors

PERPLEXITY = 30.0
"""How many neighbours t-SNE minds of each point, about; fewer where there are not three times as many points."""

TURNS = 500
"""Steps of t-SNE. Of up to 2,000 points more make no map that is trusted further; see `trusted`."""

LEAST = 10
"""Points that a map needs."""


def tsne(x: np.ndarray, seed: int = 0, *, perplexity: float | None = None, metric: str = "euclidean") -> np.ndarray:
    """Where t-SNE lays each point: (point, width) -> (point, 2), in the same order, and of standard deviation 1.

    It begins at random, so that what two seeds agree on is not their beginning. Raises ValueError for fewer points than
    LEAST, a number that is not finite, or a perplexity that is not below the number of points.
    """
    x = _checked(x)
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3) if perplexity is None else perplexity
    if not 1 <= perplexity < len(x):
        raise ValueError(f"perplexity: must be at least 1 and below the {len(x)} points, got {perplexity:g}")
    drawn = TSNE(perplexity=perplexity, metric=metric, init="random", random_state=seed, max_iter=TURNS)
    return _of_one_size(drawn.fit_transform(x))


def principal(x: np.ndarray) -> np.ndarray:
    """The two principal directions in which points differ most, as a map: (point, width) -> (point, 2)."""
    return _of_one_size(PCA(2, svd_solver="full").fit_transform(_checked(x)))


def trusted(x: np.ndarray, laid: np.ndarray, neighbours: int = 10, metric: str = "euclidean") -> float:
    """Trustworthiness of a map (Venna & Kaski 2001): 1 if who is near on it is near, about 0.5 for points by lot."""
    return float(trustworthiness(_checked(x), laid, n_neighbors=_near(len(x), neighbours), metric=metric))


def kept(one: np.ndarray, other: np.ndarray, neighbours: int = 10) -> float:
    """The share of each point's nearest neighbours on one map, (point, 2), that are so on another: 0 to 1."""
    count = _near(len(one), neighbours)
    a, b = (NearestNeighbors(n_neighbors=count).fit(laid).kneighbors(return_distance=False) for laid in (one, other))
    return float(np.mean([len(np.intersect1d(p, q)) / count for p, q in zip(a, b, strict=True)]))


def drawn(x: np.ndarray, seeds: tuple[int, int], metric: str = "euclidean") -> tuple[list[np.ndarray], pd.DataFrame]:
    """t-SNE at two seeds, and how far to trust it: the maps, (point, 2) each, and a row a map with its rivals.

    `trustworthiness` stands beside that of two principal directions and of a map by lot; `kept`, for the first, is the
    share of neighbours that the second seed gives too, and by lot that of two maps by lot.
    """
    maps = [tsne(x, seed, metric=metric) for seed in seeds]
    lots = [np.random.default_rng(seed).standard_normal((len(x), 2)) for seed in seeds]
    rows = [(f"t-SNE, seed {seed}", laid) for seed, laid in zip(seeds, maps, strict=True)]
    rows += [("two principal directions", principal(x)), ("by lot", lots[0])]
    table = pd.DataFrame(
        [(name, len(x), trusted(x, laid, metric=metric)) for name, laid in rows],
        columns=["map", "points", "trustworthiness"],
    )
    table["kept"] = [kept(*maps), kept(*maps[::-1]), np.nan, kept(*lots)]
    return maps, table


def _checked(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if len(x) < LEAST:
        raise ValueError(f"points: {len(x)} are too few for a map, {LEAST} are needed")
    if not np.isfinite(x).all():
        raise ValueError(f"points: {int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} hold what is not a number")
    return x


def _of_one_size(laid: np.ndarray) -> np.ndarray:
    laid = laid - laid.mean(axis=0)
    return laid / max(laid.std(), 1e-12)


def _near(points: int, wanted: int) -> int:
    """How many neighbours to look at: trustworthiness is defined for fewer than half of the points."""
    return max(1, min(wanted, (points - 1) // 2))
