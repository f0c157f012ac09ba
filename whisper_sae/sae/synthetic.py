"""A world whose features are known, to ask whether a dictionary finds them.

    x = Σ_i f_i · direction_i + mean + noise

Features are unit directions, more of them than dimensions; each has its own rate, which falls as a power of its rank;
when it fires its strength is 1 plus an exponential. In some worlds features come in groups that tend to fire together.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SETTINGS = {
    "easy": dict(features=96, width=64, l0=4.0, power=0.0, together=0.0, noise=0.02),
    "rare": dict(features=192, width=64, l0=4.0, power=1.0, together=0.0, noise=0.02),
    "correlated": dict(features=96, width=64, l0=4.0, power=0.0, together=0.5, noise=0.02),
    "hard": dict(features=256, width=64, l0=6.0, power=0.7, together=0.5, noise=0.1),
}


@dataclass(frozen=True)
class World:
    """Directions (feature, width) of length 1, rates (feature,), the mean (width,), and how features fire together."""

    directions: Tensor
    rates: Tensor
    mean: Tensor
    together: float
    noise: float

    def draw(self, frames: int, seed: int) -> tuple[Tensor, Tensor]:
        """Frames x, (frame, width), and the strengths f of the features in them, (frame, feature)."""
        rng = torch.Generator().manual_seed(seed)
        own = torch.randn(frames, len(self.rates), generator=rng)
        shared = torch.randn(frames, -(-len(self.rates) // 4), generator=rng).repeat_interleave(4, dim=1)
        mood = self.together**0.5 * shared[:, : len(self.rates)] + (1 - self.together) ** 0.5 * own
        fires = torch.special.ndtr(mood) < self.rates
        strength = 1 - torch.log1p(-torch.rand(frames, len(self.rates), generator=rng))
        f = fires * strength
        noise = self.noise * torch.randn(frames, self.directions.shape[1], generator=rng)
        return f @ self.directions + self.mean + noise, f


def world(features: int, width: int, l0: float, power: float, together: float, noise: float, seed: int = 0) -> World:
    """A world with `l0` features in a frame on average, rates ∝ rank^-power (at most 0.5), a Gaussian copula of
    correlation `together` within groups of four, and noise of that standard deviation a dimension.

    A world and a dictionary of the same seed are drawn apart: it must not begin at what it has to find.
    """
    rng = torch.Generator().manual_seed(1_000_003 + seed)
    directions = torch.nn.functional.normalize(torch.randn(features, width, generator=rng), dim=1)
    rates = torch.arange(1, features + 1).float() ** -power
    rates = (rates * l0 / rates.sum()).clamp_max(0.5)
    return World(directions, rates, torch.randn(width, generator=rng) * 0.3, together, noise)


@torch.no_grad()
def recovery(true: World, W_dec: Tensor, encode, frames: int = 8192, seed: int = 1) -> dict:
    """How much of a world a dictionary W_dec, (latent, width), has found.

    `max_cosine`: mean over features of the best cosine with any latent. `matched_cosine`: the same with each latent
    given to one feature only (the best assignment). `f1`: mean over features of F1 between the feature's firing
    and its latent's, on fresh frames that `encode` codes.
    """
    cosine = torch.nn.functional.normalize(W_dec, dim=1) @ true.directions.T  # (latent, feature)
    latent, feature = linear_sum_assignment(-cosine.numpy())
    x, f = true.draw(frames, seed)
    said, is_there = encode(x)[:, latent] > 0, f[:, feature] > 0
    hits = (said & is_there).sum(dim=0)
    f1 = 2 * hits / (said.sum(dim=0) + is_there.sum(dim=0)).clamp_min(1)
    return {
        "max_cosine": float(cosine.max(dim=0).values.mean()),
        "matched_cosine": float(np.mean(cosine[latent, feature].numpy())),
        "f1": float(f1.mean()),
    }
