"""The recipes of a model that is not Whisper: what it says of items, dictionaries of that, and their indexes.

    reading = elsewhere.Reading("my net", "v1", load, items, collate, positions=64)     # items: a row an item
    acts = elsewhere.activations(reading, ["layers.1"])                 # recipes, as `recipes` has them for Whisper
    trained = elsewhere.dictionary(acts, elsewhere.Training(k=16), seed=0, site="layers.1")
    store.make(acts), store.make(trained), store.make(elsewhere.codes(acts, trained, "layers.1"))

A table of items has the columns `split` (train, validation, test) and `unit`, what the item is one of several of, as a
clip is of a speaker's; `reads`, "text" by default, is the column whose values `collate` is given.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from whisper_sae.activations import modules, store
from whisper_sae.activations.dataset import Rows
from whisper_sae.cache import Recipe, Step, digest_of
from whisper_sae.experiments import fitting
from whisper_sae.features import index_builder
from whisper_sae.sae import architectures, io, metrics


@dataclass(frozen=True)
class Reading:
    """A model, and the items that it reads."""

    name: str
    """What a reader calls the model."""
    identity: str
    """What the model is, for the key of a result: a digest of its weights, or how they were made."""
    load: Callable[[], nn.Module]
    items: pd.DataFrame
    collate: Callable[[list], tuple]
    """As `modules` wants it."""
    positions: int
    """The most positions that an item has."""
    by: str = ""
    """The command that makes its results; empty where they are made whenever they are needed."""
    code: tuple = ()
    """For keys: what `load` and `collate` are given to call and do not name themselves."""
    needs: dict = field(default_factory=dict)
    """Recipes that `load` reads the results of."""
    reads: str = "text"
    batch: int = 1
    device: str = "cpu"
    dtype: str = "float16"


@dataclass(frozen=True)
class Training:
    """How a dictionary is trained; each field as `profiles.Profile` documents it, for few rows."""

    model: str = ""
    device: str = "cpu"
    variant: str = "batchtopk"
    expansion: int = 8
    k: int = 16
    penalty: float = 0.0
    tokens: int = 80_000
    batch_tokens: int = 256
    learning_rate: float = 3e-3
    decay_shape: str = "linear"
    dead_tokens: int = 10_000
    auxiliary: float = 1 / 4
    resample_tokens: int = 0
    patience: int = 0


# ---------------------------------------------------------------------------------------------- what is said


def activations(reading: Reading, sites: list[str]) -> Recipe:
    """What some sites say of every item, without padding; `items.csv` is the table of items, a row a piece."""

    def listen(folder: Path, **_needs: Step) -> dict:
        reading.items.to_csv(folder / "items.csv", index=False)
        return modules.write(
            folder, reading.load, reading.items[reading.reads].tolist(), sites, reading.collate,
            positions=reading.positions, batch=reading.batch, dtype=reading.dtype, device=reading.device,
            progress=partial(tqdm, desc=f"listening to {reading.name}", disable=len(reading.items) < 200),
        )  # fmt: skip

    params = {"model": reading.identity, "items": digest_of(reading.items), "sites": sites, "dtype": reading.dtype}
    params |= {"positions": reading.positions, "batch": reading.batch, "reads": reading.reads}
    return Recipe(
        "activations", listen, params, needs=reading.needs, by=reading.by,
        code=(reading.load, reading.collate, *reading.code),
        label=f"what {reading.name} says of {len(reading.items):,} items",
    )  # fmt: skip


def pooled(recording: Recipe) -> Recipe:
    """The mean of a recording over the positions of each item: a store of one row an item, of the same sites."""

    def average(folder: Path, recording: Step) -> dict:
        held = store.Activations(recording.path)
        (folder / "items.csv").write_bytes((recording.path / "items.csv").read_bytes())

        def hear(numbers: range, _ready) -> tuple[dict, np.ndarray]:
            said = {site: torch.from_numpy(means(held, site, numbers))[:, None] for site in held.sites}
            return said, np.full((len(numbers), 1), modules.COUNTS, dtype=np.uint8)

        return store.write(folder, len(held.counts), lambda: (hear, None), shard=4096, batch=512, dtype="float32")

    return Recipe(
        "pooled", average, {}, needs={"recording": recording}, by=recording.by,
        label=f"means of {recording.label}",
    )  # fmt: skip


def means(held: store.Activations, site: str, numbers=None) -> np.ndarray:
    """The mean of a site over the positions of each item, or of those of these numbers: (item, width) float32."""
    numbers = range(len(held.counts)) if numbers is None else numbers
    return np.stack([held.window(site, number).mean(axis=0, dtype=np.float64) for number in numbers]).astype(np.float32)


@dataclass(frozen=True)
class Fed:
    """A recording as `fitting` wants it."""

    held: store.Activations
    items: pd.DataFrame

    def rows(self, site: str | tuple[str, ...], split: str) -> tuple[Rows, np.ndarray]:
        """The rows of a split, and the number of each one's unit. ValueError where no item is of that split."""
        inside = (self.items.split == split).to_numpy()
        if not inside.any():
            raise ValueError(f"items: none are of the split {split!r}")
        found = self.held.rows(site, inside)
        return found, found.per_window(pd.factorize(self.items.unit)[0][inside])


