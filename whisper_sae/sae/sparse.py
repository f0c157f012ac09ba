"""The sparse path: what an autoencoder says, and how it learns, from the calls that are answered alone.

Dense, a step of training costs four more matrix products as large as the encoder's, nearly all of it times zero. With
only the pairs of a frame and a latent that are not zero, everything is a sum over few rows: what is said of a frame
sums rows of W_dec; the gradients of W_dec and W_enc sum, for each latent, rows of the error and of x - b_dec over its
frames. What is left are scalar products of one row here with one row there, at the pairs.

On a processor the loops are in `kernels`; elsewhere torch has them as `embedding_bag` and `sampled_addmm`.
"""

import warnings
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whisper_sae.sae import kernels

# -------------------------------------------------------------------------------------------------- choosing

COUNTED = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Floats that are chosen by counting, and the integers they are counted as."""


def strongest_of_each(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k strongest positive calls of each row of pre, (frame, d_sae): their frames and latents, in order."""
    k = min(k, pre.shape[1])
    if not looped(pre, COUNTED):
        strongest = pre.topk(k, dim=-1, sorted=False)
        latent, order = strongest.indices.sort(dim=-1)
        frame, place = (strongest.values.gather(-1, order) > 0).nonzero(as_tuple=True)
        return frame, latent[frame, place]
    latent, count = np.empty((len(pre), k), dtype=np.int64), np.empty(len(pre), dtype=np.int64)
    kernels.strongest_of_rows(_as_integers(pre), k, latent, count)
    if (count < k).any():
        latent = latent[np.arange(k) < count[:, None]]
    return _frames(count), torch.from_numpy(latent.ravel())


def strongest_of_all(pre: Tensor, wanted: int, guess: float) -> tuple[Tensor, Tensor, Tensor]:
    """The `wanted` strongest positive calls of all, in order, and the weakest of them (0 where fewer are positive).

    Sorting all calls would take longer than everything else in a step. Most lie far below the last threshold: only
    those near `guess`, what the weakest may be, are looked at, if they are enough.
    """
    for bound in (0.95 * max(guess, 0.0), 0.8 * max(guess, 0.0), 0.0):
        frame, latent, strength = _above(pre, bound)
        if len(frame) >= wanted:
            break
    if len(frame) < wanted:
        return frame, latent, pre.new_zeros(())
    if len(frame) == wanted:
        return frame, latent, strength.min()
    if looped(pre, COUNTED):
        keep = np.empty(len(frame), dtype=np.bool_)
        kernels.keep_strongest(_as_integers(strength), wanted, keep)
        kept = torch.from_numpy(keep.nonzero()[0])
    else:
        kept = strength.topk(wanted, sorted=False).indices.sort().values
    return frame.index_select(0, kept), latent.index_select(0, kept), strength.index_select(0, kept).min()


