"""Maps keep neighbours together, in the order of the points; and know when they cannot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from whisper_sae.features import embeddings


@pytest.fixture(scope="module")
def planted():
    """Three clumps of 40 points in 20 dimensions, shuffled: points and the clump of each."""
    rng = np.random.default_rng(0)
    clump = rng.permutation(np.repeat([0, 1, 2], 40))
    return 6 * rng.standard_normal((3, 20))[clump] + rng.standard_normal((120, 20)), clump


def test_the_points_of_a_map_are_in_the_order_of_the_rows(planted):
    x, clump = planted
    laid = embeddings.tsne(x, 3)
    assert laid.shape == (120, 2) and np.isclose(laid.std(), 1)
    near = KNeighborsClassifier(4).fit(laid, clump)
    assert near.score(laid, clump) > 0.98 > 0.6 > near.score(laid, np.roll(clump, 1))


def test_a_map_is_the_same_with_the_same_seed_and_another_with_another(planted):
    x, _ = planted
    one, other = embeddings.tsne(x, 1), embeddings.tsne(x, 2)
    assert np.array_equal(one, embeddings.tsne(x, 1)) and not np.allclose(one, other, atol=0.1)


def test_trust_tells_a_true_map_from_one_by_lot(planted):
    x, _ = planted
    laid, table = embeddings.drawn(x, (0, 1))
    told = table.set_index("map")
    assert len(laid) == 2 and told.points.eq(120).all()
    assert told.trustworthiness[:2].min() > 0.85
    assert abs(told.trustworthiness["by lot"] - 0.5) < 0.06
    assert told.kept.iloc[0] > 2 * told.kept["by lot"] and np.isnan(told.kept["two principal directions"])


def test_kept_is_1_for_the_same_map_turned():
    laid = np.random.default_rng(0).standard_normal((60, 2))
    assert embeddings.kept(laid, laid @ np.array([[0, -1], [1, 0]])) == 1


@pytest.mark.parametrize("perplexity", [0.5, 12, 30])
def test_perplexity_must_lie_below_the_number_of_points(perplexity):
    with pytest.raises(ValueError, match="perplexity: must be at least 1 and below the 12 points"):
        embeddings.tsne(np.eye(12), perplexity=perplexity)


def test_too_few_points_and_what_is_not_a_number_are_named():
    with pytest.raises(ValueError, match="points: 9 are too few for a map, 10 are needed"):
        embeddings.tsne(np.zeros((9, 3)))
    with pytest.raises(ValueError, match="points: 1 of 10 hold what is not a number"):
        embeddings.principal(np.r_[np.zeros((9, 3)), [[0, np.nan, 0]]])


@settings(max_examples=8)
@given(st.integers(10, 40), st.integers(1, 5), st.booleans())
def test_any_few_points_have_a_map(points, width, equal):
    x = np.zeros((points, width)) if equal else np.random.default_rng(points).standard_normal((points, width))
    laid = embeddings.tsne(x)
    assert laid.shape == (points, 2) and np.isfinite(laid).all()
    assert 0 <= embeddings.trusted(x, laid) <= 1
