"""When, within a phone, a feature fires: at its onset, in its steady middle, at its offset; and how late its peak is.

A frame of Whisper's encoder hears all of its window, and no rule says that a feature is loudest in the middle of what
it stands for. The lag is that of the peak of the mean activation around many phones, each speaker's mean counted once;
its interval is over speakers.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from whisper_sae.features.sparse_acts import Frames, coincidences
from whisper_sae.stats import intervals

STAGES = ("onset", "steady", "offset")


class Clock(NamedTuple):
    """When each frame of the codes is, all frames, with a label or without; those of a clip together and in order."""

    clip: np.ndarray
    """(frame,) its clip."""
    moment: np.ndarray
    """(frame,) its centre, `speech.moments`: seconds from the clip's start."""
    speaker: np.ndarray
    """(frame,)."""


def stages(codes: csc_array, frames: Frames, third: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """How often a feature fires in each third of a label's phones: (feature, label, third), NaN where no frame is.

    `third` is (frame,), 0 to 2: `phones.Placed.third` of the labelled frames. With `weight=codes.data` it is the mean
    activation. A phone of one frame has only a middle.
    """
    key, many = frames.label * 3 + np.asarray(third), 3 * len(frames.names)
    with np.errstate(invalid="ignore"):
        found = coincidences(codes, key, many, weight) / np.bincount(key, minlength=many)
    return found.reshape(codes.shape[1], -1, 3)


class Latency(NamedTuple):
    """How a feature rises and falls around moments, the mean of the speakers' means."""

    offset: np.ndarray
    """(offset,) seconds after the moment."""
    mean: np.ndarray
    """(offset,) the activation there."""
    lag: float
    """Seconds from the moment to the peak; NaN where the feature is silent all around, or there are no moments."""
    low: float
    high: float
    """A 95 % interval over speakers; NaN for fewer than `intervals.LEAST`."""


def latency(codes: csc_array, feature: int, clock: Clock, clip, moment, *, reach: float = 0.2, draws: int = 1000,
            seed: int = 0) -> Latency:  # fmt: skip
    """How late a feature's peak is after moments, (moment,) clips and seconds: middles of a phone, or onsets.

    The peak is the centre of mass of what rises above half of the mean activation's height, next to its maximum, which
    is finer than a frame. It is looked for within `reach` seconds of the moment either way.
    """
    frame = _frame(clock)
    rows, late = _nearest(clock, np.asarray(clip), np.asarray(moment), frame)
    steps = np.arange(-round(reach / frame), round(reach / frame) + 1)
    column = np.zeros(codes.shape[0])
    entries = slice(codes.indptr[feature], codes.indptr[feature + 1])
    column[codes.indices[entries]] = codes.data[entries]
    at = rows[:, None] + steps
    inside = (at >= 0) & (at < len(column))
    at = np.where(inside, at, 0)
    inside &= clock.clip[at] == clock.clip[rows][:, None]
    values = pd.DataFrame(np.where(inside, column[at], np.nan))
    who = clock.speaker[rows]
    means = values.groupby(who).mean().to_numpy()  # (speaker, offset)
    offset = steps * frame + (late.mean() if len(late) else 0.0)
    if not len(means):
        return Latency(offset, np.full(len(steps), np.nan), np.nan, np.nan, np.nan)
    mean = _mean(means)
    again = np.random.default_rng(seed).integers(0, len(means), (draws, len(means)))
    low, high = intervals.of_draws(_peak(_mean(means[again]), offset), len(means))
    return Latency(offset, mean, float(_peak(mean, offset)), float(low), float(high))


def _frame(clock: Clock) -> float:
    """Seconds from one frame to the next."""
    step = np.diff(clock.moment)[np.diff(pd.factorize(clock.clip)[0]) == 0]
    if not len(step):
        raise ValueError("clock: no clip has two frames")
    return float(np.median(step))


def _nearest(clock: Clock, clip: np.ndarray, moment: np.ndarray, frame: float) -> tuple[np.ndarray, np.ndarray]:
    """The frame nearest to each moment that lies in its clip, and how many seconds it is late."""
    number, names = pd.factorize(clock.clip)
    first = np.searchsorted(number, np.arange(len(names)))
    length = np.bincount(number, minlength=len(names))
    which = pd.Index(names).get_indexer(clip)
    there = which >= 0
    which, moment = which[there], moment[there]
    step = np.round((moment - clock.moment[first[which]]) / frame).astype(int)
    inside = (step >= 0) & (step < length[which])
    rows = first[which[inside]] + step[inside]
    return rows, clock.moment[rows] - moment[inside]


def _mean(means: np.ndarray) -> np.ndarray:
    """The mean over speakers of what each has, (…, speaker, offset): (…, offset); NaN where none has any."""
    there = np.isfinite(means)
    with np.errstate(invalid="ignore"):
        return np.where(there, means, 0).sum(axis=-2) / there.sum(axis=-2)


def _peak(mean: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Where curves, (…, offset), are highest, in the unit of the offsets: (…,); NaN for a flat one."""
    known = np.isfinite(mean)
    high, low = (np.where(known, mean, aside) for aside in (-np.inf, np.inf))
    high, low = high.max(axis=-1, keepdims=True), low.min(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        height = np.where(known, mean - (high + low) / 2, -1.0)
    place, top = np.arange(mean.shape[-1]), height.argmax(axis=-1)[..., None]
    below = height <= 0
    first = np.where(below & (place < top), place, -1).max(axis=-1, keepdims=True)
    last = np.where(below & (place > top), place, len(place)).min(axis=-1, keepdims=True)
    height = np.where((first < place) & (place < last), height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((high > low)[..., 0], (height * offset).sum(axis=-1) / height.sum(axis=-1), np.nan)
