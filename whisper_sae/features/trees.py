"""Who is like whom: a tree of groups of speakers, how far each of its splits can be relied on, and which groups go
together; and the same question of features.

A group, such as an accent, is the mean of its speakers' means: one who talks more counts no more. Any means make a
tree, so each split has its *support*: speakers are drawn anew within every group, with replacement, and the support
is the share of such draws in which a tree has a split with the same groups under it. What support groups by lot
reach is told beside it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse import csc_array
from scipy.spatial.distance import squareform


class Tree(NamedTuple):
    """Groups of speakers, joined two at a time."""

    names: list[str]
    """(group,) those with two speakers or more, in order."""
    speakers: list[int]
    """(group,) how many each has."""
    links: np.ndarray
    """(group - 1, 4) as `scipy.cluster.hierarchy.linkage` gives them, by Ward's method."""
    support: np.ndarray
    """(group - 1,) of the groups that each link joins; the last joins all, and is always there."""
    chance: float
    """The support that the best split of one tree in twenty reaches where groups are by lot; NaN if not asked."""
    alike: pd.DataFrame
    """(group, group) correlation of the groups' means, less the mean of all groups, over the features."""
    alike_by_chance: tuple[float, float]
    """Between which 95 % of these correlations lie where groups are by lot; NaN if not asked."""


