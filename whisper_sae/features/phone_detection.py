"""The best detector of each phone that a dictionary has, and one number by which dictionaries are compared.

For each label the feature and the threshold with the highest F1 are chosen on some speakers, and its F1 is taken on the
others: a dictionary with more features has more to choose from, but gains nothing by choosing. Neurons and principal
directions go through the same code, `codes.of_chunks(..., both_sides=True)`. Intervals are a bootstrap over speakers,
`intervals.of_draws`, with the same draws for every dictionary, so that two can be compared draw by draw.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from whisper_sae.features.selectivity import rates, thresholds
from whisper_sae.features.sparse_acts import Frames, only
from whisper_sae.stats import intervals


class DictionaryScore(NamedTuple):
    """How well the best features of a dictionary detect the labels, in speakers that had no part in the choice."""

    f1: float
    """The mean over labels of the best feature's F1; NaN where nothing could be asked."""
    low: float
    high: float
    """A 95 % interval over speakers; NaN for fewer than `intervals.LEAST`."""
    table: pd.DataFrame
    """A row a label, also those left out of the mean (`counted`)."""
    draws: np.ndarray
    """(draw,) the mean for each draw of the speakers."""
    speakers: int = 0
    """On how many it was scored."""
    everywhere: tuple[float, float, float] = (np.nan,) * 3
    """The mean F1 of the same detectors on all frames of the same clips, with its interval: (f1, low, high)."""


def dictionary_score(
    codes: csc_array | Iterable[csc_array],
    frames: Frames,
    choosing: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    everywhere: Frames | None = None,
    least: int = 25,
    draws: int = 2000,
    seed: int = 0,
) -> DictionaryScore:
    """How well a dictionary's best features detect the labels: chosen on a mask of frames, scored on all others.

    Or on those of `scored`, (frame,), alone: what is in neither mask is not looked at. `codes` may come a few features
    at a time, (frame, feature) each. A label with fewer than `least` frames on either side is not counted, nor one that
    no feature fires on. `chance` in the table is the F1 of always saying the label.

    `everywhere` has the labels of all frames of the scored clips, pauses and edges too: len(names) where there is no
    label, -1 on frames of other clips. The chosen detectors are scored on these as well, columns `f1_all` and its
    interval: false alarms in pauses count there.
    """
    scored = ~choosing if scored is None else scored
    chosen_on, asked = (
        Frames(frames.label[m], frames.names, frames.speaker[m], frames.clip[m]) for m in (choosing, scored)
    )
    known = [(scored, asked)]
    if everywhere is not None:
        here = everywhere.label >= 0
        known.append((here, Frames(*(part if part is everywhere.names else part[here] for part in everywhere))))
    best, counts = _chosen([codes] if hasattr(codes, "indptr") else codes, frames, choosing, known)
    counted = ((chosen_on.count >= least) & (asked.count >= least) & (best.feature >= 0)).to_numpy()
    found, low, high, means = _scored(*counts[0], true_of(asked), counted, draws, seed)
    n = true_of(asked).shape[1]
    table = best.assign(
        f1=found.f1, f1_low=low, f1_high=high, precision=found.precision, recall=found.recall, frames=asked.count,
        chance=2 * asked.count / np.maximum(asked.count + len(asked.label), 1), counted=counted,
    )  # fmt: skip
    told = [_mean(found.f1, counted), *map(float, intervals.of_draws(means, n))]
    if everywhere is None:
        return DictionaryScore(*told, table, means, n)
    found, low, high, all_means = _scored(*counts[1], true_of(known[1][1]), counted, draws, seed)
    table = table.assign(f1_all=found.f1, f1_all_low=low, f1_all_high=high)
    wide = (_mean(found.f1, counted), *map(float, intervals.of_draws(all_means, n)))
    return DictionaryScore(*told, table, means, n, wide)


def _mean(f1: np.ndarray, counted: np.ndarray) -> float:
    return float(f1[counted].mean()) if counted.any() else np.nan


def _scored(right: np.ndarray, said: np.ndarray, true: np.ndarray, counted: np.ndarray, draws: int, seed: int):
    """Of counts, (label, speaker) each: the rates of each label, the interval of its F1, and the mean F1 of the labels
    that are counted for each draw of the speakers."""
    found = rates(right.sum(axis=1), said.sum(axis=1), true.sum(axis=1))
    drawn = _drawn(right, said, true, draws, seed)  # (draw, label)
    low, high = intervals.of_draws(drawn, (true > 0).sum(axis=1))
    if not counted.any():
        return found, low, high, np.full(draws, np.nan)
    lacking = ~np.isfinite(drawn) & (true.shape[1] >= intervals.LEAST)  # who was drawn may lack a rare phone
    return found, low, high, np.where(lacking, found.f1, drawn)[:, counted].mean(axis=1)


