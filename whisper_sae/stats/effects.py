"""Who is speaking: how far groups of speakers differ in each feature, all features at once.

The speaker is the unit. Clips of one voice are no independent draws, so each speaker's clips are averaged first and
every number here is of speakers: n is how many there are. A feature that one speaker has no value for (how strongly it
fires, where it never does) is judged on those who have one.

    cast = effects.voices(firing_rate, clips.speaker, clips[["gender", "accent"]])    # clip by clip -> speaker
    found = effects.between(cast.means, cast.labels.gender)                           # d, g, AUC, t, p of each feature
    many = effects.among(cast.means, cast.labels.accent)                              # η², ω², F
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, stats

MISSING = {"", "nan", "none", "null", "unknown", "n/a", "na", "?", "-"}
"""What stands for no label, stray spaces and case aside."""


def tidy(labels) -> np.ndarray:
    """Labels without stray spaces and in lower case, "" where they say nothing (see MISSING): an array of str."""
    told = pd.Series(np.asarray(labels, dtype=object))
    told = told.where(told.notna(), "").astype(str).str.split().str.join(" ").str.casefold()
    return told.mask(told.isin(MISSING), "").to_numpy(dtype=str)


ROUNDING = 1e-24
"""A variance below so many times the feature's greatest square is what rounding leaves of a constant."""


class Voices(NamedTuple):
    """A row a speaker, in order of their names."""

    means: np.ndarray
    """(speaker, feature) float64: the mean over a speaker's clips, NaN where none of them has a value."""
    labels: pd.DataFrame
    """Their labels, tidied, "" where none is known; the index is the speaker."""
    clips: np.ndarray
    """(speaker,) how many clips each has."""
    nameless: int
    """Clips left out because they name no speaker: two of them may be of one voice."""
    corpus: np.ndarray | None = None
    """(speaker,) the corpus of each, where there are several: what is held fixed in every comparison."""


class OfClips(NamedTuple):
    """What features say of clips, (clip, feature) each: values for `voices`."""

    rate: np.ndarray
    """The share of the clip's frames that the feature fires on."""
    when_firing: np.ndarray
    """Its mean on those, NaN where there is none."""
    mean: np.ndarray
    """Its mean over all frames: the product of the two, or 0."""


def of_clips(codes, starts: np.ndarray) -> OfClips:
    """Means over the frames of each clip: `codes` (frame, feature) sparse, `starts` (clip + 1,) first frames and end.

    Of an index that is `found.columns(first, last)` and `found.starts`. A clip without frames has NaN.
    """
    frames = np.diff(starts)
    member = sparse.csr_matrix(
        (np.ones(starts[-1]), np.arange(starts[-1]), starts), shape=(len(frames), codes.shape[0])
    )
    total, fired = ((member @ sparse.csr_matrix(each)).toarray() for each in (codes, codes != 0))
    with np.errstate(invalid="ignore"):
        return OfClips(fired / frames[:, None], total / fired, total / frames[:, None])


def voices(values: np.ndarray, speaker, labels: pd.DataFrame | None = None) -> Voices:
    """Clip means to speaker means: each speaker counts once, however many clips there are.

    `values` (clip, feature), NaN where a clip has none; `speaker` (clip,) names; `labels` a row a clip, of which a
    column `corpus` is no label but says where a speaker is from. Raises ValueError where a speaker has two different
    labels, naming both, and for infinite values.
    """
    values, who = np.asarray(values, dtype=np.float64), named_as(speaker)
    if values.ndim != 2 or len(values) != len(who):
        raise ValueError(f"values: {values.shape} is not (clip, feature) for {len(who)} clips")
    if np.isinf(values).any():
        raise ValueError("values: some are infinite; a clip without a value has NaN")
    named = who != ""
    number, names = pd.factorize(who[named], sort=True)
    if not len(names):
        raise ValueError("speaker: no clip names one, and without speakers there is nothing to compare")
    values, clips = values[named], np.bincount(number)
    member = sparse.csr_matrix((np.ones(len(number)), (number, np.arange(len(number)))))  # (speaker, clip)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means = (member @ np.where(known, values, 0)) / (
            clips[:, None] if known.all() else member @ known.astype(float)
        )
    table = pd.DataFrame(index=pd.Index(names, name="speaker"))
    for name in () if labels is None else labels.columns:
        table[name] = _one_each(name, tidy(labels[name])[named], number, names)
    corpus = table.pop("corpus").to_numpy(dtype=str) if "corpus" in table else None
    corpus = corpus if corpus is not None and len(set(corpus)) > 1 else None
    return Voices(means, table, np.bincount(number), int((~named).sum()), corpus)


def named_as(speaker) -> np.ndarray:
    """Names of speakers without spaces around them, "" for None and NaN: an array of str. Case is kept."""
    told = pd.Series(np.asarray(speaker, dtype=object))
    return told.where(told.notna(), "").astype(str).str.strip().to_numpy(dtype=str)


