"""A tree of planted groups is found and relied on; one of groups by lot is not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from whisper_sae.features import trees


def cast(apart, speakers=6, width=30, seed=0):
    """Four groups: a and b alike, c and d alike; means of speakers and their groups, in an order of chance."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(list("abcd"), speakers))
    side, own = rng.standard_normal((2, width)), rng.standard_normal((4, width))
    place = np.searchsorted(list("abcd"), group)
    return apart * (2 * side[place // 2] + own[place]) + rng.standard_normal((len(group), width)), group


def test_planted_splits_are_supported_and_beyond_chance():
    found = trees.tree(*cast(3), draws=60, shuffles=20)
    told = trees.told(found)
    assert set(told.groups) == {"a, b", "c, d"} and (told.support == 1).all() and found.chance < 1
    assert found.names == list("abcd") and found.speakers == [6, 6, 6, 6] and found.support[-1] == 1


def test_groups_by_lot_are_seldom_beyond_chance():
    beyond = 0
    for seed in range(12):
        found = trees.tree(*cast(0, seed=seed), draws=40, shuffles=20, seed=seed)
        beyond += (found.support[:-1] > found.chance).any()
    assert beyond <= 3


def test_leaves_are_in_the_order_of_the_drawing():
    found = trees.tree(*cast(3), draws=5, shuffles=0)
    assert sorted(trees.leaves(found)) == [0, 1, 2, 3]
    assert {frozenset(trees.leaves(found)[:2]), frozenset(trees.leaves(found)[2:])} == set(
        trees.splits(found.links)[:2]
    )


def test_a_speaker_counts_once_however_much_they_talk():
    x = np.array([[0.0], [0.0], [0.0], [3.0], [10.0]])
    voices, (who, accent) = trees.voices_of(x, ["p", "p", "p", "q", ""], ["s", "s", "s", "s", "t"])
    assert who.tolist() == ["p", "q"] and accent.tolist() == ["s", "s"] and voices.ravel().tolist() == [0, 3]


def test_without_speakers_there_are_no_voices():
    voices, (who, accent) = trees.voices_of(np.ones((3, 2)), ["", "", ""], ["", "", ""])
    assert voices.shape == (0, 2) and not len(who) and not len(accent)
    with pytest.raises(ValueError, match="groups: 0 have"):
        trees.tree(voices, accent)


def test_correlations_of_groups_are_symmetric_and_negative_on_average():
    voices, group = cast(1)
    found = trees.tree(voices, group, draws=5, shuffles=10)
    alike = found.alike.to_numpy()
    assert (alike == alike.T).all() and (np.diag(alike) == 1).all() and (np.abs(alike) <= 1).all()
    means = pd.DataFrame(voices).groupby(group).mean()
    np.testing.assert_allclose(alike, np.corrcoef(means - means.mean()), atol=1e-12)
    low, high = found.alike_by_chance
    assert low < -1 / 3 < high and alike[np.triu_indices(4, 1)].mean() < 0


@pytest.mark.parametrize(
    "group, many",
    [(["a"] * 8, 1), ([""] * 8, 0), ([*list("aabbcd"), "", ""], 2), (list("abcdefgh"), 0), ([], 0)],
)
def test_too_few_groups_are_told(group, many):
    with pytest.raises(ValueError, match=f"groups: {many} have two speakers or more, three are needed"):
        trees.tree(np.zeros((len(group), 3)), group)


def test_groups_of_one_speaker_are_left_out():
    voices, group = cast(2)
    found = trees.tree(np.r_[voices, voices[:2]], [*group, "alone", ""], draws=5, shuffles=0)
    assert found.names == list("abcd") and np.isnan(found.chance)


def test_voices_that_are_all_the_same_have_a_tree_all_the_same():
    found = trees.tree(np.ones((8, 4)), list("aabbccdd"), draws=5, shuffles=3)
    assert np.isfinite(found.alike.to_numpy()).all() and found.links[:, 2].max() == 0


# ---------------------------------------------------------------------------------------------- features


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_correlations_of_sparse_codes_are_those_of_dense_ones(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((60, 5)) * (rng.random((60, 5)) < 0.4)
    x[0], x[1] = 1.0, 0.0  # no column is constant
    found = trees.together(csc_array(x.astype(np.float32)))
    np.testing.assert_allclose(found, np.corrcoef(x.astype(np.float32), rowvar=False), atol=1e-6)
    assert (found == found.T).all() and (np.diag(found) == 1).all()


def test_a_feature_that_does_not_vary_is_named_and_no_nan():
    x = np.zeros((9, 3), np.float32)
    x[:3, 0], x[:, 2] = 1, 4
    with pytest.raises(ValueError, match="features: 2 do not vary, such as the one in column 1"):
        trees.together(csc_array(x))


def test_sliding_keeps_each_feature_and_undoes_what_goes_together():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.random((2000, 1)) * (rng.random((2000, 1)) < 0.1), 4, axis=1)
    codes = csc_array(x)
    slid = trees.slid(codes, 3)
    assert np.array_equal(np.sort(slid.toarray(), axis=0), np.sort(x, axis=0))
    off = np.triu_indices(4, 1)
    assert trees.together(codes)[off].min() > 0.999 and np.abs(trees.together(slid)[off]).max() < 0.1


def test_what_goes_together_stands_together():
    rng = np.random.default_rng(0)
    family = rng.permutation(np.repeat(np.arange(4), 5))
    x = rng.standard_normal((500, 4))[:, family] + 0.3 * rng.standard_normal((500, 20))
    order = trees.in_order(np.corrcoef(x, rowvar=False))
    assert (np.diff(family[order]) != 0).sum() == 3 and sorted(order) == list(range(20))
    assert trees.in_order(np.eye(2)).tolist() == [0, 1]
