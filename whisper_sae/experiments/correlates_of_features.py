"""What plain acoustics explain of a site's features, and which stand for environmental sounds: results as recipes.

These stand on the indexes of `meaning`, and are used like them:

    table = explained.features(run, seed, site)                     # feature, flag, measure, correlation, low, high, …
    inputs, classes = explained.kinds_of_sounds(run, seed, site)    # a row an input; a row an input and class
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import hstack
from tqdm import tqdm

from whisper_sae.activations import extract, store
from whisper_sae.cache import Recipe, Step, make
from whisper_sae.data import clip_table, nonspeech
from whisper_sae.experiments import feature_index
from whisper_sae.experiments.phone_tables import digests, words_of
from whisper_sae.experiments.pipeline import activations, made_by, table
from whisper_sae.features import acoustics, correlates, index, sound_classes, sparse_acts
from whisper_sae.profiles import Profile

WORD = "word boundary"
"""The event of `measures` that words tell, where a corpus knows when they sound."""

REACH = 0.03
"""Seconds from a word's start or end to the centre of a frame that is still at the boundary."""


# ------------------------------------------------------------------------------------------------ measures


def acoustics_of(run: Profile, seed: int) -> Recipe:
    """`measures.npy`: what is measured of the sound under each recorded row, (row, measure) float32, and
    `measures.csv`, the names of its columns. `word boundary` is NaN in clips of whose words nobody told the time."""

    def measure(folder: Path, clips: Step, activations: Step) -> dict:
        heard, windows, held = table(run, clips), activations.table("windows.csv"), store.Activations(activations.path)
        words = dict(list(words_of(run, heard).groupby("clip")))

        def heard_at(number: int) -> pd.DataFrame:
            (clip, first, at), count = windows.loc[number, ["clip", "first", "at"]], held.counts[number]
            padded = int(at + count < held.kinds.shape[1])  # silence follows, be it padding or a gap
            told = acoustics.measured(extract.sound_of(heard, windows, number), int(count) + padded)[:count]
            told[WORD] = boundaries(words.get(clip), first / clip_table.RATE + told.position.to_numpy())
            return told.astype(np.float32)

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # most of it is done without the interpreter
            every = pool.map(heard_at, range(len(held.counts)))
            found = list(tqdm(every, desc="acoustics", unit=" windows", total=len(held.counts)))
        pd.DataFrame({"measure": list(found[0])}).to_csv(folder / "measures.csv", index=False)
        np.save(folder / "measures.npy", np.concatenate([told.to_numpy() for told in found]))
        return {"rows": int(held.counts.sum()), "clips_with_words": len(words)}

    heard = activations(run, seed)
    return Recipe(
        "acoustics", measure, {"told": digests(run)}, needs={"clips": heard.needs["clips"], "activations": heard},
        by=made_by(run, "06"), label="acoustics",
    )  # fmt: skip


def boundaries(words: pd.DataFrame | None, moments: np.ndarray) -> np.ndarray:
    """Whether a word starts or ends within REACH seconds of each moment: (moment,) 0 or 1; NaN without words."""
    if words is None or words.empty:
        return np.full(len(moments), np.nan)
    edges = np.sort(np.concatenate([words.start, words.end]))
    after = np.searchsorted(edges, moments)
    before = moments - np.append(-np.inf, edges)[after]
    near = np.minimum(before, np.append(edges, np.inf)[after] - moments)
    return (np.round(near, 6) <= REACH).astype(float)


def measures(step: Step) -> pd.DataFrame:
    """What `acoustics_of` measured, a row a recorded frame."""
    return pd.DataFrame(step.array("measures.npy"), columns=step.table("measures.csv").measure.tolist())


# ------------------------------------------------------------------------------------------------ features


TABLES = ("correlation", "explained", "q", "auc")
"""What of `correlates.Correlates` is kept of every feature × measure."""


def correlates_of(
    run: Profile, seed: int, site: str, of: str = "dictionary", *, most: int = 200_000, shifts: int = 40, **which
) -> Recipe:
    """`features.csv`, a row a feature with its flag; `flags.csv`, how many wear each; `correlation.npy` and the other
    TABLES, (feature, measure). What `of` and `which` may be, `meaning.codes` says.

    Of clips with a speaker, where some have one; whole clips, drawn at random, with about `most` frames. Raises
    ValueError for a site of the decoder.
    """
    if site.startswith("decoder"):
        raise ValueError(f"site: rows of {site} are tokens, which have no sound of their own")
    made = feature_index.codes(run, seed, site, of, **which)

    def ask(folder: Path, clips: Step, activations: Step, codes: Step, acoustics: Step) -> dict:
        heard, known = table(run, clips), index.Index(codes.path)
        clip = np.repeat(activations.table("windows.csv")["clip"].to_numpy(), np.diff(known.starts))
        here = np.isin(clip, _drawn(heard.speaker, np.bincount(clip, minlength=len(heard)), most, seed))
        voice = heard.speaker.where(heard.speaker != "", heard.id).to_numpy()[clip]
        said = hstack(list(sparse_acts.by_parts(known, here)), format="csc")
        found = correlates.correlates(
            said, measures(acoustics)[here], voice[here], clip[here],
            shifts=shifts, seed=seed, progress=lambda columns: tqdm(columns, desc=f"correlates at {site}"),
        )  # fmt: skip
        found.table().to_csv(folder / "features.csv")
        found.worn().to_csv(folder / "flags.csv", index=False)
        for name in TABLES:
            np.save(folder / f"{name}.npy", getattr(found, name).astype(np.float32))
        flagged = int((found.table().flag != "").sum())
        return {"frames": int(here.sum()), "speakers": len(set(voice[here])), "features": len(found.fires),
                "flagged": flagged, "flagged_shifted": int(found.flagged_shifted().any(axis=1).sum())}  # fmt: skip

    needs = {name: made.needs[name] for name in ("clips", "activations")}
    return Recipe(
        "correlates", ask, {"most": most, "shifts": shifts, "seed": seed},
        needs=needs | {"codes": made, "acoustics": acoustics_of(run, seed)}, by=made_by(run, "06"),
        label=f"acoustic correlates of the {of} of {site}",
    )  # fmt: skip


