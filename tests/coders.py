"""Dictionaries that the tests translate, and how to tell whether two say the same. Fixtures of them: conftest.py."""

import torch

from whisper_sae import sae

WIDTH, LATENTS, K = 24, 96, 6


def made(variant: str, frames: torch.Tensor) -> sae.SAE:
    """An SAE in evaluation mode none of whose numbers is a default one."""
    coder = sae.create(variant, WIDTH, LATENTS, K)
    draw = torch.Generator().manual_seed(100)
    with torch.no_grad():
        if variant != "tied":
            coder.W_enc += 0.1 * torch.randn(coder.W_enc.shape, generator=draw)
        coder.b_enc.copy_(0.5 * torch.randn(LATENTS, generator=draw))
        coder.b_dec.copy_(torch.randn(WIDTH, generator=draw))
        if variant == "jumprelu":
            coder.threshold.copy_(2 * torch.rand(LATENTS, generator=draw))
        elif isinstance(coder, sae.BatchTopK):
            coder.calibrate([frames])
    return coder.eval()


def settled(coder: sae.SAE, frames: torch.Tensor, close: float = 1e-5) -> torch.Tensor:
    """Where rounding cannot change which calls are answered: (frame, latent). Two ways to add up the same numbers
    differ in the last place, and a call may lie that close to the threshold, or the last of the k to the next."""
    with torch.no_grad():
        pre = coder.pre(frames)
    if isinstance(coder, sae.TopK):
        best = pre.topk(coder.k + 1, dim=1).values
        return (best[:, -2] - best[:, -1] > close)[:, None].expand_as(pre)
    return (pre - coder.threshold).abs() > close


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The greatest difference, as a share of the greatest number."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())
