"""What is said of voices, tried where the truth is known: chance is seldom found, and intervals hold what they promise.

Of a corpus's own features the true effects are not known. So its speakers are taken for all the people there are: what
is measured on all of them is then the truth, exactly, and speakers drawn from them with replacement, as many of each
group, are a corpus on which any method can be tried. The features stay what they are, zero and skewed. For chance, the
speakers of a label that means nothing change places. Where speakers come from several corpora, the corpus is a stratum,
as in `contrasts`: speakers are drawn and change places within their corpus, and d is partial.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from whisper_sae.cache import Recipe, Step
from whisper_sae.experiments import speaker_effects, speakers
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.profiles import Profile
from whisper_sae.stats import effects, intervals, permutation, stratified

TRIALS = 12
"""Corpora drawn for each pair of groups."""


def tried(run: Profile, seed: int, site: str, null: str, planted: list[str], relabelings: int = 200) -> Recipe:
    """`nothing.csv`: as `relabelling.nothing` of the label `null`, if told, by firing rates.

    `covered.csv`: as `covered`, for each two groups of the `planted` labels: a group, and all others.
    """
    said = speakers.of_features(run, seed, site)

    def attempt(folder: Path, clips: Step, said: Step) -> dict:
        cast, facts = speakers.cast(said, table(run, clips)), {"relabelings": 0, "none": 0}
        if null:
            tested = speakers.asked(cast, null)
            deals = speaker_effects.enough_deals(tested.sum())
            groups, ask = speakers.groups_of(cast, null), {"relabelings": relabelings, "deals": deals, "seed": seed}
            label = speakers.compared(cast, cast.labels[null].to_numpy(dtype=str), groups)
            found = permutation.nothing(
                cast.means, label, groups, speaker_effects.strata_of(cast), tested=tested, **ask
            )
            found.to_csv(folder / "nothing.csv", index=False)
            facts = {"relabelings": relabelings, "none": int((found.found == 0).sum())}
        parts = [part for name in planted for part in covered(cast, name, seed)]
        if parts:
            pd.concat(parts).to_csv(folder / "covered.csv", index=False)
        return facts | {"pairs": len(parts)}

    return Recipe(
        "trials", attempt, {"site": site, "seed": seed, "null": null, "planted": planted, "relabelings": relabelings,
                            "trials": TRIALS},
        needs={"clips": said.needs["activations"].needs["clips"], "said": said}, by=made_by(run, "04"),
        label=f"trials of voices at {site}",
    )  # fmt: skip


def truth(x: np.ndarray, first: np.ndarray, stratum: np.ndarray | None = None) -> np.ndarray:
    """Cohen's d of all the people there are, (feature,), as draws of as many of each group have it on average; partial
    d within strata (speaker,), each with both groups: the expected squares of `crossing.within`."""
    stratum = np.zeros(len(x)) if stratum is None else stratum
    gaps, weights, noises, square = [], [], [], 0.0
    for name in np.unique(stratum):
        parts = [x[(stratum == name) & side] for side in (first, ~first)]
        gaps.append(parts[0].mean(axis=0) - parts[1].mean(axis=0))
        weights.append(len(parts[0]) * len(parts[1]) / (len(parts[0]) + len(parts[1])))
        noises.append(sum(part.var(axis=0) / len(part) for part in parts))  # of a gap between the means of draws
        square = square + sum((len(part) - 1) * part.var(axis=0) for part in parts)
    gaps, noises, weights = np.stack(gaps), np.stack(noises), np.array(weights)[:, None]
    total = weights.sum()
    slope = (weights * gaps).sum(axis=0) / total
    square = square + (weights * np.square(gaps - slope)).sum(axis=0)
    square = square + (weights * (1 - weights / total) * noises).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return slope / np.sqrt(square / (len(x) - len(gaps) - 1))


def covered(cast: effects.Voices, label: str, seed: int = 0, trials: int = TRIALS) -> list[pd.DataFrame]:
    """How often intervals of d hold the truth: a table a pair of groups, a row a living feature.

    Columns: label, one, other; feature, its true d; `drawn` corpora in which it varies, and in how many of them the
    interval is `inside` it, excludes 0 on its `right` side, and on the `wrong` side. Groups are the two of a label, or
    each against all others. Where there are several corpora, only those count that have speakers of both, and d and its
    interval are those within them, as in `contrasts.two`.
    """
    told = cast.labels[label].to_numpy()
    names = sorted(set(told) - {""})
    here = np.flatnonzero(effects.live(cast.means) & np.isfinite(cast.means).all(axis=0))
    strata = speaker_effects.strata_of(cast)
    found = []
    for name in tqdm(names[:1] if len(names) == 2 else names, desc=f"trials of {label}"):
        sides = np.where(told == name, "one", np.where(told == "", "", "other"))
        sides = speakers.compared(cast, sides, ("one", "other"))
        first, x = (sides == "one")[sides != ""], cast.means[sides != ""][:, here]
        stratum = None if strata is None else strata[sides != ""]
        if min(first.sum(), (~first).sum()) < intervals.LEAST:
            continue
        by = np.zeros(len(x)) if stratum is None else stratum
        cells = [np.flatnonzero((by == one) & side) for side in (first, ~first) for one in np.unique(by)]
        true, rng = truth(x, first, stratum), np.random.default_rng(seed)
        counts = np.zeros((4, len(here)), dtype=int)
        for _ in range(trials if len(names) == 2 else max(1, trials // len(names))):
            rows = np.concatenate([rng.choice(same, len(same)) for same in cells])
            d, low, high = _interval(x[rows], first[rows], None if stratum is None else stratum[rows])
            able = np.isfinite(d)
            counts += [able, able & (low <= true) & (true <= high), able & (low * high > 0) & (low * true > 0),
                       able & (low * high > 0) & (low * true < 0)]  # fmt: skip
        other = names[1] if len(names) == 2 else "all others"
        each = pd.DataFrame({"label": label, "one": name, "other": other, "feature": here, "true": true})
        found.append(each.assign(**dict(zip(("drawn", "inside", "right", "wrong"), counts, strict=True))))
    return found


def _interval(x: np.ndarray, first: np.ndarray, stratum: np.ndarray | None) -> tuple:
    """d, low and high of each feature, as `contrasts.two` has them."""
    side, groups = np.where(first, "one", "other"), ("one", "other")
    if stratum is None:
        return intervals.of_d(x, side, groups, draws=1000)
    inside = stratified.within(x, side, stratum, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inside.d, *intervals.noncentral(inside.d, np.square(inside.t / inside.d), inside.df)


def planted(told: pd.DataFrame, labels: pd.DataFrame, known: list[tuple], seed: int = 0) -> pd.DataFrame:
    """Numbers that a corpus was made with, measured as features are: a row for each (covariate, label, groups, true d).

    Columns: number, label, groups, n, d, low, high, true, and whether the truth is `inside`. `told` are covariates of
    speakers and `labels` theirs, in one order.
    """
    rows = []
    for number, label, groups, true in known:
        x, side = told[[number]].to_numpy(), labels[label]
        d, low, high = (float(each[0]) for each in intervals.of_d(x, side, groups, seed=seed))
        n = " + ".join(str(int((side == name).sum())) for name in groups)
        rows.append((number, label, " – ".join(groups), n, d, low, high, true, low <= true <= high))
    return pd.DataFrame(rows, columns=["number", "label", "groups", "n", "d", "low", "high", "true", "inside"])
