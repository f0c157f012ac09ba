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

from whisper_sae import effects, intervals, probes
from whisper_sae.profiles import Profile
from whisper_sae.recipes import made_by, table
from whisper_sae.store import Recipe, Step
from whisper_sae.voices import of_features, values

DIRECTIONS = 32
"""Principal directions that a probe reads; those with the most variance."""

FEW = (1, 2, 4, 8, 16, 32, 64)
"""Of how many features, the best on the training speakers, a sparse probe may read."""


def probed(run: Profile, seed: int, site: str, labels: dict[str, list[str]]) -> Recipe:
    """`read.csv`: how often each speaker's label is read right off the means of its clips by probes that never met it.

    Columns `label input width speaker told right`. Inputs are all features of the dictionary and of the random one, and
    the first DIRECTIONS principal directions; `width` is how many numbers were read. Of the two dictionaries there are
    rows for FEW features, too, chosen anew on the training speakers each time, where each group of a label has three
    speakers. `labels` names, for each, what else makes speakers alike: see `probes.unheard`. `instrument.label_probe`
    reads the simpler inputs.
    """
    made = {name: of_features(run, seed, site, of) for name, of in _INPUTS.items()}

    def read(folder: Path, clips: Step, **steps: Step) -> dict:
        heard, rows = table(run, clips), []
        for (name, step), label in tqdm([(s, lab) for s in steps.items() for lab in labels], desc="probes"):
            clip = step.table("clips.csv")["clip"].to_numpy()
            known = ((heard.speaker != "") & (heard[label] != "")).to_numpy()[clip]
            x, cast = values(step, "mean")[known], heard.iloc[clip[known]]
            if name == "directions":
                x = x[:, :DIRECTIONS] - x[:, step.facts["features"] :][:, :DIRECTIONS]
            alike = cast[labels[label]].agg(" ".join, axis=1) if labels[label] else None
            right = {x.shape[1]: probes.unheard(x, cast[label], cast.speaker, alike, seed=seed)}
            enough = cast.drop_duplicates("speaker")[label].value_counts().min() > 2  # some are left out to be asked
            if name != "directions" and enough:
                right |= few(x, cast[label], cast.speaker, alike, seed=seed)
            told = dict(zip(cast.speaker, cast[label], strict=True))
            for width, each in right.items():
                shares = probes.by_speaker(each, cast.speaker)
                rows += [(label, name, width, who, told[who], share) for who, share in shares.items()]
        found = pd.DataFrame(rows, columns=["label", "input", "width", "speaker", "told", "right"])
        found.to_csv(folder / "read.csv", index=False)
        return {"labels": list(labels), "rows": len(found)}

    needs = {"clips": made["features"].needs["activations"].needs["clips"]} | made
    return Recipe(
        "voice-probes", read, {"seed": seed, "labels": labels, "few": FEW, "directions": DIRECTIONS}, needs=needs,
        code=(probed, few, values, probes, effects), by=made_by(run, "04"), label=f"probes for voices at {site}",
    )  # fmt: skip


_INPUTS = {"features": "dictionary", "random": "random dictionary", "directions": "principal directions"}


def few(x, y, speakers, alike=None, *, counts=FEW, folds: int = 8, repeats: int = 2, seed: int = 0) -> dict:
    """As `probes.unheard`, of the k features that tell the labels best: {k: (row,)} for each k of `counts`.

    The best are those with the greatest η² among the speakers that the probe is fitted on, so those it is asked about
    have no say. Speakers are dealt to folds in turn within every label and group of likes.
    """
    y, speakers = np.asarray(y).astype(str), np.asarray(speakers).astype(str)
    rows = pd.DataFrame({"speaker": speakers, "label": y, "alike": "" if alike is None else np.asarray(alike)})
    voices = rows.drop_duplicates("speaker")
    least = int(voices.groupby(["alike", "label"]).size().min())
    if least < 2:
        raise ValueError("labels: one has a single speaker among its likes, so no like of it can be asked about")
    right = {k: np.zeros(len(y)) for k in counts if k < x.shape[1]}
    for repeat in range(repeats):
        shuffled = voices.sample(frac=1, random_state=np.random.default_rng([seed, repeat]))
        turn = shuffled.groupby(["alike", "label"]).cumcount() % min(folds, least)
        fold = pd.Series(speakers).map(dict(zip(shuffled.speaker, turn, strict=True))).to_numpy()
        for number in np.unique(fold):
            out = fold == number
            fitted = effects.voices(x[~out], speakers[~out], pd.DataFrame({"label": y[~out]}))
            told = np.nan_to_num(effects.among(fitted.means, fitted.labels.label).eta_squared, nan=-1.0)
            best = np.argsort(-told, kind="stable")
            for k, each in right.items():
                probe = probes.fit(x[~out][:, best[:k]], y[~out])
                each[out] += probe.predict(x[out][:, best[:k]]) == y[out]
    return {k: each / repeats for k, each in right.items()}


def balanced(read: pd.DataFrame, level: float = 0.95) -> tuple[float, float, float]:
    """Balanced accuracy and its interval: `read` has a row a speaker, `told` its label and `right` its share right.

    The mean over labels of their speakers' means; Welch's degrees of freedom, so labels may differ in spread and size.
    No interval where a label has fewer than `intervals.LEAST` speakers.
    """
    middle, low, high = _balanced(read, level)
    return middle, float(np.maximum(0.0, low)), float(np.minimum(1.0, high))


def _balanced(read: pd.DataFrame, level: float) -> tuple[float, float, float]:
    parts = read.groupby("told").right.agg(["mean", "var", "size"])
    spread = parts["var"] / parts["size"]
    total = spread.sum()
    free = total**2 / (np.square(spread) / (parts["size"] - 1)).sum() if total > 0 else 1.0
    enough = parts["size"].min() >= intervals.LEAST
    reach = float(stats.t.ppf((1 + level) / 2, free) * np.sqrt(total)) / len(parts) if enough else np.nan
    middle = float(parts["mean"].mean())
    return middle, middle - reach, middle + reach


def compared(read: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`balanced` of each group: `by`, balanced, balanced_low, balanced_high, chance (1 / labels) and speakers."""
    rows = [(*name, *balanced(part), 1 / part.told.nunique(), len(part)) for name, part in read.groupby(by, sort=False)]
    return pd.DataFrame(rows, columns=[*by, "balanced", "balanced_low", "balanced_high", "chance", "speakers"])


def better(read: pd.DataFrame, label: str, one: str, other: str, level: float = 0.95) -> tuple[float, float, float]:
    """How much more one input tells of a label than another, both at their widest, and the interval: of `everything`.

    Differences of speakers, of whom each was asked both ways; their mean over labels, as in `balanced`.
    """
    mine = read[read.label == label]
    wide = {name: part[part.width == part.width.max()] for name, part in mine.groupby("input")}
    apart = wide[one].set_index("speaker").right - wide[other].set_index("speaker").right
    return _balanced(pd.DataFrame({"right": apart, "told": wide[one].set_index("speaker").told}).dropna(), level)


def everything(probed: Step, simple: Step, site: str, cast: effects.Voices) -> pd.DataFrame:
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
    told = {label: cast.labels[label] for label in theirs.label.unique()}
    theirs["told"] = [told[row.label].get(row.speaker, "") for row in theirs.itertuples()]
    theirs = theirs.replace({"input": {site: "activations", "log-mel": "log-mel"}}).assign(width=0)
    return pd.concat([ours, theirs[theirs.told != ""][list(ours)]], ignore_index=True)


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
