"""Which features stand for kinds of sounds, such as rain or a dog's bark: one value of a feature a clip, AUC a class.

The best of thousands of features on a few dozen clips is good by luck. So it is chosen on all folds but one and scored
on that one, for each fold in turn; and to see what luck is left, all of it is done again with labels dealt anew among
the clips of each fold. The clip is the unit of intervals and of that chance; where several clips are cut from one
recording, `source` makes the recording the unit.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csc_array
from scipy.stats import rankdata

from whisper_sae.features.sparse_acts import blocks, feature_of
from whisper_sae.stats import intervals

WAYS = ("mean", "maximum")


def by_clip(codes: csc_array, clip: np.ndarray, clips: int, way: str = "mean") -> np.ndarray:
    """The mean or the maximum of each feature over the frames of each clip: (clip, feature) float32.

    `clip` is (frame,), from 0 to `clips` - 1. A clip without frames has 0.
    """
    if way not in WAYS:
        raise ValueError(f"way: {way!r} is not one of {', '.join(WAYS)}")
    found = np.zeros((clips, codes.shape[1]), dtype=np.float32)
    length = np.maximum(np.bincount(clip, minlength=clips), 1)
    for some, inner in blocks(codes):
        where, feature = clip[inner.indices], feature_of(inner)
        if way == "mean":
            total = np.bincount(where * inner.shape[1] + feature, inner.data, minlength=clips * inner.shape[1])
            found[:, some] = total.reshape(clips, -1) / length[:, None]
        else:
            np.maximum.at(found[:, some], (where, feature), inner.data)
    return found


def folds(labels, seed: int = 0, count: int = 4) -> np.ndarray:
    """Folds for clips that have none, (clip,) from 0: the clips of each label are dealt out in turn, at random."""
    labels, rng = np.asarray(labels).astype(str), np.random.default_rng(seed)
    found = np.zeros(len(labels), dtype=int)
    for number, name in enumerate(np.unique(labels)):
        mine = rng.permutation(np.flatnonzero(labels == name))
        found[mine] = (np.arange(len(mine)) + number) % count
    return found


class SoundScore(NamedTuple):
    """How well the best features detect classes of sounds, in folds that had no part in the choice."""

    auc: float
    """The mean over classes; NaN where nothing could be asked."""
    low: float
    high: float
    """Its 95 % interval over recordings; the choice stays as it is. NaN for so few of them, see `interval`."""
    p: float
    """The share of dealt labels, these among them, that reach as far."""
    by_chance: float
    """What these reach on average."""
    table: pd.DataFrame
    """A row a class: `label`, `feature` (the one chosen most often, in `chosen` of `folds` folds), auc, low, high, p, q
    (over the classes), `best_auc` (chosen on all clips and of them, so too good), `clips` that could be asked and of
    how many `recordings`."""
    draws: np.ndarray
    """(draw,) the mean for each draw of the clips."""


def score(
    values: np.ndarray, labels, fold, *, source=None, shuffles: int = 200, draws: int = 1000, seed: int = 0
) -> SoundScore:
    """How well the best feature of `values`, (clip, feature), tells each class of `labels`, (clip,), from the others.

    The AUC of a class is the mean over its clips of the share of the other classes' clips in the same fold that are
    lower, equal ones counted half. Only features that are *higher* in the class are looked for; give both sides of a
    signed one. Of features equally good the one is chosen whose mean differs more. Clips labelled "" are left out.
    `source`, (clip,), says which recording a clip is of: its clips are dealt and drawn together.

    Raises ValueError for lengths that differ, fewer than two classes or folds, or a recording with two labels or folds.
    """
    task = _task(len(values), labels, fold, source)
    values, rng = np.asarray(values)[task.clip], np.random.default_rng(seed)
    dealt = [task.label] + [task.dealt(rng) for _ in range(shuffles)]
    weight = task.drawn(draws, np.random.default_rng(seed))  # the same for all inputs
    found, choice = np.full((len(dealt), len(task.label)), np.nan), []
    above, many = np.zeros((2, draws, len(task.names)))
    for held_out in np.unique(task.fold):
        other, here = task.fold != held_out, np.flatnonzero(task.fold == held_out)
        best = _choices(values[other], [label[other] for label in dealt], len(task.names))
        for row, (label, feature) in enumerate(zip(dealt, best, strict=True)):
            for one in np.unique(label[here])[feature[np.unique(label[here])] >= 0]:
                mine, rest = here[label[here] == one], here[label[here] != one]
                if len(rest):
                    higher = _higher(values[:, feature[one]], mine, rest)
                    found[row, mine] = higher.mean(axis=1)
                    if row == 0:
                        above[:, one] += _weighted(higher, weight[:, mine], weight[:, rest])
                        many[:, one] += weight[:, mine].sum(axis=1)
        choice.append(best[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = above / many  # (draw, class)
    by_class = np.stack([_means(one, label, len(task.names)) for one, label in zip(found, dealt, strict=True)])
    overall = _choices(values, [task.label], len(task.names))[0]
    return _told(task, values, by_class, np.array(choice), overall, drawn, np.isfinite(found[0]))


def difference(one: SoundScore, other: SoundScore) -> tuple[float, float, float]:
    """How much higher the first scores, with its 95 % interval over the same draws of clips: (mean, low, high).

    Both must have been asked about the same clips, with the same seed; ValueError where their classes differ.
    """
    if one.table.label.tolist() != other.table.label.tolist() or len(one.draws) != len(other.draws):
        raise ValueError("labels: the two scores are not of the same ones")
    return one.auc - other.auc, *interval(one.draws - other.draws, one.table)


def interval(draws: np.ndarray, table: pd.DataFrame) -> tuple[float, float]:
    """The 95 % interval of a mean over classes, or of a difference of two, from its draws, (draw,).

    Recordings are drawn within each class of `table`; NaN where fewer than `intervals.LEAST` are left to vary once
    each class has lost a degree of freedom.
    """
    known = table[table.auc.notna()]
    n, groups = int(known.recordings.sum()), len(known)
    if n - groups < intervals.LEAST:
        return np.nan, np.nan
    low, high = intervals.of_draws(draws, n, groups=groups)
    return float(low), float(high)


class _Task(NamedTuple):
    names: np.ndarray
    """(class,)."""
    clip: np.ndarray
    """(clip,) bool: which have a label; what follows is of these, numbers from 0."""
    label: np.ndarray
    fold: np.ndarray
    source: np.ndarray

    def dealt(self, rng: np.random.Generator) -> np.ndarray:
        """The labels dealt anew among the recordings of each fold: (clip,)."""
        _, first = np.unique(self.source, return_index=True)
        mine, fold = self.label[first], self.fold[first]
        for one in np.unique(fold):
            here = np.flatnonzero(fold == one)
            mine[here] = mine[rng.permutation(here)]
        return mine[self.source]

    def drawn(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        """How often each clip is drawn when the recordings of each class are drawn with replacement: (draw, clip)."""
        _, first = np.unique(self.source, return_index=True)
        weight = np.zeros((draws, len(first)))
        for one in range(len(self.names)):
            mine = np.flatnonzero(self.label[first] == one)
            weight[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=draws)
        return weight[:, self.source]


def _task(clips: int, labels, fold, source) -> _Task:
    labels, fold = np.asarray(labels).astype(str), np.asarray(fold).astype(str)
    source = np.arange(clips) if source is None else np.asarray(source)
    for name, given in {"labels": labels, "fold": fold, "source": source}.items():
        if len(given) != clips:
            raise ValueError(f"{name}: {len(given)} for {clips} clips")
    here = labels != ""
    names, label = np.unique(labels[here], return_inverse=True)
    folds_, number = np.unique(fold[here], return_inverse=True)
    for name, there in {"labels": names, "fold": folds_}.items():
        if len(there) < 2:
            raise ValueError(
                f"{name}: at least two are needed, there is {str(there[0])!r}" if len(there) else f"{name}: none"
            )
    recording = np.unique(source[here], return_inverse=True)[1]
    for name, given in {"labels": label, "fold": number}.items():
        if len(np.unique(np.stack([recording, given]), axis=1).T) > recording.max() + 1:
            raise ValueError(f"source: a recording has clips with two {name}")
    return _Task(names, here, label, number, recording)


def _choices(values: np.ndarray, labellings: list[np.ndarray], classes: int) -> np.ndarray:
    """The feature with the highest AUC for each class of each labelling: (labelling, class), -1 where there is none."""
    rank, total, clips = rankdata(values, axis=0), values.sum(axis=0, dtype=np.float64), len(values)
    found = np.full((len(labellings), classes), -1)
    for row, label in enumerate(labellings):
        member = np.equal.outer(np.arange(classes), label).astype(float)
        n = member.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            auc = (member @ rank - n * (n + 1) / 2) / (n * (clips - n))
            mine = member @ values
            inside, outside = mine / n, (total - mine) / (clips - n)
            auc += 1e-7 * np.nan_to_num((inside - outside) / (inside + outside))  # between equals alone
        there = np.isfinite(auc).all(axis=1)
        found[row, there] = auc[there].argmax(axis=1)
    return found


def _higher(value: np.ndarray, mine: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Whether each of some clips is higher than each of others, equal ones half: (clip, other)."""
    a, b = value[mine][:, None], value[rest]
    return (a > b) + 0.5 * (a == b)