def all_above(pre: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Every call above a bound, 0 or more: their frames and latents, in order."""
    return _above(pre, bound)[:2]


def _above(pre: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """`all_above`, and how strong the calls are."""
    bound = torch.tensor([bound], dtype=pre.dtype)
    if not looped(pre, COUNTED):
        frame, latent = (pre > bound.to(pre.device)).nonzero(as_tuple=True)
        return frame, latent, pre[frame, latent]
    calls, count = _as_integers(pre), np.empty(len(pre), dtype=np.int64)
    kernels.count_above(calls, _as_integers(bound)[0], count)
    first = np.concatenate([[0], np.cumsum(count)])
    latent, strength = torch.empty(first[-1], dtype=torch.int64), pre.new_empty(first[-1])
    kernels.all_above(calls, _as_integers(bound)[0], first, latent.numpy(), _as_integers(strength))
    return _frames(count), latent, strength


def _frames(count: np.ndarray) -> Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(count)), count))


def _as_integers(pre: Tensor) -> np.ndarray:
    """The same bits: positive floats keep their order, negative ones are negative."""
    return pre.view(COUNTED[pre.dtype]).numpy()


def looped(x: Tensor, kinds=(torch.float32, torch.float64)) -> bool:
    """Whether the loops of `kernels` are for this tensor."""
    return x.device.type == "cpu" and x.dtype in kinds


# ------------------------------------------------------------------------------------------------------ pairs


class Calls:
    """Which latents are called on which frames: pairs of a frame and a latent, by frame and then by latent."""

    def __init__(self, frame: Tensor, latent: Tensor, frames: int, latents: int):
        self.frame, self.latent, self.frames, self.latents = frame, latent, frames, latents

    @cached_property
    def by_frame(self) -> Tensor:
        """Where the pairs of each frame begin, and where all end: (frame + 1,)."""
        return torch.searchsorted(self.frame, torch.arange(self.frames + 1, device=self.frame.device))

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """The pairs sorted by latent: their order, and where those of each latent begin and all end."""
        if self.latent.device.type == "cpu":
            order = torch.empty(len(self.latent), dtype=torch.int64)
            first = torch.empty(self.latents + 1, dtype=torch.int64)
            kernels.sort_by_latent(self.latent.numpy(), first.numpy(), order.numpy())
            return order, first
        latent, order = self.latent.sort(stable=True)
        return order, torch.searchsorted(latent, torch.arange(self.latents + 1, device=latent.device))

    def add_by_frame(self, base: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Base, (frame, width), and added to it, for each frame, the rows, (latent, width), of its latents, each times
        its pair's weight, (pair,)."""
        if looped(rows):
            pairs = torch.arange(len(self.latent))
            return _add(base, rows, self.latent, pairs, weight, self.by_frame)
        every = {"mode": "sum", "per_sample_weights": weight, "include_last_offset": True}
        return F.embedding_bag(self.latent, rows, self.by_frame, **every).add_(base)

    def sum_by_latent(self, rows: Tensor, weight: Tensor) -> Tensor:
        """For each latent, the rows, (frame, width), of its frames, each times its pair's weight: (latent, width)."""
        order, first = self.by_latent
        if looped(rows):
            return _add(rows.new_zeros(1, rows.shape[1]), rows, self.frame, order, weight, first)
        every = {"mode": "sum", "per_sample_weights": weight[order], "include_last_offset": True}
        return F.embedding_bag(self.frame[order], rows, first, **every)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """<left[frame], right[latent]> of each pair: (pair,), of (frame, width) and (latent, width)."""
        if looped(left):
            out = left.new_empty(len(self.frame))
            arrays = _arrays(left, right, self.latent, self.by_frame, out)
            kernels.products(*arrays, *kernels.shares(arrays[1]))
            return out
        with warnings.catch_warnings():  # "in beta": a test compares it with autograd
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            pairs = torch.sparse_csr_tensor(
                self.by_frame, self.latent, left.new_zeros(len(self.frame)), (self.frames, self.latents),
                check_invariants=False,
            )  # fmt: skip
        return torch.sparse.sampled_addmm(pairs, left, right.T, beta=0).values()


def _add(base: Tensor, rows: Tensor, index: Tensor, order: Tensor, weight: Tensor, first: Tensor) -> Tensor:
    out = rows.new_empty(len(first) - 1, rows.shape[1])
    arrays = _arrays(base, rows, index, order, weight, first, out)
    kernels.add_rows(*arrays, *kernels.shares(arrays[1]))
    return out


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """x W^T + b. On a processor, torch's `linear` first spreads b, and copies W where it is bfloat16."""
    fused = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if fused is None or x.device.type != "cpu":
        return F.linear(x, W, b)
    return fused(x, W, b, "none", [], "")


def keep_unit_rows(W: Tensor) -> None:
    """Give every row of W length 1."""
    if looped(W) and W.is_contiguous():
        kernels.shorten(W.detach().numpy())
    else:
        W /= W.norm(dim=1, keepdim=True).clamp_min(1e-8)


def drop_along(g: Tensor, W: Tensor) -> None:
    """Take from each row of g what lies along the row of W, which has length 1."""
    if looped(W) and W.is_contiguous() and g.is_contiguous():
        kernels.drop_along(g.numpy(), W.detach().numpy())
    else:
        g.addcmul_((g * W).sum(dim=1, keepdim=True), W, value=-1)


class Called(torch.autograd.Function):
    """How strongly each pair is called: (x - b_dec) W_enc + b_enc, (pair,). Its gradients reach the SAE, not x.

    `pre` is that of every frame and latent, as far as it is known; where it is rough it is worked out again.
    """

    @staticmethod
    def forward(ctx, centred, W_enc, b_enc, b_dec, pre, calls):
        ctx.save_for_backward(centred, W_enc)
        ctx.calls = calls
        if pre.dtype == centred.dtype:
            return pre.take(calls.frame * calls.latents + calls.latent)
        return calls.products(centred, W_enc.T).add_(b_enc.index_select(0, calls.latent))

    @staticmethod
    def backward(ctx, g):
        centred, W_enc = ctx.saved_tensors
        db_enc = g.new_zeros(ctx.calls.latents).index_add_(0, ctx.calls.latent, g)
        return None, ctx.calls.sum_by_latent(centred, g).T, db_enc, -(W_enc @ db_enc), None, None


class Left(torch.autograd.Function):
    """What the pairs' answers f, (pair,), leave of x: x - f W_dec, (frame, d_in)."""

    @staticmethod
    def forward(ctx, x, f, W_dec, calls):
        ctx.save_for_backward(f, W_dec)
        ctx.calls = calls
        return calls.add_by_frame(x, W_dec, -f)

    @staticmethod
    def backward(ctx, g):
        f, W_dec = ctx.saved_tensors
        g = g.contiguous()
        return g, -ctx.calls.products(g, W_dec), ctx.calls.sum_by_latent(g, -f), None


class MeanSquare(torch.autograd.Function):
    """The mean square of x's elements: as `x.square().mean()`, in one pass there and one back."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.dot(x.ravel(), x.ravel()) / x.numel()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return x * (2 * g / x.numel())
