"""Figures of maps, clusters, trees and correlations, in the style of `figures`, which shows them.

A group is always told by its colour and by its marker, and a number is written where a colour alone would have to be
read.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import dendrogram

from whisper_sae.viz.display import BLUE, DIFFERENCE, GREY, INK, MAGNITUDE, ORANGE

_LOOKS = [
    ("o", BLUE), ("^", ORANGE), ("s", "#CC79A7"), ("D", "#009E73"), ("v", "#56B4E9"), ("P", "#D55E00"), ("X", INK),
    ("*", "#0072B2"), ("<", "#B07500"), (">", "#8F4A73"),
]  # fmt: skip
"""A marker and a colour a group; what comes after the tenth group is "others"."""


def maps(places: pd.DataFrame, labels: dict[str, np.ndarray] | pd.DataFrame, titles: list[str]) -> Figure:
    """Points on the maps of two seeds, `x0 y0` and `x1 y1`, a row of panels a label (if any); `titles` of the columns.

    `labels` are (point,), in the order of `places`; "" is drawn in grey and has no name in the legend.
    """
    labels = dict(labels.items()) or {"nothing": np.full(len(places), "")}
    fig, size = plt.figure(figsize=(6.6, 3.5 * len(labels))), 13 if len(places) > 200 else 28
    for part, (name, label) in zip(fig.subfigures(len(labels), 1, squeeze=False).flat, labels.items(), strict=True):
        if len(label) != len(places):
            raise ValueError(f"{name}: {len(label)} labels for {len(places)} points")
        row, groups = part.subplots(1, 2), _groups(label)
        for turn, (axis, title) in enumerate(zip(row, titles, strict=True)):
            for group, (marker, colour, here) in groups.items():
                at = places[here]
                axis.scatter(at[f"x{turn}"], at[f"y{turn}"], s=size, marker=marker, color=colour, label=group or None,
                             linewidths=0, alpha=0.8, zorder=1 if group in ("", "others") else 2)  # fmt: skip
            _frame(axis)
            axis.set_title(title)
        row[0].set_ylabel(f"coloured by {name}")
        if any(groups):
            many = 6 if len(groups) < 8 else 5
            part.legend(*row[0].get_legend_handles_labels(), loc="outside lower left", ncols=many, handletextpad=0.1,
                        markerscale=1.6, columnspacing=1)  # fmt: skip
    return fig


def _groups(label: np.ndarray) -> dict[str, tuple]:
    """Marker, colour and mask of each group: the most frequent ones in order of their names, then the others."""
    label = np.asarray(label).astype(str)
    count = pd.Series(label[label != ""]).value_counts()
    names = sorted(count.index[: len(_LOOKS)], key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
    found = {name: (*look, label == name) for name, look in zip(names, _LOOKS, strict=False)}
    if len(count) > len(_LOOKS):
        found["others"] = (".", GREY, ~np.isin(label, [*names, ""]))
    if (label == "").any():
        found[""] = (".", GREY, label == "")
    return found


def shaded(places: pd.DataFrame, amount: np.ndarray, titles: list[str], name: str) -> Figure:
    """Points on the maps of two seeds, the darker the less: `amount`, (point,) above 0, on a scale of powers of ten."""
    fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.4))
    for turn, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        drawn = axis.scatter(places[f"x{turn}"], places[f"y{turn}"], c=np.log10(amount), s=11, cmap=MAGNITUDE,
                             linewidths=0)  # fmt: skip
        _frame(axis)
        axis.set_title(title)
    bar = fig.colorbar(drawn, ax=axes, shrink=0.9, label=name)
    bar.locator = MaxNLocator(integer=True)
    bar.formatter = lambda value, _: f"{10**value:.0%}" if value > -2.5 else f"{10 ** (value + 2):g}%"
    bar.update_ticks()
    return fig


def _frame(axis) -> None:
    """A box around a map, without numbers: its axes mean nothing."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color=GREY, linewidth=0.6)


def silhouettes(tables: dict[str, pd.DataFrame]) -> Figure:
    """A panel a table of `clusters.find`: the silhouette of so many clusters, over that of clouds without clumps."""
    fig, axes = plt.subplots(1, len(tables), figsize=(3.8 * len(tables) + 0.4, 3.3), squeeze=False)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        axis.plot(table.clusters, table.silhouette, marker="o", color=BLUE, label="these clips")
        axis.plot(table.clusters, table.chance, color=GREY, linestyle=":", label="no clumps, mean")
        axis.plot(table.clusters, table.chance_95, color=GREY, linestyle="--", label="no clumps, 95 %")
        axis.set(title=name, xlabel="clusters", ylim=(min(0, table.silhouette.min() - 0.02), None))
        axis.set_xticks(table.clusters)
    axes[0, 0].set_ylabel("silhouette")
    axes[0, -1].legend()
    return fig


