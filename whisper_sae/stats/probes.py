"""Linear probes: what can be read off activations by weighing them, in speakers that the probe has never met.

A probe is a multinomial logistic regression on standardised inputs. That something can be read says that it is there,
not that the model uses it (Belinkov 2022); so every score stands beside what the same probe reads off simpler inputs.
Speakers are the unit: an accuracy is the mean over speakers of each one's share of right answers.
"""

import functools

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from whisper_sae.stats.intervals import LEAST

STRENGTHS = (0.01, 0.1, 1.0)
"""Values of scikit-learn's C that are tried."""

FOLDS = 5
"""Parts of speakers of whom one is asked about and one, in turn, chooses the strength."""


@functools.cache
def _threads() -> ThreadpoolController:
    """What sets the number of threads; to find the libraries takes longer than a small fit."""
    return ThreadpoolController()


def fit(x: np.ndarray, y: np.ndarray, strength: float = 1.0, weight: np.ndarray | None = None) -> Pipeline:
    """A probe for the labels `y` (row,) in the inputs `x` (row, width); `strength` is scikit-learn's C."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
    with _threads().limit(limits=1):  # products as small as these take three times as long on two cores
        return probe.fit(x, y, logisticregression__sample_weight=weight)


def tuned(x: np.ndarray, y: np.ndarray, speakers: np.ndarray, *, most: int = 2000, seed: int = 0) -> Pipeline:
    """A probe with the best of STRENGTHS for these inputs, so that none loses for want of tuning.

    The choice is made on at most `most` rows, fitted on five sixths of the speakers and asked about the others.
    """
    some = np.random.default_rng(seed).permutation(len(x))[:most]
    asked = np.isin(speakers[some], np.unique(speakers)[::6])
    if asked.all() or not asked.any():
        raise ValueError("speakers: at least two are needed, to choose a probe on one and fit it on another")
    scores = {
        strength: fit(x[some][~asked], y[some][~asked], strength).score(x[some][asked], y[some][asked])
        for strength in STRENGTHS
    }
    return fit(x, y, max(scores, key=scores.get))


def unheard(x, y, speakers, alike=None, *, strengths=STRENGTHS, folds: int = FOLDS, repeats: int = 1, seed: int = 0):
    """How often a probe that never met a row's speaker is right about the row: (row,), 0 to 1, over `repeats` splits.

    Speakers are split into `folds` within every label and, where `alike` names what else makes two of them sound alike
    (row,), such as the corpus, within every label of every such group. In each of these groups all labels weigh the
    same in fitting, so that neither the group tells the label, nor does leaving out a speaker leave its likes with
    mostly the other one. Each probe has the best of `strengths` by the fold after the one that it is asked about, of
    other speakers again. Raises ValueError where a label has a single speaker in such a group.
    """
    rows = rows_of(y, speakers, alike)
    right = np.zeros(len(rows))
    for repeat in range(repeats):
        fold = folds_of(rows, folds, np.random.default_rng([seed, repeat]))
        for number in np.unique(fold):
            asked = fold == number
            probe = chosen(x, rows, fold, number, strengths)
            right[asked] += probe.predict(x[asked]) == rows.label[asked]
    return right / repeats


def rows_of(y, speakers, alike=None) -> pd.DataFrame:
    """A row each with `speaker`, `label` and `alike`, all text; ValueError where a cell has a single speaker."""
    columns = {"speaker": speakers, "label": y, "alike": "" if alike is None else alike}
    rows = pd.DataFrame({name: np.broadcast_to(np.asarray(each).astype(str), len(y)) for name, each in columns.items()})
    cells = rows.drop_duplicates("speaker").groupby(["alike", "label"], sort=True).size()
    if cells.min() < 2:
        raise ValueError(f"labels: {cells.idxmin()} has a single speaker, so no like of it can be asked about")
    return rows


def folds_of(rows: pd.DataFrame, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each row of `rows_of`: those of a speaker together, speakers of a cell spread over the folds."""
    shuffled = rows.drop_duplicates("speaker").sample(frac=1, random_state=rng)
    cells = shuffled.groupby(["alike", "label"])
    start = rng.integers(folds, size=cells.ngroups)[cells.ngroup()]
    return rows.speaker.map(dict(zip(shuffled.speaker, (start + cells.cumcount()) % folds, strict=True))).to_numpy()


def chosen(x, rows: pd.DataFrame, fold: np.ndarray, number: int, strengths=STRENGTHS) -> Pipeline:
    """A probe that never met the speakers of a fold, of the strength that does best on the next fold's."""
    out = fold != number
    return fit(x[out], rows.label[out], best_strength(x, rows, fold, number, strengths), even(rows[out]))


def best_strength(x, rows: pd.DataFrame, fold: np.ndarray, number: int, strengths=STRENGTHS) -> float:
    """The strength that does best on the fold after `number`, of probes that met the speakers of neither."""
    numbers = np.unique(fold)
    other = numbers[(np.searchsorted(numbers, number) + 1) % len(numbers)]
    inner, scored = (fold != number) & (fold != other), fold == other
    if set(rows.label[inner]) != set(rows.label) or len(strengths) == 1:
        return strengths[-1]
    weight, truth = even(rows[scored]), rows.label[scored].to_numpy()
    right = {c: weight @ (fit(x[inner], rows.label[inner], c, even(rows[inner])).predict(x[scored]) == truth)
             for c in strengths}  # fmt: skip
    return max(right, key=right.get)


def even(rows: pd.DataFrame) -> np.ndarray:
    """Weights of rows with which all labels of a group of likes weigh the same; their mean in a group is 1."""
    total = rows.groupby("alike").label.transform("size") / rows.groupby("alike").label.transform("nunique")
    return (total / rows.groupby(["alike", "label"]).label.transform("size")).to_numpy()


def by_speaker(right: np.ndarray, speakers: np.ndarray) -> pd.Series:
    """Each speaker's share of right answers, from (row,) right answers, 0 to 1, and (row,) speakers."""
    return pd.Series(np.asarray(right, dtype=float)).groupby(np.asarray(speakers)).mean()


def interval(shares: pd.Series, level: float = 0.95) -> tuple[float, float, float]:
    """Mean over speakers of a number that each of them has, and its interval by Student's t: (mean, low, high). Fewer
    than `intervals.LEAST` have no interval."""
    n, mean = len(shares), float(shares.mean())
    reach = float(stats.t.ppf((1 + level) / 2, n - 1) * shares.std(ddof=1) / np.sqrt(n)) if n >= LEAST else np.nan
    return mean, mean - reach, mean + reach


def summary(read: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`interval` of `right` in each group, in order of appearance: right, right_low, right_high, and speakers."""
    rows = [
        (*name, *np.clip(interval(part.right), 0, 1), part.speaker.nunique())
        for name, part in read.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*by, "right", "right_low", "right_high", "speakers"])


def with_context(x: np.ndarray, clip: np.ndarray, reach: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Each row beside its `reach` neighbours on either side, (row, (2 reach + 1) · width); of `rows`, or else of all.

    Rows are in order; where a clip (its number a row) ends, its first or last row is repeated.
    """
    edges = np.flatnonzero(np.diff(clip)) + 1
    first = np.repeat(np.r_[0, edges], np.diff(np.r_[0, edges, len(clip)]))
    last = np.repeat(np.r_[edges, len(clip)] - 1, np.diff(np.r_[0, edges, len(clip)]))
    here = np.arange(len(x)) if rows is None else rows
    near = (np.clip(here + shift, first[here], last[here]) for shift in range(-reach, reach + 1))
    return np.concatenate([x[row] for row in near], axis=1)
