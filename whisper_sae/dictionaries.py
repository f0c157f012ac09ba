"""Dictionaries of what was recorded: how one is trained, what it is compared with, and sweeps over many.

These recipes stand on those of `recipes`, and are used like them:

    step = store.make(dictionaries.dictionary(run, seed, site))   # trains it, unless it is there
    coder = sae.load(step.path)
"""

import itertools
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from whisper_sae import activations as frames
from whisper_sae import cluster, measure, model, sae, train
from whisper_sae.profiles import Profile, checked, fault
from whisper_sae.recipes import made_by, recorded, table, windows_of
from whisper_sae.store import Recipe, Step, make, where

HALVES = {"encoder": "W_enc", "decoder": "W_dec"}


# ------------------------------------------------------------------------------------------ one dictionary


def dictionary(run: Profile, seed: int, site: str, *, own_seed: int | None = None, frozen: str = "") -> Recipe:
    """One SAE of one site: `sae.safetensors`, `sae.json`, `history.csv`, `firing.npy` (validation firing rates).

    `own_seed` draws its first directions and the order of the frames; without it `seed` does, which drew the clips.
    `frozen`, "encoder" or "decoder", leaves that half's random directions as they were drawn and trains the rest.
    """
    own = seed if own_seed is None else own_seed
    if frozen not in ("", *HALVES):
        raise ValueError(f"frozen: {frozen!r} is not one of {', '.join(HALVES)}")

    def fit(folder: Path, clips: Step, activations: Step) -> dict:
        rows, _ = frames_of(run, clips, activations, site, "train")
        held_out, voices = frames_of(run, clips, activations, site)
        coder, scale = begun(run, rows, own, frozen)
        history = taught(coder, rows, held_out, scale, run, own, folder / "training.pt")
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
        if isinstance(coder, sae.BatchTopK):
            coder.calibrate(rows.sample(run.batch_tokens, own + turn) * scale for turn in range(8))
        coder.undo_scale(scale)
        sae.save(coder, folder, site=site, model=_public(run.model), scale=scale)
        rates = measure.firing(coder.encode, held_out.chunks(4096))
        np.save(folder / "firing.npy", rates)
        scores = measure.reconstruction(coder, held_out.chunks(4096), voices)
        (folder / "training.pt").unlink()
        return {**scores, "l0": float(rates.sum()), "dead": float((rates == 0).mean())}

    names = ("variant", "expansion", "k", "penalty", "tokens", "batch_tokens", "learning_rate", "decay_shape",
             "dead_tokens", "auxiliary", "resample_tokens", "patience")  # fmt: skip
    params = {name: getattr(run, name) for name in names} | {"site": site, "seed": own, "frozen": frozen}
    return Recipe(
        "dictionary", fit, params, needs=_heard(run, seed, site), by=made_by(run, "02"),
        code=(sae, train, frames, dictionary, begun, taught, frames_of, windows_of, *MEASURES),
        label=f"dictionary of {site}, {asks(run)}" + (f", {frozen} frozen" if frozen else ""),
    )  # fmt: skip


MEASURES = (measure.reconstruction, measure.ratio_interval, measure.firing)


def begun(run: Profile, rows: frames.Rows, seed: int, frozen: str = "") -> tuple[sae.SAE, float]:
    """A dictionary as it is before training, and the scale that gives its frames a mean squared norm of d_in."""
    sample = rows.sample(65_536, seed)
    scale = math.sqrt(rows.width / sample.square().sum(dim=1).mean().item())
    coder = sae.create(run.variant, rows.width, run.expansion * rows.width, run.k, seed, run.penalty or None)
    coder.start_on(sample[:4096] * scale)
    if frozen:
        if run.variant == "tied":
            raise ValueError("frozen: the two halves of a tied dictionary are one")
        getattr(coder, HALVES[frozen]).requires_grad_(False)
    return coder, scale


