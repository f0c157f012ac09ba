"""Who is speaking, asked of every feature of a site: what it says of each clip of speech, and of each speaker.

The recipe stands on those of `meaning` and is used like them; the rest glues an index to `effects` and what is
built on it:

    step = store.make(voices.of_features(run, seed, site))
    cast = voices.cast(step, heard, "rate")                   # clips -> speakers, with their labels
    found = voices.two(cast, "gender", strata="accent")       # a row a feature, and what chance gives
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from whisper_sae import activations as frames
from whisper_sae import codes as sparse_codes
from whisper_sae import confounds, effects, examples, index, intervals, probes, relabelling, speech
from whisper_sae.meaning import codes
from whisper_sae.profiles import Profile
from whisper_sae.recipes import made_by, table
from whisper_sae.store import Recipe, Step

FIRINGS = 1 << 22
"""About so many firings are read from an index at a time."""

MEASURES = ("rate", "when_firing")
"""On what share of a clip's frames of speech a feature fires, and its mean on those, NaN where it never does."""


def of_features(run: Profile, seed: int, site: str, of: str = "dictionary", **which) -> Recipe:
    """`rate.npy` and `when_firing.npy`: what each side of an index says of each clip's speech, (clip, side) float32.

    `clips.csv` has a row for each: `clip`, its row in the table of clips, and its `frames` of speech. Silence does not
    count, for how much of it a clip has is not a matter of the voice; a clip without speech is not there.
    """
    said = codes(run, seed, site, of, **which)

    def average(folder: Path, activations: Step, codes: Step) -> dict:
        held, found = frames.Activations(activations.path), index.Index(codes.path)
        here = held.valid_kinds() == speech.SPEECH
        clip = np.repeat(activations.table("windows.csv")["clip"].to_numpy(), held.counts)[here]
        names, number = np.unique(clip, return_inverse=True)
        count, sides = np.bincount(number), len(found.firings) - 1
        rate, when = (
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (len(names), sides))
            for name in MEASURES
        )
        for first, last in tqdm(_blocks(found.firings), desc=f"clips at {site}", unit=" blocks"):
            columns = sparse_codes.only(found.columns(first, last), here)
            fired = sparse_codes.coincidences(columns, number, len(names)).T
            total = sparse_codes.coincidences(columns, number, len(names), columns.data).T
            rate[:, first:last] = fired / count[:, None]
            when[:, first:last] = np.where(fired > 0, total / np.maximum(fired, 1), np.nan)
        rate.flush(), when.flush()
        pd.DataFrame({"clip": names, "frames": count}).to_csv(folder / "clips.csv", index=False)
        return {"clips": len(names), "sides": sides, "features": found.features, "frames": int(here.sum())}

    return Recipe(
        "voices", average, {"site": site, "of": of}, code=(of_features, _blocks, index, sparse_codes, frames),
        needs={"activations": said.needs["activations"], "codes": said}, by=made_by(run, "04"),
        label=f"{of} of {site}, clip by clip",
    )  # fmt: skip


def _blocks(firings: np.ndarray) -> list[tuple[int, int]]:
    """Sides by so many that about FIRINGS of them are read at a time: (first, last) of each block."""
    cuts = np.searchsorted(firings[:-1], np.arange(FIRINGS, firings[-1], FIRINGS))
    edges = np.unique(np.r_[0, cuts, len(firings) - 1]).tolist()
    return list(itertools.pairwise(edges))


# ------------------------------------------------------------------------------------------------- speakers


NO_LABELS = {"id", "path", "text", "speaker", "split", "duration", "corpus"}
"""Columns of the table of clips that are no labels of a voice."""

MOST_GROUPS = 12


def labels_of(heard: pd.DataFrame) -> list[str]:
    """The columns that group speakers: one value each, two to MOST_GROUPS values, and no numbers; gender comes first.

    A clip that names no speaker tells nothing of this.
    """
    rows = heard[effects.named_as(heard.speaker) != ""]
    found = []
    for name in sorted(set(rows) - NO_LABELS, key=lambda name: (name != "gender", name != "accent", name)):
        told = pd.DataFrame({"who": rows.speaker, "value": effects.tidy(rows[name])})
        told = told[told.value != ""].drop_duplicates()
        counts = told.value.value_counts()
        numbers = pd.to_numeric(told.value, errors="coerce").notna().all()
        if not told.who.duplicated().any() and not numbers and 2 <= len(counts) <= MOST_GROUPS and counts.iloc[1] > 1:
            found.append(name)
    return found


