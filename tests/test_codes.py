"""Codes as entries say the same as dense codes, whichever frames and features are asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array

from whisper_sae.features import sparse_acts

DENSE = np.array([[0, 2, 0], [1, 0, 0], [0, 3, 0], [0.5, 1, 0]], dtype=np.float32)


def test_pieces_of_dense_codes_are_joined():
    made = sparse_acts.of_chunks([DENSE[:3], DENSE[3:]])
    assert isinstance(made, csc_array) and made.nnz == 5
    assert (made.toarray() == DENSE).all()


def test_a_signed_input_is_two_features():
    signed = np.array([[1.0, -2], [0, 3], [-4, 0]])
    made = sparse_acts.of_chunks([signed[:1], signed[1:]], both_sides=True).toarray()
    assert made.tolist() == [[1, 0, 0, 2], [0, 3, 0, 0], [0, 0, 4, 0]]
    with pytest.raises(ValueError, match="codes: some are negative; ask for both_sides"):
        sparse_acts.of_chunks([signed])


def test_frames_without_a_label_are_left_out():
    made, frames = sparse_acts.known(
        sparse_acts.of_chunks([DENSE]), ["s", "", "i", "s"], ["a", "a", "b", "b"], [7, 7, 9, 9]
    )
    assert (made.toarray() == DENSE[[0, 2, 3]]).all()
    assert (
        frames.names.tolist() == ["i", "s"] and frames.label.tolist() == [1, 0, 1] and frames.count.tolist() == [1, 2]
    )
    assert frames.speaker.tolist() == [0, 1, 1] and frames.clip.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "speakers", "clips", "why"),
    [
        (["s"] * 3, ["a"] * 4, [0] * 4, "labels: 3 for 4 frames"),
        (["s"] * 4, ["a"] * 5, [0] * 4, "speakers: 5 for 4 frames"),
        (["s"] * 4, ["a"] * 4, [0] * 2, "clips: 2 for 4 frames"),
        ([""] * 4, ["a"] * 4, [0] * 4, "labels: no frame has one"),
        (["s"] * 4, ["a"] * 4, [0, 1, 0, 1], "clips: the frames of a clip must follow each other"),
    ],
)
def test_what_does_not_fit_is_named(labels, speakers, clips, why):
    with pytest.raises(ValueError, match=why):
        sparse_acts.known(sparse_acts.of_chunks([DENSE]), labels, speakers, clips)


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(1, 9))
def test_some_frames_and_some_features(here, most):
    made, mask = sparse_acts.of_chunks([DENSE]), np.array(here)
    assert (sparse_acts.only(made, mask).toarray() == DENSE[mask]).all()
    parts = list(sparse_acts.blocks(made, most))
    assert (np.concatenate([inner.toarray() for _, inner in parts], axis=1) == DENSE).all()
    assert [some.start for some, _ in parts] == [0, *(some.stop for some, _ in parts[:-1])]
    assert all(inner.nnz <= most or inner.shape[1] == 1 for _, inner in parts)


def test_entries_in_any_order_and_zeros_among_them():
    """As an index may hold them: rows of a feature not in order, and a zero that was stored."""
    loose = csc_array((np.array([3.0, 2.0, 0.0]), np.array([2, 0, 1]), np.array([0, 3])), shape=(4, 1))
    kept = sparse_acts.only(loose, np.ones(4, bool))
    assert kept.nnz == 2 and kept.indices.tolist() == [0, 2] and kept.data.tolist() == [2.0, 3.0]


def test_entries_may_be_memory_mapped(tmp_path):
    made = sparse_acts.of_chunks([DENSE])
    for name in ("data", "indices", "indptr"):
        np.save(tmp_path / f"{name}.npy", getattr(made, name))
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr")]
    kept = sparse_acts.only(csc_array(tuple(mapped), shape=made.shape), np.array([True, True, False, True]))
    assert (kept.toarray() == DENSE[[0, 1, 3]]).all()


def test_half_of_the_speakers_is_drawn():
    speaker = np.repeat(np.arange(9), 3)
    halves = [sparse_acts.half_of(speaker, seed) for seed in range(5)]
    assert all(len(np.unique(speaker[half])) == 5 and len(np.unique(speaker[~half])) == 4 for half in halves)
    assert len({tuple(half) for half in halves}) > 1
    assert sparse_acts.half_of(np.zeros(4, int)).all(), "one speaker: nobody else to be asked"


def test_coincidences_are_counted_and_weighed():
    made, label = sparse_acts.of_chunks([DENSE]), np.array([0, 1, 1, 0])
    assert sparse_acts.coincidences(made, label, 2).tolist() == [[1, 1], [2, 1], [0, 0]]
    assert sparse_acts.coincidences(made, label, 2, made.data).tolist() == [[0.5, 1], [3, 3], [0, 0]]
