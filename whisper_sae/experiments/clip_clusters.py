"""What a page of maps and clusters is drawn from: the mean of each clip, where it lies, and what its frames tell.

These recipes stand on those of `meaning` and are used like them. Means are over the valid frames of a clip, of what the
features of the dictionary say, and come from the index of a site, some features at a time.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import hstack
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step
from whisper_sae.data import clip_table, speaker_labels
from whisper_sae.data.audio import excerpt
from whisper_sae.experiments.feature_index import codes
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.experiments.sae_comparison import dictionary
from whisper_sae.features import clusters, embeddings, families, index, sparse_acts, trees
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures
from whisper_sae.stats import effects, forest

MOST_CLIPS, MOST_DIRECTIONS, MOST_FRAMES = 1_000, 2_000, 3_000
"""What maps, clusters and forests look at, at most; drawn at random where there is more."""

MOST_TOGETHER = 500_000
"""On about so many rows it is asked which features of two dictionaries fire together."""

FIRINGS = 1 << 22
"""About so many firings are read from an index at a time."""


def means(run: Profile, seed: int, site: str) -> Recipe:
    """`means.npy`: what each feature says on average over the valid frames of a clip, (clip, feature) float32.

    `clips.csv` has a row for each: `clip`, its row in the table of clips, its `frames`, and what share of them is
    `silence`. A clip of which nothing was recorded is not there.
    """
    said = codes(run, seed, site)

    def average(folder: Path, activations: Step, codes: Step) -> dict:
        held, of = store.Activations(activations.path), index.Index(codes.path)
        piece = activations.table("windows.csv")["clip"].to_numpy()
        names, number = np.unique(np.repeat(piece, held.counts), return_inverse=True)  # of each row
        count = np.bincount(number)
        found = np.lib.format.open_memmap(folder / "means.npy", "w+", np.float32, (len(names), of.features))
        for some, part in tqdm(list(_blocks(of)), desc=f"means at {site}", unit=" blocks"):
            columns = of.columns(some, part)
            sums = sparse_acts.coincidences(columns, number, len(names), columns.data)  # (feature, clip)
            found[:, some:part] = (sums / count).T
        found.flush()
        quiet = np.bincount(number, held.valid_kinds() == clip_table.SILENCE) / count
        told = pd.DataFrame({"clip": names, "frames": count, "silence": quiet})
        told.to_csv(folder / "clips.csv", index=False)
        return {"clips": len(names), "features": of.features, "silent_features": int((of.rates == 0).sum())}

    return Recipe(
        "clip-means", average, {"site": site},
        needs={"activations": said.needs["activations"], "codes": said}, by=made_by(run, "03"),
        label=f"clip means at {site}",
    )  # fmt: skip


def _blocks(of: index.Index) -> list[tuple[int, int]]:
    """Features by so many that about FIRINGS of them are read at a time: (first, last) of each block."""
    found, first = [], 0
    while first < of.features:
        last = int(np.searchsorted(of.firings[: of.features + 1], of.firings[first] + FIRINGS, side="right")) - 1
        found.append((first, min(max(last, first + 1), of.features)))
        first = found[-1][1]
    return found


def drawn(step: Step, heard: pd.DataFrame, spoken: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of at most MOST_CLIPS clips, and their rows in the table of clips: (clip, feature) float64 and (clip,).

    Features that say nothing of these clips are left out. `spoken` asks for clips with a transcript alone.
    """
    clip = step.table("clips.csv")["clip"].to_numpy()
    good = np.flatnonzero((heard.text.to_numpy(str)[clip] != "") | (not spoken))
    some = np.sort(np.random.default_rng(seed).permutation(good)[:MOST_CLIPS])
    x = np.asarray(step.array("means.npy")[some], dtype=np.float64)
    return x[:, (x != x[:1]).any(axis=0)] if len(x) else x, clip[some]


def rows_of(step: Step, clips) -> np.ndarray:
    """The means of some clips, by their rows in the table of clips: (clip, feature) float64."""
    row = pd.Series(np.arange(step.facts["clips"]), step.table("clips.csv")["clip"])
    return np.asarray(step.array("means.npy")[row.loc[np.asarray(clips)].to_numpy()], dtype=np.float64)


