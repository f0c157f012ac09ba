"""Training sparse autoencoders, as a generator that yields what happened at each step.

The terms of the loss are kept apart: `reconstruction` is the squared error per dimension; `sparsity` is there for the
variants that have one; `auxiliary` asks latents that have long been silent to explain the error that the living
ones leave (AuxK, Gao et al. 2024, arXiv 2406.04093).
"""

import errno
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from whisper_sae import atomic


@dataclass(frozen=True)
class Settings:
    """How to train. Tokens are frames."""

    steps: int
    learning_rate: float
    """Peak rate of Adam, for activations scaled to a mean squared norm of d_in."""
    dead_tokens: int
    """A latent that has not fired for so many tokens is dead."""
    warm_up: float = 0.05
    """Share of the steps over which the rate rises, in a line."""
    decay: float = 0.3
    """Share of the steps over which it falls to 0 at the end."""
    shape: str = "linear"
    """How it falls: `linear` or `cosine`."""
    clip: float = 1.0
    """Largest norm of the gradient of all parameters together."""
    auxiliary: float = 1 / 4
    """Weight of the auxiliary loss; 0 turns it off. Gao et al. give it 1/32, with which a tenth of the latents of a
    `batchtopk` of tiny.en's last layer died; with 1/4 it was a fiftieth, at the same error."""
    resample_tokens: int = 0
    """Every so many tokens the dead latents begin anew at frames that are badly explained; 0 never."""
    patience: int = 0
    """Stop when so many evaluations on held-out frames in a row were no better than the best; 0 never."""

    def __post_init__(self):
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"shape: {self.shape!r} is not one of linear, cosine")
        if self.steps < 1 or self.dead_tokens < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError("steps, dead_tokens and learning_rate must be above 0")

    def rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        rise = (step + 1) / max(1, round(self.warm_up * self.steps))
        fall = min(1.0, (self.steps - step) / max(1, round(self.decay * self.steps)))
        if self.shape == "cosine":
            fall = (1 - math.cos(math.pi * fall)) / 2
        return self.learning_rate * min(1.0, rise, fall)


