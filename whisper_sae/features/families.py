"""Which features of a larger dictionary share the work of one feature of a smaller: families, splits, absorption.

A dictionary with room for more splits what a smaller one says in one feature: *vowel* becomes *open vowel* and *close
vowel* (Bricken et al. 2023, "feature splitting"). A child is *linked* to the parent whose direction is nearest, if that
is near enough and the parent fires on most of the frames on which the child does. Where a parent lives on in one child
that is silent on some of the parent's frames, while another child fires there instead, these frames were *absorbed*
(Chanin et al. 2024): the child still looks like the parent, and is no longer the whole of it.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

NEAR = 0.5
"""The least cosine between the directions of a child and its parent."""

INSIDE = 0.5
"""The least share of a child's firings on which its parent fires."""


class Families(NamedTuple):
    """Who comes of whom."""

    children: pd.DataFrame
    """A row a feature of the larger dictionary that fires: `child`, the `parent` nearest to it among those that fire,
    their `cosine`, on what share of its firings the parent fires (`inside`), what share of all frames that would be by
    chance (`chance`), and whether they are `linked`."""
    parents: pd.DataFrame
    """A row a feature of the smaller dictionary that fires: `parent`, its `rate`, how many `children` are linked to it,
    on what share of its firings the `first` of them fires, that with the highest such share, on what share of the rest
    any other does (`absorbed`), and on what share none (`lost`); NaN without children."""
    by_chance: int
    """How many children are linked where directions are drawn at random with the larger dictionary's own covariance and
    the same firings."""

    @property
    def linked(self) -> int:
        """How many children have a parent."""
        return int(self.children.linked.sum())

    @property
    def split(self) -> int:
        """How many parents have two children or more."""
        return int((self.parents.children > 1).sum())


def families(
    small: np.ndarray, large: np.ndarray, said: csc_array, told: csc_array, *, seed: int = 0, near: float = NEAR
) -> Families:
    """The families of two dictionaries of one site.

    `small` (parent, d) and `large` (child, d) are their directions, `said` (frame, parent) and `told` (frame, child)
    their codes of the same frames. Features that never fire have no family. Raises ValueError for sizes that do not
    fit, or where a dictionary is silent.
    """
    if said.shape[0] != told.shape[0] or small.shape[1] != large.shape[1]:
        raise ValueError(f"codes {said.shape} and {told.shape}, directions {small.shape} and {large.shape} do not fit")
    said, told = (csc_array(codes > 0, dtype=np.float32) for codes in (said, told))
    elders, young = (np.flatnonzero(np.diff(codes.indptr) > 0) for codes in (said, told))
    if not len(elders) or not len(young):
        raise ValueError("features: none of a dictionary ever fires")
    fires, there = said[:, elders], told[:, young]
    both = (there.T @ fires).toarray() / np.asarray(there.sum(axis=0)).reshape(-1, 1)  # (child, parent)
    rate = np.asarray(fires.sum(axis=0)).ravel() / said.shape[0]
    mine, drawn = _unit(large[young]), _alike(large[young], seed)
    nearest, cosine, linked = _linked(_unit(small[elders]), mine, both, near)
    rows = np.arange(len(young))
    told_of = {"child": young, "parent": elders[nearest], "cosine": cosine, "inside": both[rows, nearest],
               "chance": rate[nearest], "linked": linked}  # fmt: skip
    by_chance = _linked(_unit(small[elders]), drawn, both, near)[2].sum()
    parents = [_parent(fires[:, [n]], there[:, linked & (nearest == n)]) for n in range(len(elders))]
    frame = pd.DataFrame(parents, columns=["children", "first", "absorbed", "lost"])
    frame.insert(0, "parent", elders)
    frame.insert(1, "rate", rate)
    return Families(pd.DataFrame(told_of), frame, int(by_chance))


def _linked(parents: np.ndarray, children: np.ndarray, both: np.ndarray, near: float):
    """The nearest parent of each child, their cosine, and whether they are linked: (child,) each."""
    cosines = children @ parents.T
    nearest = cosines.argmax(axis=1)
    rows = np.arange(len(children))
    cosine = cosines[rows, nearest]
    return nearest, cosine, (cosine >= near) & (both[rows, nearest] >= INSIDE)


def _parent(parent: csc_array, children: csc_array) -> tuple[int, float, float, float]:
    """How many children, and the shares of the parent's firings: the first child's, others' alone, nobody's."""
    many = children.shape[1]
    if not many:
        return 0, np.nan, np.nan, np.nan
    here = children.tocsr()[parent.indices].tocsc()  # on the parent's frames
    share = np.diff(here.indptr) / len(parent.indices)
    any_of_them = np.count_nonzero(np.asarray(here.sum(axis=1)).ravel()) / len(parent.indices)
    return many, share.max(), any_of_them - share.max(), 1 - any_of_them


def _unit(directions: np.ndarray) -> np.ndarray:
    return directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)


def _alike(directions: np.ndarray, seed: int) -> np.ndarray:
    """As many directions as these, normally distributed with the same mean and covariance."""
    x = np.asarray(directions, dtype=np.float64)
    lot = np.random.default_rng(seed).standard_normal((len(x), len(x))) / np.sqrt(len(x))
    return _unit(x.mean(axis=0) + lot @ (x - x.mean(axis=0)))
