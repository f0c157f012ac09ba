"""What an edit adds is what it changes, and nothing else: x + W_dec (f' - f)."""

import numpy as np
import pytest
import torch
from coders import made
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae.causal import edits

NOW = torch.tensor([0])


def applied(edit, x, coder, clips=NOW):
    """x (item, frame, width) with the edit made in it, and the codes before."""
    f = coder.encode(x)
    mine = f if edit.features is None else f[..., list(edit.features)]
    return x + edit.added(mine, clips, coder.W_dec), f


@pytest.fixture
def coder(frames):
    return made("topk", frames).requires_grad_(False)


@pytest.fixture
def x(frames):
    return frames[:40].unflatten(0, (2, 20))


def test_the_error_of_the_sae_stays(coder, x):
    """x + W_dec (f' - f) is decode(f') + (x - decode(f)): a new code, and the old error."""
    loudest = coder.encode(x).sum(dim=(0, 1)).topk(5).indices.tolist()
    new, f = applied(edits.silence(loudest), x, coder)
    silenced = f.clone()
    silenced[..., loudest] = 0
    error = x - coder.decode(f)
    assert error.norm() > 0.1 * x.norm(), "or the SAE is perfect and nothing is tested"
    torch.testing.assert_close(new, coder.decode(silenced) + error, rtol=0, atol=1e-5)
    assert (new - coder.decode(silenced)).norm() > 0.1 * x.norm()


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "relu", "tied", "matryoshka"])
def test_what_is_not_changed_is_the_same_to_the_bit(kind, frames):
    coder, x = made(kind, frames).requires_grad_(False), frames[None]
    for edit in (edits.scale(dict.fromkeys(range(96), 1.0)), edits.at_most(range(96), 1e9), edits.strongest(96)):
        new, _ = applied(edit, x, coder)
        assert torch.equal(new, x), edit.name


CODES = st.lists(st.floats(0, 9, width=32), min_size=3, max_size=3)


@given(st.lists(CODES, min_size=1, max_size=4), st.integers(-2, 2))
def test_each_edit_by_its_definition(rows, factor):
    f = torch.tensor(rows)[None]  # (1, frame, 3)
    some = [0, 2]

    def become(edit):
        mine = f if edit.features is None else f[..., list(edit.features)]
        return edit.become(mine, NOW)

    assert torch.equal(become(edits.scale({0: factor, 2: 1})), f[..., some] * torch.tensor([float(factor), 1.0]))
    assert torch.equal(become(edits.silence(some)), torch.zeros_like(f[..., some]))
    assert torch.equal(become(edits.hold({0: 2.5})), torch.full_like(f[..., :1], 2.5))
    only = become(edits.hold({0: 2.5}, only_firing=True))
    assert torch.equal(only > 0, f[..., :1] > 0) and set(only.flatten().tolist()) <= {0.0, 2.5}
    assert torch.equal(become(edits.at_most([1], 1.5)), f[..., 1:2].clamp_max(1.5))
    assert torch.equal(become(edits.add({1: -3.0})), f[..., 1:2] - 3)
    assert torch.equal(become(edits.mean(some, torch.tensor([1.0, 2.0])))[0, 0], torch.tensor([1.0, 2.0]))
    kept = edits.keep([1], of=3)
    assert kept.features == (0, 2) and not become(kept).any()
    strongest = become(edits.strongest(1))
    assert (strongest > 0).sum(dim=-1).max() <= 1 and torch.equal(strongest.amax(-1), f.amax(-1))


def test_a_transplant_begins_where_it_is_told_and_ends_with_the_donor():
    f, donor = torch.zeros(1, 6, 2), torch.arange(1.0, 7.0).reshape(3, 2)
    edit = edits.transplant([7, 9], donor, at=2)
    new = edit.become(f, NOW)
    assert torch.equal(new[0, 2:5], donor) and not new[0, :2].any() and not new[0, 5:].any()
    assert torch.equal(edits.transplant([7, 9], donor, at=5).become(f, NOW)[0, 5], donor[0])
    assert not f.any(), "the codes that were given are not written over"


def test_only_edits_that_can_wake_a_silent_feature_say_so():
    zero = torch.zeros(1, 4, 1)
    donor = torch.ones(2, 1)
    for edit in (
        edits.scale({3: -2}),
        edits.silence([3]),
        edits.hold({3: 2}, only_firing=True),
        edits.at_most([3], 1),
        edits.hold({3: 2}),
        edits.add({3: 1}),
        edits.mean([3], torch.ones(1)),
        edits.transplant([3], donor),
    ):
        assert bool(edit.become(zero, NOW).any()) == edit.wakes, edit.name


def test_a_feature_named_twice_is_refused():
    with pytest.raises(ValueError, match="named twice"):
        edits.silence([3, 3])


def test_frames_are_chosen_by_their_centre():
    assert edits.between(2, 6, 1, 3).tolist() == [[False, True, True, False, False, False]] * 2
    mask = edits.spans(2, 10, [0, 0, 1, 1], [0.0, 0.03, 0.14, 0.021], [0.021, 0.06, 9.0, 0.04])
    assert np.flatnonzero(mask[0]).tolist() == [0, 1, 2]  # centres 0.00, 0.02, 0.04; 0.06 is the end
    assert np.flatnonzero(mask[1]).tolist() == [7, 8, 9]  # 0.14 / 0.02 is above 7 by rounding
    assert not edits.spans(1, 6, [], [], []).any()
