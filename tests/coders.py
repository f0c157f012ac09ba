"""SAEs that the tests convert, and how far two results may differ. Fixtures of them: conftest.py.

The same process, shapes and batches give the same bits. Nobody promises that of another batch size, another place in a
batch, another number of threads or another processor: there results agree to `CLOSE` and few activations flip.
"""

import torch

from whisper_sae.sae import architectures

WIDTH, LATENTS, K = 24, 96, 6

CLOSE = 1e-5
"""The greatest difference of float32 results computed in another order, as a share of the greatest value."""

STEP = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7}
"""One step of a number of that type, as a share of it: a difference in the last bit may round to the next one."""


def made(variant: str, frames: torch.Tensor) -> architectures.SAE:
    """An SAE in evaluation mode none of whose numbers is a default one."""
    coder = architectures.create(variant, WIDTH, LATENTS, K)
    draw = torch.Generator().manual_seed(100)
    with torch.no_grad():
        if variant != "tied":
            coder.W_enc += 0.1 * torch.randn(coder.W_enc.shape, generator=draw)
        coder.b_enc.copy_(0.5 * torch.randn(LATENTS, generator=draw))
        coder.b_dec.copy_(torch.randn(WIDTH, generator=draw))
        if variant == "jumprelu":
            coder.threshold.copy_(2 * torch.rand(LATENTS, generator=draw))
        elif isinstance(coder, architectures.BatchTopK):
            coder.calibrate([frames])
    return coder.eval()


def settled(coder: architectures.SAE, frames: torch.Tensor, close: float = 1e-5) -> torch.Tensor:
    """Where rounding cannot change which calls are answered: (frame, latent). Two ways to add up the same numbers
    differ in the last place, and a call may lie that close to the threshold, or the last of the k to the next."""
    with torch.no_grad():
        pre = coder.pre(frames)
    if isinstance(coder, architectures.TopK):
        best = pre.topk(coder.k + 1, dim=1).values
        return (best[:, -2] - best[:, -1] > close)[:, None].expand_as(pre)
    return (pre - coder.threshold).abs() > close


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The greatest difference, as a share of the greatest number."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def require_close(found: torch.Tensor, wanted: torch.Tensor, dtype: str = "float32") -> None:
    """AssertionError where two computations of one thing, stored as `dtype`, differ by more than their rounding."""
    torch.testing.assert_close(found, wanted, rtol=STEP[dtype], atol=CLOSE * float(wanted.abs().max()))


def flipped(one: torch.Tensor, other: torch.Tensor) -> float:
    """The share of active latents, (frame, latent), that are active in one of two encodings only. It is printed."""
    active, both = (one > 0) | (other > 0), (one > 0) & (other > 0)
    share = 1 - int(both.sum()) / max(1, int(active.sum()))
    print(f"SAE activations that flip: {share:.4%} of {int(active.sum()):,}")
    return share


def agreement(one: list, other: list) -> float:
    """The share of transcripts that are equal: two tokens may be as likely as each other to the last bit."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
