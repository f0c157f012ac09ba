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

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step, digest_of
from whisper_sae.experiments import any_module, toy_model
from whisper_sae.features import phone_detection, sparse_acts
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures, metrics

PATTERNS = ("lugal", "ak", "digit", "damaged", "beside")
"""What features are asked to find: two patterns of text, a class of letters, marks of damage, what is beside one."""

HOW = any_module.Training(tokens=120_000, batch_tokens=512, k=16, dead_tokens=20_000, patience=2)
"""Eight times as many latents; stops early where held-out letters are said no better."""


def restorer(told: pd.DataFrame, seed: int, steps: int = 300, by: str = "") -> Recipe:
    """A `fragments.Restorer` trained on the training texts: its weights, and `history.csv`."""

    def fit(folder: Path) -> dict:
        texts = told.text[told["split"] == "train"].tolist()
        history = list(tqdm(toy_model.train(texts, seed, steps=steps), total=steps, desc="restorer", unit=" steps"))
        net = history[-1].pop("net")
        toy_model.save(net, folder)
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
        return toy_model.restored(net, told.text[told["split"] == "test"].tolist(), seed)

    params = {"texts": digest_of(told), "seed": seed, "steps": steps}
    return Recipe("restorer", fit, params, by=by, label="the restorer of fragments")


def reading(net: Recipe, step: Step, told: pd.DataFrame, run: Profile) -> any_module.Reading:
    """Texts as the restorer reads them: one at a time, and what it says leaves its device at once."""
    return any_module.Reading(
        "the restorer", net.key, lambda: toy_model.load(step.path), told, toy_model.collate, toy_model.LONGEST,
        by=f"python -m whisper_sae {run.source or run.name} 09", batch=1,
    )  # fmt: skip


def inputs(recording: Step, site: str, told: pd.DataFrame, trained: Step, seed: int) -> dict[str, csc_array]:
    """What a detector may be made of, (letter, feature) each: the dictionary, a random one, the site's neurons with two
    sides each, and the letters themselves."""
    held = store.Activations(recording.path)
    every, sample = held.rows(site), any_module.fed(recording).rows(site, "train")[0].sample(4096, seed)
    mean = metrics.moments([sample]).mean.float()
    chosen = {
        "dictionary": architectures.load(trained.path),
        "random dictionary": any_module.random_like(trained, sample, seed),
    }
    found = {name: _codes(coder.encode, every) for name, coder in chosen.items()}
    found["neurons"] = sparse_acts.of_chunks(((x - mean).numpy() for x in every.chunks()), both_sides=True)
    letters = toy_model.encoded(told.text.tolist())
    number = letters[letters > 0].numpy()
    shape = (len(number), len(toy_model.LETTERS) + 1)
    found["the letter alone"] = csc_array((np.ones(len(number), np.float32), (np.arange(len(number)), number)), shape)
    return found


@torch.no_grad()
def _codes(encode, every) -> csc_array:
    return sparse_acts.of_chunks(encode(x).numpy() for x in every.chunks())


def detected(asked: dict[str, csc_array], letters: pd.DataFrame, told: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How well the best feature of each input finds each of PATTERNS, a row a pattern and input: chosen on training
    texts, F1 on all others with its interval over texts; `always` is what saying it always has."""
    item = letters.item.to_numpy()
    choosing = (told["split"] == "train").to_numpy()[item]
    rows = []
    for pattern in PATTERNS:
        label = letters[pattern].to_numpy().astype(int)
        known = sparse_acts.Frames(label, np.array(["other", pattern]), item, item)
        for name, entries in asked.items():
            one = phone_detection.dictionary_score(entries, known, choosing, draws=200, seed=seed).table.iloc[1]
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