def sums_by(number: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many values rows of each number 0, 1, … have, and their sums: (number, feature) each."""
    member = sparse.csr_matrix((np.ones(len(number)), (number, np.arange(len(number)))))  # (number, row)
    known = np.isfinite(x)
    return member @ known.astype(np.float64), member @ np.where(known, x, 0.0)


def _one_each(name: str, told: np.ndarray, number: np.ndarray, names: Sequence) -> np.ndarray:
    """The label of each speaker, from those of the clips; a clip without one takes its speaker's."""
    pairs = pd.DataFrame({"number": number, "told": told})[told != ""].drop_duplicates()
    if (twice := pairs[pairs.number.duplicated(keep=False)]).size:
        who = int(twice.number.iloc[0])
        both = " and ".join(sorted(twice.told[twice.number == who]))
        raise ValueError(
            f"{name}: speaker {str(names[who])!r} is both {both}; correct the table or leave the speaker out"
        )
    return pairs.set_index("number").told.reindex(range(len(names)), fill_value="").to_numpy(dtype=str)


def live(means: np.ndarray, least: int = 6) -> np.ndarray:
    """Which features can be asked about, (feature,) bool: at least `least` speakers differ from 0, and they vary."""
    seen = np.isfinite(means) & (means != 0)
    return (seen.sum(axis=0) >= least) & (np.nan_to_num(_spread(means)) > 0)


# ----------------------------------------------------------------------------------------------- two groups


class Between(NamedTuple):
    """Two groups compared; all but `groups` are (feature,), NaN where nothing can be said."""

    groups: tuple[str, str]
    d: np.ndarray
    """Cohen's d = (mean of the first - mean of the second) / pooled SD.

    ±inf, with neither t nor p, where the two differ and neither varies in itself.
    """
    g: np.ndarray
    """Hedges' g = d · (1 - 3 / (4 (n₁ + n₂) - 9)), which small groups do not inflate (Hedges 1981)."""
    auc: np.ndarray
    """The probability that a speaker of the first has the greater value, ties half; rank-biserial is 2 AUC - 1."""
    t: np.ndarray
    """Welch's t, which does not take the variances to be equal."""
    df: np.ndarray
    """Its degrees of freedom (Welch-Satterthwaite)."""
    p: np.ndarray
    """Its two-sided p, of speakers; not corrected for the number of features."""
    means: np.ndarray
    """(2, feature)."""
    n: np.ndarray
    """(2, feature) speakers that have a value."""

    @property
    def rank_biserial(self) -> np.ndarray:
        """2 AUC - 1, from -1 to 1."""
        return 2 * self.auc - 1


def pair(labels, groups: tuple[str, str] | None = None) -> tuple[tuple[str, str], np.ndarray]:
    """The two groups, and who is in them: (speaker,) 0 for the first, 1 for the second, -1 for neither.

    Without `groups` the labels must have exactly two values: in order of the alphabet. Raises ValueError for any
    other number, and for a group of fewer than two speakers.
    """
    told = tidy(labels)
    if groups is None:
        groups = tuple(np.unique(told[told != ""]).tolist())
        if len(groups) != 2:
            raise ValueError(f"labels: {len(groups)} groups ({', '.join(groups)}), not two: name two, or use `among`")
    one, other = tidy(groups).tolist()
    for name in (one, other):
        if (count := int((told == name).sum())) < 2:
            raise ValueError(f"labels: {count} speakers are {name!r}; at least 2 of each group are needed")
    return (one, other), np.select([told == one, told == other], [0, 1], -1)


def between(means: np.ndarray, labels, groups: tuple[str, str] | None = None) -> Between:
    """How far two groups of speakers differ in each feature: `means` (speaker, feature), `labels` (speaker,).

    Speakers of no group are left out. `groups` names the two, d > 0 where the first has more; see `pair`. A feature
    that fewer than two speakers of a group have a value for, or that is constant, has NaN.
    """
    groups, side = pair(labels, groups)
    means = np.asarray(means, dtype=np.float64)
    parts = [means[side == 0], means[side == 1]]
    (n1, m1, _), (n2, m2, _) = parts = [sums(part) for part in parts]
    least = ROUNDING * greatest(means[side >= 0])
    d = _d(*parts, least)
    with np.errstate(invalid="ignore", divide="ignore"):
        e1, e2 = (np.where(s <= least, 0, s) / (n - 1) / n for n, _, s in parts)
        t = np.where(np.isfinite(d), (m1 - m2) / np.sqrt(e1 + e2), np.nan)
        df = np.square(e1 + e2) / (np.square(e1) / (n1 - 1) + np.square(e2) / (n2 - 1))
        p = 2 * stats.t.sf(np.abs(t), df)
        auc = np.where(np.isnan(d), np.nan, superior(means[side >= 0], side[side >= 0] == 0)[0])
    g = d * (1 - 3 / (4 * (n1 + n2) - 9))
    return Between(groups, d, g, auc, t, df, p, np.stack([m1, m2]), np.stack([n1, n2]))


def _d(one: tuple, other: tuple, least: np.ndarray) -> np.ndarray:
    """Cohen's d of two groups told by their `sums`."""
    (n1, m1, s1), (n2, m2, s2) = one, other
    square = np.where(s1 + s2 <= least, 0, s1 + s2)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.where((square == 0) & (np.square(m1 - m2) <= least), 0, m1 - m2)
        return np.where((n1 > 1) & (n2 > 1), gap / np.sqrt(square / (n1 + n2 - 2)), np.nan)


def sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each column: how many values, their mean, and the sum of squares about it."""
    known = np.isfinite(x)
    n = known.sum(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, x, 0).sum(axis=0) / n
    return n, mean, np.square(np.where(known, x - mean, 0)).sum(axis=0)


def _spread(x: np.ndarray) -> np.ndarray:
    """The sum of squares about the mean, 0 where only rounding is left."""
    _, _, square = sums(x)
    return np.where(square <= ROUNDING * greatest(x), 0, square)


def greatest(x: np.ndarray) -> np.ndarray:
    """A feature's greatest square times the number of speakers, (feature,): ROUNDING of it is nothing."""
    return np.square(np.where(np.isfinite(x), x, 0)).max(axis=0, initial=0) * max(len(x), 1)


def superior(x: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mann & Whitney's U of the rows `first` over n₁n₂, and n₁n₂, (feature,) each."""
    known = np.isfinite(x)
    ranks = stats.rankdata(np.where(known, x, np.inf), axis=0)  # those without a value rank last, so they do not count
    n1, n2 = (known & first[:, None]).sum(axis=0), (known & ~first[:, None]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * (known & first[:, None])).sum(axis=0) - n1 * (n1 + 1) / 2) / (n1 * n2), n1 * n2


# ---------------------------------------------------------------------------------------------- many groups


class Among(NamedTuple):
    """Many groups compared; all but `groups` are (feature,), NaN where nothing can be said."""

    groups: tuple[str, ...]
    eta_squared: np.ndarray
    """The share of the variance of speakers that lies between groups; (groups - 1) / (n - 1) of it by chance."""
    omega_squared: np.ndarray
    """The same less what chance gives (Hays 1963); below 0 where chance gives more."""
    f: np.ndarray
    p: np.ndarray
    """Of Fisher's F, of speakers; not corrected for the number of features."""
    n: np.ndarray
    """Speakers that have a value and a label."""


def among(means: np.ndarray, labels) -> Among:
    """How far any number of groups differ in each feature (one-way analysis of variance over speakers).

    Speakers without a label are left out. Raises ValueError for fewer than two groups, or where nobody shares one.
    """
    told, means = tidy(labels), np.asarray(means, dtype=np.float64)
    names = np.unique(told[told != ""])
    if len(names) < 2 or (told != "").sum() <= len(names):
        raise ValueError(
            f"labels: {len(names)} groups of {(told != '').sum()} speakers; two and some who share are needed"
        )
    here = told != ""
    total, inside, count, groups = _spread(means[here]), 0.0, 0.0, 0.0
    for name in names:
        n, _, square = sums(means[told == name])
        inside, count, groups = inside + square, count + n, groups + (n > 0)
    inside = np.where(inside <= ROUNDING * greatest(means[here]), 0, inside)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where((total > 0) & (groups > 1) & (count > groups), total, np.nan)
        apart, noise = (total - inside) / (groups - 1), inside / (count - groups)
        f = apart / noise
        omega = (total - inside - (groups - 1) * noise) / (total + noise)
        return Among(
            tuple(map(str, names)), 1 - inside / total, omega, f, stats.f.sf(f, groups - 1, count - groups), count
        )


def pairwise(means: np.ndarray, labels, least: int = 2) -> tuple[tuple[str, ...], np.ndarray]:
    """Cohen's d between any two groups: their names, and (group, group, feature), row less column, 0 on the diagonal.

    A group of fewer than `least` speakers is left out.
    """
    told = tidy(labels)
    names = [str(name) for name in np.unique(told[told != ""]) if (told == name).sum() >= max(2, least)]
    x = np.asarray(means, dtype=np.float64)
    parts = [sums(x[told == name]) for name in names]
    found = np.zeros((len(names), len(names), x.shape[1]))
    for (i, one), (j, other) in itertools.combinations(enumerate(parts), 2):
        found[i, j] = _d(one, other, ROUNDING * greatest(x))
        found[j, i] = -found[i, j]
    return tuple(names), found
