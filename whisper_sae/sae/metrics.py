"""How well something re-says activations, on frames it was not made from, and what the simplest rivals reach.

FVU, the fraction of variance unexplained, is Σ|x - x_hat|² / Σ|x - mean|² with the mean over all frames measured:
saying the mean every time scores 1. Where a few frames hold most of the variance it is a score of these frames alone,
so medians over frames stand beside it. All sums run in float64 over chunks, so the chunks' size does not matter.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from whisper_sae.stats.intervals import LEAST

MASSIVE = 4.0
"""A frame is massive when its norm is more than MASSIVE medians. In Whisper, as in language models (Sun et al. 2024,
arXiv 2402.17762), a few such frames can hold most of the variance of a layer."""


@torch.no_grad()
def reconstruction(say: Callable[[Tensor], Tensor], chunks: Iterable[Tensor], voices: np.ndarray | None = None,
                   centre: Tensor | None = None) -> dict:  # fmt: skip
    """How close `say(x)` comes to x, (frame, d_in): see `Closeness.scores`.

    With `voices`, the speaker's number of each frame (frame,), there are intervals over speakers. `centre` (d_in,) is
    the mean of the frames, as far as it is known before; else that of the first chunk.
    """
    known = Closeness(voices, centre)
    for x in chunks:
        known.add(x, say(x))
    return known.scores()


class Closeness:
    """The sums behind `reconstruction`, for whoever has several reconstructions of the same frames."""

    def __init__(self, voices: np.ndarray | None = None, centre: Tensor | None = None):
        self.voices, self.centre = voices, None if centre is None else centre.float()
        count = 1 if voices is None else int(voices.max(initial=0)) + 1
        self.n, self.square, self.error = np.zeros(count), np.zeros(count), np.zeros(count)  # per speaker
        self.total, self.cosine, self.first = 0.0, 0.0, 0
        self.frames: list[Tensor] = []  # (frame, 3): squared error, squared distance from the centre, squared norm

    @torch.no_grad()
    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Take in the next frames, (frame, d_in), and their reconstruction."""
        count = len(self.n)
        who = np.zeros(len(x), int) if self.voices is None else self.voices[self.first : self.first + len(x)]
        self.first += len(x)
        self.centre = x.mean(dim=0) if self.centre is None else self.centre
        squares = [part.double().square().sum(dim=1) for part in (x - x_hat, x - self.centre, x)]
        self.frames.append(torch.stack(squares, dim=1).float().cpu())
        self.n += np.bincount(who, minlength=count)
        sums = torch.zeros(count, x.shape[1], dtype=torch.float64)
        self.total = self.total + sums.index_add_(0, torch.from_numpy(who), x.double())
        self.square += np.bincount(who, squares[2], minlength=count)
        self.error += np.bincount(who, squares[0], minlength=count)
        alike = torch.cosine_similarity(x - self.centre, x_hat - self.centre, dim=1)
        self.cosine += alike.double().sum().item()

    def scores(self) -> dict:
        """The scores as a dict of numbers. ValueError for frames that are all the same.

        - `fvu`, the fraction of variance unexplained: squared error over squared distance from the mean;
        - `frame_fvu`, the same ratio of each frame, its median within a speaker and the mean of these over speakers:
          no few frames decide it;
        - `fvu_usual`, the FVU without massive frames (`MASSIVE`), `massive_frames`, their share of the frames, and
          `massive_variance`, their share of the variance;
        - `cosine` between x - centre and x_hat - centre, averaged over frames;
        - `mse` and `mse_of_mean` per dimension, fvu = mse / mse_of_mean; and `frames`.

        With speakers also `fvu_low`, `fvu_high`, `frame_fvu_low`, `frame_fvu_high`, 95 % intervals over the
        `speakers`.
        """
        n, mean = self.n, self.total.sum(dim=0) / self.n.sum()
        spread = self.square - 2 * (self.total @ mean).numpy() + n * mean.square().sum().item()
        if spread.sum() <= 1e-9 * self.square.sum():
            raise ValueError("the activations are constant: there is no variance to explain")
        values = n.sum() * len(mean)
        found = {
            "fvu": self.error.sum() / spread.sum(),
            "mse": self.error.sum() / values,
            "mse_of_mean": spread.sum() / values,
            "cosine": self.cosine / n.sum(),
            "frames": int(n.sum()),
        } | self._by_frame()
        if self.voices is not None:
            low, high = ratio_interval(self.error[n > 0], spread[n > 0])
            found |= {"fvu_low": low, "fvu_high": high, "speakers": int((n > 0).sum())}
        return {name: float(value) if isinstance(value, np.floating) else value for name, value in found.items()}

    def _by_frame(self) -> dict:
        """The scores that a few frames cannot decide, and how much of the variance these hold."""
        error, spread, square = torch.cat(self.frames).double().numpy().T
        middle = np.median(square)
        massive = square > MASSIVE**2 * (middle or np.inf)  # where most frames are zero, none is massive
        who = np.zeros(len(error), int) if self.voices is None else self.voices[: len(error)]
        medians = pd.Series(error / np.maximum(spread, 1e-12)).groupby(who).median().to_numpy()
        found = {
            "frame_fvu": medians.mean(),
            "fvu_usual": error[~massive].sum() / spread[~massive].sum(),
            "massive_frames": massive.mean(),
            "massive_variance": spread[massive].sum() / spread.sum(),
        }
        if self.voices is not None:
            reach = math.nan
            if len(medians) >= LEAST:
                reach = stats.t.ppf(0.975, len(medians) - 1) * medians.std(ddof=1) / math.sqrt(len(medians))
            low, high = medians.mean() + np.array([-reach, reach])
            found |= {"frame_fvu_low": np.maximum(0.0, low), "frame_fvu_high": high}
        return found


