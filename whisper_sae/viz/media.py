"""Sounds and spectrograms as a browser takes them: small where they are many, exact where one is asked for.

An excerpt in a page is Opus and grey WebP, about 10 kB for two seconds. A clip that is played by itself is WAV, of 16
bits: nothing is lost, nothing has to be made first, and what is saved from the player is what was heard.
"""

import base64
import io

import numpy as np
import soundfile
from PIL import Image

RATE, FRAME = 16_000, 320
"""Samples a second, and samples a frame of 20 ms."""

COMPRESSION, QUALITY = 0.95, 35
"""Of Opus, 0 to 1, and of WebP, 1 to 100."""


def opus(sound: np.ndarray) -> bytes:
    """A sound, (sample,) at 16 kHz, raised to 0.95 of full scale: Opus in Ogg. Silence stays silent."""
    loudest = float(np.abs(sound).max(initial=0))
    file = io.BytesIO()
    raised = np.asarray(sound, np.float32) * np.float32(0.95 / loudest if loudest > 1e-5 else 1)
    soundfile.write(file, raised, RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
    return file.getvalue()


def wav(sound: np.ndarray) -> bytes:
    """A sound, (sample,) at 16 kHz within -1 to 1, as WAV of 16 bits: as loud as it is."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def picture(mel: np.ndarray, effort: int = 6) -> bytes:
    """A spectrogram, (mel bin, column), as a grey WebP: low frequencies at the bottom, the loudest white.

    `effort`, 0 to 6, is how long it is made smaller.
    """
    low, high = float(mel.min()), float(mel.max())
    grey = np.round(255 * (mel - low) / (high - low if high > low else 1)).astype(np.uint8)[::-1]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).save(file, "WEBP", quality=QUALITY, method=effort)
    return file.getvalue()


def text(data: bytes) -> str:
    """Bytes as JSON can hold them: base64."""
    return base64.b64encode(data).decode()
