"""Clips of a corpus and sounds that were handed over, seen alike: their sound, their picture, and what features say.

A clip is known by its row in the table and an uploaded sound by its number, never by a path. What is read of the corpus
lies below its folders, links followed; a table that leads elsewhere is refused.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from whisper_sae.data import audio, speaker_labels
from whisper_sae.data.clip_table import moments
from whisper_sae.model import logmel
from whisper_sae.viz import media
from whisper_sae.viz.media import FRAME, RATE

LONGEST = 30.0
"""Seconds of a clip that are shown and played at a time."""

KEPT = 8
"""Uploaded sounds that are kept, the last ones."""


class Uploaded(NamedTuple):
    """A sound that was handed over, and what features say of it."""

    name: str
    sound: np.ndarray
    """(sample,) at 16 kHz."""
    codes: csc_array
    """(frame, feature)."""


class Catalogue:
    """The clips of an `examples.Examples`, and uploaded sounds; each has a kind, "clip" or "upload", and a number.

    `clips` is the table of clips with `id speaker text duration path` and labels, `filters` are Whisper's mel filters,
    (frequency, mel bin). A clip outside of the folders `roots` is not read.
    """

    def __init__(self, drawn, clips: pd.DataFrame, filters: np.ndarray, roots: Sequence[str | Path]):
        self.drawn, self.index, self.clips, self.filters = drawn, drawn.index, clips, filters
        self.roots = [Path(os.path.abspath(root)) for root in roots]
        self.uploaded: dict[int, Uploaded] = {}
        self.groups, self.left_out = groups_of(clips)
        self.columns = {name: clips[name].to_numpy() for name in ("id", "speaker", "text", "duration", *self.groups)}
        self.media, self.words = lru_cache(maxsize=32)(self._made), lru_cache(maxsize=1024)(self._words)
        columns = ["id", "speaker", "text", *self.groups]
        self.searchable = clips[columns].astype(str).agg(" ".join, axis=1).str.casefold()

    def take_in(self, name: str, sound: np.ndarray, codes) -> int:
        """Keep a sound and its codes, (frame, feature) sparse; returns its number. The oldest is forgotten."""
        fresh = max(self.uploaded, default=-1) + 1
        self.uploaded[fresh] = Uploaded(name, sound, csc_array(codes))
        for old in sorted(self.uploaded)[:-KEPT]:
            del self.uploaded[old]
        return fresh

    # what is made once and kept: base64 of the sound, WAV, and of its picture, WebP
    def _made(self, kind: str, which: int, first: int, frames: int) -> tuple[str, str]:
        sound = np.zeros(frames * FRAME, dtype=np.float32)
        part = self.sound(kind, which, first, len(sound))
        sound[: len(part)] = part
        mel = logmel.log_mel([sound], self.filters, window=len(sound), n_fft=400, hop=160)[0].numpy()
        return media.text(media.wav(part)), media.text(media.picture(mel, effort=1))

    def peaks_in(self, kind: str, which: int) -> pd.DataFrame:
        """A row a feature that is not silent: `feature`, its `value` farthest from zero, and `seconds`, where."""
        if kind == "clip":
            return self._peaks_of_clip(which)
        codes = self.uploaded[which].codes.tocoo()
        frame, feature = codes.coords
        rows = pd.DataFrame({"feature": feature, "value": codes.data.astype(float), "frame": frame})
        rows = rows[rows.value != 0].iloc[np.lexsort([frame, -np.abs(codes.data)])] if len(rows) else rows
        rows = rows.drop_duplicates("feature").reset_index(drop=True)
        return rows.assign(seconds=moments(rows.frame))

    def _peaks_of_clip(self, which: int) -> pd.DataFrame:
        parts = []
        for piece in np.flatnonzero(self.drawn.clip_of == which):
            found = self.index.of_piece(piece)
            position = found.row - self.index.starts[piece]
            seconds = moments(position, self.drawn.first[piece])
            parts.append(found.assign(seconds=seconds, far=found.value.abs()))
        if not parts:
            return pd.DataFrame({"feature": np.zeros(0, int), "value": np.zeros(0), "seconds": np.zeros(0)})
        every = pd.concat(parts).sort_values(["far", "seconds"], ascending=[False, True], kind="stable")
        return every.drop_duplicates("feature")[["feature", "value", "seconds"]].reset_index(drop=True)

    def farthest(self, value: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """The value farthest from zero that each feature has in the corpus, on the same side: (n,) like both."""
        return np.where(value > 0, self.index.maxima[feature], self.index.minima[feature])

    def track(self, kind: str, which: int, feature: int, first: int, frames: int) -> np.ndarray:
        """What a feature says on so many frames from sample `first` on: (frame,), 0 after the end."""
        if kind == "clip":
            return self.drawn.track(feature, which, first, frames)
        mine = self.uploaded[which].codes[:, [feature]].toarray()[:, 0][first // FRAME :][:frames]
        return np.pad(mine, (0, frames - len(mine))).astype(np.float32)

    def sound(self, kind: str, which: int, first: int, samples: int) -> np.ndarray:
        """Samples from `first` on, fewer at the end: (sample,) at 16 kHz."""
        if kind == "upload":
            return self.uploaded[which].sound[first : first + samples]
        return audio.excerpt(self.path(which), first, samples)

    def path(self, which: int) -> Path:
        """Where a clip lies: below one of the folders of the corpus, or ValueError. A link there is followed: the
        notebooks have read the file behind it, too."""
        path = Path(os.path.abspath(self.clips.path.iloc[which]))
        if not any(path.is_relative_to(root) for root in self.roots):
            raise ValueError(f"clip: {self.clips.id.iloc[which]} lies outside of the corpus, and is not read")
        return path

    def samples(self, which: int) -> int:
        """How many a clip of the corpus has."""
        return int(np.ceil(round(float(self.columns["duration"][which]) * RATE, 6)))

    def length(self, kind: str, which: int) -> int:
        """How many samples."""
        return len(self.uploaded[which].sound) if kind == "upload" else self.samples(which)

    def span(self, samples: int, around: float) -> tuple[int, int]:
        """What is shown of a sound: its first sample and its number of frames, at most LONGEST around a moment."""
        frames, most = -(-samples // FRAME), round(LONGEST * RATE) // FRAME
        if frames <= most:
            return 0, frames
        first = round(around * RATE / FRAME) - most // 2
        return min(max(first, 0), frames - most) * FRAME, most

    def told(self, kind: str, which: int) -> dict:
        """What a page says of a sound: name, speaker, seconds, text, words, and its number."""
        if kind == "clip":
            return self.clip(which)
        name, sound, _ = self.uploaded[which]
        return {"upload": which, "name": name, "speaker": "", "seconds": len(sound) / RATE, "text": "", "words": []}

    def clip(self, row: int, words: bool = True) -> dict:
        """The same of a clip of the corpus, with its `groups`; `words` are (start, end, word)."""
        cell = {name: values[row] for name, values in self.columns.items()}
        told = {"clip": row, "name": str(cell["id"]), "speaker": str(cell["speaker"]), "text": str(cell["text"])}
        told |= {"seconds": float(cell["duration"])} | ({"words": self.words(row)} if words else {})
        return told | {"groups": {name: str(cell[name]) for name in self.groups if cell[name] != ""}}

    def _words(self, clip: int) -> list[tuple[float, float, str]]:
        told = None if self.drawn.words is None else self.drawn.words.get(clip)
        rows = () if told is None else zip(told.start, told.end, told.word, strict=True)
        return [(round(float(start), 3), round(float(end), 3), str(word)) for start, end, word in rows]

    def word(self, clip: int, moment: float) -> str:
        """The word of a clip that sounds at a moment, or ""; it holds [start, end)."""
        return next((word for start, end, word in reversed(self.words(clip)) if start <= moment < end), "")


def groups_of(
    clips: pd.DataFrame, most: int = speaker_labels.MOST_GROUPS
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The columns that put clips in groups of two speakers or more, and their values: of many groups those with most
    speakers, in order of names. And for each column from which something is left out, what and why."""
    apart, found, left_out = {"id", "path", "text", "speaker", "duration"}, {}, {}
    for name in clips.columns.difference(apart, sort=False):
        told = clips[name].fillna("").astype(str).to_numpy(dtype=str)
        voices = speaker_labels.speakers_of(told, clips.speaker.to_numpy(dtype=str))
        values, notes = sorted(voices.index[voices > 1][:most]), []
        if len(set(told)) > most and speaker_labels.is_numeric(told):
            left_out[str(name)] = "numbers, which are no groups"
            continue
        if len(values) < 2:
            left_out[str(name)] = _no_groups(voices)
            continue
        found[str(name)] = values
        for why, rest in (
            (f"the {most} groups with most speakers; left out: ", voices[voices > 1][most:]),
            ("left out, since they have one speaker: ", voices[voices == 1]),
        ):
            names = [f"{value} ({count})" if count > 1 else value for value, count in rest.items()]
            notes += [why + speaker_labels.listed(names, 8)] if names else []
        if notes:
            left_out[str(name)] = "; ".join(notes)
    return found, left_out


def _no_groups(voices: pd.Series) -> str:
    """Why a column has no two groups to compare: `voices`, how many speakers each of its values has."""
    if not len(voices):
        return "no clip of a named speaker has a value"
    return f"a single group: {voices.index[0]}" if len(voices) == 1 else "no two groups have two speakers"
