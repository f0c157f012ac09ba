"""What stands in for the bundled demo: a two-layer Whisper that was never trained, and voices made of tones."""

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
import transformers
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

RATE = 16_000


def make(folder: Path) -> dict:
    """Write `model/` (Hugging Face format) and `corpus/` (audiofolder) into a folder."""
    _model(folder / "model")
    clips = _corpus(folder / "corpus")
    return {"clips": len(clips)}


def _model(folder: Path) -> None:
    config = WhisperConfig(
        d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=256, decoder_ffn_dim=256, vocab_size=64, max_target_positions=64, num_mel_bins=80,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None, init_std=0.1,
    )  # fmt: skip
    transformers.logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.logging.enable_progress_bar()
    WhisperFeatureExtractor().save_pretrained(folder)


def _corpus(folder: Path, voices: int = 20, clips_each: int = 4) -> pd.DataFrame:
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for voice in range(voices):
        gender = ("female", "male")[voice % 2]
        pitch = rng.uniform(170, 240) if gender == "female" else rng.uniform(90, 140)
        for clip in range(clips_each):
            name = f"audio/voice{voice:02d}_{clip}.flac"
            soundfile.write(folder / name, _hum(rng, pitch), RATE)
            rows.append({"file_name": name, "text": "", "speaker": f"voice{voice:02d}", "gender": gender})
    clips = pd.DataFrame(rows)
    clips.to_csv(folder / "metadata.csv", index=False)
    return clips


def _hum(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """A few seconds of syllables: harmonics under a moving formant, with gaps between."""
    pieces = []
    for _ in range(rng.integers(6, 14)):
        time = np.arange(int(rng.uniform(0.1, 0.4) * RATE)) / RATE
        formant = rng.uniform(300, 2500) + rng.uniform(-800, 800) * time
        harmonics = pitch * np.arange(1, 25)[:, None]
        loud = np.exp(-(((harmonics - formant) / 600) ** 2)) * np.hanning(len(time))
        pieces += [
            (loud * np.sin(2 * np.pi * harmonics * time)).sum(axis=0),
            np.zeros(int(rng.uniform(0, 0.3) * RATE)),
        ]
    sound = np.concatenate(pieces)
    return (0.2 * sound / np.abs(sound).max() + rng.normal(0, 0.002, len(sound))).astype(np.float32)