def _weighted(higher: np.ndarray, mine: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The sum over clips, as often as they are drawn, of the share of drawn others that are lower: (draw,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (rest @ higher.T) / rest.sum(axis=1, keepdims=True)
    return (mine * np.nan_to_num(share, nan=0.5)).sum(axis=1)


def _means(each: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """The mean of the clips of each class that are not NaN: (class,)."""
    there = np.isfinite(each)
    count = np.bincount(label[there], minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(label[there], each[there], minlength=classes) / np.where(count > 0, count, np.nan)


def _told(task: _Task, values, by_class, choice, overall, drawn, asked) -> SoundScore:
    """The score and its table; `by_class` is (labelling, class), the first of them the true one."""
    auc, null = by_class[0], by_class[1:]
    p = (1 + (null >= auc).sum(axis=0)) / (1 + len(null))
    p = np.where(np.isfinite(auc), p, np.nan)
    q = np.full(len(p), np.nan)
    if np.isfinite(p).any():
        q[np.isfinite(p)] = stats.false_discovery_control(p[np.isfinite(p)])
    rows = []
    for one, name in enumerate(task.names):
        features, times = np.unique(choice[choice[:, one] >= 0, one], return_counts=True)
        mine, rest = np.flatnonzero(task.label == one), np.flatnonzero(task.label != one)
        recordings = len(np.unique(task.source[asked & (task.label == one)]))
        others = len(np.unique(task.source[asked & (task.label != one)]))
        _, low, high = intervals.of_auc(auc[one], recordings, others)  # has a length where the AUC is 1, unlike draws
        rows.append({
            "label": name, "feature": features[times.argmax()] if len(times) else -1, "chosen": times.max(initial=0),
            "folds": times.sum(), "auc": auc[one], "low": float(low), "high": float(high), "p": p[one], "q": q[one],
            "best_auc": _higher(values[:, overall[one]], mine, rest).mean(), "clips": asked[task.label == one].sum(),
            "recordings": recordings,
        })  # fmt: skip
    known = np.isfinite(auc)
    if not known.any():
        return SoundScore(*[np.nan] * 5, pd.DataFrame(rows), np.full(len(drawn), np.nan))
    mean, chance = auc[known].mean(), np.nanmean(null[:, known], axis=1)
    draws = np.where(np.isfinite(drawn), drawn, auc)[:, known].mean(axis=1)
    table = pd.DataFrame(rows)
    reached, by_chance = (1 + (chance >= mean).sum()) / (1 + len(chance)), chance.mean() if len(chance) else np.nan
    return SoundScore(float(mean), *interval(draws, table), float(reached), float(by_chance), table, draws)
