"""Does a dictionary find the features of a world in which they are known? Every variant, in every world.

    python benchmarks/ground_truth.py [--tokens 1000000] [--seeds 3] [--out table.csv]

The worlds are `whisper_sae.sae.synthetic.SETTINGS`. All variants see the same frames, and have two latents a feature. k
is the world's own number of features a frame, rounded up; `relu` and `tied`, for which k says nothing, are trained with
several penalties, and every one is shown. Codes are those of use: with the saved threshold, one frame at a time.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from whisper_sae.sae import architectures, metrics, synthetic, training

BATCH = 1024
PENALTIES = {"relu": (1.0, 2.0, 4.0), "tied": (0.5, 1.0, 2.0)}
NAMES = {"max_cosine": "max cosine", "matched_cosine": "matched cosine", "f1": "F1", "fvu": "FVU", "l0": "L0"}


def drawn(true: synthetic.World, tokens: int) -> torch.Tensor:
    """So many frames of a world, whole batches: (frame, width)."""
    parts = [true.draw(64 * BATCH, 1000 + part)[0] for part in range(math.ceil(tokens / (64 * BATCH)))]
    return torch.cat(parts)[: tokens // BATCH * BATCH]


def trained(true: synthetic.World, x: torch.Tensor, variant: str, penalty: float | None, k: int, seed: int) -> dict:
    """Train one dictionary on frames of a world, each seen once, and say how much of the world was found."""
    scale = math.sqrt(x.shape[1] / x.square().sum(dim=1).mean().item())
    coder = architectures.create(variant, x.shape[1], 2 * len(true.rates), k, seed, penalty)
    coder.start_on(x[:8192] * scale)
    batches = lambda start: (part * scale for part in x[start * BATCH :].split(BATCH))  # noqa: E731
    for _ in training.train(coder, batches, steps=len(x) // BATCH, learning_rate=3e-3, dead_tokens=50_000):
        pass
    if isinstance(coder, architectures.BatchTopK):
        coder.calibrate(part * scale for part in x[: 8 * BATCH].split(BATCH))
    coder.undo_scale(scale)
    with torch.no_grad():
        held_out = true.draw(8192, 7)[0]
        rates = metrics.firing(coder.encode, [held_out])
        found = synthetic.recovery(true, coder.W_dec, coder.encode)
        fvu = metrics.reconstruction(coder, [held_out])["fvu"]
    return found | {"fvu": fvu, "l0": float(rates.sum()), "dead": float((rates == 0).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="frames each dictionary sees")
    parser.add_argument("--seeds", type=int, default=1, help="dictionaries of each kind; medians are shown")
    parser.add_argument("--out", help="write the table as CSV, too")
    asked = parser.parse_args()
    kinds = [(variant, penalty) for variant in architectures.VARIANTS for penalty in PENALTIES.get(variant, (None,))]
    rows, started = [], time.perf_counter()
    worlds = {name: synthetic.world(**settings) for name, settings in synthetic.SETTINGS.items()}
    frames = {name: drawn(true, asked.tokens) for name, true in tqdm(worlds.items(), desc="drawing", unit=" worlds")}
    for world, (variant, penalty) in tqdm(list(itertools.product(worlds, kinds)), unit=" dictionaries"):
        k = math.ceil(synthetic.SETTINGS[world]["l0"])
        runs = [trained(worlds[world], frames[world], variant, penalty, k, seed) for seed in range(asked.seeds)]
        middle = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        rows.append({"world": world, "variant": variant, "penalty": penalty or "", "k": "" if penalty else k} | middle)
    table = pd.DataFrame(rows).rename(columns=NAMES)
    if asked.out:
        table.to_csv(asked.out, index=False)
    for name, settings in synthetic.SETTINGS.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:g}" for key, value in settings.items()))
        print(table[table.world == name].drop(columns="world").round(3).to_string(index=False))
    about = f"{asked.tokens:,} frames, batches of {BATCH}, rate 3e-3, {asked.seeds} seed(s), torch {torch.__version__}"
    print(f"\n{about}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