def values(step: Step, measure: str) -> np.ndarray:
    """What a step of `of_features` has of a measure, or of "mean", the product of the two: (clip, side) float64."""
    if measure != "mean":
        return step.array(f"{measure}.npy").astype(np.float64)
    return values(step, "rate") * np.nan_to_num(values(step, "when_firing"))


def cast(step: Step, heard: pd.DataFrame, measure: str = "rate") -> effects.Voices:
    """Speakers' means of their clips' values, and their labels: see `effects.voices`. `heard` is the table of clips."""
    rows = heard.iloc[step.table("clips.csv")["clip"].to_numpy()]
    return effects.voices(values(step, measure), rows.speaker, rows[labels_of(heard)])


def covariates(step: Step, heard: pd.DataFrame) -> pd.DataFrame:
    """Numbers told of the clips, as means of speakers, in the order of `cast`; what is the same for all is left out."""
    rows = heard.iloc[step.table("clips.csv")["clip"].to_numpy()]
    numbers = rows.drop(columns=NO_LABELS - {"duration"}, errors="ignore").apply(pd.to_numeric, errors="coerce")
    found = confounds.of_speakers(numbers.dropna(axis=1, how="all"), rows.speaker)
    return found.loc[:, found.nunique() > 1]


def groups_of(cast: effects.Voices, label: str) -> tuple[str, str]:
    """The two most frequent groups of a label, in order of the alphabet."""
    told = cast.labels[label]
    return tuple(sorted(told[told != ""].value_counts(sort=True).index[:2]))


def crossed(cast: effects.Voices, label: str, by: str) -> bool:
    """Whether every group of `by` has two speakers or more of each group of `label`."""
    known = cast.labels[(cast.labels[label] != "") & (cast.labels[by] != "")]
    return label != by and len(known) > 0 and int(pd.crosstab(known[label], known[by]).to_numpy().min()) > 1


# ------------------------------------------------------------------------------------------------- questions


class Found(NamedTuple):
    """Two groups in every feature that can be asked about."""

    table: pd.DataFrame
    """A row a feature that was tested, the greatest |d| first: feature, d, low, high, g, auc, auc_low, auc_high, mean
    and n of either group (`one`, `other`), p, q, p_family."""
    chance: relabelling.Relabelled


MOST_DEALS = 50_000


def two(cast: effects.Voices, label: str, strata: str = "", seed: int = 0, deals: int = 0) -> Found:
    """Two groups of speakers compared in every living feature, and what `deals` random labellings give.

    By default 10,000, and 24 for each feature where that is more, up to MOST_DEALS: no p is below 1 / deals, and with
    fewer a single feature could not be found at a false discovery rate of 5 %.

    With `strata` d is that within its groups, and has no interval; g and AUC are over all. Raises ValueError where a
    group has fewer than `intervals.LEAST` speakers.
    """
    groups, told = groups_of(cast, label), cast.labels[label]
    tested = asked(cast, label)
    by = cast.labels[strata] if strata else None
    deals = deals or int(min(MOST_DEALS, max(10_000, 24 * tested.sum())))
    chance = relabelling.relabelled(cast.means, told, groups, by, tested=tested, deals=deals, seed=seed)
    here = np.flatnonzero(chance.tested)
    x = cast.means[:, here]
    known = effects.between(x, told, groups)
    of_auc = intervals.of_auc(known.auc, *known.n)
    low, high = (np.nan, np.nan) if strata else intervals.of_d(x, told, groups, seed=seed)[1:]
    table = pd.DataFrame({"feature": here, "d": chance.d[here], "low": low, "high": high, "g": known.g})
    table = table.assign(auc=known.auc, auc_low=of_auc.low, auc_high=of_auc.high, one=known.means[0])
    table = table.assign(other=known.means[1], n_one=known.n[0].astype(int), n_other=known.n[1].astype(int))
    table = table.assign(p=chance.p[here], q=chance.q[here], p_family=chance.p_family[here])
    order = table.d.abs().sort_values(ascending=False, kind="stable").index
    return Found(table.loc[order].reset_index(drop=True), chance)


def asked(cast: effects.Voices, label: str) -> np.ndarray:
    """(feature,) bool: those that vary, and for which `intervals.LEAST` speakers of each of two groups have a value."""
    told, groups = cast.labels[label].to_numpy(), groups_of(cast, label)
    least = [np.isfinite(cast.means[told == name]).sum(axis=0) for name in groups]
    return effects.live(cast.means, intervals.LEAST) & (np.min(least, axis=0) >= intervals.LEAST)


