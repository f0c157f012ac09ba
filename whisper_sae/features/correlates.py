"""What of the sound explains a feature, before anyone calls it a word: rank correlations, AUC, and flags such as
"loudness", "pitch" or "padding edge".

The correlation is Spearman's over all frames on which the measure is known, those where the feature is silent too. Over
the frames where it fires alone, a feature that fires wherever it is loud, no matter how loud, would show nothing, and a
rare one would have nothing to show it with. But ties at zero keep it small for a rare feature, and AUC, which does not
mind them, does not mind false alarms either. So neither makes a flag.

A flag is given for what is *explained*: each half of the speakers teaches how strong the feature is on average at each
height of the measure, whatever shape that has, and the other half is asked which share of the feature's variance that
takes away (R², of both together). To wear a flag a feature must have EXPLAINED of it, and more than chance: the measure
gone round in every clip (see `chance`), at a false discovery rate. What differs between speakers alone stays in that
chance, so a feature for deep voices is not flagged "pitch".
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array
from scipy.special import expit
from scipy.stats import rankdata

from whisper_sae.features.selectivity import Ranked, ranked
from whisper_sae.features.sparse_acts import Frames, blocks, coincidences, feature_of, half_of, only
from whisper_sae.stats import intervals, null_distribution

FLAGS = {
    "energy": "loudness",
    "pitch": "pitch",
    "voicing": "voicing",
    "centroid": "brightness",
    "tilt": "spectral tilt",
    "crossings": "noisiness",
    "position": "position",
    "since silence": "time since silence",
    "until silence": "time to silence",
    "until padding": "time to padding",
}
"""What a feature is called that a measure explains; one that is not here gives its own name."""

EXPLAINED = 0.25
"""R² from which on a measure explains a feature: a correlation of one half, which Cohen (1988) calls large."""

SIMPLER = 0.05
"""R² that, say, the time since a silence must explain more than "start of speech" does, to be named before it."""

LEAST = 10
"""Firings that a feature must have in each half of the speakers for anything to be said of it."""

LEVELS = expit(np.linspace(-6, 6, 49))
"""Quantiles at which the height of a measure is cut: closer at both ends, where rare features fire."""


class Correlates(NamedTuple):
    """What goes with each feature; (feature, measure), NaN where nothing can be said."""

    names: np.ndarray
    """(measure,)."""
    correlation: np.ndarray
    """Spearman's, over all frames on which the measure is known."""
    low: np.ndarray
    high: np.ndarray
    """Its 95 % interval over speakers; NaN for fewer than `intervals.LEAST`."""
    auc: np.ndarray
    """Of what is there or not: P(higher where it is) + P(equal) / 2. NaN for other measures."""
    explained: np.ndarray
    """The share of variance that the measure explains in speakers that taught nothing; below 0 for worse than none."""
    q: np.ndarray
    """The false discovery rate at which that is more than chance."""
    explained_shifted: np.ndarray
    q_shifted: np.ndarray
    """Both of the same measures once gone round in every clip, judged like the true ones: a control."""
    frames: np.ndarray
    """(measure,) frames on which it is known."""
    fires: np.ndarray
    """(feature,) the share of all frames on which it fires."""

    def flagged(self, least: float = EXPLAINED, rate: float = 0.05) -> np.ndarray:
        """Which features wear the flag of which measure: (feature, measure) bool."""
        with np.errstate(invalid="ignore"):
            return (self.explained >= least) & (self.q <= rate)

    def flagged_shifted(self, least: float = EXPLAINED, rate: float = 0.05) -> np.ndarray:
        """Which would wear it had the measures gone round once: (feature, measure) bool. All of these are wrong."""
        with np.errstate(invalid="ignore"):
            return (self.explained_shifted >= least) & (self.q_shifted <= rate)

    def table(self, least: float = EXPLAINED, rate: float = 0.05) -> pd.DataFrame:
        """A row a feature: its flag, "" for none, and the measure that explains it best, with what is known of both.

        `wears` names all its flags, best first: measures go together, and no one of them need be the cause. An event
        comes before any other measure that explains less than SIMPLER more.
        """
        worn, event = self.flagged(least, rate), np.isfinite(self.auc).any(axis=0)
        order = np.argsort(-np.nan_to_num(self.explained + (9 + SIMPLER * event) * worn, nan=-np.inf), axis=1)
        best, rows = order[:, 0], np.arange(len(order))
        names = np.array([FLAGS.get(name, name) for name in self.names])
        wears = [", ".join(names[mine[there[mine]]]) for mine, there in zip(order, worn, strict=True)]
        wide = ("correlation", "low", "high", "auc", "explained", "q")
        known = np.isfinite(self.explained[rows, best])
        told = {name: np.where(known, getattr(self, name)[rows, best], np.nan) for name in wide}
        told |= {"fires": self.fires, "wears": wears}
        flag, measure = np.where(worn[rows, best], names[best], ""), np.where(known, self.names[best], "")
        return pd.DataFrame({"flag": flag, "measure": measure} | told).rename_axis("feature")

    def worn(self, least: float = EXPLAINED, rate: float = 0.05) -> pd.DataFrame:
        """A row a measure: how many `features` wear its flag, how many it explains `best`, how many would wear it had
        the measures gone round (`shifted`), and how many could be `asked`."""
        best = self.table(least, rate)
        told = {
            "flag": [FLAGS.get(name, name) for name in self.names],
            "measure": self.names,
            "features": self.flagged(least, rate).sum(axis=0),
            "best": best[best.flag != ""].measure.value_counts().reindex(self.names, fill_value=0).to_numpy(),
            "shifted": self.flagged_shifted(least, rate).sum(axis=0),
            "asked": np.isfinite(self.explained).sum(axis=0),
        }
        return pd.DataFrame(told)


