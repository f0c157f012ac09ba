"""Where speech becomes a recording: a lead-in and a tail, a level, a background; and the same for other sounds.

Levels are decibels of full scale, root mean square: over the speech itself for speech, over all for other sounds. A
recording is rounded to 16-bit here, so that what is written and what is trained on are the same numbers.
"""

import numpy as np
import sounds

RATE = 16_000


def level(sound: np.ndarray) -> float:
    """Root mean square in dB of full scale; -120 for silence."""
    return float(10 * np.log10(np.mean(np.square(sound, dtype=np.float64)) + 1e-12))


def _scaled(sound: np.ndarray, to_db: float) -> np.ndarray:
    now = level(sound)
    return sound * 10 ** ((to_db - now) / 20) if now > -119 else sound


def tilted(sound: np.ndarray, tilt_db: float) -> np.ndarray:
    """The sound with `tilt_db` decibels taken away for each octave above 1 kHz; the phases stay."""
    if not tilt_db:
        return sound
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(sound), 1 / RATE), 1000) / 1000)
    return np.fft.irfft(np.fft.rfft(sound) * 10 ** (-tilt_db * octaves / 20), len(sound))


def record(
    rng: np.random.Generator, speech: np.ndarray, level_db: float, noise_db: float, tilt_db: float = 0.0
) -> tuple[np.ndarray, int]:
    """(int16 samples, samples of lead-in): speech at `level_db` over pink or white noise at `noise_db`.

    Both levels are those of the recording, behind a microphone that takes `tilt_db` dB an octave above 1 kHz.
    """
    lead, tail = (round(x * RATE) for x in rng.uniform(0.1, 0.4, 2))
    clip = np.pad(_scaled(tilted(speech, tilt_db), level_db), (lead, tail))
    colour = (sounds.white, sounds.pink)[rng.integers(2)]
    clip = clip + _scaled(tilted(colour(rng, len(clip) / RATE), tilt_db), noise_db)
    return _rounded(clip), lead


def other(rng: np.random.Generator, kind: str, seconds: float, level_db: float) -> np.ndarray:
    """int16 samples of a sound without speech; of `silence`, nothing or hardly anything."""
    clip = _scaled(sounds.KINDS[kind](rng, seconds), level_db)
    if kind != "silence" or rng.random() < 0.5:
        clip = clip + _scaled(rng.standard_normal(len(clip)), rng.uniform(-80, -60))
    return _rounded(clip)


def _rounded(clip: np.ndarray) -> np.ndarray:
    return np.clip(np.round(clip * 32767), -32767, 32767).astype(np.int16)
