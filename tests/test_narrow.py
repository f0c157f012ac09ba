"""Numbers lose what they must when they are stored, and nothing when they are read again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import profiles
from whisper_sae.activations import dtypes

FLOATS = st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=30)


@pytest.mark.parametrize("dtype", dtypes.DTYPES)
def test_what_is_read_is_what_torch_rounds_to(dtype, tmp_path):
    @given(FLOATS)
    def check(values):
        x = torch.tensor(values, dtype=torch.float32).reshape(-1, 1)
        stored = dtypes.narrowed(x, dtype, "x")
        assert stored.itemsize == dtypes.itemsize(dtype) and stored.shape == x.shape
        np.save(tmp_path / "x.npy", stored)
        again = dtypes.widened(np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False))
        np.testing.assert_array_equal(np.float32(again), x.to(getattr(torch, dtype)).float().numpy())

    check()


def test_bfloat16_reaches_as_far_as_float32_and_is_less_exact_than_float16():
    x = torch.tensor([7e4, 1e38, -1.0, 1.001, 1e-38])
    stored = dtypes.narrowed(x, "bfloat16", "x")
    assert stored.dtype == np.uint16
    again = dtypes.widened(stored)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, x, rtol=2**-8)
    assert again[3] == 1.0, "8 significant bits do not tell 1.001 from 1"


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (7e4, "float16", "x are too large for float16: use bfloat16 or float32"),
        (torch.finfo(torch.float32).max, "bfloat16", "x are too large for bfloat16: use float32"),
        (float("nan"), "float16", "x are NaN or infinite"),
        (float("-inf"), "bfloat16", "x are NaN or infinite"),
        (float("inf"), "float32", "x are NaN or infinite"),
    ],
)
def test_what_cannot_be_kept_is_refused(value, dtype, said):
    with pytest.raises(ValueError) as refused:
        dtypes.narrowed(torch.tensor([0.0, value]), dtype, "x")
    assert str(refused.value) == said


def test_a_profile_may_ask_for_each():
    assert set(profiles.CHOICES["dtype"]) == set(dtypes.DTYPES)
