"""Features as causes: silenced, transplanted, kept alone, or added as a vector, and what a probe then thinks of a text.

An encoder's answer is judged by the mean over its tokens. A mean is linear, so what an intervention on every token's
state does to it is known from the mean codes alone: silencing features S turns the mean x into x - f[S] W_dec[S], where
f are the codes' means; all else, the dictionary's error included, stays. The judge is a probe fitted on other texts;
no change counts but beside that of as many other features, which say as much, or of random vectors.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

WAYS = ("silenced", "transplanted", "alone")

EXAMPLE = """vectors = safetensors.torch.load_file("steering.safetensors")
norm = music.text_encoder.encoder.final_layer_norm
norm.register_forward_hook(lambda module, given, said: said + 2.0 * vectors["happy"])
"""
"""How vectors are used in transformers: `music` is a MusicgenForConditionalGeneration, whose text encoder said them."""


class Codes(NamedTuple):
    """What is known of texts: the means of their states, of their codes, and the dictionary's directions."""

    x: np.ndarray
    """(text, width) the mean state."""
    f: np.ndarray
    """(text, feature) the mean code."""
    W_dec: np.ndarray
    """(feature, width)."""
    b_dec: np.ndarray
    """(width,)."""

    def only(self, here: np.ndarray) -> "Codes":
        """The same of some of the texts."""
        return self._replace(x=self.x[here], f=self.f[here])


def changed(codes: Codes, features, way: str, given: np.ndarray | None = None) -> np.ndarray:
    """The mean state of each text, (text, width), with some features changed in one of WAYS.

    `silenced` takes out what they say; `transplanted` has them say `given`, (feature,), what they say elsewhere on
    average; `alone` keeps nothing but b_dec and what they say. Without features nothing changes, and nothing is left.
    """
    if way not in WAYS:
        raise ValueError(f"way: {way!r} is not one of {', '.join(WAYS)}")
    which = np.asarray(features, dtype=int)
    said = codes.f[:, which] @ codes.W_dec[which]
    if way == "silenced":
        return codes.x - said
    if way == "alone":
        return codes.b_dec + said
    return codes.x - said + np.asarray(given)[which] @ codes.W_dec[which]


def matched(amount: np.ndarray, features, among: np.ndarray, rng: np.random.Generator, near: int = 20) -> np.ndarray:
    """As many other features, each drawn among those `near` that say about as much, by `amount`, (feature,)."""
    chosen, left = [], np.setdiff1d(np.flatnonzero(among), features)
    if len(left) < len(features):
        raise ValueError(f"features: {len(left)} others are too few to match {len(features)}")
    for one in features:
        by_amount = left[np.argsort(np.abs(amount[left] - amount[one]), kind="stable")]
        chosen.append(rng.choice(by_amount[:near]))
        left = left[left != chosen[-1]]
    return np.array(chosen)


def interventions(judge, codes: Codes, label: np.ndarray, given: dict, features: dict, *, draws: int = 100,
                  seed: int = 0) -> pd.DataFrame:  # fmt: skip
    """What a judge, with `predict_proba` and `classes_`, thinks after each intervention: a row a class and way.

    `label` (text,) is the true class; `features` {class: its features} and `given` {class: (feature,)}, what features
    say of the texts of a class elsewhere. `silenced` and `alone` ask of texts of the class, `transplanted` of all
    others. `before` and `after` are the mean probability of the class; `control` is what matched features give on
    average, `low` and `high` 95 % of their draws, and p how rarely they go as far in the direction that is expected.
    """
    rows, rng = [], np.random.default_rng(seed)
    for name, mine in features.items():
        if not len(mine):
            continue
        column = list(judge.classes_).index(name)
        alive = given[name] > 0
        for way in WAYS:
            part = codes.only(label != name if way == "transplanted" else label == name)

            def think(which, way=way, part=part, name=name, column=column) -> float:
                return float(judge.predict_proba(changed(part, which, way, given[name]))[:, column].mean())

            before, after = float(judge.predict_proba(part.x)[:, column].mean()), think(mine)
            null = np.array([think(matched(given[name], mine, alive, rng)) for _ in range(draws)])
            reached = (null <= after).sum() if way == "silenced" else (null >= after).sum()
            rows.append((name, way, len(mine), before, after, null.mean(), *np.quantile(null, [0.025, 0.975]),
                         (1 + reached) / (1 + draws)))  # fmt: skip
    return pd.DataFrame(rows, columns=["class", "way", "features", "before", "after", "control", "low", "high", "p"])


def steered(judge, x: np.ndarray, label: np.ndarray, vectors: dict, alphas, *, draws: int = 100,
            seed: int = 0) -> pd.DataFrame:  # fmt: skip
    """What a judge thinks of texts of other classes once α times a vector was added to their states: a row a class,
    kind of vector and α, with the rise of the class's mean probability.

    `vectors` {kind: {class: (width,)}} are given length 1. `random` are `draws` directions drawn at random, with the
    95th percentile of their rises.
    """
    rng = np.random.default_rng(seed)
    lots = rng.normal(size=(draws, x.shape[1]))
    lots /= np.linalg.norm(lots, axis=1, keepdims=True)
    rows = []
    for name in next(iter(vectors.values())):
        column, others = list(judge.classes_).index(name), x[label != name]

        def rise(direction, alpha, column=column, others=others) -> float:
            pair = [judge.predict_proba(others + by * direction)[:, column].mean() for by in (alpha, 0.0)]
            return float(pair[0] - pair[1])

        for alpha in alphas:
            for kind, of_class in vectors.items():
                direction = of_class[name] / np.linalg.norm(of_class[name])
                rows.append((name, kind, alpha, rise(direction, alpha), np.nan))
            null = np.array([rise(one, alpha) for one in lots])
            rows.append((name, "random", alpha, null.mean(), np.quantile(null, 0.95)))
    return pd.DataFrame(rows, columns=["class", "vector", "alpha", "rise", "p95"])


def save(path: str | Path, vectors: dict[str, np.ndarray], about: dict) -> Path:
    """Write vectors, {name: (width,)}, as safetensors, each of length 1; `about` is kept in the file's head.

    EXAMPLE, which is kept there too, has the three lines by which a model that reads the same states takes them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unit = {name: (v / np.linalg.norm(v)).astype(np.float32) for name, v in vectors.items()}
    if not all(np.isfinite(v).all() for v in unit.values()):
        raise ValueError(f"{path}: a vector is 0 or not finite, so it has no direction")
    part = path.with_name(path.name + ".part")
    save_file(unit, part, metadata={"example": EXAMPLE} | {name: json.dumps(value) for name, value in about.items()})
    os.replace(part, path)
    return path
