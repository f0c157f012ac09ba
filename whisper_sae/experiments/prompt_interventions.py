"""Features as causes: silenced, transplanted, kept alone, or added as a vector, and what a probe then thinks of a text.

An encoder's answer is judged by the mean over its tokens. A mean is linear, so what an intervention on every token's
state does to it is known from the mean codes alone: silencing features S turns the mean x into x - f[S] W_dec[S], where
f are the codes' means; all else, the dictionary's error included, stays. The judge is a probe fitted on other texts.
Every change is compared with that of matched controls (`controls`), other features that fire about as often and remove
about as much, or of random vectors.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from whisper_sae import atomic
from whisper_sae.causal import controls

WAYS = ("silenced", "transplanted", "alone")

CONTROLS, LEAST_CONTROLS = 10, 5
"""Controls of each feature, and how few within the caliper are too few: such a feature is left out."""

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
    fires: np.ndarray
    """(text, feature) the share of tokens on which a feature fires."""
    W_dec: np.ndarray
    """(feature, width)."""
    b_dec: np.ndarray
    """(width,)."""

    def only(self, here: np.ndarray) -> "Codes":
        """The same of some of the texts."""
        return self._replace(x=self.x[here], f=self.f[here], fires=self.fires[here])

    def strength(self) -> tuple[np.ndarray, np.ndarray]:
        """Firing rate of each feature, and its size: mean activation where it fires times the norm of its decoder
        direction, (feature,) each."""
        rate, mass = self.fires.mean(axis=0), self.f.mean(axis=0) * np.linalg.norm(self.W_dec, axis=1)
        return rate, np.where(rate > 0, mass / np.maximum(rate, 1e-12), 0)


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


class Tested(NamedTuple):
    """Interventions on the features of classes, beside the same on matched controls: see `interventions`."""

    table: pd.DataFrame
    """A row a class and way; a class that `refusals` names has neither controls nor p."""
    ratios: pd.DataFrame
    """A row a feature: its class, how many controls it has within the caliper, and `controls.balance`."""
    refusals: dict[str, str]
    """Why nothing can be claimed of a class, in one sentence."""

    @property
    def balance(self) -> pd.DataFrame:
        """A row a class: features that are tested and `left out`, the mean number of their `controls`, the median ratio
        of rate and of rate × size, and the greater median of their |log ratio|, NaN without any."""
        enough, both = self.ratios.controls >= LEAST_CONTROLS, ["rate", "rate × size"]
        rows = [
            {"class": name, "features": int(enough[part.index].sum()), "left out": int((~enough[part.index]).sum()),
             "controls": (kept := part[enough[part.index]]).controls.mean(), **kept[both].median(),
             "|log ratio|": controls.imbalance(kept[both]).max()}
            for name, part in self.ratios.groupby("class", sort=False)
        ]  # fmt: skip
        columns = ["class", "features", "left out", "controls", *both, "|log ratio|"]
        return pd.DataFrame(rows, columns=columns)


def interventions(judge, codes: Codes, label: np.ndarray, other: Codes, other_label: np.ndarray, features: dict, *,
                  draws: int = 100, seed: int = 0) -> Tested:  # fmt: skip
    """The probability that a judge, with `predict_proba` and `classes_`, gives a class after each intervention on its
    features {class: features}: a row a class and way.

    `label` (text,) is the true class of the texts that are judged; `other` are other texts. Those of the class say what
    is transplanted, and how often and how strongly each feature fires there: by that each feature has up to CONTROLS
    controls of its own, out of all features that fire there (`controls.disjoint`). `silenced` and `alone` are judged on
    texts of the class, `transplanted` on all others. `before` and `after` are the mean probability of the class;
    `control` is the mean of `draws` sets with a control at random in the place of each feature, `low` and `high` hold
    95 % of them. p is the share of sets that go as far in the expected direction when each place is taken at random by
    the feature or one of its controls: exact if these could change places.
    """
    rows, ratios, refusals, rng = [], [], {}, np.random.default_rng(seed)
    for name, mine in features.items():
        if not len(mine):
            continue
        column, typical = list(judge.classes_).index(name), other.only(other_label == name)
        given, (rate, size) = typical.f.mean(axis=0), typical.strength()
        near = controls.disjoint(rate, size, mine, np.flatnonzero(rate), CONTROLS)
        enough = [(target, *own) for target, own in zip(mine, near, strict=True) if len(own) >= LEAST_CONTROLS]
        mine = [target for target, *_ in enough] or list(mine)
        achieved = {target: controls.balance(rate, size, target, own) for target, *own in enough}
        ratios += [{"class": name, "feature": target, "controls": len(own), **achieved.get(target, {})}
                   for target, own in zip(features[name], near, strict=True)]  # fmt: skip
        why = (
            controls.refusal(pd.DataFrame(achieved.values()))
            if enough
            else (f"No matched controls: none of {len(mine)} features has {LEAST_CONTROLS} within the caliper.")
        )
        refusals |= {name: why} if why else {}
        for way in WAYS:
            part = codes.only(label != name if way == "transplanted" else label == name)

            def think(which, way=way, part=part, given=given, column=column) -> float:
                return float(judge.predict_proba(changed(part, which, way, given))[:, column].mean())

            def sets(first: int, think=think, enough=enough) -> np.ndarray:
                return np.array([think([one[rng.integers(first, len(one))] for one in enough]) for _ in range(draws)])

            before, after = float(judge.predict_proba(part.x)[:, column].mean()), think(mine)
            control = [np.nan] * 4
            if not why:
                among, null = sets(1), sets(0)
                reached = (null <= after).sum() if way == "silenced" else (null >= after).sum()
                control = [among.mean(), *np.quantile(among, [0.025, 0.975]), (1 + reached) / (1 + draws)]
            rows.append((name, way, len(mine), before, after, *control))
    columns = ["class", "way", "features", "before", "after", "control", "low", "high", "p"]
    kinds = ["class", "feature", "controls", "rate", "size", "rate × size"]
    return Tested(pd.DataFrame(rows, columns=columns), pd.DataFrame(ratios, columns=kinds), refusals)


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
    unit = {name: (v / np.linalg.norm(v)).astype(np.float32) for name, v in vectors.items()}
    if not all(np.isfinite(v).all() for v in unit.values()):
        raise ValueError(f"{path}: a vector is 0 or not finite, so it has no direction")
    head = {"example": EXAMPLE} | {name: json.dumps(value) for name, value in about.items()}
    with atomic.replacing(path) as part:
        save_file(unit, part, metadata=head)
    return path
