"""A random forest that is asked for a label of the speaker, frame by frame, in two ways; one of them is wrong.

The reference system (whisper-sae v1) split frames at random, and so asked about speakers whom the forest had met. It
need not know then what a label sounds like: it is enough to know the voices. To see that, the same forest is also asked
for a label that each speaker got by lot, which nothing in the sound can tell.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score

from whisper_sae.stats import intervals

TREES = 100
FOLDS = 3


def read(x: np.ndarray, label, speaker, seed: int = 0, trees: int = TREES, progress: Callable = iter) -> pd.DataFrame:
    """How often a forest names the label (frame,) of frames x (frame, feature) right: a row a label and a split.

    `label` is "as recorded" or "by lot", dealt to the speakers; the latter is asked for with frames alone, for of new
    speakers it tells nothing. `split` is "frames", a fifth of them held out as v1 did, or "speakers": each is asked
    about by a forest that never met it, in FOLDS turns or as many as a label has speakers. `right` is the share
    of frames, `majority` that of the most frequent label, `balanced` the mean over labels of the share right, `low` and
    `high` its 95 % interval by a bootstrap over speakers; NaN where a label has fewer than `intervals.LEAST`.

    Raises ValueError unless there are two labels with two speakers of each.
    """
    label, speaker = np.asarray(label).astype(str), np.asarray(speaker).astype(str)
    cast = pd.DataFrame({"speaker": speaker, "label": label}).drop_duplicates()
    count = cast.label.value_counts()
    if cast.speaker.duplicated().any():
        raise ValueError("label: a speaker has two; this asks for labels of speakers")
    if len(count) < 2 or count.min() < 2:
        raise ValueError("label: two with two speakers of each are needed, to be asked about speakers that are new")
    rng = np.random.default_rng(seed)
    lot = dict(zip(cast.speaker, rng.permutation(cast.label.to_numpy()), strict=True))
    by_lot = pd.Series(speaker).map(lot).to_numpy(str)
    ways = [("as recorded", label, "frames"), ("as recorded", label, "speakers"), ("by lot", by_lot, "frames")]
    rows = []
    for name, y, split in progress(ways):
        told = np.full(len(y), "", dtype=object)
        for out in (_by_frame if split == "frames" else _by_speaker)(y, speaker, rng):
            forest = RandomForestClassifier(trees, class_weight="balanced", random_state=seed).fit(x[~out], y[~out])
            told[out] = forest.predict(x[out])
        rows.append({"label": name, "split": split} | _scores(told, y, speaker))
    return pd.DataFrame(rows)


def first(speaker, most: int) -> np.ndarray:
    """At most `most` frames, the first of each speaker (frame,), about as many of each: their numbers, in order.

    v1 took frames in their order, too, so that most have a neighbour in time beside them. "" is no speaker.
    """
    speaker = np.asarray(speaker).astype(str)
    known = np.flatnonzero(speaker != "")
    turn = pd.Series(speaker[known]).groupby(speaker[known]).cumcount().to_numpy()
    return np.sort(known[np.argsort(turn, kind="stable")][:most])


def _by_frame(y: np.ndarray, speaker: np.ndarray, rng: np.random.Generator):
    yield rng.permutation(len(y)) < len(y) / 5


def _by_speaker(y: np.ndarray, speaker: np.ndarray, rng: np.random.Generator):
    """Masks of the frames asked about; speakers are dealt in turn within each label, so each fold has some of each."""
    cast = pd.DataFrame({"speaker": speaker, "label": y}).drop_duplicates("speaker")
    cast = cast.iloc[rng.permutation(len(cast))]
    turns = min(FOLDS, int(cast.label.value_counts().min()))
    fold = dict(zip(cast.speaker, cast.groupby("label").cumcount() % turns, strict=True))
    number = pd.Series(speaker).map(fold).to_numpy()
    for turn in range(turns):
        yield number == turn


def _scores(told: np.ndarray, y: np.ndarray, speaker: np.ndarray) -> dict:
    asked = told != ""
    right = told[asked] == y[asked]
    share = np.unique(y[asked], return_counts=True)[1].max() / asked.sum()
    balanced = balanced_accuracy_score(y[asked], told[asked].astype(str))
    low, high = _interval(right, y[asked], speaker[asked])
    return {"right": right.mean(), "majority": share, "balanced": balanced, "low": low, "high": high,
            "frames": int(asked.sum()), "speakers": len(np.unique(speaker[asked]))}  # fmt: skip


def _interval(right: np.ndarray, y: np.ndarray, speaker: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """Of balanced accuracy: speakers drawn within each label, with replacement; the smallest limits it."""
    each = pd.DataFrame({"right": right, "label": y, "speaker": speaker}).groupby(["label", "speaker"]).right
    each = each.agg(["sum", "size"]).reset_index()
    rng, found, least = np.random.default_rng(0), [], int(each.groupby("label").size().min())
    if least < intervals.LEAST:
        return np.nan, np.nan
    for _, part in each.groupby("label"):
        again = rng.integers(0, len(part), (draws, len(part)))
        found.append(part["sum"].to_numpy()[again].sum(axis=1) / part["size"].to_numpy()[again].sum(axis=1))
    low, high = intervals.of_draws(np.mean(found, axis=0), least * len(found), groups=len(found))
    return float(low), float(high)
