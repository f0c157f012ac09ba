"""Dictionaries of what was recorded: how one is trained, what it is compared with, and sweeps over many.

These recipes stand on those of `recipes`, and are used like them:

    step = store.make(dictionaries.dictionary(run, seed, site))   # trains it, unless it is there
    coder = sae.load(step.path)
"""

import functools
import itertools
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from whisper_sae import parallel
from whisper_sae.activations.dataset import Rows
from whisper_sae.cache import Recipe, Step, make, where
from whisper_sae.experiments import training_data
from whisper_sae.experiments.fitting import HALVES, fitted
from whisper_sae.experiments.pipeline import made_by
from whisper_sae.features import item_classes
from whisper_sae.model import whisper_model
from whisper_sae.profiles import Profile, checked, fault
from whisper_sae.sae import architectures, io, metrics

# ------------------------------------------------------------------------------------------ one dictionary


def dictionary(run: Profile, seed: int, site: str, *, own_seed: int | None = None, frozen: str = "",
               beside: Sequence[str] = ()) -> Recipe:  # fmt: skip
    """One SAE of one site: `sae.safetensors`, `sae.json`, `history.csv`, `firing.npy` (validation firing rates).

    `own_seed` draws its first directions and the order of the frames; without it `seed` does, which drew the clips.
    `frozen`, "encoder" or "decoder", leaves that half's random directions as they were drawn and trains the rest.
    `beside` names sites whose dictionaries are wanted too: on the fly all of them are trained in one pass over the
    sound. It changes nothing about this one.
    """
    own = seed if own_seed is None else own_seed
    if frozen not in ("", *HALVES):
        raise ValueError(f"frozen: {frozen!r} is not one of {', '.join(HALVES)}")
    others = tuple(one for one in beside if training_data.on_the_fly(run, one))
    pass_ = one_pass(run, seed, others, own, frozen) if len(others) > 1 and site in others else None

    def fit(folder: Path, clips: Step, activations: Step | None = None) -> dict:
        if pass_ is None:
            fed = training_data.fed(run, clips, activations, (site,))
            return fitted(fed, run, own, {site: folder}, asks(run), frozen, **whose(run))[site]
        done = make(pass_)
        shutil.copytree(done.path / site, folder, dirs_exist_ok=True)
        return done.facts[site] | {"seconds": round(done.manifest["seconds"] / len(others), 2)}

    return Recipe(
        "dictionary", fit, _asked(run, own, frozen) | {"site": site} | training_data.asked(run, site),
        needs=_heard(run, seed, site), by=made_by(run, "02"),
        label=f"dictionary of {site}, {asks(run)}" + (f", {frozen} frozen" if frozen else ""),
    )  # fmt: skip


def one_pass(run: Profile, seed: int, sites: tuple[str, ...], own_seed: int, frozen: str = "") -> Recipe:
    """The dictionaries of several sites, a folder each, trained while the clips are heard once; for `dictionary`."""

    def fit(folder: Path, clips: Step) -> dict:
        folders = {site: folder / site for site in sites}
        for one in folders.values():
            one.mkdir(exist_ok=True)
        return fitted(
            training_data.fed(run, clips, None, sites), run, own_seed, folders, asks(run), frozen, **whose(run)
        )

    return Recipe(
        "dictionaries", fit, _asked(run, own_seed, frozen) | {"sites": sites} | training_data.asked(run, sites[0]),
        needs=_heard(run, seed, sites[0]), by=made_by(run, "02"),
        label=f"dictionaries of {', '.join(sites)}, {asks(run)}",
    )  # fmt: skip


def whose(run: Profile) -> dict:
    """What a saved SAE says of the model that it was trained on, beside its name."""
    return {io.DIGEST: whisper_model.identity(run.model)}


def _asked(run: Profile, own_seed: int, frozen: str) -> dict:
    names = ("variant", "expansion", "k", "penalty", "tokens", "batch_tokens", "shuffle_buffer", "on_the_fly",
             "learning_rate", "decay_shape", "dead_tokens", "auxiliary", "resample_tokens", "patience")  # fmt: skip
    return {name: getattr(run, name) for name in names} | {"seed": own_seed, "frozen": frozen}


def asks(run: Profile) -> str:
    """What a profile asks of a dictionary, in a few words: "batchtopk, k = 32" or "relu, penalty = 2"."""
    if steered_by(run.variant) == "k":
        return f"{run.variant}, k = {run.k}"
    return f"{run.variant}, penalty = {penalty_of(run):g}"


