"""Made-up features of clips of speakers, whose truth is known: what simulations of statistics draw from."""

import numpy as np
import pandas as pd
from scipy import special

from whisper_sae.stats import effects

OFTEN = 0.4
"""How many clips a code fires in, where nothing else is said."""

LATENT = {("normal", 0.0): 0.0, ("normal", 0.3): 0.3, ("codes", 0.0): 0.0, ("codes", 0.3): 0.416}
"""The correlation of the hidden normal numbers of a speaker's clips that gives the clips this ICC."""


def clips(rng, kind: str, icc: float, speakers: int, each: int, features: int, often: float = OFTEN) -> np.ndarray:
    """(speaker, clip, feature). "normal", or "codes": zero in most clips, and skewed (lognormal) where they fire."""
    shared = LATENT[kind, icc]
    hidden = np.sqrt(shared) * rng.standard_normal((speakers, 1, features), dtype=np.float32)
    hidden = hidden + np.sqrt(1 - shared) * rng.standard_normal((speakers, each, features), dtype=np.float32)
    if kind == "normal":
        return hidden
    rank = special.ndtr(-hidden) / often  # the share of clips that fire at least as strongly, of those that fire
    return np.where(rank < 1, np.exp(-0.8 * special.ndtri(np.minimum(rank, 1 - 1e-7))), 0)


def two_groups(rng, kind: str, icc: float, speakers: int, each: int, features: int, differ: str = "") -> np.ndarray:
    """Means of speakers, (2 · speaker, feature): the first group as `differ` says, then the second.

    "" is no difference, "shifted" by about half an SD of clips, "shifted far" by about one, "stronger" twice as
    strong, "more often" in 60 % of clips.
    """
    shift = {"shifted": 0.5, "shifted far": 1.1}.get(differ, 0.0)
    first = clips(rng, kind, icc, speakers, each, features, often=0.6 if differ == "more often" else OFTEN)
    first = first.mean(axis=1) * (2 if differ == "stronger" else 1) + shift
    return np.concatenate([first, clips(rng, kind, icc, speakers, each, features).mean(axis=1)])


def true_d(kind: str, icc: float, each: int, differ: str = "") -> tuple[float, float]:
    """Cohen's d and AUC of two large groups."""
    rng = np.random.default_rng(99)
    parts = [np.split(two_groups(rng, kind, icc, 2000, each, 10, differ), 2) for _ in range(20)]
    one, other = (np.concatenate([part[side].ravel() for part in parts]) for side in (0, 1))
    d = (one.mean() - other.mean()) / np.sqrt((one.var() + other.var()) / 2)
    place = np.searchsorted(np.sort(other), one, side="left") + np.searchsorted(np.sort(other), one, side="right")
    return float(d), float(place.mean() / 2 / len(other))


def people(n=24, features=60, planted=0.0, seed=0):
    """2 n speakers, women and men in turn in three accents; feature 0 is `planted` SDs higher in women."""
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame({"gender": ["female", "male"] * n, "accent": np.repeat(["a", "b", "c"], 2 * n // 3)})
    x = rng.normal(size=(2 * n, features)) + 5
    x[:, 0] += planted * (labels.gender == "female")
    return effects.Voices(x, labels, np.ones(2 * n, int), 0)
