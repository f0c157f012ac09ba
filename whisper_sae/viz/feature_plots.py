"""Drawings of what features mean: dictionaries compared, one unit's answers to each phone, peaks around phones."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from whisper_sae.features.tuning import ByLabel
from whisper_sae.viz.display import BLUE, GREY, INK


def ranking(frame: pd.DataFrame, name: str, value: str, low: str, high: str, chance: float | None = None) -> Figure:
    """A dot with its interval a row, the first row on top and in blue; `chance` is a dotted line."""
    fig, axis = plt.subplots(figsize=(7.2, 0.6 + 0.42 * len(frame)))
    place = np.arange(len(frame))[::-1]
    for row, at in zip(frame.itertuples(index=False), place, strict=True):
        told = row._asdict()
        colour = BLUE if at == len(frame) - 1 else INK
        axis.plot([told[low], told[high]], [at, at], color=colour, linewidth=1.4)
        axis.plot(told[value], at, marker="o", color=colour)
    if chance is not None:
        axis.axvline(chance, color=GREY, linestyle=":", linewidth=1)
        axis.annotate("chance", (chance, len(frame) - 0.45), color=GREY, fontsize=8, ha="left", va="center")
    axis.set(yticks=place, yticklabels=frame[name], ylim=(-0.6, len(frame) - 0.2), xlim=(0, None))
    return fig


def answers_by_label(units: dict[str, ByLabel], side: str = "all", most: int = 12) -> Figure:
    """The polysemanticity plot, two units a row: the histogram of a unit's values for each label, a row a label, as
    shares of the label's frames; and beside it the mean with its interval, the highest on top.

    Labels are the `most` with the highest mean on that side, of those with an interval, or of all where none has one.
    """
    rows = -(-len(units) // 2)
    fig, axes = plt.subplots(rows, 4, figsize=(8.8, (0.9 + 0.24 * most) * rows), squeeze=False,
                             gridspec_kw={"width_ratios": [2, 1.2] * 2})  # fmt: skip
    for axis in axes.reshape(-1)[2 * len(units) :]:
        axis.remove()
    for (name, told), (heat, means) in zip(units.items(), axes.reshape(-1, 2), strict=False):
        table = told.table[told.table.side == side]
        table = (table[table.low.notna()] if table.low.notna().any() else table).head(most)
        counts = told.counts.loc[table.label].to_numpy(float)
        share = np.log10(np.maximum(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), 1e-3))
        heat.imshow(share, aspect="auto", extent=(told.edges[0], told.edges[-1], len(table) - 0.5, -0.5), cmap="Greys",
                    vmin=-3, vmax=0, interpolation="none")  # fmt: skip
        heat.set(yticks=range(len(table)), yticklabels=table.label, xlabel="value", title=name)
        place = np.arange(len(table))
        means.hlines(place, table.low, table.high, color=BLUE, linewidth=1.4)
        means.plot(table["mean"], place, "o", color=BLUE, markersize=4)
        means.axvline(0, color=GREY, linewidth=0.8)
        means.set(yticks=[], ylim=(len(table) - 0.5, -0.5), xlabel="mean")
    return fig
