"""When each phone of a clip sounds, as a corpus tells it, and which phone each frame of a model falls into.

`alignments` reads whatever file tells it, and the same of words.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from whisper_sae.data import alignments
from whisper_sae.data.alignments import BadAlignment as BadPhones

DIGITS = 6
"""Decimals of a second to which times are compared: to a microsecond, so that no rounding decides at an edge."""

__all__ = ["BadPhones", "Placed", "at", "change_around", "digest", "labels", "placed", "read", "words"]


def read(folder: str | Path, tier: str = "") -> pd.DataFrame:
    """The phones of a corpus, empty where it tells none: path, start and end (seconds), phone, and what else it says.

    Rows are in order of path and start. Raises BadPhones for a missing column, a time that is no number, a phone
    that ends before it begins, or two phones of a clip that overlap by more than 1 ms.
    """
    return alignments.read(folder, "phones", tier)


def words(folder: str | Path, tier: str = "") -> pd.DataFrame:
    """The words of a corpus with their times, as `read` tells its phones: path, start, end, word, …"""
    return alignments.read(folder, "words", tier)


def none() -> pd.DataFrame:
    """What `read` gives where nothing is told."""
    return pd.DataFrame(columns=["path", "start", "end", "phone"]).astype({"start": float, "end": float})


def digest(folder: str | Path) -> str:
    """One number for all that a corpus tells of its phones; empty where it tells nothing."""
    return alignments.digest(folder, "phones")


def at(clip: pd.DataFrame, moments: np.ndarray) -> np.ndarray:
    """Which phone of a clip, by its row number in `clip`, sounds at each moment (seconds): (moment,), -1 for none.

    A phone holds [start, end). Of a frame, the moment to ask about is its centre, `speech.moments`.
    """
    return _inside(clip.start.to_numpy(), clip.end.to_numpy(), np.asarray(moments))


def _inside(start: np.ndarray, end: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Which of some stretches of a clip holds each moment: (moment,), -1 for none."""
    if not len(start):
        return np.full(len(moments), -1)
    start, end, moments = (np.round(times, DIGITS) for times in (start, end, moments))  # 0.06 is no less than 3 · 0.02
    row = np.searchsorted(start, moments, side="right") - 1
    return np.where((row >= 0) & (moments < end[row]), row, -1)


class Placed(NamedTuple):
    """Where frames lie in phones, or in words; each is (frame,)."""

    row: np.ndarray
    """The phone that sounds at the centre of the frame, by its place in the table; -1 for none."""
    since: np.ndarray
    """Seconds since that phone began; NaN for none."""
    left: np.ndarray
    """Seconds until it ends."""

    @property
    def third(self) -> np.ndarray:
        """0, 1 or 2 for the onset, the steady middle and the offset of the phone, each a third of it; -1 for none."""
        with np.errstate(invalid="ignore"):
            part = np.floor(np.round(3 * self.since / (self.since + self.left), DIGITS))
        return np.where(self.row < 0, -1, np.nan_to_num(part)).astype(int)


def placed(told: pd.DataFrame, clip: np.ndarray, moment: np.ndarray) -> Placed:
    """Which row of `told`, phones or words, each frame falls into: frames by their clip and their centre (seconds).

    `told` has `clip`, `start` and `end`, in any order; nothing overlaps.
    """
    row, moment = np.full(len(clip), -1), np.asarray(moment)
    start, end, of = (told[name].to_numpy() for name in ("start", "end", "clip"))
    order = np.lexsort((start, of))
    for name, frames in pd.Series(clip).groupby(np.asarray(clip)).indices.items():
        mine = order[np.searchsorted(of, name, "left", order) : np.searchsorted(of, name, "right", order)]
        inside = _inside(start[mine], end[mine], moment[frames])
        row[frames] = np.where(inside >= 0, mine[inside] if len(mine) else -1, -1)
    start, end = (np.append(told[side].to_numpy(float), np.nan)[row] for side in ("start", "end"))  # row -1 is NaN
    return Placed(row, np.round(moment - start, DIGITS), np.round(end - moment, DIGITS))


def labels(told: pd.DataFrame, where: Placed, column: str = "phone", tolerance: float = 0.0) -> np.ndarray:
    """What `told` says in a column of each frame: (frame,), "" where nothing is told.

    Nobody knows an edge between two phones to the millisecond: frames centred less than `tolerance` seconds from an
    edge of their phone are left out, "", so that they count neither for nor against anything; those exactly as far away
    are kept. A phone shorter than twice the tolerance is left out with them.
    """
    names = np.append(told[column].to_numpy(str), "")
    near = np.minimum(where.since, where.left) < tolerance
    return names[np.where(near | (where.row < 0), len(told), where.row)]


def change_around(mel: np.ndarray, moments: np.ndarray, reach: int = 8, hop: float = 0.01) -> np.ndarray:
    """How much the spectrum changes at and around moments (seconds): (moment, 2 reach + 1), the middle is the moment.

    `mel` is (mel bin, mel frame) with a frame every `hop` seconds. Change at frame t is the mean over bins of
    |mel[t + 1] - mel[t - 1]|. Moments so near an end that their surroundings are cut off give NaN.
    """
    step = np.full(mel.shape[1] + 2 * reach, np.nan)
    step[reach + 1 : reach + mel.shape[1] - 1] = np.abs(mel[:, 2:] - mel[:, :-2]).mean(axis=0)
    at = np.round(np.asarray(moments) / hop).astype(int)
    inside = (at >= 0) & (at < mel.shape[1])
    found = step[np.where(inside, at, 0)[:, None] + np.arange(2 * reach + 1)]
    return np.where(inside[:, None], found, np.nan)
