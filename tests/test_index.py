"""An index answers what the dense matrix of codes would, ties and all, whatever the order in which it was built."""

import itertools
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae.features import index, index_builder


def built(dense, counts, folder, signed=False, chunk=7, held=20):
    """The index of codes (row, feature), built in many runs."""
    index_builder.build(
        folder, counts, lambda first, last: dense[first:last], dense.shape[1], signed=signed, chunk=chunk, held=held
    )
    return index.Index(folder)


@st.composite
def corpora(draw, signed=None):
    """Codes (row, feature) with many ties and zeros, the rows of each piece, and whether codes may be negative."""
    signed = draw(st.booleans()) if signed is None else signed
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any))
    features, rng = draw(st.integers(1, 5)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.lists(st.sampled_from(["some", "never", "always", "equal"]), min_size=features, max_size=features))
    rows = sum(counts)
    codes = rng.integers(0, 5, (rows, features)) * (rng.random((rows, features)) < 0.4)
    for feature, kind in enumerate(kinds):
        if kind != "some":
            codes[:, feature] = {"never": 0, "always": rng.integers(1, 9, rows), "equal": 3}[kind]
    if signed:
        codes *= rng.choice([-1, 1], codes.shape)
    return (codes / 8).astype(np.float32), np.array(counts), signed


def farthest(values, n):
    """Which of the values, (row,), lie farthest from zero, the earlier first where they are equal, zeros left out."""
    order = np.argsort(-np.abs(values), kind="stable")
    return order[values[order] != 0][:n]


def of_side(values, side):
    """The values, with zeros where they belong to the other side."""
    return {"both": values, "positive": np.maximum(values, 0), "negative": np.minimum(values, 0)}[side]


def sides(signed):
    return index.SIDES if signed else ("both", "positive")


@given(corpora(), st.integers(0, 12))
def test_each_feature_is_its_column(made, n):
    dense, counts, signed = made
    with tempfile.TemporaryDirectory() as folder:
        found = built(dense, counts, folder, signed)
        for feature in range(dense.shape[1]):
            for side in sides(signed):
                column = of_side(dense[:, feature], side)
                rows, values = found.activations(feature, side)
                np.testing.assert_array_equal(rows, column.nonzero()[0])
                np.testing.assert_array_equal(values, column[rows])
                assert found.count(feature, side) == len(rows)
                rows, values = found.top(feature, n, side)
                np.testing.assert_array_equal(rows, farthest(column, n))
                np.testing.assert_array_equal(values, column[rows])


@given(corpora(), st.integers(-9, 9), st.integers(0, 9))
def test_a_range_holds_what_lies_in_it(made, low, wide):
    dense, counts, signed = made
    low, high = low / 8, (low + wide) / 8
    with tempfile.TemporaryDirectory() as folder:
        found = built(dense, counts, folder, signed)
        for feature in range(dense.shape[1]):
            column = dense[:, feature]
            for absolute in (False, True):
                asked = np.abs(column) if absolute else column
                rows, values = found.between(feature, low, high, absolute)
                np.testing.assert_array_equal(rows, ((asked >= low) & (asked <= high) & (column != 0)).nonzero()[0])
                np.testing.assert_array_equal(values, column[rows])


@given(corpora())
def test_peaks_are_the_farthest_of_each_piece(made):
    dense, counts, signed = made
    starts = np.concatenate([[0], np.cumsum(counts)])
    with tempfile.TemporaryDirectory() as folder:
        found = built(dense, counts, folder, signed)
        for side in sides(signed):
            here = of_side(dense, side)
            for feature in range(dense.shape[1]):
                wanted = []
                for piece, (first, last) in enumerate(itertools.pairwise(starts)):
                    if len(best := farthest(here[first:last, feature], 1)):
                        row, fired = first + best[0], np.count_nonzero(here[first:last, feature])
                        wanted.append((piece, row, here[row, feature], fired))
                assert list(found.peaks(feature, side).itertuples(index=False, name=None)) == wanted
            for piece, (first, last) in enumerate(itertools.pairwise(starts)):
                told = found.of_piece(piece, side)
                assert sorted(told.feature) == np.flatnonzero(here[first:last].any(axis=0)).tolist()
                wanted = [(f, *(first + farthest(here[first:last, f], 1))) for f in told.feature]
                assert list(zip(told.feature, told.row, strict=True)) == wanted
                assert told.value.tolist() == [here[row, f] for f, row in wanted]
                order = list(zip(-told.value.abs(), told.feature, strict=True))
                assert order == sorted(order), "the strongest first, and of equals the first feature"