def tree(found) -> Figure:
    """A `trees.Tree`: groups to the right, and on each split but the last its support."""
    fig, axis = plt.subplots(figsize=(7.2, 0.9 + 0.34 * len(found.names)))
    names = [f"{name} ({count})" for name, count in zip(found.names, found.speakers, strict=True)]
    drawn = dendrogram(found.links, labels=names, orientation="left", ax=axis, color_threshold=0, leaf_font_size=9,
                       above_threshold_color=INK)  # fmt: skip
    support = dict(zip(np.round(found.links[:, 2], 9), found.support, strict=True))
    last = found.links[-1, 2]
    for height, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        if height[1] < last:
            share = support[round(height[1], 9)]
            axis.annotate(f"{share:.0%}", (height[1], (places[1] + places[2]) / 2), xytext=(-3, 2), fontsize=9,
                          textcoords="offset points", ha="right", va="bottom", color=INK,
                          fontweight="bold" if share > found.chance else "normal")  # fmt: skip
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set(title="Who joins whom, and how surely", xlabel="distance at which two are joined")
    return fig


def matrix(table: pd.DataFrame, title: str, most: float | None = None) -> Figure:
    """A symmetric table of correlations, in colours, with the numbers where there are at most a dozen rows.

    The colours end at ± `most`, by default the largest number off the diagonal; the diagonal is left white.
    """
    values, rows = table.to_numpy(), len(table)
    off = np.ma.masked_array(values, np.eye(rows, dtype=bool))
    most = max(float(np.abs(off).max()), 0.05) if most is None else most
    size = 2.2 + (0.52 * rows if rows <= 12 else 5)
    fig, axis = plt.subplots(figsize=(min(size + 1, 7.6), min(size, 6.6)))
    drawn = axis.imshow(off, cmap=DIFFERENCE, vmin=-most, vmax=most, interpolation="none")
    step = 1 if rows <= 45 else rows // 30
    axis.set_xticks(np.arange(0, rows, step), table.columns[::step], rotation=90 if rows > 12 else 40,
                    ha="center" if rows > 12 else "right", rotation_mode=None if rows > 12 else "anchor")  # fmt: skip
    axis.set_yticks(np.arange(0, rows, step), table.index[::step])
    axis.tick_params(length=0, labelsize=9 if rows <= 12 else 7)
    axis.spines[["left", "bottom"]].set_visible(False)
    if rows <= 12:
        for i, j in zip(*np.nonzero(~np.eye(rows, dtype=bool)), strict=True):
            strong = abs(values[i, j]) > 0.6 * most
            axis.text(
                j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color="white" if strong else INK
            )
    fig.colorbar(drawn, ax=axis, shrink=0.8, label="correlation")
    axis.set_title(title)
    return fig


def counted(values: np.ndarray, rows: int, bins: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """How often a feature says how much: edges (bin + 1,) and counts (bin,), which sum to `rows`.

    `values` are its firings, (firing,) above 0, and the rows on which it does not fire are in the first bin, with those
    of its firings that are as weak.
    """
    edges = np.linspace(0, max(float(np.max(values, initial=0)), 1e-12), bins + 1)
    counts = np.histogram(values, edges)[0]
    counts[0] += rows - len(values)
    return edges, counts


def histograms(firings: dict[str, np.ndarray], rows: int) -> Figure:
    """How strongly each of a few features fires, (firing,) each, on `rows` frames: a panel a feature, in powers of ten.

    The frames on which it is silent are the orange part of the first bar.
    """
    down = -(-len(firings) // 3)
    fig, axes = plt.subplots(down, 3, figsize=(7.6, 2.1 * down + 0.3), sharey=True, squeeze=False)
    for axis in axes.flat[len(firings) :]:
        axis.set_visible(False)
    for axis, (name, values) in zip(axes.flat, firings.items(), strict=False):
        edges, counts = counted(values, rows)
        width = edges[1] - edges[0]
        axis.bar(edges[:-1], counts, width=width, align="edge", color=BLUE)
        axis.bar(0, rows - len(values), width=width, align="edge", color=ORANGE, hatch="///", edgecolor="white")
        axis.set(title=name, yscale="log", ylim=(0.7, 2 * rows), xlim=(0, edges[-1]))
    for axis in axes[:, 0]:
        axis.set_ylabel("frames")
    for axis in axes.flat[: len(firings)][-3:]:
        axis.set_xlabel("activation")
    return fig
