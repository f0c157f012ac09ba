"""The recipes of notebook 9: a net that is no Whisper, recorded with little memory, and what its features find.

net = restoring.restorer(told, seed)                                # trains it, unless it is there
recording = elsewhere.activations(restoring.reading(net, told, run), ["layers.3"])
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array
from tqdm import tqdm

from whisper_sae import activations as frames
from whisper_sae import codes, detectors, elsewhere, fragments, measure, sae
from whisper_sae.profiles import Profile
from whisper_sae.store import Recipe, Step, digest_of

PATTERNS = ("lugal", "ak", "digit", "damaged", "beside")
"""What features are asked to find: two patterns of text, a class of letters, marks of damage, what is beside one."""

HOW = elsewhere.Training(tokens=120_000, batch_tokens=512, k=16, dead_tokens=20_000, patience=2)
"""Eight times as many latents; stops early where held-out letters are said no better."""


def restorer(told: pd.DataFrame, seed: int, steps: int = 300, by: str = "") -> Recipe:
    """A `fragments.Restorer` trained on the training texts: its weights, and `history.csv`."""

    def fit(folder: Path) -> dict:
        texts = told.text[told["split"] == "train"].tolist()
        history = list(tqdm(fragments.train(texts, seed, steps=steps), total=steps, desc="restorer", unit=" steps"))
        net = history[-1].pop("net")
        fragments.save(net, folder)
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
        return fragments.restored(net, told.text[told["split"] == "test"].tolist(), seed)

    params = {"texts": digest_of(told), "seed": seed, "steps": steps}
    return Recipe("restorer", fit, params, by=by, label="the restorer of fragments")


def reading(net: Recipe, step: Step, told: pd.DataFrame, run: Profile) -> elsewhere.Reading:
    """Texts as the restorer reads them: one at a time, and what it says leaves its device at once."""
    return elsewhere.Reading(
        "the restorer", net.key, lambda: fragments.load(step.path), told, fragments.collate, fragments.LONGEST,
        by=f"python -m whisper_sae {run.source or run.name} 09", batch=1,
    )  # fmt: skip


def inputs(recording: Step, site: str, told: pd.DataFrame, trained: Step, seed: int) -> dict[str, csc_array]:
    """What a detector may be made of, (letter, feature) each: the dictionary, a random one, the site's neurons with two
    sides each, and the letters themselves."""
    held = frames.Activations(recording.path)
    every, sample = held.rows(site), elsewhere.fed(recording).rows(site, "train")[0].sample(4096, seed)
    mean = measure.moments([sample]).mean.float()
    chosen = {"dictionary": sae.load(trained.path), "random dictionary": elsewhere.random_like(trained, sample, seed)}
    found = {name: _codes(coder.encode, every) for name, coder in chosen.items()}
    found["neurons"] = codes.of_chunks(((x - mean).numpy() for x in every.chunks()), both_sides=True)
    letters = fragments.encoded(told.text.tolist())
    number = letters[letters > 0].numpy()
    shape = (len(number), len(fragments.LETTERS) + 1)
    found["the letter alone"] = csc_array((np.ones(len(number), np.float32), (np.arange(len(number)), number)), shape)
    return found


@torch.no_grad()
def _codes(encode, every) -> csc_array:
    return codes.of_chunks(encode(x).numpy() for x in every.chunks())


def detected(asked: dict[str, csc_array], letters: pd.DataFrame, told: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How well the best feature of each input finds each of PATTERNS, a row a pattern and input: chosen on training
    texts, F1 on all others with its interval over texts; `always` is what saying it always has."""
    item = letters.item.to_numpy()
    choosing = (told["split"] == "train").to_numpy()[item]
    rows = []
    for pattern in PATTERNS:
        label = letters[pattern].to_numpy().astype(int)
        known = codes.Frames(label, np.array(["other", pattern]), item, item)
        for name, entries in asked.items():
            one = detectors.dictionary_score(entries, known, choosing, draws=200, seed=seed).table.iloc[1]
            rows.append((pattern, name, one.feature, one.f1, one.f1_low, one.f1_high, one.chance, one.frames))
    columns = ["pattern", "input", "feature", "f1", "low", "high", "always", "letters"]
    return pd.DataFrame(rows, columns=columns)


def peak_megabytes() -> float:
    """The most memory that this process has held, in MB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
