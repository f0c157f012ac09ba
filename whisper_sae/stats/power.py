"""How small a difference between groups of speakers can be and still be seen: before, and after, anything is measured.

Clips of one voice are alike, so the tenth clip of a speaker tells less than the first of another. With m clips a
speaker and an intraclass correlation ICC (the share of the clips' variance that lies between speakers), the mean of
m clips varies by σ² (1 + (m - 1) ICC) / m between speakers. The bracket is the design effect (Kish 1965): so many times
fewer independent clips there are than clips. A difference of d in SDs of clips is d · √(m / design effect) in SDs of
speakers' means, which is the Cohen's d that `effects.between` measures; more clips help until ICC alone is left.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats
from scipy.optimize import brentq

from whisper_sae.stats import effects


def design_effect(clips, icc) -> np.ndarray:
    """1 + (m - 1) · ICC: how many times more clips are needed than if none were of the same voice."""
    clips, icc = np.asarray(clips, dtype=np.float64), np.asarray(icc, dtype=np.float64)
    if (clips < 1).any() or (icc > 1).any() or (icc < 0).any():
        raise ValueError("clips and icc: a speaker has at least one clip, and an ICC lies between 0 and 1")
    return 1 + (clips - 1) * icc


def in_speakers(d, clips=1, icc=0.0) -> np.ndarray:
    """A difference in SDs of clips, in SDs of the means of `clips` clips a speaker: d · √(m / design effect)."""
    return np.asarray(d) * np.sqrt(np.asarray(clips) / design_effect(clips, icc))


def in_clips(d, clips=1, icc=0.0) -> np.ndarray:
    """A Cohen's d of speakers' means in SDs of single clips, which do not depend on how many there are."""
    return np.asarray(d) / in_speakers(1.0, clips, icc)


def power(d, n1, n2, level: float = 0.05) -> np.ndarray:
    """The probability that a two-sided t-test of n₁ and n₂ speakers sees a true Cohen's d of speakers' means.

    t is noncentral with n₁ + n₂ - 2 degrees of freedom about d √(n₁n₂ / (n₁ + n₂)) (Cohen 1988). Arrays are spread.
    """
    d, n1, n2 = (np.asarray(each, dtype=np.float64) for each in (d, n1, n2))
    if (np.minimum(n1, n2) < 2).any():
        raise ValueError("n1 and n2: a group needs at least two speakers")
    df, centre = n1 + n2 - 2, np.abs(d) * np.sqrt(n1 * n2 / (n1 + n2))
    critical = stats.t.ppf(1 - level / 2, df)
    return (
        1 - np.nan_to_num(special.nctdtr(df, centre, critical)) + np.nan_to_num(special.nctdtr(df, centre, -critical))
    )


def detectable(n1: int, n2: int, level: float = 0.05, wanted: float = 0.8) -> float:
    """The least Cohen's d of speakers' means that is seen with probability `wanted`; inf where even 1,000 is not."""
    if level <= 0:  # that of a threshold beyond all bounds
        return np.inf
    _check(level, wanted)
    most = 1.0
    while power(most, n1, n2, level) < wanted:
        most *= 2
        if most > 1_000:
            return np.inf
    return float(brentq(lambda d: power(d, n1, n2, level) - wanted, 0, most, xtol=1e-10))


def speakers_needed(d: float, level: float = 0.05, wanted: float = 0.8, most: int = 1_000_000) -> int:
    """Speakers in each of two groups with whom a Cohen's d of speakers' means is seen with probability `wanted`.

    Raises ValueError where `most` are not enough.
    """
    _check(level, wanted)
    if not power(d, most, most, level) >= wanted:
        raise ValueError(f"d: {d:g} is not seen with {most:,} speakers a group")
    few, many = 1, most  # one is never enough, `most` is
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if power(d, middle, middle, level) >= wanted else (middle, many)
    return many


def level_of(threshold: float, n1: int, n2: int) -> float:
    """The level of a t-test that |d| has to exceed `threshold` in: that of the greatest of many, `relabelling` says.

    So `power(d, n1, n2, level_of(threshold, n1, n2))` is the power after correction for the number of features.
    """
    return float(2 * stats.t.sf(threshold * np.sqrt(n1 * n2 / (n1 + n2)), n1 + n2 - 2))


def _check(level: float, wanted: float) -> None:
    if not 0 < level < wanted < 1:
        raise ValueError(f"level and wanted: {level:g} and {wanted:g} do not lie between 0 and 1 in this order")


def curve(n1: int, n2: int, clips: int = 1, icc: float = 0.0, level: float = 0.05, most: float = 2.0) -> pd.DataFrame:
    """Power over d: a row a difference, `d_clips` in SDs of clips, `d` in SDs of speakers' means, and `power`."""
    d = np.linspace(0, most, 101)
    return pd.DataFrame({"d_clips": in_clips(d, clips, icc), "d": d, "power": power(d, n1, n2, level)})