def ratio_interval(above: np.ndarray, below: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """An interval for Σ above / Σ below, both positive, over independent units such as speakers: (low, high).

    Delete-one jackknife of the logarithm with Student's t (Efron & Tibshirani 1993, chapter 11); NaN for fewer
    than LEAST units, or where one unit alone holds all that is above.
    """
    units = len(above)
    if units < LEAST:
        return math.nan, math.nan
    if not above.any():
        return 0.0, 0.0
    if np.count_nonzero(above) < 2:
        return math.nan, math.nan
    without = np.log((above.sum() - above) / (below.sum() - below))
    error = math.sqrt((units - 1) / units * np.square(without - without.mean()).sum())
    reach = math.exp(stats.t.ppf((1 + level) / 2, units - 1) * error)
    ratio = float(above.sum() / below.sum())
    return ratio / reach, ratio * reach


@torch.no_grad()
def firing(encode: Callable[[Tensor], Tensor], chunks: Iterable[Tensor]) -> np.ndarray:
    """The share of frames on which each feature fires: (feature,). Its sum is L0; a 0 is dead on these frames."""
    fired, n = 0, 0
    for x in chunks:
        fired = fired + (encode(x) > 0).sum(dim=0)
        n += len(x)
    return (fired / n).numpy()


@dataclass
class Moments:
    """Mean and covariance of many frames: `n`, `mean` (d,), `covariance` (d, d), float64."""

    n: int
    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> float:
        """Mean squared distance from the mean."""
        return self.covariance.trace().item()

    @property
    def gamma(self) -> float:
        """|mean| over the root mean squared distance from it: above 1, what all frames share outweighs the rest."""
        return (self.mean.norm() / self.variance**0.5).item()

    @property
    def mean_square(self) -> float:
        """Mean squared norm."""
        return self.variance + self.mean.square().sum().item()


def principal_shares(known: Moments) -> np.ndarray:
    """The share of the variance that the first 1, 2, … d principal directions hold: (d,), rising to 1."""
    values = torch.linalg.eigvalsh(known.covariance).flip(0).clamp_min(0)
    return (values.cumsum(0) / values.sum()).numpy()


def norms(hidden: Tensor, kinds: np.ndarray, names: dict[int, str]) -> list[dict]:
    """Quartiles of the length of activations, (clip, frame, width), for each kind of frame, (clip, frame)."""
    length = hidden.norm(dim=-1).cpu().numpy()
    found = []
    for kind, name in names.items():
        if (here := kinds == kind).any():
            low, median, high = np.quantile(length[here], [0.25, 0.5, 0.75])
            found.append({"kind": name, "low": low, "median": median, "high": high, "frames": int(here.sum())})
    return found


def moments(chunks: Iterable[Tensor]) -> Moments:
    """Mean and covariance over all frames of the chunks, (frame, d)."""
    n, total, square = 0, 0.0, 0.0
    for x in chunks:
        x = x.double()
        n, total, square = n + len(x), total + x.sum(dim=0), square + x.T @ x
    mean = total / n
    return Moments(n, mean, square / n - torch.outer(mean, mean))


def mean(chunks: Iterable[Tensor]) -> Tensor:
    """The mean of all frames of the chunks, (frame, d): (d,) float64, as of `moments`."""
    n, total = 0, 0.0
    for x in chunks:
        n, total = n + len(x), total + x.double().sum(dim=0)
    return total / n


def share_between(x: Tensor, groups) -> float:
    """The share of the variance of `x`, (row, width), that lies between groups, (row,): from 0 to 1 (η²).

    Many small groups reach a large share by chance: compare with shuffled groups.
    """
    numbers, names = pd.factorize(np.asarray(groups))
    x = x.double() - x.double().mean(dim=0)
    sums = torch.zeros(len(names), x.shape[1], dtype=torch.float64).index_add_(0, torch.from_numpy(numbers), x)
    count = torch.from_numpy(np.bincount(numbers)).double()
    return float((sums.square().sum(dim=1) / count).sum() / x.square().sum())


# ------------------------------------------------------------------------------------------------- the rivals


def say_mean(known: Moments) -> Callable[[Tensor], Tensor]:
    """Say the training mean, whatever was heard."""
    mean = known.mean.float()
    return lambda x: mean.expand_as(x)


def say_principal(known: Moments, rank: int) -> Callable[[Tensor], Tensor]:
    """Keep the `rank` directions of greatest variance (PCA): as many numbers a frame as an SAE with L0 = rank."""
    mean = known.mean.float()
    axes = torch.linalg.eigh(known.covariance).eigenvectors[:, -rank:].float()  # (d, rank)
    return lambda x: mean + (x - mean) @ axes @ axes.T


def say_neurons(known: Moments, k: int) -> Callable[[Tensor], Tensor]:
    """Keep, on each frame, the k neurons farthest from their mean in their own standard deviations."""
    mean, deviation = known.mean.float(), known.covariance.diagonal().clamp_min(1e-12).sqrt().float()

    def say(x: Tensor) -> Tensor:
        far = ((x - mean) / deviation).abs().topk(k, dim=-1, sorted=False).indices
        return mean + torch.zeros_like(x).scatter(-1, far, (x - mean).gather(-1, far))

    return say


def say_scaled(say: Callable[[Tensor], Tensor], known: Moments, sample: Tensor) -> Callable[[Tensor], Tensor]:
    """`say` with its distance from the mean scaled by the one factor that suits `sample` best (least squares).

    For dictionaries that were not trained: without it their overshoot, not their directions, would be measured.
    """
    mean = known.mean.float()
    with torch.no_grad():
        told = say(sample) - mean
        gain = (told * (sample - mean)).sum() / told.square().sum().clamp_min(1e-12)
    return lambda x: mean + gain * (say(x) - mean)


@torch.no_grad()
def centroids(x: Tensor, count: int, seed: int, turns: int = 10) -> Tensor:
    """At most `count` centres of the frames x, (frame, d): k-means (Lloyd 1982), begun at frames drawn at random.

    A centre that no frame is nearest to stays where it is.
    """
    drawn = np.random.default_rng(seed).permutation(len(x))[:count]
    centres = x[drawn]
    for _ in range(turns):
        nearest = _nearest(x, centres)
        n = torch.bincount(nearest, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        centres = torch.where(n > 0, sums / n.clamp_min(1), centres)
    return centres


def say_nearest(centres: Tensor) -> Callable[[Tensor], Tensor]:
    """Say the nearest of the centres, (centre, d): a dictionary of which one latent fires, always at full strength."""
    return lambda x: centres[_nearest(x, centres)]


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    half = centres.square().sum(dim=1) / 2
    return torch.cat([(half - part @ centres.T).argmin(dim=1) for part in x.split(4096)])


# ------------------------------------------------------------------------------------------------- trade-offs


def pareto(cost, loss) -> np.ndarray:
    """Which points are on the front, (point,) bool: no other is at least as good in both and better in one."""
    cost, loss = np.asarray(cost, float), np.asarray(loss, float)
    no_worse = (cost <= cost[:, None]) & (loss <= loss[:, None])  # (point, other)
    better = (cost < cost[:, None]) | (loss < loss[:, None])
    return ~(no_worse & better).any(axis=1) & np.isfinite(cost + loss)
