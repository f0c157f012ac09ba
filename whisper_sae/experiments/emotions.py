"""Emotions in what a text encoder says of prompts: the recipes of notebook 8, and its table of what holds.

encoder = encoders.load(run.text_encoder, run.device)
heard = emotions.reading(encoder, prompts.generate(), run)
store.make(emotions.features(heard, seed))
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step, need
from whisper_sae.causal import controls
from whisper_sae.experiments import any_module, criteria, prompt_interventions
from whisper_sae.experiments.any_module import Reading, Training
from whisper_sae.features import item_classes
from whisper_sae.features.index import Index
from whisper_sae.model import encoders
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures
from whisper_sae.stats import probes

POSITIONS = 64
DECOYS = 13
"""Random dictionaries that a trained one is held against: so many that one feature alone can be found."""

NULLS = ["asked of", "tested", "found", "selectivity ≥ 2, as usual"]

HOW = Training(tokens=32_000, batch_tokens=256, k=32, expansion=8, learning_rate=3e-3, dead_tokens=10_000, patience=2)

L1 = (1e-3, 3e-3, 1e-2)
"""Weights of the reference's sweep, without its smallest: |x - x_hat|² / d_in + L1 · |f|₁ of unscaled states."""


class Heard(NamedTuple):
    """What an encoder says of prompts, and where."""

    reading: Reading
    site: str
    recording: Recipe
    pooled: Recipe

    @property
    def told(self) -> pd.DataFrame:
        return self.reading.items


def reading(encoder: encoders.Encoder, told: pd.DataFrame, run: Profile) -> Heard:
    """A table of prompts as an encoder reads it: its states a token, and their means a prompt."""
    by = f"python -m whisper_sae {run.source or run.name} 08"
    heard = Reading(
        encoder.name, encoders.identity(encoder.name), lambda: encoder.net, told, encoder.collate, POSITIONS, by=by,
        code=(encoders.load,), batch=32, device=str(next(encoder.net.parameters()).device), dtype="float32",
    )  # fmt: skip
    recording = any_module.activations(heard, [encoder.site])
    return Heard(heard, encoder.site, recording, any_module.pooled(recording))


def trained(heard: Heard, seed: int, how: Training = HOW, of_means: bool = False) -> Recipe:
    """A dictionary of the states of tokens, or of their means."""
    return any_module.dictionary(heard.pooled if of_means else heard.recording, how, seed, heard.site)


def means(heard: Heard) -> np.ndarray:
    """The mean state of each prompt: (prompt, width)."""
    held = store.Activations(need(heard.pooled).path)
    return held.rows(heard.site).take(np.arange(len(held.counts))).numpy()


def penalty_of(l1: float, rows: torch.Tensor) -> float:
    """Our penalty for one of the reference's: ours is for states scaled to a mean squared norm of d_in, and is divided
    by d_in as the error is."""
    width = rows.shape[1]
    return float(l1 * width * (width / rows.square().sum(dim=1).mean()).sqrt())


# ---------------------------------------------------------------------------------------------- what can be read