def tree(voices: np.ndarray, group, draws: int = 200, shuffles: int = 40, seed: int = 0) -> Tree:
    """The tree of groups, (speaker,), of speakers' means, (speaker, feature).

    Groups of a single speaker and speakers without a group ("") are left out. Raises ValueError for fewer than three
    groups, whose tree has no split that could be otherwise.
    """
    voices, group = np.asarray(voices, dtype=np.float64), np.asarray(group).astype(str)
    names, number, size = np.unique(group, return_inverse=True, return_counts=True)
    good = (names != "") & (size > 1)
    if good.sum() < 3:
        raise ValueError(f"groups: {good.sum()} have two speakers or more, three are needed for a tree")
    here = good[number]
    whole, number = voices[here], (np.cumsum(good) - 1)[number[here]]
    voices = _turned(whole)
    rng = np.random.default_rng(seed)
    links = linkage(_means(voices, number), "ward")
    best, alike = [], []
    for _ in range(shuffles):
        lot = rng.permutation(number)
        by_lot = linkage(_means(voices, lot), "ward")
        best.append(_support(by_lot, voices, lot, max(20, draws // 4), rng)[:-1].max())
        alike += _alike(_means(whole, lot))[np.triu_indices(len(by_lot) + 1, 1)].tolist()
    names = names[good].tolist()
    return Tree(
        names, size[good].tolist(), links, _support(links, voices, number, draws, rng),
        float(np.quantile(best, 0.95)) if best else np.nan, pd.DataFrame(_alike(_means(whole, number)), names, names),
        tuple(np.quantile(alike, [0.025, 0.975]).tolist()) if alike else (np.nan, np.nan),
    )  # fmt: skip


def told(found: Tree) -> pd.DataFrame:
    """The splits of a tree, a row each but the last, which joins all: its `groups`, and its `support`."""
    groups = [", ".join(sorted(found.names[leaf] for leaf in under)) for under in splits(found.links)]
    return pd.DataFrame({"groups": groups, "support": found.support})[:-1]


def leaves(found: Tree) -> list[int]:
    """The numbers of the groups in the order in which the tree is drawn, from above."""
    return leaves_list(found.links)[::-1].tolist()


def splits(links: np.ndarray) -> list[frozenset]:
    """The leaves under each link: (group - 1,) sets of their numbers, the last of all."""
    under: list[frozenset] = [frozenset([leaf]) for leaf in range(len(links) + 1)]
    for left, right in links[:, :2].astype(int):
        under.append(under[left] | under[right])
    return under[len(links) + 1 :]


def voices_of(x: np.ndarray, speaker, *others) -> tuple[np.ndarray, list[np.ndarray]]:
    """Means over clips (clip, feature) of each speaker, (speaker, feature), and of each other column its first value.

    The first column is the speakers' names. Clips whose speaker is "" are left out.
    """
    told = pd.DataFrame(dict(enumerate([np.asarray(speaker).astype(str), *(np.asarray(one) for one in others)])))
    here = (told[0] != "").to_numpy()
    number = np.unique(told[0][here], return_inverse=True)[1]
    first = told[here].drop_duplicates(0).sort_values(0)
    return _means(np.asarray(x, dtype=np.float64)[here], number), [first[column].to_numpy() for column in first]


# ------------------------------------------------------------------------------------------------ features


def together(codes: csc_array) -> np.ndarray:
    """Correlation over frames of sparse codes (frame, feature): (feature, feature), exactly symmetric, its diagonal 1.

    Zeros count. Raises ValueError where a feature does not vary: leave those out that never fire.
    """
    n = codes.shape[0]
    x = codes.astype(np.float64)
    mean = np.asarray(x.sum(axis=0)).ravel() / n
    cross = (x.T @ x).toarray() / n - np.outer(mean, mean)
    spread = np.sqrt(np.maximum(np.diag(cross), 0))
    if still := np.flatnonzero(~(spread > 1e-12 * np.maximum(mean, 1e-300))).tolist():
        raise ValueError(f"features: {len(still)} do not vary, such as the one in column {still[0]}")
    found = np.clip(cross / np.outer(spread, spread), -1, 1)
    found = (found + found.T) / 2
    np.fill_diagonal(found, 1)
    return found


def slid(codes: csc_array, seed: int = 0) -> csc_array:
    """The same codes, each feature moved in time by its own lot (what leaves the end comes in again at the start):
    what is left of a correlation is chance."""
    rng, n = np.random.default_rng(seed), codes.shape[0]
    by = np.repeat(rng.integers(n // 10, max(n - n // 10, n // 10 + 1), codes.shape[1]), np.diff(codes.indptr))
    rows = (codes.indices + by) % n
    return csc_array((codes.data, rows, codes.indptr), shape=codes.shape).sorted_indices()


def in_order(correlation: np.ndarray) -> np.ndarray:
    """Ward's order of rows, so that those who go together stand beside each other: (feature,) numbers."""
    if len(correlation) < 3:
        return np.arange(len(correlation))
    apart = np.sqrt(np.maximum(2 * (1 - correlation), 0))  # between standardised features of length 1
    np.fill_diagonal(apart, 0)
    return leaves_list(linkage(squareform(apart, checks=False), "ward", optimal_ordering=True))


# ------------------------------------------------------------------------------------------------- inside


def _turned(voices: np.ndarray) -> np.ndarray:
    """Along the principal directions: as many columns as speakers at most; distances are what they were."""
    if not np.isfinite(voices).all():
        raise ValueError("voices: some means are not numbers")
    left, lengths, _ = np.linalg.svd(voices - voices.mean(axis=0), full_matrices=False)
    return left * lengths


def _means(x: np.ndarray, number: np.ndarray) -> np.ndarray:
    weight = np.equal.outer(np.arange(number.max(initial=-1) + 1), number).astype(np.float64)
    return weight @ x / weight.sum(axis=1, keepdims=True)


def _again(number: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speakers drawn anew within each group, as many as there were: their numbers, in the order of `number`."""
    found = np.empty(len(number), dtype=int)
    for name in range(number.max() + 1):
        mine = np.flatnonzero(number == name)
        found[mine] = rng.choice(mine, len(mine))
    return found


def _drawn(voices: np.ndarray, number: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[set]:
    for _ in range(draws):
        yield set(splits(linkage(_means(voices[_again(number, rng)], number), "ward")))


def _support(links: np.ndarray, voices: np.ndarray, number: np.ndarray, draws: int, rng) -> np.ndarray:
    wanted = splits(links)
    there = [[split in found for split in wanted] for found in _drawn(voices, number, draws, rng)]
    return np.mean(there, axis=0)


def _alike(means: np.ndarray) -> np.ndarray:
    """Correlations over features of what is particular to each group; 0 with one that is as all are on average."""
    away = means - means.mean(axis=0)
    away = away - away.mean(axis=1, keepdims=True)
    length = np.linalg.norm(away, axis=1, keepdims=True)
    away = away / np.where(length > 0, length, 1)
    found = np.clip(away @ away.T, -1, 1)
    np.fill_diagonal(found, 1)
    return (found + found.T) / 2
