"""Several utterances of one speaker in one window, so that Whisper spends less on padding.

Whisper computes 30 s whatever it hears. Clips of 5 s, six to a window with a short silence between them, cost a fifth.
It is not the same, though: Whisper adds a position to every frame, and a frame listens to its neighbours. In tiny.en
the cosine of a frame packed to the same frame alone is about 0.9; `listening.compare` measures it.
"""

import numpy as np
import pandas as pd

GAP = 0.4
"""Seconds of silence between two clips."""


def pack(windows: pd.DataFrame, voices: pd.Series, *, frame: int, positions: int, gap: int) -> pd.DataFrame:
    """The same pieces of clips, `clip`, `first` and `samples`, in the order in which they are heard.

    `heard` numbers the window of a piece and `at` is its first position there. Pieces of one voice follow each other
    with `gap` positions between them until a window is full; a clip whose voice is "" is heard alone. A position is
    `frame` samples, and every piece begins at one.
    """
    voice = voices.to_numpy(str)[windows["clip"]]
    voice = np.where(voice == "", [f"\0{clip}" for clip in windows["clip"]], voice)
    parts, heard = [], -1
    for _, group in windows.groupby(voice, sort=False):
        end, places = positions, []
        for count in -(-group.samples.to_numpy() // frame):
            if end + gap + count > positions:
                heard, end = heard + 1, -gap
            places.append((heard, end + gap))
            end += gap + count
        parts.append(group.assign(heard=[h for h, _ in places], at=[at for _, at in places]))
    return pd.concat(parts, ignore_index=True)


def alone(windows: pd.DataFrame) -> pd.DataFrame:
    """The pieces each in a window of its own, as Whisper is used."""
    return windows.assign(heard=np.arange(len(windows)), at=0)


def joined(sounds: list[np.ndarray], at: list[int], frame: int) -> np.ndarray:
    """What is heard of several pieces, silence between them: (sample,)."""
    found = np.zeros(max(start * frame + len(sound) for sound, start in zip(sounds, at, strict=True)), np.float32)
    for sound, start in zip(sounds, at, strict=True):
        found[start * frame : start * frame + len(sound)] = sound
    return found


def joined_kinds(kinds: list[np.ndarray], at: list[int]) -> np.ndarray:
    """The kinds of a window's frames from those of its pieces, which begin with their valid ones: (position,)."""
    found = np.zeros_like(kinds[0])
    for kind, start in zip(kinds, at, strict=True):
        valid = kind[kind > 0]
        found[start : start + len(valid)] = valid
    return found