def table(speakers, clips, iccs, level: float = 0.05, wanted: float = 0.8) -> pd.DataFrame:
    """What can be seen in each design: a row for each number of speakers a group, of clips a speaker, and each ICC.

    Columns: speakers, clips, icc, design_effect, effective_clips (a group's clips over the design effect), d, the
    least that is seen in SDs of speakers' means, and d_clips, in SDs of clips.
    """
    found = []
    for n in speakers:
        d = detectable(n, n, level, wanted)
        for m in clips:
            for icc in iccs:
                effect = float(design_effect(m, icc))
                found.append((n, m, icc, effect, n * m / effect, d, float(in_clips(d, m, icc))))
    return pd.DataFrame(found, columns=["speakers", "clips", "icc", "design_effect", "effective_clips", "d", "d_clips"])


def needed(differences, clips, iccs, level: float = 0.05, wanted: float = 0.8) -> pd.DataFrame:
    """Sample sizes: speakers a group for each difference, in SDs of clips, number of clips a speaker, and ICC."""
    rows = [
        (d, m, icc, speakers_needed(float(in_speakers(d, m, icc)), level, wanted))
        for d in differences for m in clips for icc in iccs
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["d_clips", "clips", "icc", "speakers"])


class Likeness(NamedTuple):
    """How alike clips of a speaker are, (feature,); NaN where nothing can be said."""

    icc: np.ndarray
    """The share of the clips' variance that lies between speakers; below 0 where clips are less alike than chance."""
    between: np.ndarray
    """Variance between speakers, an estimate that may be below 0."""
    inside: np.ndarray
    """Variance between the clips of a speaker."""
    clips: float
    """Clips a speaker, as they count: (N - Σ m² / N) / (speakers - 1)."""


def likeness(values: np.ndarray, speaker, labels=None) -> Likeness:
    """ICC(1) by one-way random effects: (MSB - MSW) / (MSB + (m₀ - 1) MSW) (Donner 1986; Shrout & Fleiss 1979).

    `values` (clip, feature), `speaker` (clip,) names; with `labels` (clip,) the difference between groups is taken
    out first: MSB is then of speakers within groups, and clips without a label are left out. A clip of no value is no
    clip. Raises ValueError where no speaker has two clips.
    """
    values, who = np.asarray(values, dtype=np.float64), effects.named_as(speaker)
    group = effects.tidy(labels) if labels is not None else np.full(len(who), "all")
    here = (who != "") & (group != "")
    values, number = values[here], np.unique(who[here], return_inverse=True)[1]
    side = np.unique(group[here], return_inverse=True)[1]
    if not here.any() or np.bincount(number).max() < 2:
        raise ValueError("speaker: no one has two clips, so how alike they are cannot be told")
    known = np.isfinite(values)
    n, total = effects.sums_by(number, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        inside = np.square(np.where(known, values - np.nan_to_num(mean)[number], 0)).sum(axis=0)
        side_of = np.zeros(len(n), dtype=int)
        side_of[number] = side
        clips, squares = (effects.sums_by(side_of, each)[1] for each in (n, np.square(n)))
        centre = effects.sums_by(side_of, total)[1] / clips
        between = (n * np.square(np.where(n > 0, mean - centre[side_of], 0))).sum(axis=0)
        df_between, df_inside = (n > 0).sum(axis=0) - (clips > 0).sum(axis=0), (n - 1).clip(0).sum(axis=0)
        rest = n.sum(axis=0) - np.nansum(squares / clips, axis=0)
        size = rest / df_between
        msb, msw = between / df_between, inside / df_inside
        icc = (msb - msw) / (msb + (size - 1) * msw)
        return Likeness(icc, (msb - msw) / size, msw, float(np.nanmedian(size)))


def by_design(needed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `power.needed`, a row a difference and a column a design; of one clip, whose ICC does not matter, one."""
    once = needed[(needed.clips > 1) | ~needed.duplicated(["d_clips", "clips"])]
    named = [f"{r.clips} clips, ICC {r.icc:g}" if r.clips > 1 else "1 clip" for r in once.itertuples()]
    wide = once.assign(design=named).pivot(index="d_clips", columns="design", values="speakers")
    wide = wide[list(dict.fromkeys(named))].rename_axis(columns=None)
    return wide.reset_index().rename(columns={"d_clips": "d of clips"})
