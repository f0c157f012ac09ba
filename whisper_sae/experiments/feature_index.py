"""What features mean: the recipe of an index of all that a site's features say, and examples from it.

These recipes stand on those of `recipes` and `dictionaries`, and are used like them:

    step = store.make(meaning.codes(run, seed, site))           # builds the index, unless it is there
    found = index.Index(step.path)
    meaning.examples_in(run, seed, site).of(feature=30)         # a table of examples
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step, need
from whisper_sae.data import clip_table
from whisper_sae.experiments.phone_tables import words_of
from whisper_sae.experiments.pipeline import made_by, recorded, table
from whisper_sae.experiments.sae_comparison import dictionary, frames_of
from whisper_sae.features import examples, index, index_builder
from whisper_sae.model import whisper_model
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures, metrics

RATE = clip_table.RATE
"""Samples a second of `sounds`."""

INPUTS = ("dictionary", "neurons", "principal directions", "random dictionary")
"""What an index can be of. The last three are what a dictionary is compared with."""


def codes(run: Profile, seed: int, site: str, of: str = "dictionary", **which) -> Recipe:
    """An index of what the features of a site say of every frame of every clip: see `index`.

    `of`, one of INPUTS: the trained dictionary (`which` goes to `dictionaries.dictionary`); the site's neurons or
    its principal directions, both less their mean over the training frames, with two sides each; a dictionary of random
    directions with as many latents, of which as many fire on a frame as of the trained one. `mean.npy` is that mean.
    """
    if of not in INPUTS:
        raise ValueError(f"of: {of!r} is not one of {', '.join(INPUTS)}")
    heard = recorded(run, seed, site)
    needs = {"clips": heard.needs["clips"], "activations": heard}
    if of.endswith("dictionary"):
        needs["trained"] = dictionary(run, seed, site, **which)

    def write(folder: Path, clips: Step, activations: Step, trained: Step | None = None) -> dict:
        learnt, _ = frames_of(run, clips, activations, site, "train")
        encode, features = _encoder(folder, of, learnt, trained, seed)
        device = whisper_model.pick(run.device)
        encode = encode.to(device)

        @torch.no_grad()
        def say(first: int, last: int):
            rows = store.Activations(activations.path).rows(site)  # anew, so that what was read does not stay mapped
            said = encode(rows.take(np.arange(first, last)).to(device))
            return tuple(part.cpu() for part in said) if isinstance(said, tuple) else said.cpu()

        counts = store.Activations(activations.path).spans[:, 2]
        return index_builder.build(
            folder, counts, say, features, signed=trained is None,
            progress=lambda chunks: tqdm(chunks, desc=f"index of {site}", unit=" chunks"),
        )  # fmt: skip

    return Recipe(
        "codes", write, {"site": site, "seed": seed, "of": of}, needs=needs, by=made_by(run, "03"),
        label=f"index of the {of} of {site}",
    )  # fmt: skip


def _encoder(folder: Path, of: str, learnt: store.Rows, trained: Step | None, seed: int) -> tuple[Callable, int]:
    """What says the codes of frames, and how many features it has; fitted on the training frames where it has to be."""
    if of == "dictionary":
        coder = architectures.load(trained.path)
        return Calls(coder), coder.d_sae
    if of == "random dictionary":
        d_sae = architectures.load(trained.path).d_sae
        coder = architectures.create(
            "topk", learnt.width, d_sae, max(1, round(trained.facts["l0"])), seed + architectures.RANDOM_SEED_OFFSET
        )
        coder.start_on(learnt.sample(4096, seed))
        return Calls(coder.eval()), d_sae
    if of == "neurons":
        axes, mean = None, metrics.mean(learnt.chunks())
    else:
        known = metrics.moments(learnt.chunks())
        mean = known.mean
        axes = torch.linalg.eigh(known.covariance).eigenvectors.flip(1)  # the first holds most of the variance
        axes = (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).float()  # their signs mean nothing
    np.save(folder / "mean.npy", mean.numpy())
    return Turned(mean.float(), axes), learnt.width


class Calls(torch.nn.Module):
    """The codes of an SAE: the frame, latent and value of each, without the zeros between; else as its `encode`."""

    def __init__(self, coder: architectures.SAE):
        super().__init__()
        self.coder = coder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pre = self.coder.pre(x)
        frame, latent = self.coder.chosen(pre)
        return frame, latent, self.coder.answer(pre[frame, latent], latent)


class Turned(torch.nn.Module):
    """Frames less their mean, (frame, d), or what they are along some axes, (d, axis)."""

    def __init__(self, mean: Tensor, axes: Tensor | None):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self.mean
        return centred if self.axes is None else centred @ self.axes


def examples_in(run: Profile, seed: int, site: str, of: str = "dictionary", **which) -> examples.Examples:
    """Examples of the features of an index of `codes`, which has to be made before; with words where they are known.

    Raises ValueError for a site of the decoder, whose rows are tokens and have no time.
    """
    if site.startswith("decoder"):
        raise ValueError(f"site: rows of {site} are tokens, which have no time; tokens.csv tells them")
    recipe = codes(run, seed, site, of, **which)
    clips, heard, made = need(recipe.needs["clips"]), need(recipe.needs["activations"]), need(recipe)
    told = table(run, clips)
    return examples.Examples(index.Index(made.path), told, heard.table("windows.csv"), words_of(run, told), seed)


def index_of(run: Profile, seed: int, site: str, of: str = "dictionary", **which) -> index.Index:
    """The index that `codes` made."""
    return index.Index(need(codes(run, seed, site, of, **which)).path)


def sounds(heard: pd.DataFrame, chosen: pd.DataFrame, seconds: float = 1.0) -> list[tuple[str, np.ndarray]]:
    """What examples sound like, each in the middle of so many seconds: [(its kind, value and word, (sample,))]."""
    found = []
    for row in chosen.itertuples():
        word = f", in “{row.word}”" if getattr(row, "word", "") else ""
        sound = examples.excerpt(clip_table.samples(heard.path[row.clip]), row.seconds, seconds)
        found.append((f"{row.kind}, {row.value:.1f}{word}", sound))
    return found
