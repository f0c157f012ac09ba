"""A part of a recording: a window of a clip of hours takes the time and the memory of a window.

Where a file can be read from anywhere, what is asked for is read, and beside it as much as soxr's filter reaches. MP3,
Opus and the like lean on what came before: they are decoded from their beginning, once for all the excerpts that are
asked for in order, without being held.
"""

import functools
import math
import os
import threading
from pathlib import Path

import numpy as np
import soundfile

from whisper_sae.data import clip_table
from whisper_sae.data.clip_table import RATE

EXACT = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS"}
"""What libsndfile reads bit for bit alike from wherever it begins. Others differ there, or cannot begin anywhere."""

MARGIN = 256
"""Samples of the slower of two rates that are read on each side; soxr's filter reaches less than 100."""


def excerpt(path: str | Path, first: int, samples: int) -> np.ndarray:
    """What `speech.samples(path)[first : first + samples]` is, without the rest: (sample,) float32, 16 kHz.

    The same bits where the file is at 16 kHz or is asked for whole, else within 1e-6 of full scale. (At a rate that has
    next to no factor in common with 16,000, such as 48,001 Hz, soxr rounds its steps, which adds up over minutes; an
    excerpt begins anew.) Raises BadSpeech as `samples` does, for what is read; `speech.inspect` reads all.
    """
    with clip_table.opened(path) as file:
        start, count, before = _span(first, samples, file.samplerate)
        if start == 0 or (file.subtype in EXACT and file.seekable()):
            mono = _from(path, file, start, count)
        else:
            told = os.stat(path)
            mono = _onward(str(path), told.st_size, told.st_mtime_ns).read(start, count)
        return clip_table.resampled(mono, file.samplerate)[before : before + samples]


def _span(first: int, samples: int, rate: int) -> tuple[int, int, int]:
    """Where to begin in a file, how many of its samples to read, how many at 16 kHz of these come before `first`.

    It begins where a sample of the file and one at 16 kHz are of the same moment.
    """
    if rate == RATE:
        return first, samples, 0
    margin, shared = MARGIN * max(1.0, rate / RATE), math.gcd(rate, RATE)
    periods = max(0, math.floor((first * rate / RATE - margin) * shared / rate))
    start = periods * (rate // shared)
    return start, math.ceil((first + samples) * rate / RATE + margin) - start, first - periods * (RATE // shared)


def _from(path: str | Path, file: soundfile.SoundFile, start: int, count: int) -> np.ndarray:
    try:
        if start:  # to go where one is already changes the last bits of MP3
            file.seek(min(start, file.frames))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise clip_table.BadSpeech(f"{path}: cannot be decoded: {error}") from None
    return np.concatenate([np.zeros(0, np.float32), *clip_table.decode(path, file, start, count)])


class _Onward:
    """A file that is decoded from its beginning on, as far as asked; what was asked for last is kept."""

    def __init__(self, path: str):
        self.path, self.lock = path, threading.Lock()
        self.begin()

    def begin(self) -> None:
        self.file, self.start, self.kept = clip_table.opened(self.path), 0, np.zeros(0, np.float32)

    def read(self, start: int, count: int) -> np.ndarray:
        """Samples from `start` on, of the file's own rate; fewer than `count` at its end."""
        with self.lock:
            if start < self.start or self.file.closed:
                self.begin()
            try:
                self.go_on(start, start + count)
            except BaseException:
                self.file.close()  # where it stands is not known
                raise
            return self.kept[:count].copy()

    def go_on(self, start: int, stop: int) -> None:
        self.drop(start)
        end = self.start + len(self.kept)
        for block in clip_table.decode(self.path, self.file, end, stop - end):
            self.kept = np.concatenate([self.kept, block])
            self.drop(start)

    def drop(self, start: int) -> None:
        """Forget what comes before `start`."""
        away = min(start - self.start, len(self.kept))
        self.start, self.kept = self.start + away, self.kept[away:]


@functools.lru_cache(maxsize=2)
def _onward(path: str, _size: int, _changed: int) -> _Onward:
    """Kept open from one excerpt to the next, until others are."""
    return _Onward(path)