def taught(coder: sae.SAE, rows: frames.Rows, held_out: frames.Rows, scale: float, run: Profile, seed: int,
           checkpoint: Path) -> list[dict]:  # fmt: skip
    """Train `coder` on scaled `rows` as the profile asks; its history. `held_out` says when to stop early."""
    device = model.pick(run.device)
    coder.to(device)
    size = min(run.batch_tokens, len(rows))
    steps = math.ceil(run.tokens / size)
    some = held_out.sample(8192, seed) * scale
    whole = all(part.requires_grad for part in coder.parameters())  # what is frozen does not begin anew

    def batches(start: int) -> Iterator[torch.Tensor]:
        return (x.to(device) * scale for x in rows.batches(size, steps, seed, start))

    def missed(coder: sae.SAE) -> float:
        return measure.reconstruction(lambda x: coder(x.to(device)).cpu(), [some])["fvu"]

    history = train.train(
        coder, batches, steps=steps, checkpoint=checkpoint, held_out=missed if run.patience else None,
        learning_rate=run.learning_rate, shape=run.decay_shape, dead_tokens=run.dead_tokens, auxiliary=run.auxiliary,
        resample_tokens=run.resample_tokens if whole else 0, patience=run.patience,
    )  # fmt: skip
    watched = _watched(history, steps, f"{rows.site}, {asks(run)}")
    coder.to("cpu")
    return watched


def _watched(history: Iterator[dict], steps: int, title: str) -> list[dict]:
    """Run a training to its end under a progress bar."""
    bar, rows = tqdm(total=steps, desc=title, unit=" steps"), []
    for row in history:
        rows.append(row)
        bar.update()
        if bar.n % 20 == 0:
            bar.set_postfix(fvu=f"{row['fvu']:.3f}", l0=f"{row['l0']:.0f}", dead=f"{row['dead']:.1%}", refresh=False)
    bar.close()
    return rows


def asks(run: Profile) -> str:
    """What a profile asks of a dictionary, in a few words: "batchtopk, k = 32" or "relu, penalty = 2"."""
    if steered_by(run.variant) == "k":
        return f"{run.variant}, k = {run.k}"
    return f"{run.variant}, penalty = {penalty_of(run):g}"


def penalty_of(run: Profile) -> float:
    """The weight of the sparsity term: the profile's, or else the variant's own; 0 where there is no such term."""
    return run.penalty or sae.VARIANTS[run.variant].default_penalty


def steered_by(variant: str) -> str:
    """The field that says how sparse a variant is: `k`, or `penalty` where k says nothing."""
    return "penalty" if issubclass(sae.VARIANTS[variant], sae.ReLU) else "k"


def _public(name: str) -> str:
    """A model's name without where it lies on this machine; a twin stays one."""
    bare = name.removeprefix(model.UNTRAINED)
    return name if not Path(bare).is_dir() else name.removesuffix(bare) + Path(bare).name


def _heard(run: Profile, seed: int, site: str) -> dict[str, Recipe]:
    heard = recorded(run, seed, site)
    return {"clips": heard.needs["clips"], "activations": heard}


# ------------------------------------------------------------------------------------- frames to score it on


def frames_of(run: Profile, clips: Step, activations: Step, site: str, split: str = "validation"):
    """The frames of a site in the clips of a split, and the number of each frame's speaker: (Rows, (row,))."""
    heard, windows = table(run, clips), activations.table("windows.csv")
    rows = frames.Activations(activations.path).rows(site, windows_of(heard, windows, split))
    speakers = pd.factorize(heard.speaker.where(heard.speaker != "", heard.id))[0]
    return rows, rows.per_window(speakers[windows["clip"].to_numpy()[rows.windows]])


def score(run: Profile, clips: Step, activations: Step, site: str, say: Callable, split: str = "validation") -> dict:
    """How well `say`, a function x -> x_hat, re-says the frames of a site in a split; see `measure.reconstruction`."""
    rows, voices = frames_of(run, clips, activations, site, split)
    return measure.reconstruction(say, rows.chunks(4096), voices)


def scores(step: Step) -> pd.DataFrame:
    """The `scores.csv` of a step of `rivals` or `sweep`; an interval over too few speakers is NaN."""
    return step.table("scores.csv", na_values={name: [""] for name in ("fvu_low", "fvu_high")})


# ------------------------------------------------------------------------------------------------ the rivals


