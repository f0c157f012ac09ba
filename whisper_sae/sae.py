"""The sparse autoencoder: a dictionary of directions, of which few are needed to re-say an activation.

    f     = sparsify((x - b_dec) W_enc + b_enc)        (frame, d_sae), mostly zero
    x_hat = f W_dec + b_dec                            (frame, d_in)

Rows of W_dec have length 1, so f is in the units of x. Names and shapes are the field's (SAELens).

Training uses that f is mostly zero: see `Resaid`. The dense path, `encode` and `decode`, is the reference.
"""

import json
import os
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class SAE(nn.Module):
    """x ≈ f W_dec + b_dec with f = sparsify((x - b_dec) W_enc + b_enc). Variants differ in which calls they choose.

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

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Which calls, (frame, d_sae), are answered: the frame and the latent of each, by frame, all calls positive."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations, (…, d_sae) of x, (…, d_in): never negative, and 0 for all but the chosen."""
        pre = self.pre(x).reshape(-1, self.d_sae)
        where = self.chosen(pre.detach())
        return torch.zeros_like(pre).index_put(where, pre[where]).reshape(*x.shape[:-1], self.d_sae)

    def decode(self, f: Tensor) -> Tensor:
        """What the features say together: (frame, d_in)."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x: (…, d_in)."""
        return self.decode(self.encode(x))

    def resay(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` says, with the same gradients for much less work; and the latent of every call answered."""
        with torch.no_grad():
            pre = self.pre(x)
            frame, latent = self.chosen(pre)
            f = pre[frame, latent]
        return Resaid.apply(x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, frame, latent, f), latent

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

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        strongest = pre.topk(self.k, dim=-1, sorted=False)
        frame, place = (strongest.values > 0).nonzero(as_tuple=True)
        return frame, strongest.indices[frame, place]


class BatchTopK(SAE):
    """The k·n strongest calls among n frames: k a frame on average (Bussmann et al. 2024, arXiv 2412.06410).

    In training the weakest call let through sets `threshold` (running mean). Outside training a latent fires
    when its call exceeds the threshold, so that a frame's features do not depend on its neighbours in the batch.
    """

    variant = "batchtopk"

    def chosen(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return (pre > self.threshold.clamp_min(0)).nonzero(as_tuple=True)
        frame, latent, weakest = self._strongest(pre)
        self.threshold.lerp_(weakest, 1.0 if self.threshold == 0 else 0.01)
        return frame, latent

    @torch.no_grad()
    def _strongest(self, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The k·n strongest calls of n frames that are positive, by frame and latent; and the weakest of them."""
        wanted = self.k * len(pre)
        for bound in (0.8 * self.threshold, 0.0):  # mostly they all lie near the last threshold
            frame, latent = (pre > bound).nonzero(as_tuple=True)
            if len(frame) >= wanted:
                f = pre[frame, latent]
                weakest = f.topk(wanted, sorted=False).values.min()
                return frame[f >= weakest], latent[f >= weakest], weakest
        return frame, latent, pre.new_zeros(())

    @torch.no_grad()
    def calibrate(self, batches) -> None:
        """Set `threshold` so that, over these batches, k latents fire on a frame on average."""
        weakest = [self._strongest(self.pre(x))[2] for x in batches]
        self.threshold.copy_(torch.stack(weakest).mean())


class Resaid(torch.autograd.Function):
    """x_hat = f W_dec + b_dec from the few calls that are not zero, and its gradients from the same few.

    Dense, a step costs four more matrix products of the size of the encoder's, almost all of it times zero. With
    n·k answered calls, each a frame, a latent and a strength f, everything is a sum over few rows, which torch has
    as `embedding_bag`: x_hat sums rows of W_dec for each frame; dW_dec sums rows of the gradient g, and dW_enc rows
    of x - b_dec, for each latent, once the calls are sorted by latent. Only df = <g, W_dec[latent]> is of another
    kind: a product sampled at the calls.
    """

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, W_dec, b_dec, frame, latent, f):
        ctx.save_for_backward(x, W_enc, W_dec, b_dec, frame, latent, f)
        first = torch.searchsorted(frame, torch.arange(len(x), device=x.device))
        return F.embedding_bag(latent, W_dec, first, mode="sum", per_sample_weights=f) + b_dec

    @staticmethod
    def backward(ctx, g):
        x, W_enc, W_dec, b_dec, frame, latent, f = ctx.saved_tensors
        df = _sampled(g, W_dec, frame, latent)
        by_latent, order = latent.sort(stable=True)
        first, of = torch.searchsorted(by_latent, torch.arange(len(W_dec), device=x.device)), frame[order]
        dW_dec = F.embedding_bag(of, g, first, mode="sum", per_sample_weights=f[order])
        dW_enc = F.embedding_bag(of, x - b_dec, first, mode="sum", per_sample_weights=df[order])
        db_enc = x.new_zeros(len(W_dec)).index_add_(0, latent, df)
        return None, dW_enc.T, db_enc, dW_dec, g.sum(dim=0) - W_enc @ db_enc, None, None, None


def _sampled(g: Tensor, W_dec: Tensor, frame: Tensor, latent: Tensor) -> Tensor:
    """<g[frame], W_dec[latent]> for each pair: (pair,)."""
    first = torch.searchsorted(frame, torch.arange(len(g) + 1, device=g.device))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # a test compares it with autograd
        pairs = torch.sparse_csr_tensor(
            first, latent, g.new_zeros(len(frame)), (len(g), len(W_dec)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pairs, g, W_dec.T, beta=0).values()


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