def grouped(run: Profile, seed: int, site: str, spoken: bool) -> Recipe:
    """`silhouettes.csv` and `clusters.csv`: how k-means divides clips by their means; see `clusters.find`.

    `clusters.csv` has a row a clip: `clip` and `cluster`. Where there is too little to divide, no table is there and
    the facts say `why`.
    """
    averaged = means(run, seed, site)

    def divide(folder: Path, clips: Step, averaged: Step) -> dict:
        x, clip = drawn(averaged, table(run, clips), spoken, seed)
        bar = partial(tqdm, desc="clouds without clumps", total=clusters.DRAWS, unit=" clouds")
        try:
            found = clusters.find(x, seed=seed, progress=bar)
        except ValueError as too_little:
            return {"clusters": 0, "clips": len(clip), "why": str(too_little)}
        found.table.to_csv(folder / "silhouettes.csv", index=False)
        pd.DataFrame({"clip": clip, "cluster": found.cluster}).to_csv(folder / "clusters.csv", index=False)
        return {"clusters": found.clusters, "clips": len(clip), "p": found.p, "draws": clusters.DRAWS, "why": ""}

    return Recipe(
        "clip-clusters", divide, {"spoken": spoken, "seed": seed, "most": MOST_CLIPS}, by=made_by(run, "03"),
        needs={"clips": averaged.needs["activations"].needs["clips"], "averaged": averaged},
        label=f"clusters of clips at {site}" + (", spoken" if spoken else ""),
    )  # fmt: skip


NO_LABELS = {"id", "path", "split", "gender_from"}
"""Columns of the table of clips that tell nothing of the sound."""


