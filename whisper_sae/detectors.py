"""The best detector of each phone that a dictionary has, and one number by which dictionaries are compared.

For each label the feature and the threshold with the highest F1 are chosen on some speakers, and its F1 is taken on the
others: a dictionary with more features has more to choose from, but gains nothing by choosing. Neurons and principal
directions go through the same code, `codes.of_chunks(..., both_sides=True)`. Intervals are over speakers: those who
were asked are drawn again and again, the same for every dictionary, so that two can be compared draw by draw.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from whisper_sae.codes import Frames, only
from whisper_sae.intervals import LEAST
from whisper_sae.selectivity import rates, thresholds


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


def dictionary_score(
    codes: csc_array | Iterable[csc_array],
    frames: Frames,
    choosing: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    least: int = 25,
    draws: int = 2000,
    seed: int = 0,
) -> DictionaryScore:
    """How well a dictionary's best features detect the labels: chosen on a mask of frames, scored on all others.

    Or on those of `scored`, (frame,), alone: what is in neither mask is not looked at. `codes` may come a few features
    at a time, (frame, feature) each. A label with fewer than `least` frames on either side is not counted, nor one that
    no feature fires on. `chance` in the table is the F1 of always saying the label.
    """
    scored = ~choosing if scored is None else scored
    chosen_on, asked = (
        Frames(frames.label[m], frames.names, frames.speaker[m], frames.clip[m]) for m in (choosing, scored)
    )
    best, right, said = _chosen([codes] if hasattr(codes, "indptr") else codes, frames, choosing, scored)
    true = true_of(asked)
    found = rates(right.sum(axis=1), said.sum(axis=1), true.sum(axis=1))
    counted = ((chosen_on.count >= least) & (asked.count >= least) & (best.feature >= 0)).to_numpy()
    drawn = _drawn(right, said, true, draws, seed)  # (draw, label)
    low, high = _interval(drawn)
    table = best.assign(
        f1=found.f1, f1_low=low, f1_high=high, precision=found.precision, recall=found.recall, frames=asked.count,
        chance=2 * asked.count / np.maximum(asked.count + len(asked.label), 1), counted=counted,
    )  # fmt: skip
    if not counted.any():
        return DictionaryScore(np.nan, np.nan, np.nan, table, np.full(draws, np.nan))
    lacking = ~np.isfinite(drawn) & (true.shape[1] >= LEAST)  # who was drawn may lack a rare phone
    means = np.where(lacking, found.f1, drawn)[:, counted].mean(axis=1)
    return DictionaryScore(float(found.f1[counted].mean()), *map(float, _interval(means)), table, means)


def _chosen(parts: Iterable[csc_array], frames: Frames, choosing: np.ndarray, scored: np.ndarray):
    """The best feature of each label on the frames of a mask: a table of label, feature, threshold and f1_chosen, and
    how often it is right and says the label on the frames of another, (label, speaker) each."""
    asked = Frames(frames.label[scored], frames.names, frames.speaker[scored], frames.clip[scored])
    many, first = len(asked.names), 0
    right, said = (np.zeros((many, len(np.unique(asked.speaker)))) for _ in range(2))
    best, cut, feature = np.zeros(many), np.full(many, np.inf), np.full(many, -1)
    for some in parts:
        mine, f1 = thresholds(some, frames, choosing)
        top = f1.argmax(axis=0)
        better = np.flatnonzero(f1[top, np.arange(many)] > best)
        best[better], cut[better] = f1[top[better], better], mine[top[better], better]
        feature[better] = first + top[better]
        there = only(some[:, top[better]], scored)
        right[better], said[better] = by_speaker(there, asked, np.arange(len(better)), better, cut[better])
        first += some.shape[1]
    told = {"label": asked.names, "feature": feature, "threshold": cut, "f1_chosen": best}
    return pd.DataFrame(told), right, said


def difference(one: DictionaryScore, other: DictionaryScore) -> tuple[float, float, float]:
    """How much higher the first scores, with its 95 % interval over the same draws of speakers: (mean, low, high).

    Both must have been asked the same of the same frames; ValueError where their counted labels differ.
    """
    if one.table.label[one.table.counted].tolist() != other.table.label[other.table.counted].tolist():
        raise ValueError("labels: the two scores are not of the same ones")
    return one.f1 - other.f1, *map(float, _interval(one.draws - other.draws))


def beside(scores: dict[str, DictionaryScore]) -> pd.DataFrame:
    """A row a dictionary, the first being what all others are compared with: `f1`, `low`, `high`, how much it scores
    below the first, `less`, and that difference's interval, `at_least` to `at_most`."""
    first = next(iter(scores.values()))
    rows = [(name, one.f1, one.low, one.high, *difference(first, one)) for name, one in scores.items()]
    return pd.DataFrame(rows, columns=["name", "f1", "low", "high", "less", "at_least", "at_most"])


def f1_by_speakers(codes: csc_array, frames: Frames, features, labels, cuts, draws: int = 2000, seed: int = 0):
    """The F1 of pairs of a feature and a label at given thresholds, (pair,) each, with its interval over speakers, NaN
    for fewer than `intervals.LEAST`: (f1, low, high)."""
    features, labels, cuts = np.asarray(features), np.asarray(labels), np.asarray(cuts)
    right, said = by_speaker(codes, frames, features, labels, cuts)
    true = true_of(frames)[labels]
    drawn = _drawn(right, said, true, draws, seed)
    return rates(right.sum(axis=1), said.sum(axis=1), true.sum(axis=1)).f1, *_interval(drawn)


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
    """How many frames each speaker has of each label: (label, speaker)."""
    voices, voice = np.unique(frames.speaker, return_inverse=True)
    key = frames.label * len(voices) + voice
    return np.bincount(key, minlength=len(frames.names) * len(voices)).reshape(len(frames.names), len(voices)) * 1.0


def _drawn(right: np.ndarray, said: np.ndarray, true: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """F1 for each draw of the speakers with replacement: (draw, label); NaN for fewer than `LEAST` speakers, of whom
    percentiles are far too narrow."""
    speakers = right.shape[1]
    if speakers < LEAST:
        return np.full((draws, len(right)), np.nan)
    weight = np.random.default_rng(seed).multinomial(speakers, np.full(speakers, 1 / speakers), size=draws)
    return rates(weight @ right.T, weight @ said.T, weight @ true.T).f1


def _interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of what was drawn, (draw, …): low and high; NaN where nothing was."""
    none = ~np.isfinite(drawn).any(axis=0)
    low, high = np.nanquantile(np.where(none, 0, drawn), [0.025, 0.975], axis=0)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)
