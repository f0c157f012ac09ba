"""Drawings of how far groups of speakers differ: all features in order with the band of chance, the foremost with their
intervals, what can be seen with so many speakers, groups against each other, and sparse probes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from whisper_sae.viz.display import BLUE, DIFFERENCE, GREY, INK, ORANGE


def ordered(lines: dict[str, np.ndarray], thresholds: dict[str, float], ylabel: str = "|d| of speakers") -> Figure:
    """|effect| of all features in falling order, a curve a name; dotted: the threshold of each, where it is finite."""
    fig, axis = plt.subplots()
    looks = [(BLUE, "-"), (ORANGE, "--"), (INK, "-."), (GREY, "-")]
    for (name, values), (colour, style) in zip(lines.items(), looks, strict=False):
        size = np.sort(np.abs(values[np.isfinite(values)]))[::-1]
        axis.plot(np.arange(1, len(size) + 1), size, color=colour, linestyle=style, label=name)
        beyond = size[: int((size > thresholds[name]).sum())]
        axis.plot(np.arange(1, len(beyond) + 1), beyond, "o", color=colour, markersize=4)
        if np.isfinite(thresholds[name]):
            axis.axhline(thresholds[name], color=colour, linestyle=":", linewidth=0.9)
    sizes = np.abs(np.concatenate([*lines.values(), list(thresholds.values())]))
    axis.set(xscale="log", ylim=(0, 1.08 * sizes[np.isfinite(sizes)].max(initial=0.1)))
    axis.set(xlabel="features, the greatest first", ylabel=ylabel)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.legend()
    return fig


def forest(frame: pd.DataFrame, groups: tuple[str, str], threshold: float, most: int = 16) -> Figure:
    """d and its interval of the first rows, a row a feature, the first on top; filled where beyond the threshold."""
    shown = frame.head(most)
    fig, axis = plt.subplots(figsize=(7.2, 0.9 + 0.24 * len(shown)))
    place = np.arange(len(shown))
    for at, row in zip(place, shown.itertuples(), strict=True):
        colour, marker = (BLUE, "o") if row.d > 0 else (ORANGE, "^")
        axis.plot([row.low, row.high], [at, at], color=colour, linewidth=1.4)
        axis.plot(row.d, at, marker, color=colour, markersize=6, fillstyle="full" if abs(row.d) > threshold else "none")
    if np.isfinite(threshold):
        axis.axvspan(-threshold, threshold, color=GREY, alpha=0.12, linewidth=0)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set(yticks=place, yticklabels=shown.feature, ylim=(len(shown) - 0.4, -0.6), ylabel="feature",
             xlabel=f"Cohen's d: below 0 more in {groups[1]}, above 0 more in {groups[0]}")  # fmt: skip
    return fig


def powers(curves: dict[str, pd.DataFrame], marks: dict[str, float], wanted: float = 0.8) -> Figure:
    """Power over d, a curve a name, and the least d that is seen with probability `wanted` in each."""
    fig, axis = plt.subplots(figsize=(7.2, 4.2))
    looks = [(BLUE, "-", "o"), (ORANGE, "--", "^"), (INK, "-.", "s"), (GREY, ":", "D")]
    for (name, curve), (colour, style, marker) in zip(curves.items(), looks, strict=False):
        axis.plot(curve.d, curve.power, color=colour, linestyle=style, label=f"{name}: {marks[name]:.2f}")
        axis.plot(marks[name], wanted, marker, color=colour)  # beyond the right edge it is not seen, only told
    axis.axhline(wanted, color=GREY, linewidth=0.8)
    axis.set(ylim=(0, 1.02), xlim=(0, curve.d.max()), xlabel="true d, in SDs of speakers' means",
             ylabel="probability to be seen")  # fmt: skip
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def apart(names: tuple[str, ...], d: np.ndarray, feature: int) -> Figure:
    """d between any two groups in one feature, (group, group), row less column."""
    fig, axis = plt.subplots(figsize=(5.6, 4.2))
    most = max(1.0, float(np.nanmax(np.abs(d[np.isfinite(d)]), initial=0)))
    drawn = axis.imshow(d, cmap=DIFFERENCE, vmin=-most, vmax=most)
    for (i, j), value in np.ndenumerate(d):
        if i != j:
            axis.text(j, i, f"{value:.1f}".replace("-0.0", "0.0"), ha="center", va="center", fontsize=8,
                      color="white" if abs(value) > 0.6 * most else INK)  # fmt: skip
    axis.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        yticklabels=names,
        title=f"Feature {feature}: d between any two",
    )
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    fig.colorbar(drawn, ax=axis, label="d, row less column", shrink=0.9)
    return fig


def sparse(frame: pd.DataFrame, chance: float) -> Figure:
    """Balanced accuracy over how many features are read, a line an `input`, with intervals; dotted: chance."""
    fig, axis = plt.subplots()
    looks = [("o", BLUE, "-"), ("^", ORANGE, "--"), ("s", INK, "-.")]
    for (name, part), (marker, colour, style) in zip(frame.groupby("input", sort=False), looks, strict=False):
        reach = np.abs(part[["balanced_low", "balanced_high"]].to_numpy().T - part.balanced.to_numpy())
        axis.errorbar(part.width, part.balanced, yerr=reach, marker=marker, color=colour, linestyle=style, label=name,
                      capsize=3, linewidth=1.2)  # fmt: skip
    axis.axhline(chance, color=GREY, linestyle=":", label="chance")
    axis.set(xscale="log", xlabel="features that the probe may read", ylabel="balanced accuracy", ylim=(0, 1.02))
    widths = sorted(frame.width.unique())
    axis.set_xticks(widths, [f"{width:,}" for width in widths])
    axis.minorticks_off()
    axis.legend()
    return fig
