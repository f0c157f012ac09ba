"""Which words, or characters, go with which feature where only a transcript is known: a recipe around `untimed`.

step = store.make(wording.words(run, seed, site))
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step
from whisper_sae.data import clip_table
from whisper_sae.experiments import feature_index
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.features import index, sparse_acts, word_features
from whisper_sae.profiles import Profile
from whisper_sae.stats import null_distribution

DEALS = 100
"""How often the texts are dealt anew among clips to see what chance gives."""

BINS = 12
"""Parts into which each clip is cut for the question where in it a feature is high."""

MOST = 200
"""Of how many tokens, the commonest, is asked."""

ASKS = {"presence": word_features.presence, "position": word_features.position}
"""Does it reach higher in clips that have the word? Is it higher where the word should be?"""


def words(run: Profile, seed: int, site: str, of: str = "dictionary", unit: str = "word", **which) -> Recipe:
    """`tokens.csv`: a row a question and token, the feature that stands out most there, by how much, and its q.

    `unit` is word or character. The facts say how many tests and discoveries at a false discovery rate of 5 % each
    question has, and, in `dealt`, how many are found where texts were dealt anew. Raises ValueError where fewer than
    two tokens can be asked about.
    """
    made = feature_index.codes(run, seed, site, of, **which)

    def ask(folder: Path, clips: Step, activations: Step, built: Step) -> dict:
        heard, windows = table(run, clips), activations.table("windows.csv")
        held, found = store.Activations(activations.path), index.Index(built.path)
        speaking = held.valid_kinds() == clip_table.SPEECH
        told = heard.text.to_numpy(str)
        here = np.flatnonzero(told != "")
        clip = np.repeat(windows["clip"].to_numpy(), held.counts)
        kept = speaking & np.isin(clip, here)
        said = word_features.tokens(told[here].tolist(), unit)
        said = _commonest(said)
        if len(said.names) < 2:
            raise ValueError(f"text: fewer than two {unit}s are in five clips or more, and not in all")
        number = np.searchsorted(here, clip[kept])
        parts, facts = [], {"clips": len(here), "tokens": len(said.names)}
        for name, question in ASKS.items():
            profiles = _profiles(found, kept, number, len(here), 1 if name == "presence" else BINS)
            asked = question(profiles, said)
            rows, facts[name] = _judged(asked, heard.iloc[here], said, seed, name)
            parts.append(rows.assign(question=name))
        pd.concat(parts, ignore_index=True).to_csv(folder / "tokens.csv", index=False)
        return facts

    return Recipe(
        "words", ask, {"seed": seed, "unit": unit}, by=made_by(run, "06"), label=f"{unit}s from the {of} of {site}",
        needs={"clips": made.needs["clips"], "activations": made.needs["activations"], "built": made},
    )  # fmt: skip


def tokens_of(step: Step) -> pd.DataFrame:
    """The `tokens.csv` of a step of `words`, those that stand out most first."""
    return step.table("tokens.csv", dtype={"token": str}, keep_default_na=False, na_values={
        name: [""] for name in ("score", "z", "q")
    }).sort_values("z", ascending=False)  # fmt: skip


def unaskable(texts: pd.Series, unit: str = "word") -> str:
    """Why nothing can be asked about the words or characters of the texts, in a sentence; "" where it can."""
    told = texts[texts != ""]
    if not len(told):
        return f"No corpus of this profile has transcripts, so nothing is asked about {unit}s."
    if len(word_features.tokens(told.tolist(), unit).names) < 2:
        return f"Fewer than two {unit}s are in five clips or more and absent from five, so nothing is asked about them."
    return ""


def _commonest(said: word_features.Tokens) -> word_features.Tokens:
    """The tokens that are in most clips."""
    pairs = np.unique(np.stack([said.token, said.clip]), axis=1)
    order = np.argsort(-np.bincount(pairs[0], minlength=len(said.names)), kind="stable")
    kept = np.sort(order[:MOST])
    here = np.isin(said.token, kept)
    token = np.searchsorted(kept, said.token[here])
    return word_features.Tokens(said.names[kept], token, said.clip[here], said.where[here], said.clips)


def _profiles(found: index.Index, kept: np.ndarray, clip: np.ndarray, clips: int, bins: int) -> np.ndarray:
    """The highest of each side in each part of each clip, over the rows that are `kept`: (clip, bin, side)."""
    parts = [word_features.profile(some, clip, clips, bins) for some in sparse_acts.by_parts(found, kept)]
    return np.concatenate(parts, axis=2)


def _judged(asked: word_features.Question, heard: pd.DataFrame, said: word_features.Tokens, seed: int, name: str):
    """A row a token with the feature that stands out most; and how much was tested and found."""
    speakers = heard.speaker.to_numpy(str)
    orders = word_features.dealt(speakers, heard.duration.to_numpy(), DEALS, seed=seed)
    orders = tqdm(orders, desc=f"dealing texts: {name}", unit=" deals", total=DEALS)
    null = null_distribution.null(asked.asked, np.arange(len(heard)), orders)
    observed, spread, size = asked.asked(np.arange(len(heard))), asked.spread, asked.size
    verdict = null_distribution.judge(observed, null, spread, size)
    others = null_distribution.judge(null[0], null[1:], spread, size)
    z = np.where(np.isfinite(verdict.z), verdict.z, -np.inf)
    feature, token = z.argmax(axis=0), np.arange(len(said.names))
    rows = pd.DataFrame({
        "token": said.names, "times": np.bincount(said.token, minlength=len(said.names)), "feature": feature,
        "score": observed[feature, token], "z": verdict.z[feature, token], "q": verdict.q[feature, token],
        "features": verdict.found().sum(axis=0),
    })  # fmt: skip
    tested, found = int(np.isfinite(verdict.p).sum()), int(verdict.found().sum())
    return rows, {"tested": tested, "found": found, "dealt": int(others.found().sum())}