def correlates(
    codes: csc_array, measures: pd.DataFrame, speaker, clip, *, shifts: int = 40, draws: int = 500, seed: int = 0,
    progress: Callable = iter,
) -> Correlates:  # fmt: skip
    """What of `measures`, a column each and a row a frame, goes with each feature of `codes`, (frame, feature).

    NaN is a frame on which a measure is not known, and is left out for that measure alone. A column of only 0 and 1
    is an event, and has an AUC. `speaker` and `clip` are (frame,); frames of a clip follow each other. Where there is
    one speaker, halves and intervals are of clips; where there is one clip, there is no other to ask, and nothing is
    explained. `progress` wraps the iteration over measures. Raises ValueError for lengths that differ, or a clip in
    pieces.
    """
    speaker, clip = _checked(codes, measures, speaker, clip)
    unit = clip if speaker.max(initial=0) == 0 else speaker
    teaching = half_of(unit, seed)
    shape = (codes.shape[1], measures.shape[1])
    found = {name: np.full(shape, np.nan) for name in ("correlation", "low", "high", "auc", "explained")}
    spread, size = np.full(shape, np.nan), np.full(shape, np.nan)
    by_chance = np.full((shifts + 1, *shape), np.nan, dtype=np.float32)
    known = np.isfinite(measures.to_numpy(float))
    for column in progress(range(shape[1])):
        here = known[:, column]
        value = measures.iloc[:, column].to_numpy(float)[here]
        if not len(value) or value.min() == value.max():
            continue
        inner, event = only(codes, here), np.isin(value, (0, 1)).all()
        frames = Frames((value > value.min()).astype(int), np.array(["", "there"]), unit[here], clip[here])
        for name, each in _goes_with(inner, frames, value, event, draws, seed).items():
            found[name][:, column] = each
        if explainer := _explainer(inner, value, teaching[here], event):
            found["explained"][:, column] = explainer.share(explainer.bin)
            spread[:, column], size[:, column] = explainer.spread, explainer.firings
            for row, order in enumerate(null_distribution.shifts(frames.clip, shifts + 1, seed)):
                by_chance[row, :, column] = explainer.share(explainer.bin[order])
    found |= {"explained_shifted": by_chance[0].astype(float)}
    for name, there in {"q": "explained", "q_shifted": "explained_shifted"}.items():
        found[name] = null_distribution.judge(found[there], by_chance[1:], spread, size).q
    fires = np.bincount(feature_of(codes)[codes.data > 0], minlength=shape[0]) / max(codes.shape[0], 1)
    return Correlates(np.array(list(measures), dtype=str), **found, frames=known.sum(axis=0), fires=fires)


def _checked(codes: csc_array, measures: pd.DataFrame, speaker, clip) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of speakers and clips."""
    for name, given in {"measures": measures, "speaker": speaker, "clip": clip}.items():
        if len(given) != codes.shape[0]:
            raise ValueError(f"{name}: {len(given)} for {codes.shape[0]} frames of codes")
    speaker, (clip, names) = pd.factorize(np.asarray(speaker))[0], pd.factorize(np.asarray(clip))
    if (np.diff(clip) != 0).sum() + 1 > max(len(names), 1):
        raise ValueError("clip: the frames of a clip must follow each other")
    return speaker, clip


# ------------------------------------------------------------------------------------------- what is explained


class _Explainer(NamedTuple):
    """The share of each feature's variance that bins of a measure explain in the half that did not teach it."""

    frame: np.ndarray
    """(entry,) of the codes,"""
    cell: np.ndarray
    """(entry,) 2 · bins · its feature,"""
    weight: np.ndarray
    """(entry,) and its value."""
    bin: np.ndarray
    """(frame,) the height of the measure."""
    bins: int
    half: np.ndarray
    """(frame,) 0 or 1."""
    sums: np.ndarray
    """(feature, half) of its values,"""
    squares: np.ndarray
    """and of their squares."""
    firings: np.ndarray
    """(feature,) in the half that has fewer; 0 where it always says the same."""

    def share(self, where: np.ndarray) -> np.ndarray:
        """R² were the frames of heights `where`, (frame,): (feature,)."""
        key, cells = where + self.bins * self.half, self.sums.size * self.bins
        total = np.bincount(key[self.frame] + self.cell, self.weight, minlength=cells).reshape(-1, 2, self.bins)
        count = np.bincount(key, minlength=2 * self.bins).reshape(2, self.bins)
        overall = self.sums / count.sum(axis=1)  # (feature, half)
        mean = total / np.maximum(count, 1)
        np.copyto(mean, overall[:, :, None], where=count == 0)
        mean = mean[:, ::-1]  # what the other taught
        error = (
            self.squares - 2 * np.einsum("fhb,fhb->fh", mean, total) + np.einsum("hb,fhb,fhb->fh", count, mean, mean)
        )
        own = self.squares - self.sums * overall
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.firings >= LEAST, 1 - error.sum(axis=1) / own.sum(axis=1), np.nan)

    @property
    def spread(self) -> float:
        """About the deviation of R² were all frames independent: the least that it can really be."""
        return float(np.sqrt(2 * self.bins) / len(self.half))


