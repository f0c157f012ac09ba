"""Which features go with which phones, classes, words or characters, and how well: scores of every feature × label.

Every score works on the entries of the codes alone, so that thousands of features by dozens of labels on half a million
frames take seconds. What was chosen on some speakers is scored on others: thresholds, and which label is a feature's
best, are taken from the frames of the choosing speakers; all scores are of the other speakers' frames.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array
from scipy.special import xlogy

from whisper_sae.features.sparse_acts import Frames, blocks, coincidences, feature_of, part


def lift(fires: np.ndarray, count: np.ndarray) -> np.ndarray:
    """How many times as often a feature fires on a label as overall: (feature, label), of `coincidences` and counts.

    1 means no connection; NaN for a feature that never fires or a label that never occurs.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (fires / count) / (fires.sum(axis=1, keepdims=True) / count.sum())


def information(fires: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Bits that firing or not tells about label or not: (feature, label). The natural upper bound is 1.

    By chance alone it is about 1 / (2 n ln 2) for n independent frames, and more for frames that are alike.
    """
    n, a = count.sum(), fires
    b, c = a.sum(axis=1, keepdims=True) - a, count - a
    table = np.stack([a, b, c, n - a - b - c])  # fires and label, fires, label, neither
    by_firing = np.stack([a + b, a + b, n - a - b, n - a - b])
    by_label = np.stack([a + c, n - a - c, a + c, n - a - c])
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(table > 0, table * n / (by_firing * by_label), 1)
    return np.maximum(xlogy(table, inner).sum(axis=0) / n / np.log(2), 0)


class Ranked(NamedTuple):
    """Where each entry stands among all frames of its feature, zeros included: what AUC is made of, labels apart."""

    codes: csc_array
    above: np.ndarray
    """(entry,) its mean rank, less that of the frames at zero."""
    at_zero: np.ndarray
    """(feature,) the mean rank of these."""
    ties: np.ndarray
    """(feature,) Σ t³ - t over all groups of t equal values, zeros included."""
    count: np.ndarray
    """(label,)."""

    def auc(self, label: np.ndarray) -> np.ndarray:
        """P(higher on the label than off it) + P(equal) / 2, exactly: (feature, label) of any labels, (frame,)."""
        n, total = np.bincount(label, minlength=len(self.count)), len(label)
        small = label.astype(np.min_scalar_type(len(n)))  # stays near the processor
        sums = coincidences(self.codes, small, len(n), self.above)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sums + n * self.at_zero[:, None] - n * (n + 1) / 2) / (n * (total - n))

    @property
    def spread(self) -> np.ndarray:
        """The deviation of AUC were all frames independent: (feature, label); the least that it can really be."""
        n, total = self.count, self.count.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            tied = (total + 1 - self.ties / (total * (total - 1)))[:, None]
            return np.sqrt(np.maximum(tied, 0) / (12 * n * (total - n)))

    @property
    def expected(self) -> np.ndarray:
        """Frames on which feature and label would coincide by chance: (feature, label)."""
        return np.diff(self.codes.indptr)[:, None] * self.count / self.count.sum()


def ranked(codes: csc_array, frames: Frames) -> Ranked:
    """The ranks of all entries, from which `auc` of any labelling follows fast."""
    total, fired = codes.shape[0], np.diff(codes.indptr)
    zeros = total - fired
    above, ties = np.empty(codes.nnz), zeros**3.0 - zeros
    for some, inner in blocks(codes):
        entries = slice(codes.indptr[some.start], codes.indptr[some.stop])
        order, first, last = _falling(inner)
        rank = total - (first + last) / 2
        above[entries][order] = rank - np.repeat((zeros[some] + 1) / 2, fired[some])
        size = (last - first + 1.0)[_starts(inner, order)]
        ties[some] += np.bincount(feature_of(inner)[_starts(inner, order)], size**3 - size, minlength=inner.shape[1])
    return Ranked(codes, above, (zeros + 1) / 2, ties, frames.count)


def _falling(codes: csc_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entries of each feature from its largest down: their order; and the first and last place, within the
    feature and from 0, of the entries equal to each, in this order."""
    order = np.empty(codes.nnz, dtype=np.int64)
    for a, b in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        order[a:b] = a + np.argsort(-codes.data[a:b])
    start = np.flatnonzero(_starts(codes, order))
    length = np.diff(np.append(start, codes.nnz))
    first = np.repeat(start, length) - np.repeat(codes.indptr[:-1], np.diff(codes.indptr))
    return order, first, first + np.repeat(length, length) - 1


def _starts(codes: csc_array, order: np.ndarray) -> np.ndarray:
    """Which entries, in falling order, are not equal to the one before in their feature: (entry,)."""
    value = codes.data[order]
    new = np.append(True, value[1:] != value[:-1])[: codes.nnz]
    inside = codes.indptr[:-1]
    new[inside[inside < codes.nnz]] = True
    return new


def thresholds(codes: csc_array, frames: Frames, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The value from which on "it is the label" has the highest F1 on these frames, and that F1: (feature, label) each.

    Only values at which the feature fires are asked, and of a mask `among`, (frame,), only its frames. A feature that
    never fires on a label has infinity and 0. This F1 was chosen: `at_thresholds` on other speakers says what it is
    worth.
    """
    labels, among = len(frames.names), np.ones(len(frames.label), bool) if among is None else among
    count = np.bincount(frames.label[among], minlength=labels)
    cut, best = np.full((codes.shape[1], labels), np.inf), np.zeros((codes.shape[1], labels))
    small = np.where(among, frames.label, labels).astype(np.min_scalar_type(labels))  # is sorted faster

    def choose(features: np.ndarray) -> None:
        for feature in features:
            a, b = codes.indptr[feature : feature + 2]
            label = small[codes.indices[a:b]]
            here = np.flatnonzero(label < labels)
            if len(here):
                mine, *found = _best_cuts(codes.data[a:b][here], label[here], count)
                cut[feature, mine], best[feature, mine] = found

    threads = min(os.cpu_count() or 1, 8)  # numpy lets others work while it sorts
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(choose, np.array_split(np.arange(codes.shape[1]), threads)))
    return cut, best


def _best_cuts(value: np.ndarray, label: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the values and labels of one feature's entries: which labels there are, the best threshold and F1 of each."""
    falling = np.argsort(-value)
    value, label = value[falling], label[falling]
    last = np.append(np.flatnonzero(value[1:] != value[:-1]) + 1, len(value))  # of equal ones
    said = np.repeat(last, np.diff(last, prepend=0))  # how many are at least as large
    by_label = np.argsort(label, kind="stable")  # still from the largest down
    there = np.bincount(label, minlength=len(count))
    mine = np.flatnonzero(there)
    start, length = (np.cumsum(there) - there)[mine], there[mine]
    right = np.arange(1, len(value) + 1) - np.repeat(start, length)
    f1 = 2 * right / (said[by_label] + np.repeat(count[mine], length))
    top = np.maximum.reduceat(f1, start)
    hit = np.flatnonzero(f1 == np.repeat(top, length))
    return mine, value[by_label[hit[np.searchsorted(hit, start)]]], top


class AtThreshold(NamedTuple):
    """(feature, label) each; NaN where the label has no frame, and precision where nothing reaches the threshold."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def at_thresholds(codes: csc_array, frames: Frames, cut: np.ndarray) -> AtThreshold:
    """Precision, recall and F1 of "at least `cut`, (feature, label)" for each label on these frames."""
    labels = len(frames.names)
    right, said = np.zeros(cut.shape), np.zeros(cut.shape)
    for some, inner in blocks(codes):
        key = feature_of(inner) * labels + frames.label[inner.indices]
        reached = inner.data >= cut[some].reshape(-1)[key]
        right[some] = np.bincount(key[reached], minlength=inner.shape[1] * labels).reshape(-1, labels)
        for feature, (a, b) in enumerate(zip(inner.indptr[:-1], inner.indptr[1:], strict=True), some.start):
            said[feature] = b - a - np.searchsorted(np.sort(inner.data[a:b]), cut[feature])
    return rates(right, said, frames.count)


def rates(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> AtThreshold:
    """Precision, recall and F1 of counts: rightly said, said, and true. NaN where nothing is true."""
    with np.errstate(invalid="ignore", divide="ignore"):
        true = np.where(np.broadcast_to(true, right.shape) > 0, true, np.nan)
        return AtThreshold(right / said + 0 * true, right / true, 2 * right / (said + true))


def purity(codes: csc_array, frames: Frames, top: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Of the `top` frames at which a feature is highest, one a clip, the share of each label: (feature, label).

    And how many such frames there are, (feature,): fewer than `top` where it fires in fewer clips; NaN where in none.
    """
    labels = len(frames.names)
    share, number = np.zeros((codes.shape[1], labels)), np.zeros(codes.shape[1], dtype=int)
    for some, inner in blocks(codes):
        if not inner.nnz:
            continue
        feature, clip = feature_of(inner), frames.clip[inner.indices]
        start = np.flatnonzero(np.append(True, (np.diff(feature) != 0) | (np.diff(clip) != 0)))
        length = np.diff(np.append(start, inner.nnz))
        peak = np.maximum.reduceat(inner.data, start)
        hit = np.flatnonzero(inner.data == np.repeat(peak, length))
        where = hit[np.searchsorted(hit, start)]  # the first of equal ones
        order = np.lexsort((-peak, feature[start]))
        mine = feature[start][order]
        place = np.arange(len(order)) - np.searchsorted(mine, mine)
        kept, mine = where[order][place < top], mine[place < top]
        key = mine * labels + frames.label[inner.indices[kept]]
        share[some] = np.bincount(key, minlength=inner.shape[1] * labels).reshape(-1, labels)
        number[some] = np.bincount(mine, minlength=inner.shape[1])
    with np.errstate(invalid="ignore"):
        return share / number[:, None], number


class Scores(NamedTuple):
    """All scores of every feature × label; (feature, label) unless said otherwise."""

    names: np.ndarray
    """(label,)."""
    count: np.ndarray
    """(label,) frames on which was asked."""
    fires: np.ndarray
    """(feature,) the share of these on which it fires."""
    lift: np.ndarray
    auc: np.ndarray
    information: np.ndarray
    purity: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    """At the threshold that was best for the choosing speakers; NaN where there are no others."""
    threshold: np.ndarray
    f1_chosen: np.ndarray
    """What the best threshold has where it was chosen: too good."""

    def best(self) -> pd.DataFrame:
        """A row a feature: the label for which it was best where thresholds were chosen, and all its scores."""
        label = self.f1_chosen.argmax(axis=1)
        rows = np.arange(len(label))
        wide = [name for name in self._fields if name not in ("names", "count", "fires")]
        return pd.DataFrame(
            {"label": self.names[label], "fires": self.fires}
            | {name: getattr(self, name)[rows, label] for name in wide}
        ).rename_axis("feature")


def scores(codes: csc_array, frames: Frames, choosing: np.ndarray, top: int = 20) -> Scores:
    """Every score of every feature × label: thresholds chosen on the frames of a mask, (frame,), scores on the others.

    `half_of` the speakers is such a mask. Where it has all frames, lift, AUC, information and purity are of these, for
    nothing in them is chosen, and precision, recall and F1 are NaN.
    """
    cut, chosen = thresholds(codes, frames, choosing)
    apart = not choosing.all()
    asked, there = part(codes, frames, ~choosing) if apart else (codes, frames)
    said = at_thresholds(asked, there, cut if apart else np.full_like(cut, np.nan))
    said = said if apart else AtThreshold(*(np.full_like(cut, np.nan) for _ in said))
    fires = coincidences(asked, there.label, len(there.names))
    return Scores(
        there.names, there.count, fires.sum(axis=1) / len(there.label), lift(fires, there.count),
        ranked(asked, there).auc(there.label), information(fires, there.count), purity(asked, there, top)[0],
        *said, cut, chosen,
    )  # fmt: skip