def answerable(cast: effects.Voices, label: str) -> bool:
    """Whether a label has two groups, of `intervals.LEAST` speakers or more each, beside which any other is small."""
    counts = cast.labels[label].replace("", np.nan).value_counts()
    return len(counts) >= 2 and counts.iloc[1] >= intervals.LEAST and counts.iloc[2:].sum() < counts.iloc[1]


def counted(found: Found, label: str, measure: str) -> dict:
    """A row of how many features were found, and how many chance gives."""
    chance = found.chance
    return {
        "label": label, "measure": measure.replace("_", " "), "tested": len(found.table),
        "found": int(chance.found.sum()), "beyond": int(chance.beyond.sum()), "threshold": chance.threshold,
        "p ≤ 0.05": chance.nominal,
        "by chance": f"{chance.by_chance.mean():.0f} (95 %: {np.quantile(chance.by_chance, 0.95):.0f})",
    }  # fmt: skip


class Many(NamedTuple):
    """More than two groups in every feature that can be asked about."""

    table: pd.DataFrame
    """A row a feature, the greatest η² first: feature, eta_squared, omega_squared, f, p and q."""
    by_chance: np.ndarray
    """(deal,) how many features have p of at most 0.05 where labels are dealt anew."""
    threshold: float
    """η² that chance alone exceeds anywhere in one deal of twenty."""


def many(cast: effects.Voices, label: str, strata: str = "", seed: int = 0, deals: int = 400) -> Many:
    """Any number of groups, compared in every living feature by Fisher's F, and what dealt labels give.

    Labels are dealt among speakers, within `strata` where told.
    """
    told = cast.labels[label].to_numpy()
    here = np.flatnonzero(effects.live(cast.means) & np.isfinite(cast.means).all(axis=0))
    x, rng = cast.means[:, here], np.random.default_rng(seed)
    among = effects.among(x, told)
    by = cast.labels[strata].to_numpy() if strata else np.full(len(told), "all")
    places, greatest, count = [np.flatnonzero(by == one) for one in np.unique(by)], [], []
    for _ in range(deals):
        dealt = told.copy()
        for rows in places:
            dealt[rows] = rng.permutation(told[rows])
        by_lot = effects.among(x, dealt)
        greatest.append(np.nanmax(by_lot.eta_squared))
        count.append(int((by_lot.p <= 0.05).sum()))
    known = np.isfinite(among.p)
    table = pd.DataFrame({"feature": here, "eta_squared": among.eta_squared, "omega_squared": among.omega_squared,
                          "f": among.f, "p": among.p})[known]  # fmt: skip
    table["q"] = stats.false_discovery_control(table.p) if len(table) else []
    table = table.sort_values("eta_squared", ascending=False, kind="stable", ignore_index=True)
    return Many(table, np.array(count), float(np.quantile(greatest, 0.95)))


def held(cast: effects.Voices, label: str, told: pd.DataFrame) -> pd.DataFrame:
    """What is left of the differences between two groups with each covariate held fixed: a row a covariate, `told`
    being those of `covariates`.

    Columns: label; held; its own `d` between the groups; `left`, the share of the grouping that it does not tell;
    `found` features at a false discovery rate of 5 % by t-tests, before (`found_before`) and after; the `greatest` |t|,
    and before. |d| would be no measure: the less of a grouping is left, the farther off it is by chance. A covariate
    that tells the groups by itself has NaN.
    """
    groups, here = groups_of(cast, label), np.flatnonzero(asked(cast, label))
    x, known = cast.means[:, here], cast.labels[label]
    before = _discovered(effects.between(x, known, groups))
    own = effects.between(told.to_numpy(), known, groups).d
    rows = []
    for name, d in zip(told, own, strict=True):
        try:
            after = confounds.adjusted(x, known, told[[name]], groups)
            rest = (float(np.nanmedian(after.left)), *_discovered(after))
        except ValueError:
            rest = (0.0, np.nan, np.nan)
        rows.append((label, name, d, *rest, *before))
    return pd.DataFrame(rows, columns=["label", "held", "d", "left", "found", "greatest", "found_before",
                                       "greatest_before"])  # fmt: skip


def _discovered(of) -> tuple[int, float]:
    """How many features have q of at most 0.05, and the greatest |t|."""
    p = of.p[np.isfinite(of.p)]
    q = stats.false_discovery_control(p) if len(p) else p
    return int((q <= 0.05).sum()), float(np.abs(of.t[np.isfinite(of.t)]).max(initial=0))


