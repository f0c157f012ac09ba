"""What can be measured of the sound under each frame: loudness, pitch, colour of the spectrum, and where the frame is.

A feature that a single one of these explains is no discovery about language, so they are measured before anything is
called a word or a phone. Frames are those of the encoder: loudness is of 20 ms around a frame's centre, 20 i ms (see
`speech.CENTRE`), pitch and spectrum are of a longer stretch around it. What is silence or padding `speech.kinds` says,
whose frame i begins at 20 i ms.
"""

import numpy as np
import pandas as pd
from scipy.fft import irfft, next_fast_len, rfft

from whisper_sae.data import clip_table
from whisper_sae.data.clip_table import CENTRE, HOP, RATE

FRAME = 320
"""Samples a frame."""

MEASURES = {
    "energy": "dB of full scale",
    "pitch": "Hz",
    "voicing": "0 to 1",
    "centroid": "Hz",
    "tilt": "dB per octave",
    "crossings": "per second",
    "position": "s",
    "since silence": "s",
    "until silence": "s",
    "until padding": "s",
}
"""What `measured` measures, and its units."""

EVENTS = ("start of sound", "start of speech", "end of speech", "padding edge")
"""Of `measured`, what is there (1) or not (0); NaN where it cannot be asked."""

PITCHES = (60.0, 500.0)
"""Hz, the lowest and the highest voice that is looked for."""

VOICED, SILENT = 0.5, 0.03
"""How periodic a voiced frame is at least; below which share of the sound's peak it must be more so, see `pitch`."""

PAUSE = 8
"""Frames of silence in a row that make a pause; fewer may be the closure of a stop."""

NEAR = 3
"""Frames that an event lasts: the first ones of speech after a pause, the last ones of speech before one, …"""

_SPECTRUM, _PITCH = 512, 1024
"""Samples around the centre of a frame that its spectrum and its pitch are taken of."""