def rivals(run: Profile, seed: int, site: str, frozen: tuple[str, ...] = ()) -> Recipe:
    """`scores.csv`: a row a way of re-saying a site, with its score on the validation speakers.

    The dictionary that `run` asks for stands first; its rivals spend as many numbers a frame as it was measured to
    spend, its L0. Of the dictionaries in `frozen` one half stays random; they have to be made before.
    """
    trained = dictionary(run, seed, site)
    halves = {half: dictionary(run, seed, site, frozen=half) for half in frozen}

    def compare(folder: Path, clips: Step, activations: Step, trained: Step, **halves: Step) -> dict:
        rows, _ = frames_of(run, clips, activations, site, "train")
        ways = {("dictionary", trained.facts["l0"]): sae.load(trained.path)}
        for half, step in halves.items():
            ways[f"random {half} directions, the rest trained", step.facts["l0"]] = sae.load(step.path)
        ways |= simple_ways(rows.sample(65_536, seed), run, max(1, round(trained.facts["l0"])), seed)
        found = [
            {"rival": name, "numbers": numbers, **score(run, clips, activations, site, say)}
            for (name, numbers), say in tqdm(ways.items(), desc=f"rivals at {site}", unit=" rivals")
        ]
        pd.DataFrame(found).to_csv(folder / "scores.csv", index=False)
        return {"rivals": len(found)}

    return Recipe(
        "rivals", compare, {"seed": seed, "site": site, "expansion": run.expansion}, label=f"rivals at {site}",
        needs=_heard(run, seed, site) | {"trained": trained} | halves, by=made_by(run, "02"),
        code=(measure, sae, frames, rivals, simple_ways, score, frames_of, windows_of),
    )  # fmt: skip


def simple_ways(x: torch.Tensor, run: Profile, numbers: int, seed: int) -> dict[tuple[str, int], Callable]:
    """Ways of saying a frame that need no training of a dictionary, fitted on frames x, (frame, d_in).

    {(name, numbers said of a frame): x -> x_hat}. One overall scale is fitted to the random dictionary, so that it is
    not punished for its loudness. There are as many centroids as latents, but at most 2,048.
    """
    known, width = measure.moments([x]), x.shape[1]
    latents = run.expansion * width
    random = sae.create("topk", width, latents, min(numbers, latents), seed)
    random.start_on(x[:4096])
    centroids = measure.centroids(x[:32_768], min(latents, 2048), seed)
    few = min(numbers, width)
    return {
        ("random dictionary", random.k): measure.say_scaled(random, known, x[:4096]),
        ("principal directions", few): measure.say_principal(known, few),
        ("neurons", few): measure.say_neurons(known, few),
        (f"the nearest of {len(centroids):,} centroids", 1): measure.say_nearest(centroids),
        ("the mean", 0): measure.say_mean(known),
    }


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

    def train_all(folder: Path, clips: Step, activations: Step) -> dict:
        width = frames.Activations(activations.path).rows(site).width
        for point in points:
            if point.run.k > point.run.expansion * width:
                raise ValueError(f"sweep: k = {point.run.k} is more than the {point.run.expansion * width} latents")
        if cluster.client():
            _train_there(points, made, seed, site)
        bar = tqdm(zip(points, made, strict=True), total=len(made), desc="sweep", unit=" points")
        found = pd.DataFrame([_row(point, make(recipe)) for point, recipe in bar])
        found["front"] = measure.pareto(found.l0, found.fvu)
        found.to_csv(folder / "scores.csv", index=False)
        return {"points": len(found), "front": int(found.front.sum())}

    run = points[0].run
    return Recipe(
        "sweep", train_all, {"points": [recipe.key for recipe in made]}, needs=_heard(run, seed, site),
        code=(sweep, _row, penalty_of, measure.pareto), by=made_by(run, "02"), label=f"sweep at {site}",
    )  # fmt: skip


def _train_there(points: list[Point], made: list[Recipe], seed: int, site: str) -> None:
    """Have a cluster make all points that are not made yet, each under the same key as here."""
    left = [number for number, recipe in enumerate(made) if not (where(recipe) / "manifest.json").exists()]
    keys = [recipe.key for recipe in made]

    def begin() -> Callable:
        def train_one(number: int) -> None:
            recipe = points[number].recipe(seed, site)
            if recipe.key != keys[number]:
                raise cluster.Refused(
                    f"sweep: {points[number].label}: on {platform.node()} its key is {recipe.key}, and {keys[number]} "
                    "where it was asked for; the model, the corpus or the code is another one"
                )
            make(recipe)

        return train_one

    done = cluster.each(begin, left, made=lambda number: where(made[number]))
    for _ in tqdm(done, total=len(left), desc="sweep on a cluster", unit=" points"):
        pass


def _row(point: Point, step: Step) -> dict:
    """What was asked of a point, blank where the variant does not listen, and what came of it."""
    run = point.run
    asked = {name: getattr(run, name) for name in AXES[:-1]} | {"seed": point.seed, "tokens": run.tokens}
    asked |= {"penalty": penalty_of(run) or "", "k": run.k if steered_by(run.variant) == "k" else ""}
    names = ("l0", "fvu", "fvu_low", "fvu_high", "dead", "cosine", "speakers", "frames")
    facts = {name: step.facts[name] for name in names}
    return asked | facts | {"seconds": step.manifest["seconds"], "key": step.key}