def _explainer(codes: csc_array, value: np.ndarray, teaching: np.ndarray, event: bool) -> _Explainer | None:
    """None where a half is missing, or the measure is constant in one."""
    sides = [value[teaching], value[~teaching]]
    if not all(len(side) and side.min() < side.max() for side in sides):
        return None
    edges = np.array([0.5]) if event else np.unique(np.quantile(value, LEVELS))
    where, half = np.searchsorted(edges, value, side="right"), (~teaching).astype(int)
    weight = codes.data.astype(np.float64)
    sums, squares = (coincidences(codes, half, 2, weight**power) for power in (1, 2))
    own = squares - sums**2 / np.bincount(half)
    fires = coincidences(codes, half, 2).min(axis=1)
    firings, bins = np.where((own > 1e-9 * squares).all(axis=1), fires, 0), len(edges) + 1
    cell = feature_of(codes).astype(np.int64) * (2 * bins)
    return _Explainer(codes.indices, cell, weight, where, bins, half, sums, squares, firings)


# ------------------------------------------------------------------------------------------ rank correlation


def spearman(codes: csc_array, value: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each feature with a measure, (frame,), ties at their mean rank: (feature,).

    NaN for a feature, or a measure, that does not vary.
    """
    none = np.zeros(len(value), dtype=int)
    return _spearman(ranked(codes, Frames(none, np.array([""]), none, none)), np.asarray(value, float), none, 0, 0)[0]


def _goes_with(codes: csc_array, frames: Frames, value: np.ndarray, event: bool, draws: int, seed: int) -> dict:
    """The correlation with its interval and, of an event, the AUC: (feature,) each."""
    ranks = ranked(codes, frames)
    found = dict(zip(("correlation", "low", "high"), _spearman(ranks, value, frames.speaker, draws, seed), strict=True))
    return found | ({"auc": ranks.auc(frames.label)[:, 1]} if event else {})


def _spearman(ranks: Ranked, value: np.ndarray, unit: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, ...]:
    """The correlation, and its interval over units: (feature,) each. Drawn units keep the ranks of all frames."""
    y = rankdata(value) - (len(value) + 1) / 2
    who, number = np.unique(unit, return_inverse=True)
    silent = ranks.at_zero - (len(value) + 1) / 2  # (feature,) what a frame at zero has
    n, of_y, of_yy = (np.bincount(number, y**power) for power in (0, 1, 2))
    weights = [np.ones((1, len(who)))]
    if len(who) >= intervals.LEAST and draws:
        even = np.full(len(who), 1 / len(who))
        weights.append(np.random.default_rng(seed).multinomial(len(who), even, size=draws).astype(float))
    rho, low, high = (np.full(len(silent), np.nan) for _ in range(3))
    for some, inner in blocks(ranks.codes):
        above = ranks.above[ranks.codes.indptr[some.start] : ranks.codes.indptr[some.stop]]
        key, z = feature_of(inner) * len(who) + number[inner.indices], silent[some][:, None]
        a, aa, ay = (
            np.bincount(key, weight, minlength=inner.shape[1] * len(who)).reshape(-1, len(who))
            for weight in (above, above**2, above * y[inner.indices])
        )
        sums = (n, n * z + a, of_y, n * z**2 + 2 * z * a + aa, of_yy, z * of_y + ay)
        parts = [_pearson(*(part @ weight.T for part in sums)) for weight in weights]  # (feature, draw)
        rho[some] = parts[0][:, 0]
        if len(parts) > 1:
            drawn = np.where(np.isnan(parts[1]), 0, parts[1])  # who was drawn may never hear it
            ends = np.stack(intervals.of_draws(drawn.T, len(who)))
            low[some], high[some] = np.where(np.isnan(rho[some]), np.nan, ends)
    return rho, low, high


def _pearson(n, x, y, xx, yy, xy) -> np.ndarray:
    """The correlation of sums; NaN where one of both does not vary."""
    spread_x, spread_y = xx - x**2 / n, yy - y**2 / n
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (xy - x * y / n) / np.sqrt(spread_x * spread_y)
    return np.where((spread_x > 1e-9 * xx) & (spread_y > 1e-9 * yy), rho, np.nan)