def measured(sound: np.ndarray, frames: int) -> pd.DataFrame:
    """MEASURES and EVENTS of each frame of a window that begins with a sound, 16 kHz samples: a row a frame.

    A frame that the sound does not reach is padding, and has nothing but `until padding`, which is below 0 there.
    NaN where a measure has no meaning: `pitch` where nothing is voiced, spectra of digital silence, `since silence` in
    a pause and before the first one, `until silence` in one and after the last; `until padding` and `padding edge`
    where the sound fills the window. Times are of the frame's centre. Raises ValueError for a sound that is longer.
    """
    sound = np.asarray(sound, dtype=np.float64)
    valid = -(-len(sound) // FRAME)
    names = [*MEASURES, *EVENTS]
    told = np.full((frames, len(names)), np.nan)
    if frames > valid:
        told[:, names.index("until padding")] = (valid - np.arange(frames)) * HOP - CENTRE
    for name, values in _columns(sound, valid, frames).items() if valid else ():
        told[:valid, names.index(name)] = values
    return pd.DataFrame(told, columns=names).rename_axis("frame")


def _columns(sound: np.ndarray, valid: int, frames: int) -> dict[str, np.ndarray]:
    """What is measured of the frames that a sound reaches: (valid frame,) each."""
    quiet = clip_table.kinds(sound, FRAME, frames)[:valid] == clip_table.SILENCE
    within = np.zeros(valid * FRAME)
    within[: len(sound)] = sound
    blocks, silent = _around(within, valid, FRAME), pauses(quiet)
    columns = {"energy": 10 * np.log10(np.square(blocks).mean(axis=1) + 1e-12), "crossings": crossings(blocks)}
    columns["centroid"], columns["tilt"] = colour(_around(within, valid, _SPECTRUM))
    columns["pitch"], columns["voicing"] = pitch(_around(within, valid, _PITCH), np.abs(sound - sound.mean()).max())
    columns["pitch"][quiet] = np.nan
    columns["position"] = clip_table.moments(np.arange(valid))
    since, until = _since(silent), _since(silent[::-1])[::-1]
    columns["since silence"], columns["until silence"] = (since - 1) * HOP + CENTRE, until * HOP - CENTRE
    columns["start of sound"] = np.arange(valid) < NEAR
    columns["start of speech"], columns["end of speech"] = (
        np.nan_to_num(n, nan=np.inf) <= NEAR for n in (since, until)
    )
    if frames > valid:
        columns["padding edge"] = np.arange(valid) >= valid - NEAR
    return columns


def pauses(silent: np.ndarray) -> np.ndarray:
    """Which frames lie in a run of at least PAUSE silent ones: (frame,) bool of (frame,) bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]])))
    first, last = edges[::2], edges[1::2]
    found = np.zeros(len(silent), dtype=bool)
    for a, b in zip(first, last, strict=True):
        found[a:b] = b - a >= PAUSE
    return found


def _since(silent: np.ndarray) -> np.ndarray:
    """How many frames ago the last silent one was: (frame,) from 1 on, NaN in silence and before any."""
    frame = np.arange(len(silent))
    last = np.maximum.accumulate(np.where(silent, frame, -1))
    return np.where(silent | (last < 0), np.nan, frame - last)


def _around(sound: np.ndarray, frames: int, length: int) -> np.ndarray:
    """`length` samples around the centre of each frame, zeros beyond the ends: (frame, length)."""
    before = length // 2 - round(CENTRE * RATE)
    padded = np.pad(sound, (before, length)).astype(np.float32)  # a transform takes half as long
    return np.lib.stride_tricks.sliding_window_view(padded, length)[::FRAME][:frames]


def crossings(blocks: np.ndarray) -> np.ndarray:
    """How often a second the sound changes its sign within each block, (block, sample): (block,)."""
    positive = blocks > 0
    return (positive[:, 1:] != positive[:, :-1]).sum(axis=1) * RATE / blocks.shape[1]


def colour(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centroid of each block's power spectrum in Hz, and its tilt in dB per octave: (block,) each; NaN for zeros.

    The tilt is the slope of a straight line through the spectrum from 100 Hz to 7 kHz, every octave counted alike.
    """
    length = blocks.shape[1]
    power = np.square(np.abs(rfft(blocks * np.hanning(length).astype(blocks.dtype), axis=1)))
    frequency = np.arange(power.shape[1]) * RATE / length
    total = power.sum(axis=1)
    some = total > 1e-12
    with np.errstate(invalid="ignore", divide="ignore"):
        centroid = np.where(some, power @ frequency / total, np.nan)
    inside = (frequency >= 100) & (frequency <= 7000)
    weight = 1 / frequency[inside]
    octave = np.log2(frequency[inside])
    octave -= (weight * octave).sum() / weight.sum()
    level = 10 * np.log10(power[:, inside] + 1e-12)
    tilt = level @ (weight * octave) / (weight * octave**2).sum()
    return centroid, np.where(some, tilt, np.nan)


def pitch(blocks: np.ndarray, loudest: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The fundamental frequency of each block in Hz, NaN where nothing is voiced, and how periodic it is, 0 to 1.

    The highest peak of the autocorrelation, over that of the window (Boersma 1993): a little lower one at half the lag
    or less is preferred, for a sound of period T has that of 2 T too. Its height is the voicing; from VOICED on it
    counts. Where the block's middle half is quieter than about SILENT of `loudest`, the whole sound's peak, it must be
    VOICED + max(0, 2 - (1 + VOICED) · local peak / (SILENT · loudest)), equation 23 there.
    """
    length = blocks.shape[1]
    window = np.hanning(length).astype(blocks.dtype)
    lags = np.arange(int(RATE / PITCHES[1]) - 1, int(RATE / PITCHES[0]) + 2)
    whole = _autocorrelation(window[None], lags[-1])[0]
    own = _autocorrelation((blocks - blocks.mean(axis=1, keepdims=True)) * window, lags[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.nan_to_num(own[:, lags] / own[:, :1] / (whole[lags] / whole[0]))
    height[own[:, 0] < 1e-9] = 0
    middle = height[:, 1:-1]
    peak = (middle >= height[:, :-2]) & (middle > height[:, 2:]) & (middle > 0)
    liked = np.where(peak, middle - 0.02 * np.log2(lags[1:-1] / lags[1]), -np.inf)
    best = liked.argmax(axis=1)
    before, at, after = (np.take_along_axis(height, best[:, None] + step, axis=1)[:, 0] for step in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        aside = np.nan_to_num((before - after) / (before - 2 * at + after) / 2).clip(-0.5, 0.5)  # of a parabola
    voicing = np.where(peak.any(axis=1), at - (before - after) * aside / 4, 0).clip(0, 1)
    local = np.abs(blocks - blocks.mean(axis=1, keepdims=True))[:, length // 4 : -(length // 4)].max(axis=1)
    faint = 2 - (1 + VOICED) * local / (SILENT * loudest) if loudest > 0 else 0.0
    voiced = voicing >= VOICED + np.maximum(faint, 0)
    return np.where(voiced, RATE / (lags[1:-1][best] + aside), np.nan), voicing


def _autocorrelation(blocks: np.ndarray, most: int) -> np.ndarray:
    """Of each block, (block, sample), at lags from 0 to `most`: (block, lag)."""
    size = next_fast_len(blocks.shape[1] + most, real=True)  # so that no end meets the beginning
    spectrum = rfft(blocks, n=size, axis=1)
    return irfft(np.square(spectrum.real) + np.square(spectrum.imag), n=size, axis=1)[:, : most + 1]
