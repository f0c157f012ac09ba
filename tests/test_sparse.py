"""The sparse path: which calls are chosen, and sums over pairs; the loops say what torch says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae.sae import kernels, sparse

KINDS = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
SIZES = (st.integers(1, 150), st.integers(1, 40), st.integers(0, 9), KINDS)


def calls(frames, latents, seed, kind, steps=None):
    """Random calls of very different loudness; rounded to `steps` a unit, so that many are the same."""
    draw = torch.Generator().manual_seed(seed)
    loudness = torch.exp(2 * torch.randn(frames, 1, generator=draw))
    pre = torch.randn(frames, latents, generator=draw) * (loudness if steps is None else 1)
    return (pre if steps is None else (pre * steps).round() / steps).to(kind)


@given(*SIZES, st.integers(1, 45), st.sampled_from([None, 2]))
def test_the_strongest_of_each_are_those_that_sorting_finds(frames, latents, seed, kind, k, steps):
    pre = calls(frames, latents, seed, kind, steps)
    frame, latent = sparse.strongest_of_each(pre, k)
    assert (torch.diff(frame * latents + latent) > 0).all()  # in order, and none twice
    for row in range(frames):
        found = pre[row, latent[frame == row]].sort(descending=True).values
        right = pre[row].sort(descending=True).values[:k]
        assert torch.equal(found, right[right > 0])


@given(*SIZES, st.floats(0.01, 1.2), st.sampled_from([None, 2]), st.floats(0, 4))
def test_the_strongest_of_all_are_those_that_sorting_finds(frames, latents, seed, kind, share, steps, guess):
    pre = calls(frames, latents, seed, kind, steps)
    wanted = max(1, round(share * pre.numel()))
    frame, latent, weakest = sparse.strongest_of_all(pre, wanted, guess)
    assert (torch.diff(frame * latents + latent) > 0).all()
    right = pre.flatten().sort(descending=True).values[:wanted]
    assert torch.equal(pre[frame, latent].sort(descending=True).values, right[right > 0])
    assert weakest == (right[-1] if len(right) == wanted and right[-1] > 0 else 0)


@given(*SIZES, st.floats(0, 3))
def test_all_above_are_found(frames, latents, seed, kind, bound):
    pre = calls(frames, latents, seed, kind)
    frame, latent = sparse.all_above(pre, bound)
    right = (pre > torch.tensor(bound, dtype=kind)).nonzero(as_tuple=True)
    assert torch.equal(frame, right[0]) and torch.equal(latent, right[1])


def test_of_equals_the_first_are_chosen():
    assert sparse.strongest_of_each(torch.ones(2, 20), 3)[1].tolist() == [0, 1, 2, 0, 1, 2]
    frame, latent, weakest = sparse.strongest_of_all(torch.ones(2, 4), 5, 0.5)
    assert frame.tolist() == [0, 0, 0, 0, 1] and latent.tolist() == [0, 1, 2, 3, 0] and weakest == 1


def test_what_is_no_number_is_chosen_so_that_the_loss_can_tell():
    pre = torch.full((1, 30), torch.nan)
    assert len(sparse.strongest_of_each(pre, 4)[0]) == 4


@given(*[st.integers(1, size) for size in (60, 200, 20, 7, 50)], st.integers(0, 9))
def test_sums_over_pairs(frames, latents, width, shares, size, seed):
    """In any number of shares, with any number of rows at a time: what dense products say."""
    draw = np.random.default_rng(seed)
    chosen = torch.from_numpy(draw.random((frames, latents)) < draw.choice([0.0, 0.02, 0.3]))
    pairs = sparse.Calls(*chosen.nonzero(as_tuple=True), frames, latents)
    some = lambda *shape: torch.from_numpy(draw.standard_normal(shape))  # noqa: E731
    weight, left, right = some(len(pairs.frame)), some(frames, width), some(latents, width)
    found = []
    for plan in ((shares, size), (1, 10_000)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse.kernels, "shares", lambda rows, plan=plan: plan)
            found.append([pairs.products(left, right), pairs.add_by_frame(left, right, weight),
                          pairs.sum_by_latent(left, weight)])  # fmt: skip
    full = torch.zeros(frames, latents, dtype=torch.float64).index_put((pairs.frame, pairs.latent), weight)
    right_ones = (left @ right.T)[pairs.frame, pairs.latent], left + full @ right, full.T @ left
    for one, whole, dense in zip(*found, right_ones, strict=True):
        torch.testing.assert_close(one, dense)
        torch.testing.assert_close(one, whole)


def test_other_devices_say_the_same(monkeypatch):
    """The path through torch alone, as on a GPU."""
    pre, left, right = calls(80, 90, 1, torch.float32), torch.randn(80, 24), torch.randn(90, 24)
    found = []
    for looped in (True, False):
        monkeypatch.setattr(sparse, "looped", lambda x, *_, looped=looped: looped)
        each, (frame, latent, weakest) = sparse.strongest_of_each(pre, 6), sparse.strongest_of_all(pre, 300, 0.2)
        pairs = sparse.Calls(frame, latent, 80, 90)
        weight = torch.linspace(0, 1, len(frame))
        sums = pairs.products(left, right), pairs.add_by_frame(left, right, weight), pairs.sum_by_latent(left, weight)
        found.append([*each, frame, latent, weakest, *sparse.all_above(pre, 0.5), *sums])
    for one, another in zip(*found, strict=True):
        torch.testing.assert_close(one, another)


def test_the_loops_leave_torch_the_number_of_threads_it_was_told():
    """Numba tells torch another one where it starts its own, once a process: so in a process of its own."""
    code = (
        "import torch; torch.set_num_threads(1); from whisper_sae.sae import sparse;"
        "sparse.keep_unit_rows(torch.ones(2, 3)); print(torch.get_num_threads())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_without_a_folder_to_keep_compiled_code_in_it_is_compiled_each_time(tmp_path):
    package = shutil.copytree(Path(kernels.__file__).parents[1], tmp_path / "whisper_sae",
                              ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    code = """
from numba.core import caching
for one in caching.CacheImpl._locator_classes:
    one.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
import numpy as np
from whisper_sae.sae import kernels
assert kernels.how_many_above(np.arange(5, dtype=np.int32), 2) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert not list(package.rglob("*.nb[ci]"))


@pytest.mark.slow
def test_compiled_code_that_a_power_cut_left_empty_is_removed(tmp_path):
    package = shutil.copytree(Path(kernels.__file__).parents[1], tmp_path / "whisper_sae",
                              ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    code = (
        "import numpy as np; from whisper_sae.sae import kernels;"
        "kernels.how_many_above(np.arange(5, dtype=np.int32), 2)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        kept = list(package.rglob("*.nb[ci]"))
        assert len(kept) >= 2 and all(path.stat().st_size for path in kept)
        for path in kept:
            os.truncate(path, 0)
