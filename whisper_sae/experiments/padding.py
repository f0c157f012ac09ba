"""What padding does to a dictionary: the same training with it and without, told apart on speakers nobody learnt from.

Beside the dictionary of all frames stand others of valid ones, because padding can be added to a training or take the
place of others: they have the same valid frames in as many steps, or as many frames. And because padding is said with
fewer latents than k, which leaves more for valid frames, one of them is allowed that many. The last, which differs from
the one before by its seed alone, shows how far apart two trainings are that differ in nothing.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from whisper_sae.activations.dataset import Rows
from whisper_sae.cache import Recipe, Step
from whisper_sae.experiments import training_data
from whisper_sae.experiments.fitting import begun, taught
from whisper_sae.experiments.pipeline import clips as clips_of
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.experiments.sae_comparison import steered_by
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures, metrics

MOST = {"train": 64, "validation": 32}
"""Clips of a split that are heard, drawn at random."""


def learnt(run: Profile, seed: int) -> Recipe:
    """`dictionaries.csv`: a row a dictionary of the focus site, the one that learnt from all frames first.

    Each clip is heard alone, and training is as the profile asks, for `sweep_tokens` frames, but for what `dictionary`
    says. `frames` and `valid` ones are those seen in training. The other columns are of the validation speakers: see
    `spent`; `beside` is how many times as large as here the squared error of the first is on valid frames, with
    an interval over speakers, `beside_low` to `beside_high`; both have the same speakers.
    """
    run = replace(run, windows="clip", patience=0, shuffle_buffer=65_536, tokens=run.sweep_tokens or run.tokens)

    def look(folder: Path, clips: Step) -> dict:
        return _compare(run, seed, table(run, clips), folder)

    names = ("variant", "expansion", "k", "penalty", "tokens", "batch_tokens", "learning_rate", "decay_shape",
             "dead_tokens", "auxiliary", "resample_tokens")  # fmt: skip
    live = replace(run, on_the_fly=True)
    params = {name: getattr(run, name) for name in names} | training_data.asked(live, run.focus)
    return Recipe(
        "padding", look, params | {"site": run.focus, "seed": seed, "most": MOST}, needs={"clips": clips_of(run, seed)},
        by=made_by(run, "01"),
        label="dictionaries with padding and without",
    )  # fmt: skip


INTERVALS = ("fvu_low", "fvu_high", "beside_low", "beside_high")


def scores(step: Step) -> pd.DataFrame:
    """The `dictionaries.csv` of such a step; an interval over too few speakers is NaN."""
    return step.table("dictionaries.csv", na_values={name: [""] for name in INTERVALS})


def _compare(run: Profile, seed: int, heard: pd.DataFrame, folder: Path) -> dict:
    """Train one dictionary after the other, and write `dictionaries.csv`; facts."""
    few = [part.sample(min(MOST[name], len(part)), random_state=seed).sort_index()
           for name, part in heard.groupby("split") if name in MOST]  # fmt: skip
    few = pd.concat(few, ignore_index=True)
    source, windows = training_data.heard_live(run, few, (run.focus,), padded=True, keep=sys.maxsize)
    every = training_data.Fed(source, few, windows, run.shuffle_buffer)
    valid = every._replace(source=source.without_padding())
    share, found, errors = float(source.valid.sum() / source.counts.sum()), [], []

    def add(name: str, fed: training_data.Fed, one: Profile, own: int = seed) -> dict:
        coder = _trained(one, fed.rows(run.focus, "train")[0], own, folder / f"{name}.pt")
        seen = {"frames": one.tokens, "valid": round(one.tokens * (share if fed is every else 1))}
        told, error = spent(coder, every, run.focus)
        errors.append(error)
        low, high = metrics.ratio_interval(errors[0], error)
        beside = {"beside": errors[0].sum() / error.sum(), "beside_low": low, "beside_high": high}
        found.append({"dictionary": name, "k": one.k} | seen | told | beside)
        return found[-1]

    its = round(add("all frames", every, run)["l0"])
    less = {name: math.ceil(getattr(run, name) * share) for name in ("tokens", "batch_tokens", "dead_tokens")}
    if (batch := less["batch_tokens"]) < (least := max(its, run.k)):  # a batch of k frames at least, in as many steps
        less |= {"tokens": math.ceil(less["tokens"] * least / batch), "batch_tokens": least}
    if its != run.k and steered_by(run.variant) == "k":
        add("its valid frames, k raised", valid, replace(run, k=its, **less))
    add("its valid frames", valid, replace(run, **less))
    add("as many frames, all valid", valid, run)
    add("the same, another seed", valid, run, seed + 1)
    pd.DataFrame(found).to_csv(folder / "dictionaries.csv", index=False)
    for path in folder.glob("*.pt"):
        path.unlink()
    return {"padding": 1 - share, "clips": len(few), "latents": run.expansion * source.width(run.focus)}


def _trained(run: Profile, rows: Rows, seed: int, checkpoint: Path) -> architectures.SAE:
    """A dictionary of these rows, trained as the profile asks, for activations as they come."""
    one = rows.source.rows((rows.site,), rows.windows, buffer=rows.buffer)
    coders, scales = begun(run, one, seed)
    taught(coders, one, one, scales, run, seed, checkpoint, checkpoint.stem)
    coder, scale = coders[rows.site], scales[rows.site]
    if isinstance(coder, architectures.BatchTopK):
        coder.calibrate(x * scale for x in one.sample(16_384, seed).split(2048))
    coder.undo_scale(scale)
    return coder


def spent(coder: architectures.SAE, every: training_data.Fed, site: str) -> tuple[dict, np.ndarray]:
    """How well a dictionary says the validation speakers' valid frames, and what it spends on their padding.

    `fvu`, `fvu_low`, `fvu_high`, `speakers` and `l0` are on valid frames, `l0_padding` on padding, as are these shares
    of all firings and of the explained squared distance from the mean: `firings_on_padding`, `explained_on_padding`. Of
    the latents, `mostly_padding` fire there more often than on valid frames, `rate_higher` on a larger share of the
    frames, and `dead` on no valid frame. Second is each speaker's squared error on valid frames, (speaker,).
    """
    rows, voices = every.rows(site, "validation")
    padding = every.source.is_padding(rows)
    (close, fired), (apart, there) = (_told(coder, rows, voices, which) for which in (~padding, padding))
    scores, valid = close.scores(), (~padding).sum()
    sides = [close, apart] if padding.any() else [close]
    mean = sum(one.total.sum(dim=0) for one in sides) / len(rows)
    gained = [
        float((one.square - 2 * (one.total @ mean).numpy() + one.n * (mean @ mean).item() - one.error).sum())
        for one in sides
    ]
    told = {
        **{name: scores[name] for name in ("fvu", "fvu_low", "fvu_high", "speakers")},
        "l0": fired.sum() / valid,
        "l0_padding": there.sum() / max(1, padding.sum()),
        "firings_on_padding": there.sum() / (fired + there).sum(),
        "explained_on_padding": 1 - gained[0] / sum(gained),
        "mostly_padding": (there > fired).mean(),
        "rate_higher": (there * valid > fired * padding.sum()).mean(),
        "dead": (fired == 0).mean(),
    }
    return told, close.error[close.n > 0]


def _told(
    coder: architectures.SAE, rows: Rows, voices: np.ndarray, which: np.ndarray
) -> tuple[metrics.Closeness, np.ndarray]:
    """The scores of some of the rows, and on how many of them each latent fires, (latent,)."""
    fired, chosen = np.zeros(coder.d_sae), np.flatnonzero(which)
    some = np.sort(np.random.default_rng(0).permutation(chosen)[:65_536])
    close = metrics.Closeness(voices[which], rows.take(some).mean(dim=0) if len(some) else None)
    for first in range(0, len(chosen), 4096):
        x = rows.take(chosen[first : first + 4096])
        with torch.no_grad():
            f = coder.encode(x)
            close.add(x, coder.decode(f))
            fired += (f > 0).sum(dim=0).numpy()
    return close, fired
