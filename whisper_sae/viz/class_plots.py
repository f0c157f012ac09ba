"""Figures of features by class: a heat map, rises along a vector, and how often latents fire."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from whisper_sae.viz.display import BLUE, GREY, INK, MAGNITUDE, ORANGE


def heat(table: pd.DataFrame, title: str, label: str, ylabel: str = "feature") -> Figure:
    """How much each feature (row) fires in each class (column), in shades, with the numbers."""
    values = table.to_numpy(dtype=float)
    fig, axis = plt.subplots(figsize=(2.6 + 0.9 * table.shape[1], 1.2 + 0.27 * len(table)))
    drawn = axis.imshow(values, aspect="auto", cmap=MAGNITUDE, vmin=0, interpolation="none")
    axis.set_xticks(range(table.shape[1]), table.columns)
    axis.set_yticks(range(len(table)), table.index)
    axis.tick_params(length=0)
    axis.spines[["left", "bottom"]].set_visible(False)
    middle = np.nanmax(values, initial=1e-9) / 2
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                  color="white" if value < middle else INK)  # fmt: skip
    axis.set(title=title, ylabel=ylabel)
    fig.colorbar(drawn, ax=axis, label=label, shrink=0.9)
    return fig


def rises(table: pd.DataFrame) -> Figure:
    """How a class's mean probability rises with α, a panel a class: the vectors by kind, and 95 % of random ones."""
    names = list(dict.fromkeys(table["class"]))
    fig, axes = plt.subplots(1, len(names), figsize=(2.2 * len(names), 2.9), sharey=True, squeeze=False)
    looks = {"feature": ("o", BLUE, "-"), "difference of means": ("^", ORANGE, "--")}
    for axis, name in zip(axes[0], names, strict=True):
        part = table[table["class"] == name]
        for kind, (marker, colour, line) in looks.items():
            mine = part[part["vector"] == kind]
            axis.plot(mine.alpha, mine.rise, marker=marker, color=colour, linestyle=line, label=kind, markersize=4)
        lots = part[part["vector"] == "random"]
        axis.plot(lots.alpha, lots.p95, color=GREY, linestyle=":", label="95 % of random vectors")
        axis.set(title=name, xlabel="α")
    axes[0][0].set_ylabel("rise of its probability")
    axes[0][-1].legend(fontsize=7)
    return fig


def densities(rates: dict[str, np.ndarray]) -> Figure:
    """How many latents fire on which share of the rows: a step histogram a name, of equal bins from 0 to 1."""
    fig, axis = plt.subplots(figsize=(7.2, 3))
    looks = [(BLUE, "-"), (ORANGE, "--"), (INK, ":"), (GREY, "-.")]
    for (name, share), (colour, line) in zip(rates.items(), looks, strict=False):
        axis.hist(share, bins=np.linspace(0, 1, 41), histtype="step", color=colour, linestyle=line, label=name, lw=1.4)
    axis.set(xlabel="share of the rows on which a latent fires", ylabel="latents", yscale="log")
    axis.legend()
    return fig
