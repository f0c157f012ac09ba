"""Clumps are found where they are planted, and only there; and what they are of is told beside chance."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from whisper_sae.features import clusters


def planted(apart, n=90, width=12, seed=0):
    rng = np.random.default_rng(seed)
    clump = rng.permutation(np.arange(n) % 3)
    return apart * np.eye(3, width)[clump] + rng.standard_normal((n, width)), clump


def long_cloud(n=120, seed=0):
    """One normal cloud, five times as long as wide."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    return rng.standard_normal((n, 6)) * [5, 1, 1, 1, 1, 1] @ turned


def test_three_planted_clumps_beat_clouds_without_clumps():
    x, clump = planted(8)
    found = clusters.find(x, draws=25)
    row = found.table.set_index("clusters").loc[3]
    assert found.clusters == 3 and row.silhouette > row.chance_95 and found.p == pytest.approx(1 / 26)
    assert all(len(set(found.cluster[clump == name])) == 1 for name in range(3))


def test_a_long_cloud_has_no_clumps_where_a_null_without_its_shape_sees_some():
    x = long_cloud()
    assert clusters.find(x, draws=25).p > 0.1
    rng = np.random.default_rng(0)
    each = [np.column_stack([rng.permutation(column) for column in x.T]) for _ in range(25)]
    score = [silhouette_score(y, KMeans(2, n_init=4, random_state=0).fit_predict(y)) for y in [x, *each]]
    assert score[0] > max(score[1:])  # features dealt anew one by one: the cloud would pass for two clumps


@pytest.mark.slow
def test_p_is_as_often_small_as_it_should_be_where_there_is_nothing():
    p = [clusters.find(long_cloud(40, seed), most=4, draws=19, seed=seed).p for seed in range(20)]
    assert np.mean(np.array(p) <= 0.1) <= 0.3 and 0.3 < np.mean(p) < 0.7


def test_clouds_without_clumps_have_the_variances_of_the_points():
    x = long_cloud()
    y, lengths = clusters._turned(x)
    cloud = clusters._dealt_anew(len(y), lengths, np.random.default_rng(1))
    np.testing.assert_allclose(cloud.T @ cloud, y.T @ y, atol=1e-8)
    np.testing.assert_allclose(cloud.mean(axis=0), 0, atol=1e-12)


def test_features_that_do_not_vary_count_for_nothing():
    x, _ = planted(8)
    wide = np.concatenate([x, np.full((len(x), 4), 7.0)], axis=1)
    assert clusters.find(wide, draws=5).clusters == 3


@pytest.mark.parametrize(
    "x", [np.zeros((1, 3)), np.ones((20, 3)), np.zeros((0, 3)), np.zeros((5, 0)), np.eye(3), np.repeat(np.eye(3), 9, 0)]
)
def test_too_few_points_that_differ_are_told(x):
    with pytest.raises(ValueError, match=rf"points: \d+ of {len(x)} differ, too few"):
        clusters.find(x)


def test_there_are_fewer_clusters_than_points_that_differ():
    found = clusters.find(np.repeat(np.arange(5.0)[:, None] ** 2, 4, axis=0), most=8, draws=3)
    assert found.table.clusters.tolist() == [2, 3, 4]


def test_medoids_are_the_nearest_and_by_other_voices_first():
    x = np.array([[0.0], [0.1], [0.2], [5.0], [9.0], [9.5]])
    cluster = np.array([0, 0, 0, 0, 1, 1])
    assert clusters.medoids(x, cluster, 2)[0].tolist() == [2, 1]
    by_voice = clusters.medoids(x, cluster, 3, ["b", "a", "a", "", "c", "c"])
    assert by_voice[0].tolist() == [2, 0, 3] and by_voice[1].tolist() == [4, 5]


# ------------------------------------------------------------------------------------------------ labels


def speakers(count=24, clips=10, seed=0):
    rng = np.random.default_rng(seed)
    speaker = np.repeat([f"v{n:02d}" for n in range(count)], clips)
    home = rng.integers(0, 3, count)
    cluster = np.where(rng.random(count * clips) < 0.8, np.repeat(home, clips), rng.integers(0, 3, count * clips))
    return speaker, cluster, np.repeat(home, clips)