def alike(shelf: examples.Examples, heard: pd.DataFrame, feature: int, label: str, groups, n: int = 2) -> pd.DataFrame:
    """Examples of a feature in which a voice of either group says it equally strongly: n pairs, the strongest first.

    Of each speaker the clip with the highest peak; `kind` says the group and the speaker. Fewer where voices are few.
    """
    peaks = shelf.loudest(feature, len(heard), per_speaker=1)
    told = effects.tidy(heard[label])[peaks["clip"]]
    one, other = (peaks[told == name] for name in groups)
    pairs = []
    while len(pairs) < 2 * n and len(one) and len(other):
        gap = np.abs(np.subtract.outer(one.value.to_numpy(), other.value.to_numpy()))
        top = min(one.value.max(), other.value.max())
        low = np.minimum.outer(one.value.to_numpy(), other.value.to_numpy())
        i, j = np.unravel_index(np.argmin(np.where(low >= top / 2, gap, np.inf)), gap.shape)
        pairs += [one.iloc[[i]].assign(kind=f"{groups[0]} {one.speaker.iloc[i]}"),
                  other.iloc[[j]].assign(kind=f"{groups[1]} {other.speaker.iloc[j]}")]  # fmt: skip
        one, other = one.drop(one.index[i]), other.drop(other.index[j])
    return pd.concat(pairs, ignore_index=True) if pairs else peaks[:0]


# ---------------------------------------------------------------------------------------------------- probes


DIRECTIONS = 32
"""Principal directions that a probe reads; those with the most variance."""

FEW = (1, 2, 4, 8, 16, 32, 64)
"""Of how many features, the best on the training speakers, a sparse probe may read."""


def probed(run: Profile, seed: int, site: str, labels: dict[str, list[str]]) -> Recipe:
    """`read.csv`: how often each speaker's label is read right off the means of its clips by probes that never met it.

    Columns `label input width speaker told right`. Inputs are all features of the dictionary and of the random one, and
    the first DIRECTIONS principal directions; `width` is how many numbers were read. Of the two dictionaries there are
    rows for FEW features, too, chosen anew on the training speakers each time, where each group of a label has three
    speakers. `labels` names, for each, what else makes speakers alike: see `probes.unheard`. `recipes.label_probe`
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
    """
    parts = read.groupby("told").right.agg(["mean", "var", "size"])
    spread = parts["var"] / parts["size"]
    total = spread.sum()
    free = total**2 / (np.square(spread) / (parts["size"] - 1)).sum() if total > 0 else 1.0
    reach = float(stats.t.ppf((1 + level) / 2, free) * np.sqrt(total)) / len(parts)
    middle = float(parts["mean"].mean())
    return middle, max(0.0, middle - reach), min(1.0, middle + reach)


def compared(read: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`balanced` of each group: `by`, balanced, balanced_low, balanced_high, chance (1 / labels) and speakers."""
    rows = [(*name, *balanced(part), 1 / part.told.nunique(), len(part)) for name, part in read.groupby(by, sort=False)]
    return pd.DataFrame(rows, columns=[*by, "balanced", "balanced_low", "balanced_high", "chance", "speakers"])


def everything(probed: Step, simple: Step, site: str, cast: effects.Voices) -> pd.DataFrame:
    """`read.csv` of `probed`, below it that of `recipes.label_probe` for log-mel and the site's own frames.

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
    said = [
        f"{100 * r.balanced:.0f} ({100 * r.balanced_low:.0f}–{100 * r.balanced_high:.0f})" for r in scores.itertuples()
    ]
    wide = scores.assign(said=said).pivot(index="input", columns="label", values="said")
    wide = wide.reindex(index=scores.input.unique(), columns=scores.label.unique())
    chance = scores.drop_duplicates("label").set_index("label").chance
    wide.loc["majority"] = [f"{100 * chance[name]:.0f}" for name in wide]
    return wide.rename_axis(columns=None).rename_axis("input").reset_index()


def by_design(needed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `power.needed`, a row a difference and a column a design; of one clip, whose ICC does not matter, one."""
    once = needed[(needed.clips > 1) | ~needed.duplicated(["d_clips", "clips"])]
    named = [f"{r.clips} clips, ICC {r.icc:g}" if r.clips > 1 else "1 clip" for r in once.itertuples()]
    wide = once.assign(design=named).pivot(index="d_clips", columns="design", values="speakers")
    wide = wide[list(dict.fromkeys(named))].rename_axis(columns=None)
    return wide.reset_index().rename(columns={"d_clips": "d of clips"})
