"""Linear probes: what can be read off activations by weighing them, in speakers that the probe has never met.

A probe is a multinomial logistic regression on standardised inputs. That something can be read says that it is there,
not that the model uses it (Belinkov 2022); so every score stands beside what the same probe reads off simpler inputs.
Speakers are the unit: an accuracy is the mean over speakers of each one's share of right answers.
"""

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from whisper_sae.intervals import LEAST

STRENGTHS = (0.01, 0.1, 1.0, 10.0)


def fit(x: np.ndarray, y: np.ndarray, strength: float = 1.0) -> Pipeline:
    """A probe for the labels `y` (row,) in the inputs `x` (row, width); `strength` is scikit-learn's C."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
    with threadpool_limits(1):  # products as small as these take three times as long on two cores
        return probe.fit(x, y)


def tuned(x: np.ndarray, y: np.ndarray, speakers: np.ndarray, *, most: int = 3000, seed: int = 0) -> Pipeline:
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


def unheard(x, y, speakers, alike=None, *, strength: float = 1.0, folds: int = 8, repeats: int = 4, seed: int = 0):
    """How often a probe that never met a row's speaker is right about the row: (row,), 0 to 1, over `repeats` dealings.

    Speakers are dealt to `folds` in turn within every label and, where `alike` names what else makes two of them sound
    alike (row,), within every label of every such group. That matters: where a label is balanced in each group, leaving
    out one speaker leaves its likes with mostly the other label, and a probe without any knowledge falls below chance.
    Raises ValueError where a label has a single speaker in such a group.
    """
    rows = pd.DataFrame({"speaker": np.asarray(speakers), "label": y, "alike": "" if alike is None else alike})
    cast = rows.drop_duplicates("speaker")
    cells = cast.groupby(["alike", "label"], sort=True)
    if (least := int(cells.size().min())) < 2:
        raise ValueError(f"labels: {cells.size().idxmin()} has a single speaker, so no like of it can be asked about")
    right = np.zeros(len(rows))
    for repeat in range(repeats):
        shuffled = cast.sample(frac=1, random_state=np.random.default_rng([seed, repeat]))
        turn = shuffled.groupby(["alike", "label"]).cumcount().reindex(cast.index)
        fold = rows.speaker.map(dict(zip(cast.speaker, turn % min(folds, least), strict=True))).to_numpy()
        for number in np.unique(fold):
            asked = fold == number
            told = fit(x[~asked], rows.label[~asked], strength).predict(x[asked])
            right[asked] += told == rows.label[asked]
    return right / repeats


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


def with_context(x: np.ndarray, clip: np.ndarray, reach: int) -> np.ndarray:
    """Each row beside its `reach` neighbours on either side, (row, (2 reach + 1) · width).

    Rows are in order; where a clip (its number a row) ends, its first or last row is repeated.
    """
    edges = np.flatnonzero(np.diff(clip)) + 1
    first = np.repeat(np.r_[0, edges], np.diff(np.r_[0, edges, len(clip)]))
    last = np.repeat(np.r_[edges, len(clip)] - 1, np.diff(np.r_[0, edges, len(clip)]))
    here = np.arange(len(x))
    return np.concatenate([x[np.clip(here + shift, first, last)] for shift in range(-reach, reach + 1)], axis=1)