class Learner:
    """One SAE in training: its optimiser, how long each latent has been silent, its best state on held-out frames."""

    def __init__(self, sae: nn.Module, settings: Settings, held_out: Callable[[nn.Module], float] | None = None):
        self.sae, self.settings, self.held_out = sae, settings, held_out
        # fused Adam copies a gradient that is not contiguous, for nothing: it is shown W_enc by its rows
        self.rows = {
            name: part if part.is_contiguous() else nn.Parameter(part.detach().T)
            for name, part in sae.named_parameters()
        }
        self.optimiser = torch.optim.Adam(self.rows.values(), lr=settings.learning_rate, betas=(0.9, 0.999), fused=True)
        self.silent = torch.zeros(sae.d_sae, device=sae.W_dec.device)  # tokens since each latent fired
        self.history: list[dict] = []
        self.best, self.best_state, self.worse, self.stopped = math.inf, None, 0, False

    def step(self, x: Tensor) -> dict:
        """Learn from one batch, (frame, d_in); returns the row of the history."""
        sae, settings, number = self.sae.train(), self.settings, len(self.history)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(number)
        if not number:
            _check(sae, x)
        said = sae.resay(x)
        dead = (self.silent >= settings.dead_tokens).nonzero().squeeze(1)
        terms = sae.terms(x, said)
        error = said.missing.detach()
        if settings.auxiliary:
            terms["auxiliary"] = settings.auxiliary * _auxiliary(sae, x, error, dead)
        self._descend(torch.stack(list(terms.values())).sum())
        fired = torch.zeros_like(self.silent).index_add_(0, said.calls.latent, (said.f.detach() > 0).float())
        self.silent.add_(len(x)).masked_fill_(fired > 0, 0)
        row = {"step": number, "tokens": (number + 1) * len(x), "learning_rate": settings.rate(number)}
        row |= {name: term.item() for name, term in terms.items()}
        row["fvu"] = torch.dot(error.ravel(), error.ravel()).item() / _spread(said.centred.detach())
        row |= {"l0": fired.sum().item() / len(x), "dead": len(dead) / sae.d_sae}
        row["resampled"] = self._resample(x, error, row)
        self.history.append(row)
        return row

    def _descend(self, loss: Tensor) -> None:
        """One step of the optimiser down the gradient of the loss."""
        if not torch.isfinite(loss):
            raise ValueError("the loss is not finite: are there NaN or infinite activations, or is the rate too high?")
        self.sae.zero_grad(set_to_none=True)
        loss.backward()
        self.sae.drop_parallel_gradient()
        learnt = [part for part in self.sae.parameters() if part.grad is not None]
        size = nn.utils.get_total_norm([part.grad for part in learnt])
        if size > self.settings.clip:
            nn.utils.clip_grads_with_norm_(learnt, self.settings.clip, size)
        for part, rows in zip(self.sae.parameters(), self.rows.values(), strict=True):
            if part is not rows:
                rows.grad = None if part.grad is None else part.grad.T
        self.optimiser.step()
        self.sae.keep_unit_norm()

    @torch.no_grad()
    def _resample(self, x: Tensor, error: Tensor, row: dict) -> int:
        """Point the dead latents at frames drawn by their squared loss; Adam forgets what it knew of them."""
        every, before = self.settings.resample_tokens, row["tokens"] - len(x)
        late = row["step"] > (1 - self.settings.decay) * self.settings.steps  # no time left to learn
        if not every or row["tokens"] // every == before // every or late:
            return 0
        dead = (self.silent >= self.settings.dead_tokens).nonzero().squeeze(1)[: len(x)]
        if not len(dead):
            return 0
        chance = error.square().sum(dim=1).square().double()
        drawn = torch.multinomial(chance.cpu(), len(dead), generator=torch.Generator().manual_seed(row["step"]))
        self.sae.point_at(dead, x[drawn.to(x.device)])
        for name, rows in self.rows.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if name != "b_dec" and rows.grad is not None:
                    self.optimiser.state[rows][moment].index_fill_(0, dead, 0)
        self.silent[dead] = 0
        return len(dead)

    def evaluate(self) -> None:
        """Ask `held_out` how good the SAE is (the less the better); keep the best, and stop when patience is over."""
        if self.held_out is None or not self.settings.patience:
            return
        score = self.held_out(self.sae.eval())
        self.history[-1]["held_out"] = score
        if score < self.best:
            self.best, self.worse = score, 0
            self.best_state = {name: tensor.clone() for name, tensor in self.sae.state_dict().items()}
        else:
            self.worse += 1
            self.stopped = self.worse >= self.settings.patience

    def finish(self) -> None:
        """The SAE as it shall be used: its best state where there is one, in evaluation mode."""
        if self.best_state is not None:
            self.sae.load_state_dict(self.best_state)
        self.sae.eval()

    KEPT = ("silent", "history", "best", "best_state", "worse", "stopped")

    def state(self) -> dict:
        return {"sae": self.sae.state_dict(), "optimiser": self.optimiser.state_dict()} | {
            name: getattr(self, name) for name in self.KEPT
        }

    def resume(self, state: dict) -> None:
        self.sae.load_state_dict(state["sae"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name in self.KEPT:
            setattr(self, name, state[name])


def train(
    sae: nn.Module,
    batches: Callable[[int], Iterator[Tensor]],
    *,
    checkpoint: Path | None = None,
    every: int = 100,
    held_out: Callable[[nn.Module], float] | None = None,
    **settings,
) -> Iterator[dict]:
    """Train one SAE and yield a row a step: the terms of the loss, FVU of the batch, L0, share of dead latents.

    `batches(start)` yields batches (frame, d_in) from number `start` on, scaled to a mean squared norm of d_in.
    Other keywords are `Settings`. Every `every` steps `held_out` is asked, if there is one, and with a `checkpoint` the
    state is saved, atomically; it is read at the start: if `batches` yields the same bits again, a
    training that was interrupted equals an uninterrupted one on the same processor with as many threads, bit for bit,
    and its rows are yielded again.

    Rows are plain dictionaries: any logger can be fed with them (`writer.add_scalar(name, value, row["step"])`).

    Raises ValueError when a batch or the loss is not finite, or the first batch cannot be learnt from.
    """
    for rows in train_together({"": sae}, batches, checkpoint=checkpoint, every=every, held_out=held_out, **settings):
        yield rows[""]


def train_together(
    saes: Mapping[str, nn.Module],
    batches: Callable[[int], Iterator],
    *,
    checkpoint: Path | None = None,
    every: int = 100,
    held_out: Callable[[nn.Module], float] | Mapping[str, Callable[[nn.Module], float]] | None = None,
    **settings,
) -> Iterator[dict[str, dict]]:
    """`train` for several SAEs at once, so that frames are read once: yields {name: row} a step.

    A batch is a tensor for all of them, or {name: tensor}, and `held_out` is one for all, or {name: one}. Each SAE
    learns as it would alone; one that has stopped early no longer yields.
    """
    asked = held_out if isinstance(held_out, Mapping) else dict.fromkeys(saes, held_out)
    learners = {name: Learner(sae, Settings(**settings), asked[name]) for name, sae in saes.items()}
    if saved := _saved(checkpoint, next(iter(saes.values())).W_dec.device):
        try:
            for name, learner in learners.items():
                learner.resume(saved[name])
        except (KeyError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(f"{checkpoint}: is of another training ({why}); delete it, or name another file") from None
        longest = max(len(learner.history) for learner in learners.values())
        for step in range(longest):
            yield {name: one.history[step] for name, one in learners.items() if step < len(one.history)}
    start, steps = max(len(one.history) for one in learners.values()), Settings(**settings).steps
    for step, batch in enumerate(batches(start), start=start) if start < steps else ():
        learning = {name: one for name, one in learners.items() if not one.stopped}
        if not learning:
            break
        rows = {name: one.step(batch[name] if isinstance(batch, Mapping) else batch) for name, one in learning.items()}
        if (step + 1) % every == 0 or step + 1 == steps:
            for learner in learning.values():
                learner.evaluate()
            if checkpoint:
                with atomic.replacing(checkpoint) as part:
                    torch.save({name: learner.state() for name, learner in learners.items()}, part)
        yield rows
    for learner in learners.values():
        learner.finish()


def _saved(checkpoint: Path | None, device) -> dict | None:
    """What a checkpoint holds; None without one. One that cannot be read is deleted, which is said in one line."""
    if not checkpoint or not checkpoint.exists():
        return None
    try:
        return torch.load(checkpoint, weights_only=True, map_location=device)
    except (EOFError, RuntimeError, OSError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is what torch reads past the end with
            raise
        why = (str(error).splitlines() or ["it ends too early"])[0]
        print(f"{checkpoint}: cannot be read ({why}); the training begins anew", file=sys.stderr)
        checkpoint.unlink()
        return None


def _check(sae: nn.Module, x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != sae.d_in:
        raise ValueError(f"batch: expected (frame, {sae.d_in}), got {tuple(x.shape)}")
    if len(x) < sae.k:
        raise ValueError(f"batch: {len(x)} frames are fewer than k = {sae.k}; give more frames at a time")
    if not torch.isfinite(x).all():
        raise ValueError("batch: there are NaN or infinite activations")
    if len(x) < 2 or (x == x[0]).all():
        raise ValueError("batch: all frames are the same, so there is nothing to explain")


def _spread(x: Tensor) -> float:
    """Σ|x - mean|² over the rows of x, whose mean is near 0."""
    return max(torch.dot(x.ravel(), x.ravel()).item() - len(x) * x.mean(dim=0).square().sum().item(), 1e-12)


def _auxiliary(sae: nn.Module, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Share of the error that the d_in / 2 loudest dead latents leave unexplained; 0 when none is dead."""
    if not len(dead):
        return x.new_zeros(())
    calls = (x - sae.b_dec) @ sae.W_enc[:, dead] + sae.b_enc[dead]  # (frame, dead latent)
    loudest = calls.topk(min(sae.d_in // 2, len(dead)), dim=-1, sorted=False)
    f = torch.zeros_like(calls).scatter(-1, loudest.indices, loudest.values.relu())
    return (error - f @ sae.W_dec[dead]).square().mean() / error.square().mean().clamp_min(1e-12)
