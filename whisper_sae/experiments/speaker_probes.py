"""What a straight line reads of the speaker off everything that features say of a clip, in speakers it never met.

One feature may tell nothing that many tell together. What a probe reads off all features, or off the best few of them,
stands beside what it reads off the frames that they re-say, off principal directions, off a dictionary of random
directions and off sound itself.

    probed = store.make(voice_probes.probed(run, seed, site, {"gender": ["accent"]}))
    scores = voice_probes.compared(probed.table("read.csv"), ["label", "input", "width"])
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from whisper_sae.cache import Recipe, Step
from whisper_sae.experiments import sanity_checks
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.experiments.speakers import of_features, values
from whisper_sae.profiles import Profile
from whisper_sae.stats import effects, probes
from whisper_sae.stats.intervals import LEAST

DIRECTIONS = 32
"""Principal directions that a probe reads; those with the most variance."""

FEW = (1, 2, 4, 8, 16, 32, 64)
"""Of how many features, the best on the training speakers, a sparse probe may read."""


def probed(run: Profile, seed: int, site: str, labels: dict[str, list[str]]) -> Recipe:
    """`read.csv`: how often each speaker's label is read right off the means of its clips by probes that never met it.

    Columns `label input width speaker told stratum right`. Inputs are all features of the dictionary and of the random
    one, and the first DIRECTIONS principal directions; `width` is how many numbers were read. Of the two dictionaries
    there are rows for FEW features, too, chosen anew on the training speakers each time. `labels`, of
    `instrument.askable`, names for each what else makes speakers alike: see `probes.unheard`.
    `instrument.label_probe` reads the simpler inputs.
    """
    made = {name: of_features(run, seed, site, of) for name, of in _INPUTS.items()}

    def read(folder: Path, clips: Step, **steps: Step) -> dict:
        heard, parts = table(run, clips), []
        for (name, step), label in tqdm([(s, lab) for s in steps.items() for lab in labels], desc="probes"):
            x, clip = values(step, "mean"), step.table("clips.csv")["clip"].to_numpy()
            if name == "directions":
                x = x[:, :DIRECTIONS] - x[:, step.facts["features"] :][:, :DIRECTIONS]
            here, *asked, within = sanity_checks.labelled(heard.iloc[clip], label, labels[label])
            right = {x.shape[1]: probes.unheard(x[here], *asked, seed=seed)}
            if name != "directions":
                right |= few(x[here], *asked, seed=seed)
            parts += [sanity_checks.by_speaker(each, *asked[:2], within).assign(label=label, input=name, width=width)
                      for width, each in right.items()]  # fmt: skip
        columns = ["label", "input", "width", "speaker", "told", "stratum", "right"]
        found = pd.concat([pd.DataFrame(columns=columns), *parts])[columns]
        found.to_csv(folder / "read.csv", index=False)
        return {"labels": list(labels), "rows": len(found)}

    needs = {"clips": made["features"].needs["activations"].needs["clips"]} | made
    return Recipe(
        "voice-probes", read, {"seed": seed, "labels": labels, "few": FEW, "directions": DIRECTIONS}, needs=needs,
        by=made_by(run, "04"), label=f"probes for voices at {site}",
    )  # fmt: skip


_INPUTS = {"features": "dictionary", "random": "random dictionary", "directions": "principal directions"}


def few(x, y, speakers, alike=None, *, counts=FEW, folds: int = probes.FOLDS, repeats: int = 1, seed: int = 0) -> dict:
    """As `probes.unheard`, of the k features that tell the labels best: {k: (row,)} for each k of `counts`.

    The best are those with the greatest η² among the speakers that the probe is fitted on, so those it is asked about
    have no say; with `alike` η² is of what its groups leave. The strength is chosen once for all k, at the greatest.
    Empty where a label has fewer than three speakers: no feature could be chosen without those it is asked about.
    """
    rows = probes.rows_of(y, speakers, alike)
    if rows.drop_duplicates("speaker").label.value_counts().min() < 3:
        return {}
    right = {k: np.zeros(len(rows)) for k in counts if k < x.shape[1]}
    for repeat in range(repeats):
        fold = probes.folds_of(rows, folds, np.random.default_rng([seed, repeat]))
        for number in np.unique(fold):
            out, known = fold == number, rows[fold != number]
            fitted = effects.voices(x[~out], known.speaker, known[["label", "alike"]])
            means = fitted.means - pd.DataFrame(fitted.means).groupby(fitted.labels.alike.to_numpy()).transform("mean")
            told = np.nan_to_num(effects.among(means, fitted.labels.label).eta_squared, nan=-1.0)
            best = np.argsort(-told, kind="stable")
            strength = probes.best_strength(x[:, best[: max(right, default=1)]], rows, fold, number)
            for k, each in right.items():
                probe = probes.fit(x[~out][:, best[:k]], known.label, strength, probes.even(known))
                each[out] += probe.predict(x[out][:, best[:k]]) == rows.label[out]
    return {k: each / repeats for k, each in right.items()}


def balanced(read: pd.DataFrame, level: float = 0.95) -> tuple[float, float, float]:
    """Balanced accuracy and its interval: `read` has a row a speaker, `told` its label and `right` its share right.

    The mean over labels of their speakers' means; Welch's degrees of freedom, so labels may differ in spread and size.
    Where `read` has several of `stratum`, such as corpora, that is done in each, and their mean is weighted by
    speakers: what tells the stratum alone scores 1 / labels. Below `intervals.LEAST` speakers there is no interval.
    """
    middle, low, high = _balanced(read, level)
    return middle, *np.clip([low, high], 0.0, 1.0).tolist()


def _balanced(read: pd.DataFrame, level: float) -> tuple[float, float, float]:
    read = read if "stratum" in read else read.assign(stratum="")
    parts = read.groupby(["stratum", "told"]).right.agg(["mean", "var", "size"])
    inside = parts.groupby(level="stratum")
    weight = inside["size"].transform("sum") / len(read) / inside["size"].transform("count")
    middle, spread = float((weight * parts["mean"]).sum()), np.square(weight) * parts["var"] / parts["size"]
    if read.groupby("told").size().min() < LEAST:
        return middle, np.nan, np.nan
    total = spread.sum()
    free = total**2 / (np.square(spread) / (parts["size"] - 1)).sum() if total > 0 else 1.0
    reach = float(stats.t.ppf((1 + level) / 2, free) * np.sqrt(total))
    return middle, middle - reach, middle + reach


def chance_of(read: pd.DataFrame) -> float:
    """What always saying one label scores in `balanced`: 1 / labels, in the mean over strata."""
    read = read if "stratum" in read else read.assign(stratum="")
    return float((1 / read.groupby("stratum").told.transform("nunique")).mean())


def compared(read: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`balanced` of each group: `by`, balanced, balanced_low, balanced_high, chance (1 / labels) and speakers."""
    rows = [(*name, *balanced(part), chance_of(part), len(part)) for name, part in read.groupby(by, sort=False)]
    return pd.DataFrame(rows, columns=[*by, "balanced", "balanced_low", "balanced_high", "chance", "speakers"])