def fed(recording: Step) -> Fed:
    """What dictionaries of a recording are fed."""
    return Fed(store.Activations(recording.path), recording.table("items.csv", dtype={"unit": str, "split": str}))


# ---------------------------------------------------------------------------------------------- dictionaries


def dictionary(recording: Recipe, how: Training, seed: int, site: str) -> Recipe:
    """One SAE of a site, as `dictionaries.dictionary` makes it of Whisper's: `sae.safetensors`, `history.csv`, …"""

    def fit(folder: Path, recording: Step) -> dict:
        return fitting.fitted(fed(recording), how, seed, {site: folder}, f"{how.variant}, seed {seed}",
                              **{io.DIGEST: recording.manifest["params"]["model"]})[site]  # fmt: skip

    return Recipe(
        "dictionary", fit, asdict(how) | {"seed": seed, "site": site}, needs={"recording": recording},
        by=recording.by,
        label=f"dictionary of {site}, {how.variant}, seed {seed}",
    )  # fmt: skip


def random_like(trained: Step, sample: torch.Tensor, seed: int) -> architectures.SAE:
    """A dictionary of random directions that was never trained, of which as many fire on a row as of a trained one."""
    told = architectures.load(trained.path)
    coder = architectures.create(
        "topk", told.d_in, told.d_sae, max(1, round(trained.facts["l0"])), seed + architectures.RANDOM_SEED_OFFSET
    )
    coder.start_on(sample)
    return coder.eval()


def rivals(recording: Step, trained: Step, site: str, seed: int) -> pd.DataFrame:
    """How well a dictionary re-says the validation rows, beside what says as many numbers a row: a row a way of it."""
    rows, _ = fed(recording).rows(site, "train")
    sample = rows.sample(20_000, seed)
    known, numbers = metrics.moments([sample]), max(1, round(trained.facts["l0"]))
    random = random_like(trained, sample[:4096], seed)
    ways = {
        "dictionary": architectures.load(trained.path),
        "random dictionary": metrics.say_scaled(random, known, sample[:4096]),
        "principal directions": metrics.say_principal(known, min(numbers, rows.width)),
        "the mean": metrics.say_mean(known),
    }
    asked = list(fed(recording).rows(site, "validation")[0].chunks(4096))
    centre = torch.cat(asked).mean(dim=0)
    found = [{"rival": name, **metrics.reconstruction(say, asked, centre=centre)} for name, say in ways.items()]
    return pd.DataFrame(found)[["rival", "fvu", "mse", "mse_of_mean", "cosine", "frames"]]


# ---------------------------------------------------------------------------------------------- what features do


def codes(recording: Recipe, trained: Recipe, site: str, random: int | None = None) -> Recipe:
    """An `index.Index` of what a dictionary says of every row of a recording; a piece is an item. With a number for
    `random`, of a random dictionary of that seed instead, as large and as sparse."""

    def write(folder: Path, recording: Step, trained: Step) -> dict:
        source = fed(recording)
        every = source.held.rows(site)
        coder = architectures.load(trained.path)
        if random is not None:
            coder = random_like(trained, source.rows(site, "train")[0].sample(4096, random), random)

        @torch.no_grad()
        def say(first: int, last: int) -> torch.Tensor:
            return coder.encode(every.take(np.arange(first, last)))

        return index_builder.build(folder, source.held.counts, say, coder.d_sae)

    return Recipe(
        "codes", write, {"site": site, "random": random}, needs={"recording": recording, "trained": trained},
        by=recording.by,
        label=f"index of {'a random dictionary' if random is not None else 'the dictionary'} of {site}",
    )  # fmt: skip


@torch.no_grad()
def of_items(coder: architectures.SAE, held: store.Activations, site: str) -> tuple[np.ndarray, np.ndarray]:
    """What a dictionary says of items: on what share of its positions each feature fires, and its mean over them,
    zeros included: (item, feature) float32 each."""
    every, ends = held.rows(site), np.cumsum(held.counts)
    fires, mean = (np.zeros((len(ends), coder.d_sae), dtype=np.float32) for _ in range(2))
    for first in range(0, len(ends), 128):
        last = min(first + 128, len(ends))
        count = held.counts[first:last]
        pre = coder.pre(every.take(np.arange(ends[first] - held.counts[first], ends[last - 1])))
        row, latent = coder.chosen(pre)  # few of many: sums over these alone are three times as fast
        value = coder.answer(pre[row, latent], latent).numpy().astype(np.float64)
        place = np.repeat(np.arange(len(count)), count)[row.numpy()] * coder.d_sae + latent.numpy()
        for told, weight in ((fires, value > 0), (mean, value)):
            total = np.bincount(place, weight, len(count) * coder.d_sae)
            told[first:last] = total.reshape(-1, coder.d_sae) / count[:, None]
    return fires, mean
