"""Each drawing shows every row that it is given, with its control."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from whisper_sae.viz import patching_plots


def shown(fig: Figure) -> Figure:
    fig.canvas.draw()
    return fig


def test_every_phone_stands_beside_its_controls():
    told = {"phone": ["m", "n", "θ"], "effect": [3.0, 1.0, 0.1], "low": [2, 0.5, -0.1], "high": [4, 1.5, 0.3]}
    told |= {"q": [0.01, 0.04, 0.6], "controls": [0.0, 0.1, 0.0], "random": [1.0, np.nan, np.nan]}
    frame = pd.DataFrame(told)
    (axis,) = shown(patching_plots.beside_controls(frame)).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["m", "n", "θ"]
    effects, controls, random = axis.collections[1:4]
    assert [len(one.get_offsets()) for one in (effects, controls, random)] == [3, 3, 3]
    inks = {tuple(ink) for ink in effects.get_facecolors()[:2]}
    assert len(inks) == 1 and tuple(effects.get_facecolors()[2]) not in inks


def test_a_panel_a_phone_with_feature_and_control():
    scales = [-2.0, 0.0, 1.0]
    rows = [(phone, control, scale, 5.0 * (1 - scale) * (not control))
            for phone in "abcde" for control in (False, True) for scale in scales]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["phone", "control", "scale", "effect"])
    frame = frame.assign(low=frame.effect - 1, high=frame.effect + 1)
    fig = shown(patching_plots.doses(frame, list("abcde")))
    seen = [axis for axis in fig.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in seen] == [f"/{name}/" for name in "abcde"]
    assert all(len(axis.lines) == 4 for axis in seen)


def test_both_sides_has_a_line_a_direction():
    frame = pd.DataFrame({"direction": ["features"] * 2 + ["random"] * 2, "strength": [0.0, 0.5] * 2,
                          "WER": [2.0, 40, 2, 10], "hallucinated": [50.0, 0, 50, 55]})  # fmt: skip
    for name in ("WER", "hallucinated"):
        frame = frame.assign(**{f"{name}_low": frame[name] * 0.9, f"{name}_high": frame[name] * 1.1})
    (axis,) = shown(patching_plots.both_sides(frame)).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["features", "random"]
    assert [text.get_text() for text in axis.texts] == ["0.5", "0.5"]


def test_erasure_has_chance_and_rivals():
    frame = pd.DataFrame(
        {"way": ["best"] * 3 + ["random"] * 3, "count": [0, 1, 8] * 2, "right": [0.9, 0.8, 0.5, 0.9, 0.9, 0.9]}
    )
    frame = frame.assign(right_low=frame.right - 0.05, right_high=frame.right + 0.05)
    (axis,) = shown(patching_plots.erasure(frame, {"LEACE": 0.5})).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["best", "random", "LEACE", "chance"]


def test_a_track_a_feature():
    before = {7: np.arange(5.0), 9: np.ones(5)}
    fig = shown(patching_plots.tracks(before, {7: -before[7], 9: before[9]}, 0.02))
    assert [axis.get_title(loc="left") for axis in fig.axes] == ["feature 7", "feature 9"]
    assert fig.axes[0].lines[1].get_ydata().tolist() == [0, -1, -2, -3, -4]
