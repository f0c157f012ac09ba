"""Training the dictionaries of one site, or of several at once, as a profile asks, and scoring them.

It knows neither what the frames are of nor where they come from, nor what a result is called: for Whisper `feeding` and
`dictionaries` say that, for any other model `elsewhere`.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from whisper_sae import devices
from whisper_sae.activations.dataset import Rows
from whisper_sae.sae import architectures, metrics, training

HALVES = {"encoder": "W_enc", "decoder": "W_dec"}


class Fed(Protocol):
    """What a dictionary is fed: `feeding.Fed` for what Whisper says, `elsewhere.Fed` for what other models do."""

    def rows(self, site: str | tuple[str, ...], split: str) -> tuple[Rows, np.ndarray]:
        """The frames of a site, or of several side by side, in a split; and the number of each frame's unit: (row,)."""


class Asked(Protocol):
    """How a dictionary is trained; each field as `profiles.Profile` documents it."""

    model: str
    device: str
    variant: str
    expansion: int
    k: int
    penalty: float
    tokens: int
    batch_tokens: int
    learning_rate: float
    decay_shape: str
    dead_tokens: int
    auxiliary: float
    resample_tokens: int
    patience: int


def fitted(fed: Fed, run: Asked, seed: int, folders: dict[str, Path], title: str, frozen: str = "",
           **about) -> dict:  # fmt: skip
    """Train a dictionary of each site, together, save them in their folders, and return facts: {site: scores}.

    A folder then has `sae.safetensors`, `sae.json`, `history.csv` and `firing.npy`, rates on the validation speakers.
    `frozen`, "encoder" or "decoder", leaves that half's directions as they were drawn. `about` goes into `sae.json`.
    """
    rows, _ = fed.rows(tuple(folders), "train")
    held_out, voices = fed.rows(tuple(folders), "validation")
    coders, scales = begun(run, rows, seed, frozen)
    checkpoint = next(iter(folders.values())) / "training.pt"
    histories = taught(coders, rows, held_out, scales, run, seed, checkpoint, title)
    few = rows.sample(8 * run.batch_tokens, seed)
    few = [rows.apart(x) for x in few.tensor_split(-(-len(few) // run.batch_tokens))]
    for site, coder in coders.items():
        pd.DataFrame(histories[site]).to_csv(folders[site] / "history.csv", index=False)
        if isinstance(coder, architectures.BatchTopK):
            coder.calibrate(x[site] * scales[site] for x in few)
        coder.undo_scale(scales[site])
        architectures.save(coder, folders[site], site=site, model=public(run.model), scale=scales[site], **about)
    facts = scored(coders, held_out, voices)
    for site, (found, rates) in facts.items():
        np.save(folders[site] / "firing.npy", rates)
        facts[site] = found | {"l0": float(rates.sum()), "dead": float((rates == 0).mean())}
    checkpoint.unlink()
    return facts


def scored(coders: dict[str, architectures.SAE], rows: Rows, voices: np.ndarray) -> dict[str, tuple[dict, np.ndarray]]:
    """How well the dictionary of each site says its frames, and how often each latent fires; all read once."""
    centres = rows.apart(rows.sample(65_536, 0))
    close = {site: metrics.Closeness(voices, centres[site].mean(dim=0)) for site in coders}
    fired, count = dict.fromkeys(coders, 0), len(rows)
    for several in rows.chunks(4096):
        for site, x in rows.apart(several).items():
            with torch.no_grad():
                close[site].add(x, coders[site](x))
                fired[site] = fired[site] + (coders[site].encode(x) > 0).sum(dim=0)
    return {site: (close[site].scores(), (fired[site] / count).numpy()) for site in coders}


def begun(run: Asked, rows: Rows, seed: int, frozen: str = "") -> tuple[dict[str, architectures.SAE], dict[str, float]]:
    """The dictionary of each site before training, and the scale that gives its frames a mean squared norm of d_in;
    massive frames (`measure.MASSIVE`) have no say in it."""
    coders, scales = {}, {}
    for site, x in rows.apart(rows.sample(65_536, seed)).items():
        width = rows.widths[site]
        square = x.square().sum(dim=1)
        usual = square[square <= metrics.MASSIVE**2 * square.median()].mean().item()
        scales[site] = math.sqrt(width / (usual or square.mean().item()))  # most frames may be zero, after a ReLU
        coders[site] = architectures.create(run.variant, width, run.expansion * width, run.k, seed, run.penalty or None)
        coders[site].start_on(x[:4096] * scales[site])
        if frozen:
            if run.variant == "tied":
                raise ValueError("frozen: the two halves of a tied dictionary are one")
            getattr(coders[site], HALVES[frozen]).requires_grad_(False)
    return coders, scales


def taught(coders: dict[str, architectures.SAE], rows: Rows, held_out: Rows, scales: dict[str, float], run: Asked,
           seed: int, checkpoint: Path, title: str = "") -> dict[str, list[dict]]:  # fmt: skip
    """Train the dictionary of each site on its scaled frames as the profile asks; their histories. `held_out` says when
    to stop early."""
    device = devices.pick(run.device)
    size = min(run.batch_tokens, len(rows))
    steps = math.ceil(run.tokens / size)
    whole = all(part.requires_grad for coder in coders.values() for part in coder.parameters())
    for coder in coders.values():
        coder.to(device)

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        for several in rows.batches(size, steps, seed, start):
            yield {site: x.to(device) * scales[site] for site, x in rows.apart(several).items()}

    def judge(site: str, x: torch.Tensor) -> Callable[[architectures.SAE], float]:
        some = x * scales[site]
        return lambda coder: metrics.reconstruction(lambda x: coder(x.to(device)).cpu(), [some])["fvu"]

    judges = held_out.apart(held_out.sample(8192, seed)) if run.patience else {}
    history = training.train_together(
        coders, batches, steps=steps, checkpoint=checkpoint,
        held_out={site: judge(site, x) for site, x in judges.items()} or None,
        learning_rate=run.learning_rate, shape=run.decay_shape, dead_tokens=run.dead_tokens, auxiliary=run.auxiliary,
        resample_tokens=run.resample_tokens if whole else 0, patience=run.patience,
    )  # fmt: skip
    found = _watched(history, steps, f"{' '.join(coders)} {title}")
    for coder in coders.values():
        coder.to("cpu")
    return found


def _watched(history: Iterator[dict[str, dict]], steps: int, title: str) -> dict[str, list[dict]]:
    """Run a training to its end under a progress bar; the numbers shown are the last site's."""
    bar, found = tqdm(total=steps, desc=title, unit=" steps"), {}
    for rows in history:
        for site, row in rows.items():
            found.setdefault(site, []).append(row)
        bar.update()
        if bar.n % 20 == 0:
            bar.set_postfix(fvu=f"{row['fvu']:.3f}", l0=f"{row['l0']:.0f}", dead=f"{row['dead']:.1%}", refresh=False)
    bar.close()
    return found


def public(name: str) -> str:
    """A model's name without where it lies on this machine; a twin stays one."""
    bare = name.removeprefix("untrained:")
    return name if not Path(bare).is_dir() else name.removesuffix(bare) + Path(bare).name


def compile_kernels() -> None:
    """Compile what training needs on a processor (`kernels`): ten seconds, kept on disk."""
    frames = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    how = {"steps": 2, "learning_rate": 1e-3, "dead_tokens": 1}
    for variant in ("topk", "batchtopk"):
        for _ in training.train(
            architectures.create(variant, 16, 64, 4, 0), lambda start: iter([frames] * (2 - start)), **how
        ):
            pass
