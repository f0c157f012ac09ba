"""Codes as their entries: which feature fires on which frame, and how strongly; and what is known of the frames.

Codes are a sparse array (frame, feature) in columns, `scipy.sparse.csc_array`, whose entries are above 0: memory-mapped
parts of an index do, and `of_chunks` makes one of dense codes, signed ones too.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, vstack

BLOCK = 1 << 19
"""Entries that are looked at together, which bounds the memory beside the codes."""

CACHED = 1 << 16
"""Entries that stay near the processor while they are looked at."""


class Frames(NamedTuple):
    """What is known of each frame besides its codes; frames of a clip follow each other in time."""

    label: np.ndarray
    """(frame,) the number of its label."""
    names: np.ndarray
    """(label,) what the labels are called."""
    speaker: np.ndarray
    """(frame,) the number of its speaker."""
    clip: np.ndarray
    """(frame,) the number of its clip."""

    @property
    def count(self) -> np.ndarray:
        """(label,) frames of each label."""
        return np.bincount(self.label, minlength=len(self.names))


def of_chunks(chunks: Iterable[np.ndarray], both_sides: bool = False) -> csc_array:
    """Dense codes, pieces (frame, feature) in order, as entries: (frame, feature).

    With `both_sides` a signed input (a neuron, a principal direction; best less its mean) becomes two features: column
    j is what is above 0 of it, column width + j what is below, as a positive number. Without, a negative code raises
    ValueError.
    """
    parts = []
    for chunk in chunks:
        x = np.asarray(chunk, dtype=np.float32)
        if both_sides:
            x = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)
        elif (x < 0).any():
            raise ValueError("codes: some are negative; ask for both_sides, which makes two features of each")
        parts.append(csc_array(x))
    return vstack(parts, format="csc")


def known(codes: csc_array, labels, speakers, clips) -> tuple[csc_array, Frames]:
    """The codes of the frames that have a label, and what is known of these frames, each given as (frame,).

    Raises ValueError for lengths that differ, a frame of a clip apart from the clip's others, or no label at all.
    """
    labels, speakers, clips = (np.asarray(given) for given in (labels, speakers, clips))
    for name, given in {"labels": labels, "speakers": speakers, "clips": clips}.items():
        if len(given) != codes.shape[0]:
            raise ValueError(f"{name}: {len(given)} for {codes.shape[0]} frames of codes")
    here = labels.astype(str) != ""
    if not here.any():
        raise ValueError("labels: no frame has one")
    names, label = np.unique(labels[here].astype(str), return_inverse=True)
    clip, there = pd.factorize(clips[here])
    if (np.diff(clip) != 0).sum() + 1 != len(there):
        raise ValueError("clips: the frames of a clip must follow each other")
    return only(codes, here), Frames(label, names, pd.factorize(speakers[here])[0], clip)


def only(codes: csc_array, here: np.ndarray) -> csc_array:
    """The codes of the frames of a mask, (frame,); entries that are not above 0 are dropped."""
    if not codes.has_sorted_indices:
        codes = codes.sorted_indices()
    place = np.cumsum(here, dtype=codes.indices.dtype) - 1
    kept = [np.zeros(0, np.intp)]
    for first in range(0, codes.nnz, CACHED):
        some = slice(first, first + CACHED)
        kept.append(first + np.flatnonzero(here[codes.indices[some]] & (codes.data[some] > 0)))
    kept = np.concatenate(kept)
    first = np.searchsorted(kept, codes.indptr).astype(codes.indptr.dtype)
    shape = (int(here.sum()), codes.shape[1])
    found = csc_array((codes.data[kept], place[codes.indices[kept]], first), shape=shape)
    found.has_sorted_indices = True  # as they were, so that nobody looks again
    return found


def by_parts(index, here: np.ndarray, size: int = 256) -> Iterator[csc_array]:
    """What an `index.Index` says on the rows of a mask, (row,), some sides at a time: (frame, side)."""
    for first in range(0, index.sides, size):
        yield only(index.columns(first, min(first + size, index.sides)), here)


def part(codes: csc_array, frames: Frames, here: np.ndarray) -> tuple[csc_array, Frames]:
    """Codes and frames of a mask, (frame,); labels keep their numbers, and one may then have no frame."""
    return only(codes, here), Frames(frames.label[here], frames.names, frames.speaker[here], frames.clip[here])


def half_of(speaker: np.ndarray, seed: int = 0) -> np.ndarray:
    """A mask, (frame,), of the frames of half of the speakers, drawn at random; all of them where there is one."""
    everyone = np.unique(speaker)
    return np.isin(speaker, np.random.default_rng(seed).permutation(everyone)[: (len(everyone) + 1) // 2])


def blocks(codes: csc_array, most: int = BLOCK) -> Iterator[tuple[slice, csc_array]]:
    """The codes a few features at a time, with at most about `most` entries each: which features, and their codes."""
    first = 0
    while first < codes.shape[1]:
        last = int(np.searchsorted(codes.indptr, codes.indptr[first] + most, side="right")) - 1
        last = min(max(last, first + 1), codes.shape[1])
        entries = slice(codes.indptr[first], codes.indptr[last])
        inner = (codes.data[entries], codes.indices[entries], codes.indptr[first : last + 1] - codes.indptr[first])
        yield slice(first, last), csc_array(inner, shape=(codes.shape[0], last - first))
        first = last


def feature_of(codes: csc_array) -> np.ndarray:
    """The feature of each entry: (entry,)."""
    return np.repeat(np.arange(codes.shape[1], dtype=np.int32), np.diff(codes.indptr))


def coincidences(codes: csc_array, label: np.ndarray, labels: int, weight: np.ndarray | None = None) -> np.ndarray:
    """On how many frames of each label a feature fires, or what `weight`, (entry,), sums to there: (feature, label)."""
    found = np.empty((codes.shape[1], labels))
    for some, inner in blocks(codes):
        key = feature_of(inner) * labels + label[inner.indices]
        mine = None if weight is None else weight[codes.indptr[some.start] : codes.indptr[some.stop]]
        found[some] = np.bincount(key, mine, minlength=inner.shape[1] * labels).reshape(inner.shape[1], labels)
    return found