def _chosen(parts: Iterable[csc_array], frames: Frames, choosing: np.ndarray, known: list[tuple[np.ndarray, Frames]]):
    """The best feature of each label on the frames of a mask: a table of label, feature, threshold and f1_chosen, and
    how often it is right and says the label on other frames, each a mask and what is known of its frames: [(right,
    said)], (label, speaker) each."""
    many, first = len(frames.names), 0
    counts = [np.zeros((2, many, len(np.unique(there.speaker)))) for _, there in known]
    best, cut, feature = np.zeros(many), np.full(many, np.inf), np.full(many, -1)
    for some in parts:
        mine, f1 = thresholds(some, frames, choosing)
        top = f1.argmax(axis=0)
        better = np.flatnonzero(f1[top, np.arange(many)] > best)
        best[better], cut[better] = f1[top[better], better], mine[top[better], better]
        feature[better] = first + top[better]
        for into, (mask, asked) in zip(counts, known, strict=True):
            there = only(some[:, top[better]], mask)
            into[:, better] = by_speaker(there, asked, np.arange(len(better)), better, cut[better])
        first += some.shape[1]
    told = {"label": frames.names, "feature": feature, "threshold": cut, "f1_chosen": best}
    return pd.DataFrame(told), counts


def difference(one: DictionaryScore, other: DictionaryScore) -> tuple[float, float, float]:
    """How much higher the first scores, with its 95 % interval over the same draws of speakers: (mean, low, high).

    Both must have been asked the same of the same frames; ValueError where their counted labels differ.
    """
    if one.table.label[one.table.counted].tolist() != other.table.label[other.table.counted].tolist():
        raise ValueError("labels: the two scores are not of the same ones")
    return one.f1 - other.f1, *map(float, intervals.of_draws(one.draws - other.draws, one.speakers))


def beside(scores: dict[str, DictionaryScore]) -> pd.DataFrame:
    """A row a dictionary, the first being what all others are compared with: `f1`, `low`, `high`, how much it scores
    below the first, `less`, and that difference's interval, `at_least` to `at_most`; `f1_all` is that on all frames."""
    first = next(iter(scores.values()))
    rows = [(name, one.f1, one.low, one.high, *difference(first, one), *one.everywhere) for name, one in scores.items()]
    columns = ["name", "f1", "low", "high", "less", "at_least", "at_most", "f1_all", "all_low", "all_high"]
    return pd.DataFrame(rows, columns=columns)


def f1_by_speakers(codes: csc_array, frames: Frames, features, labels, cuts, draws: int = 2000, seed: int = 0):
    """The F1 of pairs of a feature and a label at given thresholds, (pair,) each, with its interval over speakers, NaN
    where fewer than `intervals.LEAST` have the label: (f1, low, high)."""
    features, labels, cuts = np.asarray(features), np.asarray(labels), np.asarray(cuts)
    right, said = by_speaker(codes, frames, features, labels, cuts)
    true = true_of(frames)[labels]
    low, high = intervals.of_draws(_drawn(right, said, true, draws, seed), (true > 0).sum(axis=1))
    return rates(right.sum(axis=1), said.sum(axis=1), true.sum(axis=1)).f1, low, high


def by_speaker(codes: csc_array, frames: Frames, features, labels, cuts) -> tuple[np.ndarray, np.ndarray]:
    """How often a feature reaches its threshold on its label, and at all, for each speaker: (pair, speaker) each."""
    voices, voice = np.unique(frames.speaker, return_inverse=True)
    right, said = (np.zeros((len(features), len(voices))) for _ in range(2))
    for row, (feature, label, cut) in enumerate(zip(features, labels, cuts, strict=True)):
        entries = slice(codes.indptr[feature], codes.indptr[feature + 1])
        there = codes.indices[entries][codes.data[entries] >= cut]
        said[row] = np.bincount(voice[there], minlength=len(voices))
        right[row] = np.bincount(voice[there][frames.label[there] == label], minlength=len(voices))
    return right, said


def true_of(frames: Frames) -> np.ndarray:
    """How many frames each speaker has of each label: (label, speaker). Numbers beyond the names are no label."""
    voices, voice = np.unique(frames.speaker, return_inverse=True)
    here = frames.label < len(frames.names)
    key = (frames.label * len(voices) + voice)[here]
    return np.bincount(key, minlength=len(frames.names) * len(voices)).reshape(len(frames.names), len(voices)) * 1.0


def _drawn(right: np.ndarray, said: np.ndarray, true: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """F1 for each draw of the speakers with replacement: (draw, label); NaN for fewer than `intervals.LEAST`."""
    speakers = right.shape[1]
    if speakers < intervals.LEAST:
        return np.full((draws, len(right)), np.nan)
    weight = np.random.default_rng(seed).multinomial(speakers, np.full(speakers, 1 / speakers), size=draws)
    return rates(weight @ right.T, weight @ said.T, weight @ true.T).f1