def penalty_of(run: Profile) -> float:
    """The weight of the sparsity term: the profile's, or else the variant's own; 0 where there is no such term."""
    return run.penalty or architectures.VARIANTS[run.variant].default_penalty


def steered_by(variant: str) -> str:
    """The field that says how sparse a variant is: `k`, or `penalty` where k says nothing."""
    return "penalty" if issubclass(architectures.VARIANTS[variant], architectures.ReLU) else "k"


_heard = training_data.needs


# ------------------------------------------------------------------------------------- frames to score it on


def frames_of(run: Profile, clips: Step, activations: Step | None, site: str, split: str = "validation"):
    """The frames of a site in the clips of a split, and the number of each frame's speaker: (Rows, (row,)).

    On the fly, or without a step of activations, they are heard when they are asked for.
    """
    return training_data.fed(run, clips, activations, (site,)).rows(site, split)


def score(run: Profile, clips: Step, activations: Step | None, site: str, say: Callable,
          split: str = "validation") -> dict:  # fmt: skip
    """How well `say`, a function x -> x_hat, re-says the frames of a site in a split; see `measure.reconstruction`."""
    return score_each({"": say}, *frames_of(run, clips, activations, site, split))[""]


def score_each(ways: dict, rows: Rows, voices: np.ndarray) -> dict:
    """How well each of several functions x -> x_hat re-says frames, which are read once: {name: scores}."""
    centre = rows.sample(65_536, 0).mean(dim=0)
    close = {name: metrics.Closeness(voices, centre) for name in ways}
    for x in tqdm(rows.chunks(4096), desc=f"scoring at {rows.site}", total=-(-len(rows) // 4096), unit=" chunks"):
        for name, say in ways.items():
            with torch.no_grad():
                close[name].add(x, say(x))
    return {name: known.scores() for name, known in close.items()}


def scores(step: Step) -> pd.DataFrame:
    """The `scores.csv` of a step of `rivals` or `sweep`; an interval over too few speakers is NaN."""
    ends = ("fvu_low", "fvu_high", "frame_fvu_low", "frame_fvu_high")
    return step.table("scores.csv", na_values={name: [""] for name in ends})


# ------------------------------------------------------------------------------------------------ the rivals


def rivals(run: Profile, seed: int, site: str, frozen: tuple[str, ...] = ()) -> Recipe:
    """`scores.csv`: a row a way of re-saying a site, with its score on the validation speakers.

    The dictionary that `run` asks for stands first; its rivals spend as many numbers a frame as it was measured to
    spend, its L0. Of the dictionaries in `frozen` one half stays random; they have to be made before.
    """
    trained = dictionary(run, seed, site)
    halves = {half: dictionary(run, seed, site, frozen=half) for half in frozen}

    def compare(folder: Path, clips: Step, trained: Step, activations: Step | None = None, **halves: Step) -> dict:
        fed = training_data.fed(run, clips, activations, (site,))
        rows, _ = fed.rows(site, "train")
        ways = {("dictionary", trained.facts["l0"]): architectures.load(trained.path)}
        for half, step in halves.items():
            ways[f"random {half} directions, the rest trained", step.facts["l0"]] = architectures.load(step.path)
        ways |= simple_ways(rows.sample(65_536, seed), run, max(1, round(trained.facts["l0"])), seed)
        told = score_each(ways, *fed.rows(site, "validation"))
        found = [{"rival": name, "numbers": numbers, **one} for (name, numbers), one in told.items()]
        pd.DataFrame(found).to_csv(folder / "scores.csv", index=False)
        return {"rivals": len(found)}

    params = {"seed": seed, "site": site, "expansion": run.expansion, "shuffle_buffer": run.shuffle_buffer}
    return Recipe(
        "rivals", compare, params | training_data.asked(run, site), label=f"rivals at {site}",
        needs=_heard(run, seed, site) | {"trained": trained} | halves, by=made_by(run, "02"),
    )  # fmt: skip


def stability(run: Profile, seed: int, site: str) -> Recipe:
    """How many of a dictionary's latents another training finds, which differs by its seed alone: `facts` are those of
    `classes.counterparts` for the latents that are active on held-out frames, and `fvu` of either."""
    trained = dictionary(run, seed, site)
    again = dictionary(run, seed, site, own_seed=seed + 1)

    def compare(folder: Path, trained: Step, again: Step) -> dict:
        rates = trained.array("firing.npy")
        mine, others = (architectures.load(step.path).W_dec.detach().numpy() for step in (trained, again))
        alive = np.flatnonzero(rates)
        found = item_classes.counterparts(mine[alive], others[again.array("firing.npy") > 0], rates[alive])
        return found | {"fvu": trained.facts["frame_fvu"], "fvu_again": again.facts["frame_fvu"]}

    return Recipe(
        "stability", compare, {"site": site}, needs={"trained": trained, "again": again}, by=made_by(run, "02"),
        label=f"latents that another seed finds at {site}",
    )  # fmt: skip


def seed_note(run: Profile, seed: int, site: str) -> str:
    """One sentence: how many of the features of a site a dictionary of another seed has, too."""
    recipe = stability(run, seed, site)
    if not (where(recipe) / "manifest.json").exists():
        return "All features here are of one training; how many another seed finds is measured in notebook 2."
    facts = make(recipe).facts
    return (
        f"All features here are of one training: {facts['found']:.0%} of the active latents have a counterpart (cosine "
        f"of decoder directions ≥ 0.7) in a dictionary that differs by its seed alone, {facts['found_by_firing']:.0%} "
        f"weighted by how often they fire; of random directions {facts['chance']:.0%} (notebook 2)."
    )


def simple_ways(x: torch.Tensor, run: Profile, numbers: int, seed: int,
                directions: dict[str, torch.Tensor] | None = None) -> dict[tuple[str, int], Callable]:  # fmt: skip
    """Ways of saying a frame that need no training of a dictionary, fitted on frames x, (frame, d_in).

    {(name, numbers said of a frame): x -> x_hat}. One overall scale is fitted to the random dictionary, so that it is
    not punished for its loudness; so it is to dictionaries of `directions`, {name: (latent, d_in)}, of unit norm, which
    come from elsewhere and are used as the random ones are. There are as many centroids as latents, but at most 2,048,
    of sixteen frames each; they are found when they are first needed.
    """
    known, width = metrics.moments([x]), x.shape[1]
    latents = run.expansion * width
    random = _untrained(x, latents, numbers, seed)
    others = {name: _untrained(x, len(rows), numbers, seed, rows) for name, rows in (directions or {}).items()}
    count = min(latents, 2048, len(x))
    centroids = functools.cache(lambda: metrics.centroids(x[: 16 * count], count, seed))
    few = min(numbers, width)
    return {
        ("random dictionary", random.k): metrics.say_scaled(random, known, x[:4096]),
        **{(name, one.k): metrics.say_scaled(one, known, x[:4096]) for name, one in others.items()},
        ("principal directions", few): metrics.say_principal(known, few),
        ("neurons", few): metrics.say_neurons(known, few),
        (f"the nearest of {count:,} centroids", 1): lambda frames: metrics.say_nearest(centroids())(frames),
        ("the mean", 0): metrics.say_mean(known),
    }


def _untrained(
    x: torch.Tensor, latents: int, k: int, seed: int, directions: torch.Tensor | None = None
) -> architectures.SAE:
    """A top-k SAE that has learnt nothing from frames x but their mean and size: each latent reads its own direction,
    random or a row of `directions`."""
    untrained = architectures.create(
        "topk", x.shape[1], latents, min(k, latents), seed + architectures.RANDOM_SEED_OFFSET
    )
    if directions is not None:
        with torch.no_grad():
            untrained.W_dec.copy_(directions)
            untrained.W_enc.copy_(directions.T)
    untrained.start_on(x[:4096])
    return untrained


# ------------------------------------------------------------------------------------------------- sweeps


AXES = ("variant", "k", "penalty", "expansion", "learning_rate", "seed")


class Point(NamedTuple):
    """One dictionary of a sweep: a profile that was changed, and a seed of its own."""

    run: Profile
    seed: int

    @property
    def label(self) -> str:
        """What was asked, in words."""
        run = self.run
        return f"{asks(run)}, expansion {run.expansion}, learning rate {run.learning_rate:g}, seed {self.seed}"

    def recipe(self, seed: int, site: str) -> Recipe:
        """How it is made; `seed` drew the clips."""
        return dictionary(self.run, seed, site, own_seed=self.seed)


def grid(run: Profile, seed: int, /, **axes) -> list[Point]:
    """Every point of a grid over AXES: `grid(run, seed, variant=["topk", "relu"], k=[8, 16], penalty=[1, 2])`.

    Without axes, those that the profile names in its `sweep_` fields. What an axis does not say is as in `run`, and
    `sweep_tokens` are seen. Where k says nothing the penalty is the axis, and the other way round.

    Raises ValueError for an axis or a value that makes no sense.
    """
    axes = axes or {name: values for name in AXES if (values := getattr(run, f"sweep_{name}"))}
    for name, values in axes.items():
        if name not in AXES:
            raise ValueError(f"sweep: there is no axis {name!r}; known: {', '.join(AXES)}")
        if not len(values):
            raise ValueError(f"sweep: the axis {name} is empty")
        for value in values:
            if wrong := fault(name, value):
                raise ValueError(f"sweep: {name}: {wrong}")
    every = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return list(dict.fromkeys(_point(run, seed, asked) for asked in every))


def _point(run: Profile, seed: int, asked: dict) -> Point:
    own = asked.pop("seed", seed)
    variant = asked.get("variant", run.variant)
    asked.pop("penalty" if steered_by(variant) == "k" else "k", None)
    if variant != run.variant:
        asked = {"penalty": 0.0} | asked  # the variant's own
    return Point(checked(replace(run, **asked, tokens=run.sweep_tokens or run.tokens), "sweep"), own)


def sweep(points: list[Point], seed: int, site: str) -> Recipe:
    """`scores.csv`: a row a point, in their order: what was asked, and its score on the validation speakers.

    Every point is a dictionary that is stored under its own key: none is trained twice, and a sweep that was killed
    goes on with the point at which it was. `front` says whether no other point is both sparser and closer.
    """
    made = [point.recipe(seed, site) for point in points]
    if not made:
        raise ValueError("sweep: there are no points")

    def train_all(folder: Path, clips: Step, activations: Step | None = None) -> dict:
        width = training_data.fed(run, clips, activations, (site,)).source.width(site)
        for point in points:
            if point.run.k > point.run.expansion * width:
                raise ValueError(f"sweep: k = {point.run.k} is more than the {point.run.expansion * width} latents")
        if parallel.client():
            _train_there(points, made, seed, site)
        bar = tqdm(zip(points, made, strict=True), total=len(made), desc="sweep", unit=" points")
        found = pd.DataFrame([_row(point, make(recipe)) for point, recipe in bar])
        found["front"] = metrics.pareto(found.l0, found.fvu)
        found.to_csv(folder / "scores.csv", index=False)
        return {"points": len(found), "front": int(found.front.sum())}

    run = points[0].run
    return Recipe(
        "sweep", train_all, {"points": [recipe.key for recipe in made]}, needs=_heard(run, seed, site),
        by=made_by(run, "02"), label=f"sweep at {site}",
    )  # fmt: skip


def _train_there(points: list[Point], made: list[Recipe], seed: int, site: str) -> None:
    """Have a cluster make all points that are not made yet, each under the same key as here."""
    left = [number for number, recipe in enumerate(made) if not (where(recipe) / "manifest.json").exists()]
    keys = [recipe.key for recipe in made]

    def begin() -> Callable:
        def train_one(number: int) -> None:
            recipe = points[number].recipe(seed, site)
            if recipe.key != keys[number]:
                raise parallel.Refused(
                    f"sweep: {points[number].label}: on {platform.node()} its key is {recipe.key}, and {keys[number]} "
                    "where it was asked for; the model, the corpus or the code is another one"
                )
            make(recipe)

        return train_one

    done = parallel.each(begin, left, made=lambda number: where(made[number]))
    for _ in tqdm(done, total=len(left), desc="sweep on a cluster", unit=" points"):
        pass


def _row(point: Point, step: Step) -> dict:
    """What was asked of a point, blank where the variant does not listen, and what came of it."""
    run = point.run
    asked = {name: getattr(run, name) for name in AXES[:-1]} | {"seed": point.seed, "tokens": run.tokens}
    asked |= {"penalty": penalty_of(run) or "", "k": run.k if steered_by(run.variant) == "k" else ""}
    names = ("l0", "fvu", "fvu_low", "fvu_high", "frame_fvu", "dead", "cosine", "speakers", "frames")
    facts = {name: step.facts[name] for name in names}
    return asked | facts | {"seconds": step.manifest["seconds"], "key": step.key}