@given(corpora())
def test_all_features_at_once_and_all_of_a_piece(made):
    dense, counts, signed = made
    starts = np.concatenate([[0], np.cumsum(counts)])
    with tempfile.TemporaryDirectory() as folder:
        found = built(dense, counts, folder, signed)
        np.testing.assert_allclose(found.rates, (dense != 0).mean(axis=0))
        np.testing.assert_array_equal(found.maxima, np.maximum(dense.max(axis=0), 0))
        np.testing.assert_array_equal(found.minima, np.minimum(dense.min(axis=0), 0))
        sides = np.concatenate([np.maximum(dense, 0), np.maximum(-dense, 0)], axis=1)[
            :, : dense.shape[1] * (1 + signed)
        ]
        for first in range(sides.shape[1] + 1):
            columns = found.columns(first, sides.shape[1])
            np.testing.assert_array_equal(columns.toarray(), sides[:, first:])
            assert columns.dtype == np.float32 and columns.has_canonical_format
        for piece, (first, last) in enumerate(itertools.pairwise(starts)):
            for feature in range(dense.shape[1]):
                np.testing.assert_array_equal(found.trace(feature, piece), dense[first:last, feature])
        piece, position = found.where(np.arange(len(dense)))
        np.testing.assert_array_equal(piece, np.repeat(np.arange(len(counts)), counts))
        np.testing.assert_array_equal(starts[piece] + position, np.arange(len(dense)))


FLOATS = st.floats(0, 2.0**127, width=32).filter(lambda x: x == 0 or x > 1e-30)


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_values_keep_eleven_bits_and_their_order(values):
    """However large or small they are, unless one is far stronger than another."""
    said = np.array(values, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        found = built(said[:, None], np.array([len(said)]), folder)
        rows, kept = found.activations(0)
    np.testing.assert_array_equal(rows, said.nonzero()[0])
    fired = said[rows].astype(float)
    order = np.argsort(fired, kind="stable")
    assert (np.diff(kept[order]) >= 0).all() and (kept > 0).all()
    near = fired >= fired.max(initial=0) * 2.0**-29
    assert (np.abs(kept[near] / fired[near] - 1) <= 2.0**-11).all()
    assert (kept[~near] <= fired.max(initial=0) * 2.0**-28).all()


@pytest.mark.parametrize("value", [1e-37, 1e-4, 1.0, 7e4, 3e38])
def test_weak_and_strong_features_lie_side_by_side(tmp_path, value):
    """float16 alone would hold neither the largest nor the smallest."""
    dense = np.array([[value, 1.0], [value / 3, 0], [0, 1e-3]], np.float32)
    found = built(dense, np.array([2, 1]), tmp_path)
    for feature in (0, 1):
        rows, values = found.activations(feature)
        np.testing.assert_allclose(values, dense[rows, feature], rtol=2.0**-11)


def test_of_a_feature_that_always_fires_only_the_highest_passages_are_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    dense = np.stack([rng.integers(1, 2000, 20_000), np.ones(20_000)], axis=1).astype(np.float32)
    found = built(dense, np.full(200, 100), tmp_path, chunk=1000, held=10**6)
    read, plain = [], index.Index._firings_of
    monkeypatch.setattr(
        index.Index, "_firings_of", lambda self, kind, s, which: read.append(len(which)) or plain(self, kind, s, which)
    )
    for feature in (0, 1):
        rows, values = found.top(feature, 20)
        np.testing.assert_array_equal(rows, farthest(dense[:, feature], 20))
        np.testing.assert_array_equal(values, dense[rows, feature])
    assert len(read) == 2 and max(read) <= 40, "of 200 passages"


def test_what_is_not_there(tmp_path):
    found = built(np.array([[0.0, 1.0]], np.float32), np.array([1]), tmp_path)
    for ask in (found.activations, found.peaks, found.count):
        with pytest.raises(IndexError, match="feature: there is no 2; there are 2"):
            ask(2)
        with pytest.raises(ValueError, match="side: 'left' is not one of both, positive, negative"):
            ask(0, "left")
        with pytest.raises(ValueError, match="nothing is negative here; the index is not signed"):
            ask(0, "negative")
    for piece in (-1, 1):
        with pytest.raises(IndexError, match=f"piece: there is no {piece}; there are 1"):
            found.of_piece(piece)
        with pytest.raises(IndexError, match="piece: there is no"):
            found.trace(0, piece)
    with pytest.raises(IndexError, match="sides: 0 to 3 of 2"):
        found.columns(0, 3)


def test_nothing_at_all_fires(tmp_path):
    found = built(np.zeros((5, 3), np.float32), np.array([2, 3]), tmp_path)
    assert found.rates.tolist() == found.maxima.tolist() == [0, 0, 0]
    assert found.activations(1)[0].size == found.top(1, 4)[0].size == found.between(1, -1, 1)[0].size == 0
    assert found.peaks(1).empty and found.of_piece(1).empty and found.trace(1, 1).tolist() == [0, 0, 0]
    assert list(found.peaks(1)) == ["piece", "row", "value", "firings"] and list(found.of_piece(1)) == [
        "feature",
        "row",
        "value",
    ]


def test_more_features_than_sixteen_bits_can_number(tmp_path):
    """A signed index of 40,000 features has 80,000 sides."""
    row, feature = np.array([0, 0, 1]), np.array([39_999, 7, 39_999])
    order = np.lexsort([feature, row])
    codes = row[order], feature[order], np.array([1.0, -2.0, -3.0], np.float32)
    index_builder.build(tmp_path, np.array([2]), lambda first, last: codes, 40_000, signed=True)
    found = index.Index(tmp_path)
    assert found.of_piece(0).feature.tolist() == [39_999, 7]
    assert found.activations(39_999)[1].tolist() == [-2.0, -3.0] and found.activations(7)[1].tolist() == [1.0]