def test_a_planted_label_is_told_and_one_by_lot_is_not():
    speaker, cluster, home = speakers()
    accent = np.array(["x", "y", "z"])[home]
    lot = np.random.default_rng(2).permutation(np.repeat(["a", "b"], 12))
    table, unasked = clusters.told_by(
        cluster, pd.DataFrame({"lot": np.repeat(lot, 10), "accent": accent, "same": "s", "id": np.arange(240)}), speaker
    )
    told = table.set_index("label")
    assert table.label[0] == "accent" and told.q["accent"] < 0.01 < 0.05 < told.q["lot"]
    assert told.units.tolist() == [24, 24] and set(unasked) == {"same", "id"}


def test_frames_counted_as_people_would_find_the_label_by_lot():
    """Clips of a voice are alike: a label of speakers that is dealt to clips instead seems to tell something."""
    right = wrong = 0
    for seed in range(12):
        speaker, cluster, _ = speakers(seed=seed)
        lot = np.repeat(np.random.default_rng(seed + 99).permutation(np.repeat(["a", "b"], 12)), 10)
        right += clusters.told(cluster, lot, speaker, draws=100).p < 0.05
        wrong += clusters.told(cluster, lot, draws=100).p < 0.05
    assert right <= 3 < 6 <= wrong


def test_dealing_keeps_what_it_should():
    speaker = np.repeat(["a", "b", "c", ""], [3, 3, 3, 2])
    own = np.where(speaker == "", np.char.add("\0", np.arange(11).astype(str)), speaker)
    of_voice, of_clip = np.repeat(["f", "f", "m", "m"], [3, 3, 3, 2]), np.array(list("pqrpqrpqrst"))
    for voice, clip in zip(clusters.dealt(of_voice, own, 20), clusters.dealt(of_clip, own, 20), strict=True):
        assert pd.Series(voice).groupby(own).nunique().max() == 1
        assert all(sorted(clip[own == one]) == ["p", "q", "r"] for one in "abc") and set(clip[9:]) == {"s", "t"}
    everyone = {"".join(label) for label in clusters.dealt(speaker[:9], speaker[:9], 20)}
    assert len(everyone) > 15  # a speaker's name is dealt among clips


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "c"])), min_size=8, max_size=40))
def test_the_share_told_lies_between_0_and_1_and_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import homogeneity_score

    cluster, label = (np.array(column) for column in zip(*pairs, strict=True))
    if len(set(cluster)) < 2 or len(set(label)) < 2 or len(set(label)) == len(label):
        with pytest.raises(ValueError, match="labels: "):
            clusters.told(cluster, label, draws=2)
        return
    told = clusters.told(cluster, label, draws=5)
    assert -1e-9 <= told.share <= 1 + 1e-9 and 0 < told.p <= 1
    assert told.share == pytest.approx(homogeneity_score(cluster, label), abs=1e-9)


def test_the_foremost_label_of_a_cluster_stands_above_chance_where_it_was_planted():
    speaker, cluster, home = speakers()
    table = clusters.foremost(cluster, np.array(["x", "y", "z"])[home], speaker)
    assert table.value.tolist() == ["x", "y", "z"] and (table.share > table.chance_95).all()
    assert (table.everywhere < table.share).all()
    assert clusters.foremost_by(cluster, pd.DataFrame({"same": ["s"] * 240})).empty


def test_missing_labels_are_left_out():
    cluster = np.array([0, 0, 0, 1, 1, 1, 0, 1])
    label = np.array(["a", "a", "a", "b", "b", "b", "", ""])
    assert clusters.told(cluster, label, draws=50).share == pytest.approx(1)
    with pytest.raises(ValueError, match="two labels and two clusters"):
        clusters.told(cluster, np.full(8, ""))


@pytest.mark.parametrize(
    "values, labels",
    [
        (range(1, 9), {"1 to 2.75 s", "2.75 to 4.5 s", "4.5 to 6.25 s", "6.25 to 8 s"}),
        ([3.0] * 5, {"3 s"}),
        ([1, 2, "", None, "x"], {"1 to 1.25 s", "1.75 to 2 s", ""}),
        ([], set()),
    ],
)
def test_numbers_become_quarters(values, labels):
    assert set(clusters.quarters(values, "s")) == labels
