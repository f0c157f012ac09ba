"""A small world to ask questions of: eight clips of four speakers, and codes of which every value is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from conftest import hum
from scipy.sparse import csc_array
from transformers import WhisperFeatureExtractor

from whisper_sae.explorer import annotations
from whisper_sae.explorer.api import Questions
from whisper_sae.features import examples, index, index_builder

NASTY = "</script><script>document.title='got out'</script><img src=x onerror=\"document.title='got out'\"> ʃ"
FEATURES = 12


def codes_of(lengths: list[int], signed: bool, seed: int = 0) -> list[np.ndarray]:
    """What features say of clips of so many frames, [(frame, feature)]: feature 11 never fires, 10 in clip 2 alone."""
    rng, found = np.random.default_rng(seed), []
    for clip, frames in enumerate(lengths):
        dense = rng.integers(1, 65, (frames, FEATURES)) / 8 * (rng.random((frames, FEATURES)) < 0.15)
        dense[:, 10:] = 0
        dense[3, 0] = 10 + clip  # feature 0 peaks on frame 3 of every clip, the more the later the clip
        if clip == 2:
            dense[5, 10] = 4.5
        found.append((dense * rng.choice([-1, 1], dense.shape) if signed else dense).astype(np.float32))
    return found


def world(folder: Path, *, signed: bool = False, lengths=None, can: bool = True, **options) -> Questions:
    """Questions about them; sounds that are handed over have the codes of clip 1, as far as they last."""
    lengths = lengths or [30, 45, 50, 60, 33, 41, 25, 52]
    rng, rows = np.random.default_rng(1), []
    (folder / "corpus").mkdir(parents=True)
    for clip, frames in enumerate(lengths):
        path = folder / "corpus" / f"{clip}.wav"
        soundfile.write(path, hum(rng, 120, seconds=frames * 0.02), 16_000)
        voice = clip % 4
        rows.append({"id": f"clip {clip}" if clip != 3 else NASTY, "path": str(path), "duration": frames * 0.02,
                     "speaker": f"v{voice}", "gender": ("female", "male")[voice % 2], "mood": f"m{clip}",
                     "text": NASTY if clip == 3 else "one two three"})  # fmt: skip
    clips, codes = pd.DataFrame(rows), codes_of(lengths, signed)
    dense = np.concatenate(codes)
    index_builder.build(folder / "index", np.array(lengths), lambda a, b: dense[a:b], FEATURES, signed=signed)
    windows = pd.DataFrame({"clip": range(len(lengths)), "first": 0})
    words = pd.DataFrame({"clip": range(len(lengths)), "start": 0.06, "end": 0.2,
                          "word": [NASTY if clip == 3 else "two" for clip in range(len(lengths))]})  # fmt: skip
    drawn = examples.Examples(index.Index(folder / "index"), clips, windows, words)

    def hear(sound: np.ndarray) -> csc_array:
        frames = -(-len(sound) // 320)
        return csc_array(np.resize(codes[1], (frames, FEATURES)))

    def steer(sound, scales, start, end, control, language) -> dict:
        return steered(sound, scales, control)

    told = {"notes": annotations.Labels(folder / "labels", "key", "site")} | (
        {"hear": hear, "steer": steer} if can else {}
    )
    asked = Questions(
        drawn, clips, filters=WhisperFeatureExtractor().mel_filters, roots=[folder / "corpus"], title="a small world",
        **told | options,
    )  # fmt: skip
    asked.codes = codes
    return asked


def steered(sound: np.ndarray, scales: dict, control: bool) -> dict:
    """What a change says, made up: a comma more for a feature above 1."""
    loud = any(value > 1 for value in scales.values())
    track = np.linspace(0, 1, -(-len(sound) // 320), dtype=np.float32)
    return {
        "baseline": "one two three", "reconstructed": "one two three",
        "edited": "one, two, three <b>x</b>" if loud else "one two three",
        "control": {"features": [7], "of": [int(next(iter(scales)))], "text": "one two tree"} if control else None,
        "tracks": {which: [track.tolist(), (track * value).tolist()] for which, value in scales.items()},
    }  # fmt: skip
