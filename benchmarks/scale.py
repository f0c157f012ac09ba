"""What whisper-large-v3 would cost: all 32 layers of its encoder, on 1,000 and on 680,000 hours of speech. An estimate.

    python benchmarks/scale.py

Operations are those of `roofline`, for large-v3's own configuration; windows those of `packing`; bytes those of
`activations.size_of`. What this processor does is measured here and now, in seconds of a core, which a busy machine
changes least. What a GPU does is assumed: the published peak of its dense bfloat16 products, times SHARE. Reading sound
is not in the hours; it is measured beside them.
"""

import itertools
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from whisper_sae.activations import packing, store
from whisper_sae.data import clip_table
from whisper_sae.model import attention, whisper_model
from whisper_sae.sae import roofline

LARGE = WhisperConfig(  # the config.json of openai/whisper-large-v3, as far as its encoder goes
    d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, num_mel_bins=128,
    max_source_positions=1500,
)  # fmt: skip
SITES = {f"encoder.{layer}.resid": LARGE.d_model for layer in range(LARGE.encoder_layers)}
ONE = dict(list(SITES.items())[-1:])
SHARE = 0.4
"""Assumed: what of its peak a GPU reaches in the encoder."""
PEAK = {"A100": 312e12, "H100": 989e12}
"""Published by NVIDIA for the SXM modules: dense bfloat16 products, operations a second."""
HOURS, CLIPS = (1_000, 680_000), (5, 12, 30)
A_SECOND = 50
"""Frames."""
EXPANSION, STEP, SEEN = 16, 1.4, 1e9
"""Of a dictionary: latents for each dimension; what a training step costs, in products of the size of its encoder, as
`peers.py` measured it on a processor; frames that it sees."""


def windows(seconds: int, how: str) -> float:
    """Windows that a clip takes, among many clips of each speaker."""
    if how == "clip":
        return 1.0
    told = pd.DataFrame({"clip": np.arange(1_000), "first": 0, "samples": seconds * clip_table.RATE})
    gap = round(packing.GAP * A_SECOND)
    positions = LARGE.max_source_positions
    packed = packing.pack(
        told, pd.Series(["v"] * len(told)), frame=clip_table.RATE // A_SECOND, positions=positions, gap=gap
    )
    return (packed.heard.max() + 1) / len(told)


def reached(precision: str, rounds: int = 5) -> tuple[float, float]:
    """Of this machine now: operations a second in products, and a second of one core in two layers of the encoder."""
    config = WhisperConfig(**LARGE.to_dict() | {"encoder_layers": 2})
    encoder = WhisperEncoder._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    attention.fuse(encoder)
    mels = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)
    products, whole = [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        encoder(mels)
        for _ in range(rounds):
            products.append(roofline.multiplied("cpu", config, precision))
            started = time.process_time()  # of all threads together
            encoder(mels)
            whole.append(roofline.operations(config) / (time.process_time() - started))
    return statistics.median(products), statistics.median(whole)


def reading(rounds: int = 5) -> float:
    """Seconds of a core in which 30 s of sound are read from a FLAC file at 16 kHz, here and now."""
    sound = np.random.default_rng(0).normal(0, 0.05, 30 * clip_table.RATE)
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(Path(folder) / "noise.flac", sound, clip_table.RATE)
        took = []
        for _ in range(rounds):
            started = time.process_time()
            clip_table.samples(Path(folder) / "noise.flac")
            took.append(time.process_time() - started)
    return statistics.median(took)


def three(x: float) -> str:
    """Three figures, and no power of ten."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}"


def size(count: float) -> str:
    """Bytes, to be read."""
    unit, name = next((u, n) for u, n in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1, "B")) if count >= u)
    return f"{three(count / unit)} {name}"


def hours_table(rates: dict[str, float]) -> None:
    """How long each way of listening takes, by everything in `rates`, operations a second."""
    cost = roofline.operations(LARGE)
    print(f"| speech | clips of | heard | windows | 10¹⁸ operations | {' | '.join(rates)} |")
    print("|" + "--:|" * (5 + len(rates)))
    for hours, seconds, how in itertools.product(HOURS, CLIPS, ("clip", "packed")):
        if how == "packed" and windows(seconds, how) == 1:  # one clip fills a window
            continue
        count = hours * 3600 / seconds * windows(seconds, how)
        took = " | ".join(three(count * cost / rate / 3600) for rate in rates.values())
        print(f"| {hours:,} h | {seconds} s | {how} | {count:,.0f} | {three(count * cost / 1e18)} | {took} |")


def disk_table() -> None:
    """What there is to store at float16."""
    print("| speech | billion frames | one site | all 32 sites |\n|--:|--:|--:|--:|")
    for hours in HOURS:
        frames = hours * 3600 * A_SECOND
        one, all_ = (size(store.size_of(sites, frames, 0, 0, "float16")) for sites in (ONE, SITES))
        print(f"| {hours:,} h | {three(frames / 1e9)} | {one} | {all_} |")


def design() -> None:
    """What follows, each line from the numbers above it."""
    cost, rate = roofline.operations(LARGE), SHARE * PEAK["H100"]
    a_second = rate / cost  # windows
    said = store.size_of(SITES, round(a_second * LARGE.max_source_positions), 0, 0, "float16")
    listening, step = cost / LARGE.max_source_positions, STEP * 2 * EXPANSION * LARGE.d_model**2
    heard, latents = SEEN / A_SECOND / 3600, EXPANSION * LARGE.d_model
    print(f"- One H100 hears {three(a_second)} windows a second; what 32 sites say of them is {size(said)} a second.")
    print(f"- To feed it takes {three(a_second * reading())} cores like these, which read FLAC and do nothing else.")
    print(
        f"- A dictionary that sees {SEEN / 1e9:g} billion frames hears {heard:,.0f} h, {heard / HOURS[1]:.1%} of all."
    )
    print(
        f"  To listen to so much takes an H100 {three(SEEN * listening / rate / 3600)} h, if clips fill their windows."
    )
    print(f"- A frame costs {three(listening / 1e9)} billion operations to hear, and {three(step / 1e9)} to train one")
    print(f"  dictionary of {latents:,} latents on it: at 32 sites {three(step * 32 / listening)} times as much.")


def main() -> None:
    """All of it, as Markdown."""
    rates = {f"h of an {name}, assumed": SHARE * peak for name, peak in PEAK.items()}
    peaks = " and ".join(f"{peak / 1e12:.0f} TFLOP/s ({name})" for name, peak in PEAK.items())
    print(f"A window costs {three(roofline.operations(LARGE) / 1e12)} · 10¹² operations.")
    print(f"Assumed: a GPU reaches {SHARE:.0%} of {peaks}.")
    for precision in ["float32", *(["bfloat16"] if whisper_model.has_bfloat16(torch.device("cpu")) else [])]:
        products, whole = reached(precision)
        print(
            f"Measured, {precision}: products {products / 1e9:,.0f} GFLOP/s on {torch.get_num_threads()} threads,",
            end=" ",
        )
        print(f"the encoder {whole / 1e9:,.0f} GFLOP a second of a core.")
        rates[f"h of a core here, {precision}"] = whole
    print()
    hours_table(rates)
    print()
    disk_table()
    print()
    design()


if __name__ == "__main__":
    main()