def labels_of(heard: pd.DataFrame, averaged: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """All that is told of clips, as labels: a row a clip of `averaged`, the `clips.csv` of `means`, text alone; and
    why other columns are none.

    Columns of numbers, the share of silence too, become quarters. Gender and accent are tidied, and a speaker with two
    values of one of them has none.
    """
    told = heard.iloc[averaged["clip"].to_numpy()].drop(columns=NO_LABELS & set(heard)).reset_index(drop=True)
    told["silence"] = averaged.silence.to_numpy()
    found, why, who = {}, {}, effects.named_as(told.speaker)
    for name, column in told.items():
        text = column.astype(str).where(column.notna(), "")
        if name in speaker_labels.ALWAYS:
            text = pd.Series(speaker_labels.one_value_each(effects.tidy(text), who))
        numbers = pd.to_numeric(column.where(text != ""), errors="coerce")
        if numbers.nunique() > 12 and numbers.notna().sum() == (text != "").sum():
            text = pd.Series(clusters.quarters(numbers))
        groups = text[text != ""].nunique()
        if groups > 1:
            found[name] = text
        else:
            why[name] = "the same everywhere" if groups else "not known of any clip"
    return pd.DataFrame(found, index=told.index, dtype=str).set_index(averaged["clip"].to_numpy()), why


def silhouettes_of(steps: dict[str, Step]) -> dict[str, pd.DataFrame]:
    """`silhouettes.csv` of each step of `grouped` that has one."""
    return {name: step.table("silhouettes.csv") for name, step in steps.items() if step.facts["clusters"]}


def clusters_of(steps: dict[str, Step]) -> dict[str, pd.Series]:
    """The cluster of each clip, by its row in the table of clips, of each step of `grouped` that found any."""
    made = {name: step.table("clusters.csv") for name, step in steps.items() if step.facts["clusters"]}
    return {name: table.set_index("clip").cluster for name, table in made.items()}


def sounds(heard: pd.DataFrame, middle: dict[int, np.ndarray], seconds: float = 6) -> list[tuple[str, np.ndarray]]:
    """What there is to hear of each cluster: its number, counted from 1, who says what, and the clip's beginning.

    `middle` has the rows in `heard` of the clips of each cluster; for `figures.voices` at 16 kHz.
    """
    found = []
    for number, places in middle.items():
        for one in heard.loc[places].itertuples():
            who = " ".join(value for value in (one.gender, one.accent) if value) or one.speaker or "nobody"
            words = (
                f"“{one.text[:48]}{'…' if len(one.text) > 48 else ''}”"
                if one.text
                else getattr(one, "label", "") or "no words"
            )
            found.append(
                (f"cluster {number + 1} · {who}: {words}", excerpt(one.path, 0, int(seconds * clip_table.RATE)))
            )
    return found


class Joint(NamedTuple):
    """How some features go together over all rows."""

    features: np.ndarray
    """(feature,) their numbers, the most frequent first."""
    correlation: np.ndarray
    """(feature, feature)."""
    pairs: pd.DataFrame
    """A row a pair: `one`, `other`, `correlation`, the `cosine` of their directions, and on what share of the rows on
    which either fires `both` do; the strongest correlation first."""
    chance: float
    """What one in twenty |correlations| exceeds where each feature is slid in time by its own lot."""


def joint(codes: Step, trained: Step, most: int = 40, seed: int = 0) -> Joint:
    """The `most` most frequent features of an index, correlated over its rows. ValueError if fewer than two fire."""
    of = index.Index(codes.path)
    features = np.argsort(-of.rates, kind="stable")[: min(most, int((of.rates > 0).sum()))]
    if len(features) < 2:
        raise ValueError(f"features: {len(features)} ever fire, two are needed to go together")
    columns = hstack([of.columns(feature, feature + 1) for feature in features], format="csc")  # (row, feature)
    found, slid = trees.together(columns), trees.together(trees.slid(columns, seed))
    with torch.no_grad():
        direction = architectures.load(trained.path).W_dec[torch.from_numpy(features)].numpy()
    fires = (columns > 0).astype(np.float64)
    both = (fires.T @ fires).toarray()
    either = np.add.outer(both.diagonal(), both.diagonal()) - both
    one, other = np.triu_indices(len(features), 1)
    pairs = {"one": features[one], "other": features[other], "correlation": found[one, other]}
    pairs = pd.DataFrame(pairs | {"cosine": (direction @ direction.T)[one, other], "both": (both / either)[one, other]})
    strongest = pairs.correlation.abs().sort_values(ascending=False, kind="stable").index
    chance = float(np.quantile(np.abs(slid[one, other]), 0.95))
    return Joint(features, found, pairs.loc[strongest].reset_index(drop=True), chance)


def smaller(run: Profile, seed: int, site: str) -> tuple[Recipe, Recipe]:
    """A dictionary of half as many latents, and its index. Raises ValueError where `expansion` is below 4."""
    if run.expansion < 4:
        raise ValueError(f"expansion: {run.expansion} cannot be halved; 4 is the least")
    half = replace(run, expansion=run.expansion // 2)
    return dictionary(half, seed, site), codes(half, seed, site)


def families_of(run: Profile, seed: int, site: str) -> Recipe:
    """`children.csv` and `parents.csv`: how a dictionary of half as many latents lives on in that of the profile, as
    `families` tells it. What is in `smaller` has to be made before."""
    (_, less), more = smaller(run, seed, site), codes(run, seed, site)

    def link(folder: Path, few: Step, many: Step, small: Step, large: Step) -> dict:
        of = [index.Index(step.path) for step in (few, many)]
        here = _some_rows(of[0].starts, MOST_TOGETHER, seed)
        said = [hstack(list(sparse_acts.by_parts(one, here)), format="csc") for one in of]
        with torch.no_grad():
            directions = [architectures.load(step.path).W_dec.numpy() for step in (small, large)]
        found = families.families(*directions, *said, seed=seed)
        found.children.to_csv(folder / "children.csv", index=False)
        found.parents.to_csv(folder / "parents.csv", index=False)
        counts = {"linked": found.linked, "split": found.split, "by_chance": found.by_chance}
        return counts | {"latents": len(directions[0]), "frames": int(here.sum())}

    return Recipe(
        "families", link, {"site": site, "seed": seed}, by=made_by(run, "03"), label=f"families at {site}",
        needs={"few": less, "many": more, "small": less.needs["trained"], "large": more.needs["trained"]},
    )  # fmt: skip


def parents_of(step: Step) -> pd.DataFrame:
    """The `parents.csv` of a step of `families_of`, those with most children first."""
    told = step.table("parents.csv", na_values={name: [""] for name in ("first", "absorbed", "lost")})
    return told.sort_values(["children", "rate"], ascending=False, ignore_index=True)


def _some_rows(starts: np.ndarray, most: int, seed: int) -> np.ndarray:
    """About `most` rows, in whole pieces drawn at random: (row,) bool."""
    counts = np.diff(starts)
    order = np.random.default_rng(seed).permutation(len(counts))
    drawn = order[np.cumsum(counts[order]) - counts[order] < most]
    return np.repeat(np.isin(np.arange(len(counts)), drawn), counts)


def mapped(run: Profile, seed: int, site: str) -> Recipe:
    """`clips.csv` and `directions.csv`: where t-SNE lays clip means and living decoder directions, at two seeds.

    A row a `clip` or `feature`, with `x0 y0` of the first seed and `x1 y1` of the second; `trust.csv` is what
    `maps.drawn` says of each. Directions are laid by their angle. What has too few points is not there, and the facts
    say why under `why_clips`, `why_directions`.
    """
    averaged, trained = means(run, seed, site), dictionary(run, seed, site)

    def lay(folder: Path, clips: Step, averaged: Step, codes: Step, trained: Step) -> dict:
        x, clip = drawn(averaged, table(run, clips), False, seed)
        living = np.flatnonzero(index.Index(codes.path).rates > 0)
        living = np.sort(np.random.default_rng(seed).permutation(living)[:MOST_DIRECTIONS])
        with torch.no_grad():
            directions = architectures.load(trained.path).W_dec[torch.from_numpy(living)].numpy()
        wanted = {"clips": ("clip", clip, x, "euclidean"), "directions": ("feature", living, directions, "cosine")}
        facts, trust = {}, []
        for name, (what, numbers, points, metric) in tqdm(wanted.items(), desc="maps", unit=" pairs"):
            try:
                laid, told = embeddings.drawn(points, (seed, seed + 1), metric)
            except ValueError as too_few:
                facts |= {name: 0, f"why_{name}": str(too_few)}
                continue
            columns = np.concatenate(laid, axis=1)
            found = pd.DataFrame(columns, columns=["x0", "y0", "x1", "y1"])
            found.insert(0, what, numbers)
            found.to_csv(folder / f"{name}.csv", index=False)
            trust.append(told.assign(of=name))
            facts |= {name: len(numbers), f"why_{name}": ""}
        if trust:
            pd.concat(trust).to_csv(folder / "trust.csv", index=False)
        return facts

    return Recipe(
        "maps", lay, {"seed": seed, "clips": MOST_CLIPS, "directions": MOST_DIRECTIONS}, by=made_by(run, "03"),
        needs={"clips": averaged.needs["activations"].needs["clips"], "averaged": averaged,
               "codes": averaged.needs["codes"], "trained": trained},
        label=f"maps at {site}",
    )  # fmt: skip


def tables_of(maps_step: Step) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of a step of `mapped`: clips, directions, and how far to trust them; empty where there is none."""
    read = {}
    for name, columns in {"clips": ["clip", *_PLACE], "directions": ["feature", *_PLACE], "trust": _TRUST}.items():
        there = (maps_step.path / f"{name}.csv").exists()
        read[name] = (
            maps_step.table(f"{name}.csv", na_values={"kept": [""]}) if there else pd.DataFrame(columns=columns)
        )
    return read["clips"], read["directions"], read["trust"][_TRUST]


_PLACE, _TRUST = ["x0", "y0", "x1", "y1"], ["of", "map", "points", "trustworthiness", "kept"]


def forests(run: Profile, seed: int, site: str, label: str = "gender") -> Recipe:
    """`read.csv`: how often a random forest names a label of the speaker from the codes of a frame; see `forest.read`.

    Of at most MOST_FRAMES frames of speech, the first of each speaker who has the label, about as many of each. Where
    it cannot be asked no table is there, and the facts say `why`.
    """
    said = codes(run, seed, site)

    def plant(folder: Path, clips: Step, activations: Step, codes: Step) -> dict:
        heard, held, of = table(run, clips), store.Activations(activations.path), index.Index(codes.path)
        clip = np.repeat(activations.table("windows.csv")["clip"].to_numpy(), held.counts)  # of each row
        who = effects.named_as(heard.speaker)
        value = speaker_labels.one_value_each(effects.tidy(heard[label]), who)
        value, _ = speaker_labels.for_probe(np.where(who != "", value, ""), who)
        known = (value != "")[clip] & (held.valid_kinds() == clip_table.SPEECH)
        speaker = np.where(known, heard.speaker.to_numpy(str)[clip], "")
        rows = forest.first(speaker, MOST_FRAMES)
        x = np.zeros((len(rows), of.features), np.float32)
        for first, last in _blocks(of):
            x[:, first:last] = of.columns(first, last).tocsr()[rows].toarray()
        bar = partial(tqdm, desc="forests", total=3, unit=" forests")
        try:
            found = forest.read(x, value[clip[rows]], speaker[rows], seed, progress=bar)
        except ValueError as impossible:
            return {"frames": len(rows), "why": str(impossible)}
        found.to_csv(folder / "read.csv", index=False)
        return {"frames": len(rows), "why": ""}

    return Recipe(
        "forests", plant, {"seed": seed, "label": label, "frames": MOST_FRAMES}, by=made_by(run, "03"),
        needs={"clips": said.needs["clips"], "activations": said.needs["activations"], "codes": said},
        label=f"forests for {label} at {site}",
    )  # fmt: skip
