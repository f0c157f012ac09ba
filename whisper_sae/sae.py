"""The sparse autoencoder: a dictionary of directions, of which few are needed to re-say an activation.

    f     = sparsify((x - b_dec) W_enc + b_enc)        (frame, d_sae), mostly zero
    x_hat = f W_dec + b_dec                            (frame, d_in)

Rows of W_dec have length 1, so f is in the units of x. Names and shapes are the field's (SAELens).
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class SAE(nn.Module):
    """x ≈ f W_dec + b_dec with f = sparsify((x - b_dec) W_enc + b_enc). Variants differ in `sparsify`.

    W_enc is (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_in), b_dec (d_in,). `threshold` is what a latent must
    exceed to fire outside training, for the variants that need one.
    """

    variant = ""

    def __init__(self, d_in: int, d_sae: int, k: int, seed: int = 0):
        super().__init__()
        if not 1 <= k <= d_sae:
            raise ValueError(f"k: must lie between 1 and d_sae = {d_sae}, got {k}")
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions.clone())
        self.W_enc = nn.Parameter(directions.T.clone())  # starting tied keeps latents alive
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(()))

    def pre(self, x: Tensor) -> Tensor:
        """How strongly each latent is called: (frame, d_sae)."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def sparsify(self, pre: Tensor) -> Tensor:
        """The few latents that answer; the others are 0."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations, never negative: (frame, d_sae)."""
        return self.sparsify(self.pre(x))

    def decode(self, f: Tensor) -> Tensor:
        """What the features say together: (frame, d_in)."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x: (frame, d_in)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def start_on(self, x: Tensor) -> None:
        """Before training: b_dec at the mean of x, W_enc scaled so that first reconstructions have the right size."""
        self.b_dec.copy_(x.mean(dim=0))
        told = self.train()(x) - self.b_dec
        self.W_enc *= (told * (x - self.b_dec)).sum() / told.square().sum().clamp_min(1e-12)
        self.threshold.zero_()

    @torch.no_grad()
    def keep_unit_norm(self) -> None:
        """Give every row of W_dec length 1 again: to be called after each step of the optimiser."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)

    @torch.no_grad()
    def drop_parallel_gradient(self) -> None:
        """Remove what would only lengthen a row of W_dec from its gradient (Bricken et al. 2023, appendix)."""
        along = (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True)
        self.W_dec.grad -= along * self.W_dec

    @torch.no_grad()
    def undo_scale(self, scale: float) -> None:
        """Make an SAE that was trained on scale·x one for x. W_enc and W_dec stay as they are."""
        for part in (self.b_enc, self.b_dec, self.threshold):
            part /= scale


class TopK(SAE):
    """The k latents called most strongly on each frame (Gao et al. 2024, arXiv 2406.04093)."""

    variant = "topk"

    def sparsify(self, pre: Tensor) -> Tensor:
        strongest = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, strongest.indices, strongest.values.relu())


class BatchTopK(SAE):
    """The k·n strongest calls among n frames: k a frame on average (Bussmann et al. 2024, arXiv 2412.06410).

    In training the weakest call let through sets `threshold` (running mean). Outside training a latent fires
    when its call exceeds the threshold, so that a frame's features do not depend on its neighbours in the batch.
    """

    variant = "batchtopk"

    def sparsify(self, pre: Tensor) -> Tensor:
        if not self.training:
            return torch.where(pre > self.threshold, pre, 0).relu()
        frames = pre.shape[:-1].numel()
        weakest = self._weakest(pre, frames)
        self.threshold.lerp_(weakest, 1.0 if self.threshold == 0 else 0.01)
        return torch.where(pre >= weakest, pre, 0).relu()

    @torch.no_grad()
    def _weakest(self, pre: Tensor, frames: int) -> Tensor:
        """The weakest of the k·frames strongest calls; looked for near the last threshold, where it mostly is."""
        wanted = self.k * frames
        near = pre[pre > 0.8 * self.threshold]
        pool = near if len(near) >= wanted else pre.flatten()
        return pool.topk(wanted, sorted=False).values.min().clamp_min(0)

    @torch.no_grad()
    def calibrate(self, batches) -> None:
        """Set `threshold` so that, over these batches, k latents fire on a frame on average."""
        weakest = [self._weakest(self.pre(x), len(x)) for x in batches]
        self.threshold.copy_(torch.stack(weakest).mean())


VARIANTS: dict[str, type[SAE]] = {kind.variant: kind for kind in (BatchTopK, TopK)}


def create(variant: str, d_in: int, d_sae: int, k: int, seed: int = 0) -> SAE:
    """A new SAE of a variant; ValueError names the right ones."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: there is no {variant!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[variant](d_in, d_sae, k, seed)


def save(sae: SAE, folder: str | Path, **about) -> None:
    """Write `sae.safetensors` (the tensors) and `sae.json` (what they are, and `about`) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}
    save_file(tensors, folder / "sae.safetensors.part")
    os.replace(folder / "sae.safetensors.part", folder / "sae.safetensors")
    described = {"variant": sae.variant, "d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k, **about}
    (folder / "sae.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def load(folder: str | Path) -> SAE:
    """Read what `save` wrote, in evaluation mode; ValueError names the file that does not fit."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "sae.json").read_text(encoding="utf-8"))
        sae = create(told["variant"], told["d_in"], told["d_sae"], told["k"])
        sae.load_state_dict(load_file(folder / "sae.safetensors"))
    except (FileNotFoundError, KeyError, json.JSONDecodeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a saved SAE: {error}".replace("\n", " ")) from None
    return sae.eval()