def better(read: pd.DataFrame, label: str, one: str, other: str, level: float = 0.95) -> tuple[float, float, float]:
    """How much more one input tells of a label than another, both at their widest, and the interval: of `everything`.

    Differences of speakers, of whom each was asked both ways; their mean over labels, as in `balanced`.
    """
    mine = read[read.label == label]
    wide = {name: part[part.width == part.width.max()] for name, part in mine.groupby("input")}
    first, second = (wide[name].set_index("speaker") for name in (one, other))
    return _balanced(first.assign(right=first.right - second.right).dropna(subset="right"), level)


def everything(probed: Step, simple: Step, site: str) -> pd.DataFrame:
    """`read.csv` of `probed`, below it that of `instrument.label_probe` for log-mel and the site's own frames.

    The inputs have the names that a reader wants. The widths of the simple inputs, which are not stored, are 0.
    """
    names = {
        "features": "all features",
        "random": "random dictionary",
        "directions": f"{DIRECTIONS} principal directions",
    }
    ours = probed.table("read.csv").replace({"input": names})
    theirs = simple.table("read.csv").query("site in ['log-mel', @site]").rename(columns={"site": "input"})
    theirs = theirs.replace({"input": {site: "activations", "log-mel": "log-mel"}}).assign(width=0)
    return pd.concat([ours, theirs[list(ours)]], ignore_index=True)


def side_by_side(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of `compared` by label, input and width, one width each, in percent: a row an input, a column a label.

    The last row is what always saying the majority scores, 1 / labels, from the column `chance`.
    """
    ends = 100 * scores[["balanced_low", "balanced_high"]]
    ends = [f" ({low:.0f}–{high:.0f})" if np.isfinite(low) else "" for low, high in ends.itertuples(index=False)]
    said = [f"{100 * value:.0f}{between}" for value, between in zip(scores.balanced, ends, strict=True)]
    wide = scores.assign(said=said).pivot(index="input", columns="label", values="said")
    wide = wide.reindex(index=scores.input.unique(), columns=scores.label.unique())
    chance = scores.drop_duplicates("label").set_index("label").chance
    wide.loc["majority"] = [f"{100 * chance[name]:.0f}" for name in wide]
    return wide.rename_axis(columns=None).rename_axis("input").reset_index()
