"""Figures of maps, clusters and trees: every point under its own label, every bar counted."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae.features import clusters, trees
from whisper_sae.viz import cluster_plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def places(n):
    return pd.DataFrame(np.arange(4 * n, dtype=float).reshape(n, 4), columns=["x0", "y0", "x1", "y1"])


def test_every_point_is_drawn_under_its_own_label():
    label = np.array(["b", "a", "", "b", "c"])
    fig = cluster_plots.maps(places(5), {"accent": label}, ["one", "other"])
    one, other = fig.axes
    drawn = {part.get_label(): part.get_offsets()[:, 0].tolist() for part in one.collections}
    assert drawn["b"] == [0, 12] and drawn["a"] == [4] and drawn["c"] == [16] and [8] in drawn.values()
    assert other.collections[0].get_offsets()[:, 0].tolist() == [6]  # a, by name
    assert [one.get_title(loc="left"), other.get_title(loc="left")] == ["one", "other"]


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="accent: 4 labels for 5 points"):
        cluster_plots.maps(places(5), {"accent": list("abcd")}, ["", ""])


def test_more_groups_than_can_be_told_apart_become_others():
    groups = cluster_plots._groups(np.repeat([f"g{n:02d}" for n in range(14)], 3))
    assert len(groups) == 11 and groups["others"][2].sum() == 12
    assert len({(marker, colour) for marker, colour, _ in groups.values()}) == 11
    assert sum(mask.sum() for _, _, mask in groups.values()) == 42


def test_numbered_groups_are_in_the_order_of_their_numbers():
    assert list(cluster_plots._groups(np.array(["10", "2", "1", ""]))) == ["1", "2", "10", ""]


def test_a_map_without_labels_is_grey():
    fig = cluster_plots.maps(places(3), {}, ["one", "other"])
    assert len(fig.axes) == 2 and not fig.axes[0].get_legend()


@settings(max_examples=20)
@given(st.lists(st.floats(1e-3, 1e3), max_size=60), st.integers(0, 200), st.integers(1, 40))
def test_bars_sum_to_the_frames(values, silent, bins):
    rows = len(values) + silent
    edges, counts = cluster_plots.counted(np.array(values), rows, bins)
    assert counts.sum() == rows and len(edges) == len(counts) + 1 == bins + 1
    assert counts[0] >= silent


def test_the_bars_that_are_drawn_are_those_counted():
    values = np.random.default_rng(0).exponential(2, 70)
    fig = cluster_plots.histograms({"7: 7%": values, "none": np.zeros(0)}, 1000)
    bars = [bar.get_height() for bar in fig.axes[0].patches]
    assert sum(bars[:30]) == 1000 and bars[30] == 930 and len(fig.axes[0].patches) == 31


def test_support_stands_at_its_split():
    rng = np.random.default_rng(0)
    group = np.repeat(list("abc"), 5)
    voices = 9 * np.array([[0, 0], [0, 1], [9, 9]])[np.searchsorted(list("abc"), group)] + rng.standard_normal((15, 2))
    found = trees.tree(voices, group, draws=20, shuffles=5)
    fig = cluster_plots.tree(found)
    said = [text for text in fig.axes[0].texts if text.get_text().endswith("%")]
    assert [text.get_text() for text in said] == ["100%"] and said[0].xy[0] == pytest.approx(found.links[0, 2])
    assert {label.get_text() for label in fig.axes[0].get_yticklabels()} == {"a (5)", "b (5)", "c (5)"}


@pytest.mark.parametrize("rows", [2, 12, 13, 60])
def test_a_matrix_of_any_size_can_be_drawn(rows):
    found = np.corrcoef(np.random.default_rng(0).standard_normal((rows, 9)))
    fig = cluster_plots.matrix(pd.DataFrame(found), "title")
    assert len(fig.axes[0].texts) == (rows * (rows - 1) if rows <= 12 else 0)
    assert fig.axes[0].images[0].get_clim()[0] == -fig.axes[0].images[0].get_clim()[1]
    fig.savefig("/dev/null", format="png")


def test_silhouettes_have_a_panel_each():
    table = clusters.find(np.random.default_rng(0).standard_normal((12, 3)), most=4, draws=3).table
    fig = cluster_plots.silhouettes({"all clips": table, "speech": table})
    assert [axis.get_title(loc="left") for axis in fig.axes] == ["all clips", "speech"]
    np.testing.assert_array_equal(fig.axes[1].lines[0].get_ydata(), table.silhouette)


def test_shaded_maps_show_amounts_over_powers_of_ten():
    fig = cluster_plots.shaded(places(3), np.array([1e-4, 1e-2, 1.0]), ["one", "other"], "share")
    fig.savefig("/dev/null", format="png")
    assert fig.axes[0].collections[0].get_array().tolist() == [-4, -2, 0]
    assert "1%" in [text.get_text() for text in fig.axes[2].get_yticklabels()]
