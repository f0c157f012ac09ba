"""A sound that somebody hands over: bytes of unknown origin, made samples or refused in one line.

Nothing here trusts a name or a kind that is told with the bytes. What is refused is refused before it is decoded
wherever its header says enough, so that an hour of silence in a small file costs no memory.
"""

import tempfile
from pathlib import Path

import numpy as np

from whisper_sae.data import clip_table
from whisper_sae.data.clip_table import RATE, BadSpeech

BYTES = 64_000_000
"""The most that is read: two minutes of two channels at 48 kHz in 32 bits are 46 million."""

SHORTEST, LONGEST = 0.1, 120.0
"""Seconds."""

CHANNELS = 2
RATES = (4_000, 192_000)
"""Samples a second, from and to."""


def samples(data: bytes, longest: float = LONGEST) -> np.ndarray:
    """The samples of a sound file, given as its bytes: (sample,) float32 at 16 kHz, channels averaged.

    WAV, FLAC, Ogg (Vorbis, Opus), MP3 and AIFF. Raises BadSpeech, one line, for what is empty, truncated or no sound,
    lasts less than SHORTEST or more than `longest` seconds, has more than CHANNELS channels, or is silent throughout.
    """
    if not data:
        raise BadSpeech("the file is empty: it has 0 bytes")
    if len(data) > BYTES:
        raise BadSpeech(f"the file has {len(data) / 1e6:,.0f} MB; at most {BYTES / 1e6:,.0f} MB are read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        path.write_bytes(data)
        try:
            return _decoded(path, longest)
        except BadSpeech as error:
            raise BadSpeech(str(error).replace(f"{path}: ", "").replace(f"{str(path)!r}", "it")) from None


def _decoded(path: Path, longest: float) -> np.ndarray:
    with clip_table.opened(path) as file:
        length = file.frames / file.samplerate
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise BadSpeech(f"{file.samplerate:,} samples a second; from {RATES[0]:,} to {RATES[1]:,} can be read")
        if file.channels > CHANNELS:
            raise BadSpeech(f"{file.channels} channels; mix them down to one or two")
        if length > longest:
            raise BadSpeech(
                f"it lasts {_minutes(length)}; at most {_minutes(longest)} can be asked about: cut a part out"
            )
        if length < SHORTEST:
            raise BadSpeech(f"it lasts {length:.3f} s; at least {SHORTEST} s are needed")
        mono = np.concatenate(list(clip_table.decode(path, file, most=round(longest * file.samplerate))))
        found = clip_table.resampled(mono, file.samplerate)
    if np.abs(found).max(initial=0) < 1e-5:
        raise BadSpeech("it is silent from its beginning to its end")
    if len(found) > round(longest * RATE) + RATE:
        raise BadSpeech(f"it holds more than its header says; at most {_minutes(longest)} can be asked about")
    return found


def _minutes(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
