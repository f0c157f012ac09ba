"""Examples of a feature from all that it does, for its loudest alone flatter it; and the sound around each.

An example is one frame. There is at most one of a clip in each kind, and of a speaker at most `per_speaker` (a clip
whose speaker is not known is a speaker of its own; None lets all through):

    loudest     the clips in which it peaks highest, at their peaks
    decile 1-10 clips are ordered by their peaks and cut into ten parts as large as each other: some of each part
    random      any of its firings, each as likely as any other
    silent      any frame on which it does not fire, of clips in which it never does as far as there are such
    range       any of its firings with a value between two bounds

So the deciles are those of the peaks of clips, and `random` shows the firings as they are, most of them weak. What
is drawn depends on the seed, the feature and the kind, not on what was asked before.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from whisper_sae.data.clip_table import RATE, moments

FRAME = 320
"""Samples from one frame to the next."""

COLUMNS = ["kind", "clip", "speaker", "piece", "row", "value", "seconds"]
KINDS = ("loudest", "deciles", "random", "silent", "range")


class Examples:
    """Examples of the features of an index; each method gives a table with the columns of COLUMNS, a row an example.

    `index` is an `index.Index`. `clips` is the table of clips, of which `speaker` is read; `clip` counts its rows.
    `windows` tells of each piece of the index its `clip` and `first`, the sample at which it begins in it. `seconds` is
    the centre of the frame, from the start of the clip. With `words`, a table `clip start end word` in seconds, there
    is a column `word`: the one that sounds then, or "".

    A `side` is "both", where values far below zero count as much as those above, "positive" or "negative".
    """

    def __init__(self, index, clips: pd.DataFrame, windows: pd.DataFrame, words: pd.DataFrame | None = None,
                 seed: int = 0):  # fmt: skip
        if len(windows) != len(index.starts) - 1:
            raise ValueError(f"windows: {len(windows)} rows, but the index has {len(index.starts) - 1} pieces")
        self.index, self.seed = index, seed
        speaker = clips.speaker.astype(str).to_numpy()
        self.speaker = speaker
        self.voice = np.where(speaker == "", [f"clip {row}" for row in range(len(clips))], speaker)
        self.clip_of, self.first = windows["clip"].to_numpy(), windows["first"].to_numpy()
        self.frames = np.bincount(self.clip_of, np.diff(index.starts), minlength=len(clips)).astype(int)
        self.words = None
        if words is not None:
            told = words[words.word != ""].sort_values("start", kind="stable")
            self.words = {clip: rows for clip, rows in told.groupby("clip")[["start", "end", "word"]]}

    def loudest(self, feature: int, n: int = 10, per_speaker: int | None = 2, side: str = "both") -> pd.DataFrame:
        """The clips in which it lies farthest from zero, the farthest first; of equals the clip that comes first."""
        peaks = self.peaks(feature, side)
        order = np.lexsort([peaks["clip"], -peaks.value.abs()])
        chosen = peaks.iloc[self._capped(peaks["clip"].to_numpy()[order], n, per_speaker, order)]
        return self._table("loudest", chosen.row.to_numpy(), chosen.value.to_numpy())

    def deciles(self, feature: int, n: int = 1, per_speaker: int | None = 2, side: str = "both") -> pd.DataFrame:
        """n clips from each tenth of those in which it fires, at their peaks; the tenth with the highest peaks first.

        Of fewer than ten clips, some tenths have none. Speakers not yet heard come before the others.
        """
        peaks, rng = self.peaks(feature, side), self._chance(feature, "deciles")
        order = np.lexsort([peaks["clip"], peaks.value.abs()])
        tenth = np.empty(len(peaks), dtype=int)
        tenth[order] = (2 * np.arange(len(peaks)) + 1) * 10 // max(1, 2 * len(peaks))
        heard, parts = Counter(), []
        for number in reversed(range(10)):
            here = rng.permutation(np.flatnonzero(tenth == number))
            clip = peaks["clip"].to_numpy()[here]
            fresh = np.argsort([heard[self.voice[one]] for one in clip], kind="stable")
            chosen = peaks.iloc[self._capped(clip[fresh], n, per_speaker, here[fresh])]
            heard.update(self.voice[chosen["clip"]])
            parts.append(self._table(f"decile {number + 1}", chosen.row.to_numpy(), chosen.value.to_numpy()))
        return pd.concat(parts, ignore_index=True)

    def random(self, feature: int, n: int = 5, per_speaker: int | None = 2, side: str = "both") -> pd.DataFrame:
        """Firings, each as likely as any other."""
        count = self._count(feature, side)
        return self._drawn("random", feature, count, lambda values: values != 0, n, per_speaker, side)

    def silent(self, feature: int, n: int = 5, per_speaker: int | None = 2, side: str = "both") -> pd.DataFrame:
        """Frames on which it does not fire: of clips in which it never does, and where there are too few, of others."""
        fires = self._count(feature, side)
        return self._drawn(
            "silent", feature, self.frames - fires, lambda values: values == 0, n, per_speaker, side, fires > 0
        )

    def between(self, feature: int, low: float, high: float, n: int = 10, per_speaker: int | None = 2,
                absolute: bool = False) -> pd.DataFrame:  # fmt: skip
        """Firings with low ≤ value ≤ high, or with |value| there, each as likely as any other."""

        def inside(values: np.ndarray) -> np.ndarray:
            asked = np.abs(values) if absolute else values
            return (values != 0) & (asked >= low) & (asked <= high)

        rows, _ = self.index.between(feature, low, high, absolute)
        count = np.bincount(self.clip_of[self.index.where(rows)[0]], minlength=len(self.frames))
        return self._drawn("range", feature, count, inside, n, per_speaker, "both")

    def of(self, feature: int, loudest: int = 5, decile: int = 1, random: int = 5, silent: int = 5,
           per_speaker: int | None = 2, side: str = "both") -> pd.DataFrame:  # fmt: skip
        """So many of each kind, one table below the other."""
        parts = [
            self.loudest(feature, loudest, per_speaker, side),
            self.deciles(feature, decile, per_speaker, side),
            self.random(feature, random, per_speaker, side),
            self.silent(feature, silent, per_speaker, side),
        ]
        return pd.concat(parts, ignore_index=True)

    def features_of(self, clip: int, n: int = 32, side: str = "both") -> pd.DataFrame:
        """The n features that lie farthest from zero in one clip, at their peaks there, the farthest first. There is a
        column `feature` and, for `kind`, `share`: the peak over the feature's farthest value anywhere."""
        pieces = np.flatnonzero(self.clip_of == clip)
        if not len(pieces):
            raise IndexError(f"clip: there is no {clip}; there are {len(self.frames)}")
        found = pd.concat([self.index.of_piece(piece, side).assign(piece=piece) for piece in pieces], ignore_index=True)
        order = np.lexsort([found.row, self.first[found.piece], found.feature, -found.value.abs()])
        found = found.iloc[order].drop_duplicates("feature")[:n].reset_index(drop=True)
        told = self._table("", found.row.to_numpy(), found.value.to_numpy()).drop(columns="kind")
        farthest = np.where(found.value > 0, self.index.maxima[found.feature], self.index.minima[found.feature])
        return found[["feature"]].assign(share=found.value / farthest).join(told)

    def peaks(self, feature: int, side: str = "both") -> pd.DataFrame:
        """A row a clip in which it fires: `clip`, `row` and `value` of its peak, the earliest of equals."""
        peaks = self.index.peaks(feature, side)
        peaks["clip"], first = self.clip_of[peaks.piece], self.first[peaks.piece]
        peaks = peaks.iloc[np.lexsort([peaks.row, first, -peaks.value.abs(), peaks["clip"]])]
        return peaks.drop_duplicates("clip").reset_index(drop=True)

    def track(self, feature: int, clip: int, first: int, frames: int) -> np.ndarray:
        """What it says on frames of a clip, from sample `first` on, which begins one; 0 outside of it: (frame,)."""
        found = np.zeros(frames, dtype=np.float32)
        for piece in np.flatnonzero(self.clip_of == clip):
            said = self.index.trace(feature, piece)
            at = (self.first[piece] - first) // FRAME
            if -len(said) < at < frames:
                found[max(at, 0) : max(at + len(said), 0)] = said[max(-at, 0) : max(-at, 0) + frames - max(at, 0)]
        return found

    # -------------------------------------------------------------------------------------------------- drawing

    def _chance(self, feature: int, kind: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, feature, KINDS.index(kind)])

    def _count(self, feature: int, side: str) -> np.ndarray:
        """On how many of its frames it fires: (clip,)."""
        peaks = self.index.peaks(feature, side)
        return np.bincount(self.clip_of[peaks.piece], peaks.firings, minlength=len(self.frames)).astype(int)

    def _capped(self, clip: np.ndarray, n: int, per_speaker: int | None, what: np.ndarray) -> np.ndarray:
        """The first n of `what`, whose clips are given, that leave no speaker with more than `per_speaker`."""
        before = pd.Series(self.voice[clip]).groupby(self.voice[clip]).cumcount().to_numpy()
        most = len(clip) if per_speaker is None else per_speaker
        return what[before < most][: max(n, 0)]

    def _drawn(self, kind: str, feature: int, count: np.ndarray, keep: Callable, n: int, per_speaker: int | None,
               side: str, last: np.ndarray | int = 0) -> pd.DataFrame:  # fmt: skip
        """One frame of n clips each, of those whose values `keep` lets through: `count` of each clip, (clip,). Clips
        that are `last`, (clip,), come after the others."""
        rng = self._chance(feature, kind)
        turn = rng.exponential(size=len(count)) / np.maximum(count, 1)  # as if frames were drawn until a clip comes up
        order = np.lexsort([turn, np.broadcast_to(last, count.shape)])
        order = order[count[order] > 0]
        rows, values = [], []
        for clip in self._capped(order, n, per_speaker, order):
            row, value = self._frames_of(feature, clip, side)
            one = rng.choice(np.flatnonzero(keep(value)))
            rows.append(row[one])
            values.append(value[one])
        return self._table(kind, np.array(rows, dtype=int), np.array(values, dtype=np.float32))

    def _frames_of(self, feature: int, clip: int, side: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a clip and what the feature says on each."""
        pieces = np.flatnonzero(self.clip_of == clip)
        rows = np.concatenate([np.arange(*self.index.starts[[piece, piece + 1]]) for piece in pieces])
        values = np.concatenate([self.index.trace(feature, piece) for piece in pieces])
        sign = {"both": values, "positive": np.maximum(values, 0), "negative": np.minimum(values, 0)}
        return rows, sign[side]

    # ---------------------------------------------------------------------------------------------- what is told

    def _table(self, kind: str, rows: np.ndarray, values: np.ndarray) -> pd.DataFrame:
        piece, position = self.index.where(rows)
        clip = self.clip_of[piece]
        seconds = moments(position, self.first[piece])
        columns = (kind, clip, self.speaker[clip], piece, rows, values, seconds)
        found = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
        if self.words is not None:
            found["word"] = [self._word(*at) for at in zip(clip, seconds, strict=True)]
        return found

    def _word(self, clip: int, moment: float) -> str:
        """The word of a clip that sounds at a moment in seconds; it holds [start, end)."""
        told = self.words.get(clip)
        if told is None:
            return ""
        here = np.flatnonzero((told.start.to_numpy() <= moment) & (moment < told.end.to_numpy()))
        return str(told.word.iloc[here[-1]]) if len(here) else ""


def excerpt(sound: np.ndarray, seconds: float, length: float = 2.0) -> np.ndarray:
    """The samples around a moment of a clip, (sample,) at 16 kHz: `length` seconds of which it is the middle.

    The moment is always sample length · 8,000; beyond the ends of the clip there are zeros.
    """
    around = round(length * RATE / 2)
    first = round(seconds * RATE) - around
    found = np.zeros(2 * around, dtype=np.float32)
    inside = sound[max(first, 0) : max(first + len(found), 0)]
    found[max(-first, 0) : max(-first, 0) + len(inside)] = inside
    return found
