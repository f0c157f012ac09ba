"""How strongly one unit answers each phone: the polysemanticity plot, for neurons and for features of an SAE alike.

A neuron that is as loud for /s/ as for /i/ stands for neither. Positive and negative sides are told apart, because a
neuron may stand for one thing when it is up and for another when it is down.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from whisper_sae.stats.intervals import LEAST

SIDES = ("all", "positive", "negative")


class ByLabel(NamedTuple):
    """A unit's values by label."""

    edges: np.ndarray
    """(bin + 1,) of the histogram."""
    counts: pd.DataFrame
    """How many values of each label (row) fall into each bin (column)."""
    table: pd.DataFrame
    """A row a side and label: n, mean, low and high, units; from the highest mean down within each side."""


def by_label_histogram(values, labels, speakers=None, *, bins: int = 40, level: float = 0.95) -> ByLabel:
    """Values of one unit, (frame,), by label, (frame,): histograms, and means with their interval by Student's t.

    On the side "all" every frame counts, on "positive" and "negative" those of its sign, the latter as positive
    numbers. With `speakers`, (frame,), mean and interval are of the speakers' means, `units` of them. Without, every
    frame counts as one, as in FREUD's plot: neighbouring frames are no independent draws, so that interval is too
    narrow. Fewer than `intervals.LEAST` units have none. Frames labelled "" are left out.
    """
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels).astype(str)
    here = labels != ""
    if not here.any():
        raise ValueError("labels: no frame has one")
    values, labels = values[here], labels[here]
    who = np.arange(len(values)) if speakers is None else np.asarray(speakers)[here]
    low, high = values.min(), values.max()
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = {name: np.histogram(values[labels == name], edges)[0] for name in np.unique(labels)}
    parts = [
        _means(side, sign * values[chosen], labels[chosen], who[chosen], level)
        for side, sign, chosen in zip(SIDES, (1, 1, -1), (values == values, values > 0, values < 0), strict=True)
    ]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return ByLabel(edges, pd.DataFrame(counts).T.rename_axis("label"), table)


def _means(side: str, values: np.ndarray, labels: np.ndarray, who: np.ndarray, level: float) -> pd.DataFrame:
    one = pd.DataFrame({"label": labels, "who": who, "value": values})
    n = one.groupby("label").size()
    units = one.groupby(["label", "who"]).value.mean().groupby("label")
    mean, count = units.mean(), units.size()
    reach = stats.t.ppf((1 + level) / 2, np.maximum(count - 1, 1)) * units.std(ddof=1) / np.sqrt(count)
    reach = reach.where(count >= LEAST)
    found = pd.DataFrame({"n": n, "units": count, "mean": mean, "low": mean - reach, "high": mean + reach})
    return found.sort_values("mean", ascending=False).rename_axis("label").reset_index().assign(side=side)
