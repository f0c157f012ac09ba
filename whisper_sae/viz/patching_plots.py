"""Drawings of causal effects: each beside its controls, with its interval."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from whisper_sae.data.clip_table import CENTRE
from whisper_sae.viz.display import BLUE, GREY, INK, ORANGE


def beside_controls(frame: pd.DataFrame, name: str = "phone", found: float = 0.05) -> Figure:
    """A row a test: `effect` with `low` and `high`, in blue where `q` is at most `found`; a grey bar for `controls`,
    and an orange triangle for `random`."""
    fig, axis = plt.subplots(figsize=(7.2, 0.9 + 0.24 * len(frame)))
    place = np.arange(len(frame))[::-1]
    inks = np.where(frame.q <= found, BLUE, GREY)
    axis.hlines(place, frame.low, frame.high, color=inks, linewidth=1.4)
    axis.scatter(frame.effect, place, color=inks, s=22, zorder=3, label="silenced feature (blue: found)")
    axis.scatter(frame.controls, place, marker="|", color=INK, s=60, label="its matched controls, mean")
    axis.scatter(frame.random, place, marker="^", color=ORANGE, s=20, label="random direction, same moments")
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set(yticks=place, yticklabels=frame[name], ylim=(-0.7, len(frame) - 0.3))
    axis.legend(loc="lower right")
    return fig


def doses(frame: pd.DataFrame, names: Sequence[str]) -> Figure:
    """A panel a phone: `effect` with its interval over `scale`, the feature in blue, its control in grey."""
    down = -(-len(names) // 4)
    fig, axes = plt.subplots(down, 4, figsize=(8.4, 2.0 * down + 0.4), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for control, colour, marker, label in ((True, GREY, "s", "control"), (False, BLUE, "o", "its feature")):
            part = frame[(frame.phone == name) & (frame.control == control)].sort_values("scale")
            axis.fill_between(part.scale, part.low, part.high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(part.scale, part.effect, color=colour, marker=marker, markersize=4, label=label)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
        axis.set_title(f"/{name}/")
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("codes times")
    for axis in axes[:, 0]:
        axis.set_ylabel("more words missed, %")
    return fig


def both_sides(frame: pd.DataFrame) -> Figure:
    """A line a direction over its strengths: the WER of speech against the share of sounds with hallucinated words."""
    fig, axis = plt.subplots(figsize=(7.2, 3.8))
    looks = [("o", BLUE, "-"), ("^", ORANGE, "--"), ("s", GREY, ":")]
    for (name, part), (marker, colour, line) in zip(frame.groupby("direction", sort=False), looks, strict=False):
        part = part.sort_values("strength")
        across = np.abs(part[["WER_low", "WER_high"]].to_numpy().T - part.WER.to_numpy())
        up = np.abs(part[["hallucinated_low", "hallucinated_high"]].to_numpy().T - part.hallucinated.to_numpy())
        axis.errorbar(part.WER, part.hallucinated, xerr=across, yerr=up, marker=marker, color=colour, linestyle=line,
                      label=name, capsize=2, lw=1)  # fmt: skip
        for row in part[part.strength > 0].itertuples():
            axis.annotate(
                f"{row.strength:g}", (row.WER, row.hallucinated), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    axis.set(xlabel="WER of speech, %", ylabel="sounds with hallucinated words, %", xlim=(0, None), ylim=(0, None))
    axis.legend()
    return fig


def erasure(frame: pd.DataFrame, levels: dict[str, float]) -> Figure:
    """How much is read, `right` with its band, over `count`, a line a `way`; `levels` are grey lines, chance is
    dotted."""
    fig, axis = plt.subplots(figsize=(7.2, 3.8))
    looks = [("o", BLUE, "-"), ("^", ORANGE, "--"), ("s", INK, "-"), ("D", GREY, ":")]
    for (name, part), (marker, colour, line) in zip(frame.groupby("way", sort=False), looks, strict=False):
        part = part.sort_values("count")
        axis.fill_between(part["count"], part.right_low, part.right_high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(part["count"], part.right, marker=marker, color=colour, linestyle=line, label=name, markersize=4)
    for name, level in levels.items():
        axis.axhline(level, color=GREY, linestyle="-.", linewidth=1, label=name)
    axis.axhline(0.5, color=GREY, linestyle=":", linewidth=1, label="chance")
    axis.set_xscale("symlog", linthresh=1)
    axis.set(
        xlim=(-0.3, 1.3 * frame["count"].max()),
        ylim=(0.4, 1.02),
        xlabel="features",
        ylabel="share read right, unmet speakers",
    )
    axis.set_xticks(sorted(set(frame["count"])), [str(count) for count in sorted(set(frame["count"]))])
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def tracks(before: dict[int, np.ndarray], after: dict[int, np.ndarray], hop: float) -> Figure:
    """What features say over the seconds of a clip, (frame,) each: before an edit in blue, after it dashed in
    orange."""
    fig, axes = plt.subplots(len(before), 1, figsize=(7.2, 0.8 + 1.0 * len(before)), sharex=True, squeeze=False)
    for axis, (feature, track) in zip(axes[:, 0], before.items(), strict=True):
        time = np.arange(len(track)) * hop + CENTRE
        axis.plot(time, track, color=BLUE, label="as it is")
        axis.plot(time, after[feature], color=ORANGE, linestyle="--", label="edited")
        axis.set_title(f"feature {feature}")
    axes[0, 0].legend(fontsize=8)
    axes[-1, 0].set_xlabel("seconds")
    return fig


def token_rates(frame: pd.DataFrame) -> Figure:
    """A panel a `target`: `rate` over `scale` with its interval, the feature in blue; at the ends the range of its
    matched controls in grey, with their median, and a random direction as an orange triangle."""
    names = list(dict.fromkeys(frame.target))
    fig, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), squeeze=False)
    looks = [("control", GREY, "s", -0.08, "matched controls: median, range"),
             ("random", ORANGE, "^", 0.08, "random direction"), ("feature", BLUE, "o", 0.0, "feature")]  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        for kind, colour, marker, aside, label in looks:
            part = frame[(frame.target == name) & (frame.kind == kind)].sort_values("scale")
            away = np.maximum(0, np.abs(part[["low", "high"]].to_numpy().T - part.rate.to_numpy()))
            axis.errorbar(part.scale + aside, part.rate, yerr=away, color=colour, marker=marker, ms=4, capsize=2,
                          linestyle="-" if kind == "feature" else "none", label=label)  # fmt: skip
        axis.set(title=name, xlabel="activations times", ylabel="tokens per 100 words", ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    return fig
