"""Training a sparse autoencoder, as a generator that yields what happened at each step.

The loss keeps its terms apart: `reconstruction` is the squared error per dimension; `auxiliary` asks latents that
have long been silent to explain the error that the living ones leave (AuxK, Gao et al. 2024, arXiv 2406.04093).
TopK and BatchTopK need no sparsity term: `l0` is what they keep to.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

AUXILIARY = 1 / 32
"""Weight of the auxiliary loss, as in Gao et al."""


def train(
    sae: nn.Module,
    batches: Callable[[int], Iterator[Tensor]],
    *,
    steps: int,
    learning_rate: float,
    dead_tokens: int,
    warm_up: float = 0.05,
    decay: float = 0.3,
    clip: float = 1.0,
    checkpoint: Path | None = None,
    every: int = 100,
) -> Iterator[dict]:
    """Train `sae` for `steps` batches and yield one row a step: loss terms, FVU of the batch, L0, dead share.

    `batches(start)` yields batches (frame, d_in) from number `start` on, scaled to a mean squared norm of d_in.
    The learning rate rises linearly over the first `warm_up` of the steps and falls linearly to 0 over the last
    `decay`. A latent is dead that has not fired for `dead_tokens` frames.
    With a `checkpoint` the state is saved every so many steps, atomically, and read at the start: on one machine an
    interrupted training equals an uninterrupted one, bit for bit, and its rows are yielded again.

    Raises ValueError when a batch or the loss is not finite.
    """
    optimiser = torch.optim.Adam(sae.parameters(), lr=learning_rate, betas=(0.9, 0.999), fused=True)
    silent = torch.zeros(sae.d_sae, device=sae.W_dec.device)  # frames since each latent fired
    history: list[dict] = []
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=sae.W_dec.device)
        sae.load_state_dict(saved["sae"])
        optimiser.load_state_dict(saved["optimiser"])
        silent, history = saved["silent"], saved["history"]
        yield from history
    sae.train()
    for step, x in enumerate(batches(len(history)), start=len(history)):
        rate = learning_rate * _shape(step, steps, warm_up, decay)
        for group in optimiser.param_groups:
            group["lr"] = rate
        row = _step(sae, optimiser, x, silent, dead_tokens, clip)
        history.append({"step": step, "tokens": (step + 1) * len(x), "learning_rate": rate, **row})
        if checkpoint and ((step + 1) % every == 0 or step + 1 == steps):
            _save(checkpoint, sae, optimiser, silent, history)
        yield history[-1]
    sae.eval()


def _step(sae: nn.Module, optimiser, x: Tensor, silent: Tensor, dead_tokens: int, clip: float) -> dict:
    x_hat, answered = sae.resay(x)
    error = x - x_hat
    reconstruction = error.square().mean()
    dead = (silent >= dead_tokens).nonzero().squeeze(1)
    auxiliary = _auxiliary(sae, x, error.detach(), dead)
    loss = reconstruction + AUXILIARY * auxiliary
    if not torch.isfinite(loss):
        raise ValueError("the loss is not finite: are there NaN or infinite activations, or is the rate too high?")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    sae.drop_parallel_gradient()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), clip)
    optimiser.step()
    sae.keep_unit_norm()
    silent += len(x)
    silent[answered] = 0
    spread = (x - x.mean(dim=0)).square().mean()
    return {
        "reconstruction": reconstruction.item(),
        "auxiliary": auxiliary.item(),
        "fvu": (reconstruction.detach() / spread).item(),
        "l0": len(answered) / len(x),
        "dead": len(dead) / sae.d_sae,
    }


def _auxiliary(sae: nn.Module, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Share of the error that the d_in / 2 loudest dead latents leave unexplained; 0 when none is dead."""
    if not len(dead):
        return x.new_zeros(())
    calls = (x - sae.b_dec) @ sae.W_enc[:, dead] + sae.b_enc[dead]  # (frame, dead latent)
    loudest = calls.topk(min(sae.d_in // 2, len(dead)), dim=-1, sorted=False)
    f = torch.zeros_like(calls).scatter(-1, loudest.indices, loudest.values.relu())
    return (error - f @ sae.W_dec[dead]).square().mean() / error.square().mean().clamp_min(1e-12)


def _shape(step: int, steps: int, warm_up: float, decay: float) -> float:
    """The share of the peak learning rate at a step."""
    rise = (step + 1) / max(1, round(warm_up * steps))
    fall = (steps - step) / max(1, round(decay * steps))
    return min(1.0, rise, fall)


def _save(path: Path, sae: nn.Module, optimiser, silent: Tensor, history: list[dict]) -> None:
    part = path.with_name(path.name + ".part")
    state = {
        "sae": sae.state_dict(),
        "optimiser": optimiser.state_dict(),
        "silent": silent,
        "history": history,
    }
    torch.save(state, part)
    os.replace(part, path)
