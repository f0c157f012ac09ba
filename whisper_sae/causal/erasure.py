"""How many features hold a concept? Take the best of them away, or keep only them, and see what can still be read.

A probe that is fitted anew on what is left, and asked about speakers it has not met, reads a concept until it is gone;
what is left is at chance. Taking away the direction between two means, or what LEACE takes (Belrose et al. 2023), is
the rival: one direction, and no dictionary is needed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RIDGE = 1e-2
"""Of the mean variance of the inputs: what a probe's weights cost, so that directions with no variance get none."""


class Side(NamedTuple):
    """Frames of some speakers: x (frame, width), which of two things each is, (frame,) bool, and its speaker
    (frame,)."""

    x: Tensor
    is_it: np.ndarray
    speaker: np.ndarray


def read(train: Side, asked: Side, change: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
    """How much of `asked` a least-squares probe gets right, fitted on `train`, after `change` on both: {speaker:
    share}.

    Both answers weigh the same: for a speaker who has both, the mean of the two shares right; for one who has one, its
    share. So who always gives one answer is right on 0.5 over speakers of both.
    """
    x, y = change(train.x).double(), torch.from_numpy(np.where(train.is_it, 1.0, -1.0))
    weight = torch.from_numpy(np.where(train.is_it, 0.5 / train.is_it.mean(), 0.5 / (~train.is_it).mean()))
    centre = (weight[:, None] * x).mean(dim=0)
    x = x - centre
    weighed = weight[:, None] * x
    ridge = (RIDGE * x.square().mean() + 1e-12) * torch.eye(x.shape[1], dtype=torch.float64)
    probe = torch.linalg.solve(x.T @ weighed / len(x) + ridge, weighed.T @ (y - (weight * y).mean()) / len(x))
    said = ((change(asked.x).double() - centre) @ probe > 0).numpy()
    return _by_speaker(said == asked.is_it, asked)


def _by_speaker(right: np.ndarray, asked: Side) -> dict[str, float]:
    found = {}
    for who in np.unique(asked.speaker):
        mine = asked.speaker == who
        shares = [
            right[mine & (asked.is_it == kind)].mean() for kind in (True, False) if (mine & (asked.is_it == kind)).any()
        ]
        found[str(who)] = float(np.mean(shares))
    return found


def ranked(f: Tensor, is_it: np.ndarray) -> np.ndarray:
    """Features from the one that tells most to the one that tells least: by the distance of the means of the two, in
    deviations. f is (frame, feature)."""
    mine = torch.from_numpy(is_it)
    gap = (f[mine].mean(dim=0) - f[~mine].mean(dim=0)).abs() / f.std(dim=0).clamp_min(1e-9)
    return gap.argsort(descending=True, stable=True).numpy()


def without(features: Sequence[int], encode: Callable[[Tensor], Tensor], W_dec: Tensor) -> Callable[[Tensor], Tensor]:
    """x less what some features say: the SAE's error stays."""
    some = list(map(int, features))
    return lambda x: x - encode(x)[:, some] @ W_dec[some]


def alone(features: Sequence[int], encode: Callable[[Tensor], Tensor], W_dec: Tensor) -> Callable[[Tensor], Tensor]:
    """What some features say, alone: no other feature, no error."""
    some = list(map(int, features))
    return lambda x: encode(x)[:, some] @ W_dec[some]


def without_mean_difference(train: Side) -> Callable[[Tensor], Tensor]:
    """x less its part along the line from the one mean to the other."""
    mine = torch.from_numpy(train.is_it)
    line = train.x[mine].mean(dim=0) - train.x[~mine].mean(dim=0)
    line = line / line.norm()
    return lambda x: x - (x @ line)[:, None] * line


def least_squares_erased(train: Side) -> Callable[[Tensor], Tensor]:
    """LEACE: the smallest change after which no linear probe tells the two apart on `train`."""
    x, mine = train.x.double(), torch.from_numpy(train.is_it)
    mean = x.mean(dim=0)
    values, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    kept = values > 1e-9 * values.max()
    root = values[kept].sqrt()
    whiten, colour = axes[:, kept] / root @ axes[:, kept].T, axes[:, kept] * root @ axes[:, kept].T
    line = whiten @ (x[mine].mean(dim=0) - x[~mine].mean(dim=0))
    line = line / line.norm()
    taken = (whiten @ line)[:, None] * (colour @ line)[None]
    return lambda some: (some.double() - (some.double() - mean) @ taken).to(some.dtype)


def until_chance(
    counts: Sequence[int], shares: Sequence[dict[str, float]], chance: float = 0.5, near: float = 0.05
) -> int:
    """The least of the counts of removed features at which the mean over speakers is no more than `near` above chance,
    and stays there; -1 if it never is."""
    above = np.array([np.mean(list(share.values())) > chance + near for share in shares])
    last = np.flatnonzero(above).max(initial=-1) + 1
    return int(counts[last]) if last < len(counts) else -1