def probed(x: np.ndarray, told: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What a linear probe reads of emotions, a row a question and input: share right, with its interval over phrases.

    Questions: prompts of held-out templates; phrases that it never met (three folds); scenes and metaphors, after it
    met words for emotions only. Its strength is chosen inside what it learns from. Beside it: the same probe on a bag
    of words, and on the embeddings with emotions dealt anew among phrases.
    """
    y, unit = told.emotion.to_numpy(), told.unit.to_numpy()
    words = CountVectorizer(binary=True).fit_transform(told.text).toarray().astype(np.float32)
    names, first = np.unique(unit, return_index=True)
    dealt = dict(zip(names, np.random.default_rng(seed).permutation(y[first]), strict=True))
    inputs = {
        "embedding": (x, y),
        "bag of words": (words, y),
        "emotions dealt anew": (x, told.unit.map(dealt).to_numpy()),
    }
    test, free = (told["split"] == "test").to_numpy(), told.word_free.to_numpy()
    number = told.groupby(["emotion", "style"]).unit.transform(lambda one: pd.factorize(one, sort=True)[0]).to_numpy()
    questions = {
        "held-out templates": [(~test, test)],
        "unseen phrases": [(number % 3 != fold, number % 3 == fold) for fold in range(3)],
        "word-free, from words": [(~free, free)],
    }
    rows = []
    for question, folds in questions.items():
        for name, (given, wanted) in inputs.items():
            right = [_right(given, wanted, unit, *fold, tune=name == "embedding") for fold in folds]
            asked = np.concatenate([unit[fold[1]] for fold in folds])
            shares = probes.by_speaker(np.concatenate(right), asked)
            rows.append((question, name, *probes.interval(shares), len(shares)))
    return pd.DataFrame(rows, columns=["question", "input", "right", "low", "high", "phrases"])


def _right(x, y, unit, learn, ask, tune: bool) -> np.ndarray:
    probe = probes.tuned(x[learn], y[learn], unit[learn]) if tune else probes.fit(x[learn], y[learn], 0.1)
    return probe.predict(x[ask]) == y[ask]


class Judge:
    """A probe of emotions in embeddings that are scaled as a whole. Were each dimension scaled by itself, one that
    hardly varies among prompts would make any change of it look like another emotion."""

    def __init__(self, x: np.ndarray, y: np.ndarray, strength: float):
        self.mean, self.scale = x.mean(axis=0), float(x.std(axis=0).mean())
        self.probe = LogisticRegression(C=strength, max_iter=2000, tol=1e-3).fit(self._scaled(x), y)
        self.classes_ = self.probe.classes_

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.scale

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """(prompt, emotion)."""
        return self.probe.predict_proba(self._scaled(x))

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """The share read right."""
        return float(self.probe.score(self._scaled(x), y))


def judge(x: np.ndarray, told: pd.DataFrame) -> Judge:
    """A probe of emotions, fitted on the training prompts alone, its strength chosen by the validation phrases: what
    interventions on others are judged by."""
    here, asked = ((told["split"] == split).to_numpy() for split in ("train", "validation"))
    y = told.emotion.to_numpy()
    return max((Judge(x[here], y[here], c) for c in probes.STRENGTHS), key=lambda one: one.score(x[asked], y[asked]))


# -------------------------------------------------------------------------------------------------- what is found


def features(heard: Heard, seed: int, how: Training = HOW) -> Recipe:
    """Which features of a dictionary go with which emotion: `features.csv`, `nulls.csv`, `share.npy`, `mean.npy`.

    Asked is on what share of its tokens it fires, in prompts of the training templates; the class is chosen on half of
    the phrases, tested on the other half, against emotions dealt anew and DECOYS random dictionaries. `nulls.csv` tells
    what is found in another random dictionary, and where emotions were dealt anew before anything was chosen. The
    arrays, (prompt, feature), are the share of a prompt's tokens on which a feature fires, and its mean there.
    """

    def ask(folder: Path, recording: Step, trained: Step) -> dict:
        told, held = heard.told, store.Activations(recording.path)
        share, mean = any_module.of_items(architectures.load(trained.path), held, heard.site)
        sample = any_module.fed(recording).rows(heard.site, "train")[0].sample(4096, seed)
        here = (told["split"] != "test").to_numpy()
        asked = told[here]

        def test(fires: np.ndarray, labels=asked.emotion, deals: int = 400) -> tuple[item_classes.Tested, np.ndarray]:
            units = item_classes.by_unit(fires[here], labels, asked.unit, asked["style"])
            return item_classes.tested(units, item_classes.halves(units, seed), deals=deals, seed=seed), units.classes

        lots = []
        for number in tqdm(range(DECOYS + 1), desc="random dictionaries", unit=" of them"):
            coder = any_module.random_like(trained, sample, seed + number)
            fires = any_module.of_items(coder, held, heard.site)[0]
            lots.append(test(fires, deals=80 if number < DECOYS else 400)[0])
        *decoys, other = lots
        own, names = test(share)
        dealt = asked.unit.map(_dealt(asked, seed))
        tables = {
            "the dictionary": (item_classes.discoveries(own, decoys, names), share, asked.emotion),
            "a random dictionary": (item_classes.discoveries(other, decoys, names), fires, asked.emotion),
            "emotions dealt anew": (item_classes.discoveries(test(share, dealt)[0], decoys, names), share, dealt),
        }
        nulls = [
            (name, len(table), table.found.sum(), item_classes.naive(fired[here], labels))
            for name, (table, fired, labels) in tables.items()
        ]
        pd.DataFrame(nulls, columns=NULLS).to_csv(folder / "nulls.csv", index=False)
        for file, name in {"features.csv": "the dictionary", "random.csv": "a random dictionary"}.items():
            table, fired, _ = tables[name]
            table.assign(**_held_out(fired, told, table)).to_csv(folder / file, index=False)
        np.save(folder / "share.npy", share.astype(np.float16))
        np.save(folder / "mean.npy", mean)
        return {"tested": len(tables["the dictionary"][0]), "found": int(nulls[0][2])}

    return Recipe(
        "emotion-features", ask, {"seed": seed, "decoys": DECOYS},
        needs={"recording": heard.recording, "trained": trained(heard, seed, how)}, by=heard.reading.by,
        label="features that go with emotions",
    )  # fmt: skip


def _dealt(asked: pd.DataFrame, seed: int) -> dict:
    """Emotions dealt anew among the phrases of each style: {unit: emotion}."""
    rng, found = np.random.default_rng([seed, 5]), {}
    for _, part in asked.drop_duplicates("unit").groupby("style"):
        found |= dict(zip(part.unit, rng.permutation(part.emotion), strict=True))
    return found


def _held_out(fires: np.ndarray, told: pd.DataFrame, found: pd.DataFrame) -> dict:
    """Selectivity of each tested feature's own class where nothing was chosen: in held-out templates, and there in
    word-free prompts alone; NaN where it never fires."""
    test = (told["split"] == "test").to_numpy()
    columns = {}
    for name, here in {"held_out": test, "word_free": test & told.word_free.to_numpy()}.items():
        label, names = pd.factorize(told.emotion[here], sort=True)
        rates = item_classes.by_class((fires[here][:, found.feature] > 0).astype(float), label, len(names))
        mine = pd.Index(names).get_indexer(found["class"])
        with np.errstate(invalid="ignore"):
            columns[name] = rates[mine, np.arange(len(mine))] / rates.mean(axis=0)
    return columns


def read(step: Step, name: str) -> pd.DataFrame:
    """`features.csv` or `random.csv` of a step of `features`; NaN where a feature never fires."""
    return step.table(name, na_values={column: [""] for column in ("held_out", "word_free")})


def candidates(found: pd.DataFrame, most: int = 5) -> dict[str, np.ndarray]:
    """The features of each emotion that stand out most, found or not: {emotion: (feature,)}."""
    best = found[found.z > 0].sort_values("z", ascending=False)
    names = sorted(set(found["class"]))
    return {name: best.feature[best["class"] == name].to_numpy()[:most] for name in names}


def codes_of(heard: Heard, step: Step, trained: Step) -> prompt_interventions.Codes:
    """Prompts as `interventions` wants them."""
    coder, f, fires = (
        architectures.load(trained.path),
        *(np.asarray(step.array(f"{name}.npy")) for name in ("mean", "share")),
    )
    W_dec, b_dec = (part.detach().numpy() for part in (coder.W_dec, coder.b_dec))
    return prompt_interventions.Codes(means(heard), f, fires.astype(np.float32), W_dec, b_dec)


# ---------------------------------------------------------------------------------------------- what is shown


def examples(heard: Heard, encoder: encoders.Encoder, found: Index, feature: int, n: int = 3) -> pd.DataFrame:
    """The prompts in which a feature says most, one a phrase: `value`, the `token` where it does, `emotion`, `text`."""
    told, peaks = heard.told, found.peaks(feature).sort_values("value", ascending=False)
    peaks = peaks.assign(unit=told.unit.to_numpy()[peaks.piece]).drop_duplicates("unit").head(n)
    _, position = found.where(peaks.row.to_numpy())
    pieces = encoder.pieces(told.text.iloc[peaks.piece].tolist()) if len(peaks) else []
    tokens = [one[at] for one, at in zip(pieces, position, strict=True)]
    rows = told.iloc[peaks.piece]
    return pd.DataFrame({"feature": feature, "value": peaks.value.to_numpy(), "token": tokens,
                         "emotion": rows.emotion.to_numpy(), "text": rows.text.to_numpy()})  # fmt: skip


def likenesses(x: np.ndarray, told: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`classes.likeness` of all prompts, of those that name a mood and of those that do not: a row each."""
    rows, free = [], told.word_free.to_numpy()
    for name, here in {"all prompts": free | ~free, "words for emotions": ~free, "word-free": free}.items():
        one = item_classes.likeness(x[here], told.emotion[here], told.unit[here], seed=seed)
        rows.append((name, int(here.sum()), one.within, one.between, one.difference, one.chance_most, one.p))
    return pd.DataFrame(
        rows, columns=["prompts", "number", "within", "between", "difference", "most by chance", "p"]
    )  # fmt: skip


def alike(heard: Heard, seeds: list[Step], features_: dict[str, np.ndarray], seed: int) -> tuple[float, float]:
    """The share of some features of the first dictionary that have their like in another, on average over the others;
    and the same of directions drawn at random."""
    first, *others = (architectures.load(step.path).W_dec.detach().numpy() for step in seeds)
    mine = first[np.concatenate(list(features_.values()))]
    lot = np.random.default_rng(seed).normal(size=mine.shape)
    return tuple(
        float(np.mean([item_classes.matched(one, other, criteria.STABLE)[0] for other in others]))
        for one in (mine, lot)
    )


def apart(
    codes: prompt_interventions.Codes, features_: dict[str, np.ndarray], seed: int, draws: int = 50
) -> tuple[float, float]:
    """The share of pairs of features of two emotions with |r| below `verdicts.APART` over prompts, and the mean of it
    for matched controls (`controls.disjoint`) in their place; NaN without two emotions."""
    rng, (rate, size) = np.random.default_rng(seed), codes.strength()
    groups = np.concatenate([[name] * len(mine) for name, mine in features_.items()])
    mine = np.concatenate(list(features_.values()))
    near = controls.disjoint(rate, size, mine, np.flatnonzero(rate), prompt_interventions.CONTROLS)
    known = np.array([len(own) > 0 for own in near], dtype=bool)

    def share(which, groups=groups) -> float:
        pairs = item_classes.correlations(codes.f[:, np.asarray(which, dtype=int)], groups)
        return float((pairs < criteria.APART).mean()) if len(pairs) else np.nan

    null = [share([rng.choice(own) for own in near if len(own)], groups[known]) for _ in range(draws)]
    return share(mine), float(np.mean(null))


def directions(
    x: np.ndarray, told: pd.DataFrame, codes: prompt_interventions.Codes, features_: dict
) -> dict[str, dict]:
    """Vectors for `interventions.steered`, by kind and emotion: the decoder row of the feature that stands out most,
    and, its rival, the mean of the training prompts of the emotion less that of all others."""
    here, label = (told["split"] == "train").to_numpy(), told.emotion.to_numpy()
    rival = {name: x[here & (label == name)].mean(0) - x[here & (label != name)].mean(0) for name in features_}
    own = {name: codes.W_dec[mine[0]] for name, mine in features_.items() if len(mine)}
    return {"feature": own, "difference of means": {name: rival[name] for name in own}}


def sweep(heard: Heard, seed: int) -> dict[str, Recipe]:
    """Three of the reference's L1 weights and our own choice, each a dictionary: {name: recipe}."""
    rows = any_module.fed(need(heard.recording)).rows(heard.site, "train")[0].sample(4096, seed)
    short = replace(HOW, tokens=14_000)
    points = {f"L1 {l1:g}": replace(short, variant="relu", penalty=penalty_of(l1, rows)) for l1 in L1}
    return {name: trained(heard, seed, how) for name, how in points.items()}


def likeness(x: np.ndarray, told: pd.DataFrame, seed: int) -> item_classes.Likeness:
    """`classes.likeness` of all prompts, by phrases."""
    return item_classes.likeness(x, told.emotion, told.unit, seed=seed)


def planted(share: np.ndarray, told: pd.DataFrame, emotion: str, seed: int) -> bool:
    """Whether a feature is found that fires in most prompts of an emotion and few others, put among those that are."""
    here, lot = (told["split"] != "test").to_numpy(), np.random.default_rng([seed, 9]).uniform(size=len(told))
    fires = np.column_stack([share, lot < np.where(told.emotion == emotion, 0.7, 0.04)])[here]
    units = item_classes.by_unit(fires, told.emotion[here], told.unit[here], told["style"][here])
    found = item_classes.discoveries(
        item_classes.tested(units, item_classes.halves(units, seed), seed=seed), [], units.classes
    )
    mine = found[found.feature == share.shape[1]]
    return bool(len(mine) and mine.found.iloc[0] and mine["class"].iloc[0] == emotion)