def _drawn(speaker: pd.Series, counts: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Clips with about `most` frames: those with a speaker, where there are such, in a random order."""
    asked = np.flatnonzero(speaker != "") if (speaker != "").any() else np.arange(len(speaker))
    order = np.random.default_rng(seed).permutation(asked)
    return order[np.cumsum(counts[order]) - counts[order] < most]


def features(run: Profile, seed: int, site: str, of: str = "dictionary", **how) -> pd.DataFrame:
    """A row a feature: flag ("" for none), measure, correlation, low, high, auc, explained, q, fires, wears; made if it
    is not there. Its index has to be made before. `correlates.Correlates.table` says what the columns are."""
    make(acoustics_of(run, seed))
    step = make(correlates_of(run, seed, site, of, **how))
    numbers = ("correlation", "low", "high", "auc", "explained", "q")
    return step.table("features.csv", na_values={name: [""] for name in numbers}).set_index("feature")


# -------------------------------------------------------------------------------------------------- sounds


RECORDINGS = ("src_file", "freesound_id")
"""Columns of a corpus that name the recording a clip was cut from; the first that there is is taken."""


def sounds_of(
    run: Profile, seed: int, site: str, of: str = "dictionary", *, way: str = "mean", shuffles: int = 200, **which
) -> Recipe:
    """`classes.csv`, a row a class of environmental sounds, and `draws.npy`, as `sounds.score` tells them.

    Of all clips of a class of sound without speech, see `classed`. Folds are those of the corpus, or else dealt. `way`
    is the mean or the maximum over a clip's frames. Both sides of a signed input are asked: side features + feature is
    what is below zero.
    """
    if site.startswith("decoder"):
        raise ValueError(f"site: rows of {site} are tokens, which have no sound of their own")
    made = feature_index.codes(run, seed, site, of, **which)

    def ask(folder: Path, clips: Step, activations: Step, codes: Step) -> dict:
        heard, known = table(run, clips), index.Index(codes.path)
        label, asked = nonspeech.class_of(heard), np.flatnonzero(classed(heard))
        clip = np.repeat(activations.table("windows.csv")["clip"].to_numpy(), np.diff(known.starts))
        place = np.full(len(heard), -1)
        place[asked] = np.arange(len(asked))
        here = place[clip] >= 0
        parts = [
            sound_classes.by_clip(part, place[clip[here]], len(asked), way)
            for part in sparse_acts.by_parts(known, here)
        ]
        fold, source = (_column(heard, names)[asked] for names in (("fold",), RECORDINGS))
        fold = fold if (fold != "").all() else sound_classes.folds(label[asked], seed)
        found = sound_classes.score(
            np.concatenate(parts, axis=1), label[asked], fold, source=source if (source != "").all() else None,
            shuffles=shuffles, seed=seed,
        )  # fmt: skip
        found.table.to_csv(folder / "classes.csv", index=False)
        np.save(folder / "draws.npy", found.draws)
        told = {name: getattr(found, name) for name in ("auc", "low", "high", "p", "by_chance")}
        return {name: round(value, 4) for name, value in told.items()} | {
            "sides": known.sides,
            "clips": len(asked),
        }

    needs = {name: made.needs[name] for name in ("clips", "activations")}
    return Recipe(
        "sounds", ask, {"way": way, "shuffles": shuffles, "seed": seed}, needs=needs | {"codes": made},
        by=made_by(run, "06"),
        label=f"sounds in the {of} of {site}",
    )  # fmt: skip


def classed(heard: pd.DataFrame) -> np.ndarray:
    """Which clips are sounds of a class without speech: (clip,) bool."""
    return (nonspeech.class_of(heard) != "") & nonspeech.is_nonspeech(heard)


def kinds_of(heard: pd.DataFrame) -> list[str]:
    """The classes of `classed` clips, in order."""
    return sorted(set(nonspeech.class_of(heard)[classed(heard)]))


def _column(heard: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """The first of these columns that there is, (clip,) str; "" throughout where there is none."""
    there = [name for name in names if name in heard]
    return heard[there[0]].astype(str).to_numpy() if there else np.full(len(heard), "")


def classes(step: Step) -> pd.DataFrame:
    """The `classes.csv` of a step of `sounds_of`."""
    return step.table("classes.csv", na_values={name: [""] for name in ("auc", "low", "high", "p", "q")})


def kinds_of_sounds(run: Profile, seed: int, site: str, **how) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How well the best features tell kinds of sounds, made if it is not there: a row an input, and a row an input and
    class. `ahead`, with its interval over clips, is how much higher the dictionary's mean AUC is. The indexes of all of
    `meaning.INPUTS` have to be made before."""
    steps = {of: make(sounds_of(run, seed, site, of, **how)) for of in feature_index.INPUTS}
    first, rows = steps["dictionary"], []
    for of, step in steps.items():
        ahead = first.array("draws.npy") - step.array("draws.npy")
        low, high = sound_classes.interval(ahead, classes(first))
        rows.append(
            {"input": of}
            | step.facts
            | {"ahead": first.facts["auc"] - step.facts["auc"], "ahead_low": low, "ahead_high": high}
        )
    every = [classes(step).assign(input=of) for of, step in steps.items()]
    return pd.DataFrame(rows), pd.concat(every, ignore_index=True)
