"""The sparse autoencoder: a dictionary of directions, of which few are needed to re-say an activation.

    pre   = (x - b_dec) W_enc + b_enc          (frame, d_sae): how strongly each latent is called
    f     = sparsify(pre)                      (frame, d_sae): never negative, mostly zero
    x_hat = f W_dec + b_dec                    (frame, d_in)

Rows of W_dec have length 1, so f is in the units of x. Names and shapes are the field's (SAELens). Variants differ in
which calls are answered, and in what is asked of them besides a good reconstruction.

There are two paths. `encode`, `decode` and `forward` are dense; they are the formula, and what tests compare with.
`resay` is what training uses: it says the same from the calls that are answered alone; `sparse` explains the trick.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from whisper_sae import atomic
from whisper_sae.devices import multiplies_bfloat16
from whisper_sae.sae import io
from whisper_sae.sae.sparse import (
    Called,
    Calls,
    Left,
    MeanSquare,
    all_above,
    drop_along,
    keep_unit_rows,
    linear,
    strongest_of_all,
    strongest_of_each,
)

RANDOM_SEED_OFFSET = 1_000_003
"""Added to the seed of a random SAE, which else would have the first directions of the trained one."""


class SAE(nn.Module):
    """x ≈ f W_dec + b_dec with f = sparsify((x - b_dec) W_enc + b_enc).

    W_enc is (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_in), b_dec (d_in,). `k` is the wanted L0; `penalty` weighs
    the sparsity term of the variants that have one. `threshold` is what a call must exceed to be answered outside
    training, for the variants that need one.
    """

    variant = ""
    default_penalty = 0.0
    """Of a variant with a sparsity term; the others say by `k` alone how sparse they are."""
    restart = 0.2
    """The encoder norm of a latent that is reset, in mean norms of the others: see `point_at`."""

    def __init__(self, d_in: int, d_sae: int, k: int, seed: int = 0, penalty: float | None = None):
        super().__init__()
        if not 1 <= k <= d_sae:
            raise ValueError(f"k: must lie between 1 and d_sae = {d_sae}, got {k}")
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        self.penalty = self.default_penalty if penalty is None else float(penalty)
        if self.penalty < 0 or (self.penalty > 0) != (self.default_penalty > 0):
            raise ValueError(f"penalty: {self.variant} takes {'one above 0' if self.default_penalty else 'none'}")
        directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions.clone())
        self._start_encoder(directions)  # starting tied keeps latents alive
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(()))

    def _start_encoder(self, directions: Tensor) -> None:
        self.W_enc = nn.Parameter(directions.clone().T)  # a latent's weights lie together in memory

    # ----------------------------------------------------------------------------------------- the formula

    def pre(self, x: Tensor) -> Tensor:
        """How strongly each latent is called: (frame, d_sae)."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Which calls, (frame, d_sae), may be answered: the frame and the latent of each, by frame."""
        raise NotImplementedError

    def answer(self, pre: Tensor, latent: Tensor) -> Tensor:
        """What the latents answer to the chosen calls: (call,), of (call,) and the latent called."""
        return pre.relu()

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations, (…, d_sae) of x, (…, d_in): never negative, and 0 for all but the chosen."""
        pre = self.pre(x).reshape(-1, self.d_sae)
        frame, latent = self.chosen(pre.detach())
        f = torch.zeros_like(pre).index_put((frame, latent), self.answer(pre[frame, latent], latent))
        return f.reshape(*x.shape[:-1], self.d_sae)

    def decode(self, f: Tensor) -> Tensor:
        """What the features say together: (frame, d_in)."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x: (…, d_in)."""
        return self.decode(self.encode(x))

    # ---------------------------------------------------------------------------------------- for training

    def resay(self, x: Tensor) -> "Resaid":
        """What `forward` says of x, (frame, d_in), with the same gradients for much less work. x gets none."""
        centred = x + -self.b_dec
        with torch.no_grad():
            rough = self.rough_pre(centred)
            calls = Calls(*self.chosen(rough), frames=len(x), latents=self.d_sae)
        pre = Called.apply(centred.detach(), self.W_enc, self.b_enc, self.b_dec, rough, calls)
        f = self.answer(pre, calls.latent)
        return Resaid(rough, calls, pre, f, centred, Left.apply(centred, f, self.W_dec, calls))

    def rough_pre(self, centred: Tensor) -> Tensor:
        """`pre` of x - b_dec, to choose by: in bfloat16 where the machine has arithmetic for it. What is chosen is said
        exactly."""
        kind = torch.bfloat16 if multiplies_bfloat16(centred.device) else centred.dtype
        return linear(centred.to(kind), self.W_enc.T.to(kind), self.b_enc.to(kind))

    def terms(self, x: Tensor, said: "Resaid") -> dict[str, Tensor]:
        """The terms of the loss, to be added: `reconstruction`, squared error per dimension, and a variant's own."""
        return {"reconstruction": MeanSquare.apply(said.missing)}

    @torch.no_grad()
    def start_on(self, x: Tensor, centre: str = "mean") -> None:
        """Before training: b_dec at the mean of x (or its geometric median, `centre="median"`), which no outlier moves
        far, and W_enc scaled so that first reconstructions have the right size."""
        self.b_dec.copy_(x.mean(dim=0) if centre == "mean" else geometric_median(x))
        told = self.train()(x) - self.b_dec
        self._scale_encoder((told * (x - self.b_dec)).sum() / told.square().sum().clamp_min(1e-12))

    def _scale_encoder(self, factor: Tensor) -> None:
        self.W_enc *= factor

    @torch.no_grad()
    def keep_unit_norm(self) -> None:
        """Give every row of W_dec length 1 again: to be called after each step of the optimiser."""
        keep_unit_rows(self.W_dec)

    @torch.no_grad()
    def drop_parallel_gradient(self) -> None:
        """Remove what would only lengthen a row of W_dec from its gradient (Bricken et al. 2023, appendix)."""
        if self.W_dec.grad is not None:
            drop_along(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def point_at(self, latents: Tensor, x: Tensor) -> None:
        """Reset these latents, each to the direction of a frame of x, (latent, d_in), as seen from b_dec, with
        `restart` times the others' mean encoder norm: a fifth (Bricken et al. 2023, appendix), but all of it where
        latents compete for k places or have to exceed a threshold, or else they would never be active."""
        directions = F.normalize(x - self.b_dec, dim=1)
        others = torch.ones(self.d_sae, dtype=torch.bool, device=x.device)
        others[latents] = False
        usual = self.W_enc.norm(dim=0)[others].mean() if others.any() else 1.0
        self.W_dec[latents] = directions
        self._set_encoder(latents, self.restart * usual * directions)
        self.b_enc[latents] = 0

    def _set_encoder(self, latents: Tensor, rows: Tensor) -> None:
        self.W_enc[:, latents] = rows.T

    @torch.no_grad()
    def undo_scale(self, scale: float) -> None:
        """Make an SAE that was trained on scale·x one for x. W_enc and W_dec stay as they are."""
        for part in (self.b_enc, self.b_dec, self.threshold):
            part /= scale


# -------------------------------------------------------------------------------------------------- variants


class ReLU(SAE):
    """Every positive call, under an L1 penalty: |x - x_hat|² + penalty · |f|₁, both divided by d_in.

    Bricken et al. 2023 (Towards monosemanticity); Cunningham et al. 2023, arXiv 2309.08600. `k` is not used.
    """

    variant = "relu"
    default_penalty = 1.0

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        return all_above(pre, 0.0)

    def terms(self, x: Tensor, said: "Resaid") -> dict[str, Tensor]:
        return super().terms(x, said) | {"sparsity": self.penalty * said.f.sum() / x.numel()}


class Tied(ReLU):
    """`relu` whose encoder is its decoder turned over: W_enc = W_dec^T, at every step (Cunningham et al. 2023)."""

    variant = "tied"

    @property
    def W_enc(self) -> Tensor:
        return self.W_dec.T

    def _start_encoder(self, directions: Tensor) -> None:
        pass

    def _scale_encoder(self, factor: Tensor) -> None:
        pass

    def _set_encoder(self, latents: Tensor, rows: Tensor) -> None:
        pass


class TopK(SAE):
    """The k latents called most strongly on each frame (Gao et al. 2024, arXiv 2406.04093)."""

    variant = "topk"
    restart = 1.0

    def chosen(self, pre: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        return strongest_of_each(pre, k or self.k)


class MultiTopK(TopK):
    """`topk` that also has to make sense with 4 k latents: their error counts one eighth (Gao et al. 2024, 4.2).

    It keeps codes from being tuned to one k, so that another can be chosen after training.
    """

    variant = "multitopk"

    def terms(self, x: Tensor, said: "Resaid") -> dict[str, Tensor]:
        with torch.no_grad():
            calls = Calls(*self.chosen(said.rough, 4 * self.k), frames=len(x), latents=self.d_sae)
        f = Called.apply(said.centred.detach(), self.W_enc, self.b_enc, self.b_dec, said.rough, calls).relu()
        missing = Left.apply(said.centred, f, self.W_dec, calls)
        return super().terms(x, said) | {"multi": MeanSquare.apply(missing) / 8}


class BatchTopK(SAE):
    """The k·n strongest calls among n frames: k a frame on average (Bussmann et al. 2024, arXiv 2412.06410).

    In training the weakest call let through sets `threshold` (running mean). Outside training a latent fires
    when its call exceeds the threshold, so that a frame's features do not depend on its neighbours in the batch.
    """

    variant = "batchtopk"
    restart = 1.0

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return all_above(pre, float(self.threshold))
        frame, latent, weakest = strongest_of_all(pre, self.k * len(pre), float(self.threshold))
        self.threshold.lerp_(weakest.to(self.threshold), 1.0 if self.threshold == 0 else 0.01)
        return frame, latent

    @torch.no_grad()
    def start_on(self, x: Tensor, centre: str = "mean") -> None:
        super().start_on(x, centre)
        self.threshold.zero_()

    @torch.no_grad()
    def calibrate(self, batches) -> None:
        """Set `threshold` so that, over these batches, k latents fire on a frame on average."""
        weakest = [strongest_of_all(self.pre(x), self.k * len(x), float(self.threshold))[2] for x in batches]
        self.threshold.copy_(torch.stack(weakest).mean())


class Matryoshka(BatchTopK):
    """`batchtopk` whose first latents must do without the later ones (Bussmann et al. 2025, arXiv 2503.17547).

    The error is the mean over nested dictionaries of the first d_sae / 16, / 8, / 4, / 2 and all latents. What is
    general comes first and is not split up by what is special.
    """

    variant = "matryoshka"

    def terms(self, x: Tensor, said: "Resaid") -> dict[str, Tensor]:
        sizes = sorted({max(1, self.d_sae // part) for part in (16, 8, 4, 2, 1)})
        missing, errors = said.centred, []
        for first, last in zip([0, *sizes], sizes, strict=False):
            here = ((said.calls.latent >= first) & (said.calls.latent < last)).nonzero().squeeze(1)
            calls = Calls(said.calls.frame[here], said.calls.latent[here] - first, len(x), last - first)
            missing = Left.apply(missing, said.f[here], self.W_dec[first:last], calls)
            errors.append(MeanSquare.apply(missing))
        return {"reconstruction": torch.stack(errors).mean()}


class JumpReLU(SAE):
    """Calls above a threshold that each latent learns: f = pre · [pre > θ] (Rajamanoharan et al. 2024).

    arXiv 2407.14435. θ has no gradient of its own; it is estimated from the calls within `bandwidth` of it (equations
    11 and 12). The sparsity term is theirs for a wanted L0 (appendix): penalty · (L0 / k - 1)².
    """

    variant = "jumprelu"
    default_penalty = 1.0
    restart = 1.0
    bandwidth = 0.5
    """For activations scaled to a mean squared norm of d_in, where calls are of the order of 1 to 10."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        del self.threshold
        self.threshold = nn.Parameter(torch.full((self.d_sae,), 1.0))

    @torch.no_grad()
    def point_at(self, latents: Tensor, x: Tensor) -> None:
        super().point_at(latents, x)
        self.threshold[latents] = 1.0

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        below = self.bandwidth / 2 if self.training else 0.0  # these say 0, but θ learns from them
        return ((pre > self.threshold - below) & (pre > 0)).nonzero(as_tuple=True)

    def answer(self, pre: Tensor, latent: Tensor) -> Tensor:
        return Jump.apply(pre, self.threshold[latent], self.bandwidth)

    def terms(self, x: Tensor, said: "Resaid") -> dict[str, Tensor]:
        l0 = Step.apply(said.pre, self.threshold[said.calls.latent], self.bandwidth).sum() / len(x)
        return super().terms(x, said) | {"sparsity": self.penalty * (l0 / self.k - 1).square()}

    @torch.no_grad()
    def keep_unit_norm(self) -> None:
        super().keep_unit_norm()
        self.threshold.clamp_(min=0.0)


class Jump(torch.autograd.Function):
    """pre · [pre > θ]; to θ goes -(θ / ε) · [|pre - θ| < ε / 2] of the gradient."""

    @staticmethod
    def forward(ctx, pre, theta, bandwidth):
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx, g):
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.bandwidth / 2
        return g * (pre > theta), -g * theta * near / ctx.bandwidth, None


class Step(torch.autograd.Function):
    """[pre > θ]; to θ goes -(1 / ε) · [|pre - θ| < ε / 2] of the gradient, to pre nothing."""

    @staticmethod
    def forward(ctx, pre, theta, bandwidth):
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx, g):
        pre, theta = ctx.saved_tensors
        return None, -g * ((pre - theta).abs() < ctx.bandwidth / 2) / ctx.bandwidth, None


@dataclass
class Resaid:
    """What `resay` says: how strongly latents are called, to choose by; the calls chosen, how strong each was and what
    was answered, (pair,); x - b_dec and x - x_hat, (frame, d_in)."""

    rough: Tensor
    calls: Calls
    pre: Tensor
    f: Tensor
    centred: Tensor
    missing: Tensor


def geometric_median(x: Tensor, turns: int = 50) -> Tensor:
    """The point with the least sum of distances to the rows of x, (row, width): (width,). Weiszfeld's algorithm."""
    at = x.mean(dim=0)
    for _ in range(turns):
        weight = 1 / (x - at).norm(dim=1, keepdim=True).clamp_min(1e-6)
        at = (weight * x).sum(dim=0) / weight.sum()
    return at


# ---------------------------------------------------------------------------------------------------- files


VARIANTS: dict[str, type[SAE]] = {
    kind.variant: kind for kind in (BatchTopK, TopK, MultiTopK, Matryoshka, JumpReLU, ReLU, Tied)
}


def create(variant: str, d_in: int, d_sae: int, k: int, seed: int = 0, penalty: float | None = None) -> SAE:
    """A new SAE of a variant; ValueError names the right ones."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: there is no {variant!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[variant](d_in, d_sae, k, seed=seed, penalty=penalty)


def save(sae: SAE, folder: str | Path, **about) -> None:
    """Write `sae.safetensors` (the tensors) and `sae.json` (what they are, and `about`) into a folder."""
    folder = Path(folder)
    tensors = {"W_enc": sae.W_enc.detach(), **sae.state_dict()}
    with atomic.replacing(folder / "sae.safetensors") as part:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, part)
    sizes = {name: getattr(sae, name) for name in ("variant", "d_in", "d_sae", "k", "penalty")}
    atomic.write(folder / "sae.json", json.dumps(sizes | about, indent=1))


def load(folder: str | Path) -> SAE:
    """Read what `save` wrote, in evaluation mode; ValueError names the file that does not fit."""
    said = io.read(folder)
    try:
        sae = create(said.variant, said.d_in, said.d_sae, said.k, penalty=said.about.get("penalty"))
        sae.load_state_dict({name: said.tensors[name] for name in sae.state_dict()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: not a saved SAE: {error}".replace("\n", " ")) from None
    return sae.eval()
