"""What can be done to features without touching anything else: x + W_dec (f' - f).

An SAE says x only roughly. Who puts its reconstruction in the place of x changes everything that it missed as well, and
cannot say which of the two did what. So an edit here adds to x the difference that it makes between two codes, f as it
is and f' as it shall be, and what the SAE missed stays. Where f' = f nothing is added, and x stays as it is to the bit.

An `Edit` says what becomes of the codes of some features; it knows nothing of a model. Frames are chosen by masks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whisper_sae.data.clip_table import CENTRE


@dataclass(frozen=True)
class Edit:
    """What becomes of `features`, all if None: `become` is given their codes, (item, frame, feature), and the numbers
    of the items' clips, (item,), and says their new codes. `wakes` is whether it can change a feature that is
    silent."""

    features: tuple[int, ...] | None
    become: Callable[[Tensor, Tensor], Tensor]
    wakes: bool = False
    name: str = ""

    def added(self, f: Tensor, clips: Tensor, W_dec: Tensor) -> Tensor:
        """What is added to x: (item, frame, width), of the codes of the edit's features alone, (item, frame,
        feature)."""
        rows = W_dec if self.features is None else W_dec[list(self.features)]
        return (self.become(f, clips) - f) @ rows


def scale(by: Mapping[int, float]) -> Edit:
    """Each feature times its factor: 1 changes nothing, 0 silences, -1 turns around."""
    factor = torch.tensor(list(by.values()), dtype=torch.float32)
    told = ", ".join(f"{feature} × {value:g}" for feature, value in by.items())
    return Edit(_numbers(by), lambda f, _: f * factor.to(f), name=told)


def silence(features: Sequence[int]) -> Edit:
    """The features never fire."""
    return Edit(_numbers(features), lambda f, _: torch.zeros_like(f), name=f"silence {_named(features)}")


def hold(at: Mapping[int, float], only_firing: bool = False) -> Edit:
    """Each feature at its value on every frame that is edited, or with `only_firing` where it fires at all
    (clamping)."""
    value = torch.tensor(list(at.values()), dtype=torch.float32)

    def become(f: Tensor, _clips: Tensor) -> Tensor:
        held = value.to(f).expand_as(f)
        return torch.where(f > 0, held, f) if only_firing else held

    told = ", ".join(f"{feature} = {value:g}" for feature, value in at.items())
    return Edit(_numbers(at), become, wakes=not only_firing, name=told)


def at_most(features: Sequence[int], value: float) -> Edit:
    """The features never fire more strongly than `value`."""
    return Edit(_numbers(features), lambda f, _: f.clamp_max(value), name=f"{_named(features)} ≤ {value:g}")


def add(amounts: Mapping[int, float]) -> Edit:
    """To each feature its amount on every frame that is edited; a sum below 0 stays below 0."""
    amount = torch.tensor(list(amounts.values()), dtype=torch.float32)
    told = ", ".join(f"{feature} {value:+g}" for feature, value in amounts.items())
    return Edit(_numbers(amounts), lambda f, _: f + amount.to(f), wakes=True, name=told)


def mean(features: Sequence[int], means: Tensor) -> Edit:
    """The features always say their mean, (feature,) in the order of `features`: mean ablation."""
    told = torch.as_tensor(means, dtype=torch.float32)
    return Edit(_numbers(features), lambda f, _: told.to(f).expand_as(f), True, f"mean of {_named(features)}")


def transplant(features: Sequence[int], donor: Tensor, at: int = 0) -> Edit:
    """The features say what they said in another clip, `donor` (frame, feature in the order of `features`), put in so
    that it begins on frame `at`; on frames it does not cover they say what they do."""

    def become(f: Tensor, _clips: Tensor) -> Tensor:
        new, last = f.clone(), min(f.shape[1], at + len(donor))
        new[:, at:last] = donor[: last - at].to(f)
        return new

    return Edit(_numbers(features), become, wakes=True, name=f"transplant {_named(features)}")


def keep(features: Sequence[int], of: int) -> Edit:
    """Only these of the `of` features fire, and all others are silent."""
    others = np.setdiff1d(np.arange(of), np.asarray(features, dtype=int))
    return Edit(tuple(others.tolist()), lambda f, _: torch.zeros_like(f), name=f"only {_named(features)}")


def strongest(n: int) -> Edit:
    """On each frame only the n features that fire most strongly."""

    def become(f: Tensor, _clips: Tensor) -> Tensor:
        best = f.topk(min(n, f.shape[-1]), dim=-1, sorted=False)
        return torch.zeros_like(f).scatter(-1, best.indices, best.values)

    return Edit(None, become, name=f"the strongest {n}")


def _numbers(features) -> tuple[int, ...]:
    found = tuple(int(feature) for feature in features)
    if len(set(found)) < len(found):
        raise ValueError("features: one of them is named twice")
    return found


def _named(features) -> str:
    told = [str(int(feature)) for feature in features]
    return ", ".join(told) if len(told) <= 4 else f"{len(told)} features"


# --------------------------------------------------------------------------------------------------- which frames


def between(clips: int, frames: int, first: int, last: int) -> Tensor:
    """The frames from `first` up to, but not with, `last` of every clip: (clip, frame) bool."""
    return ((torch.arange(frames) >= first) & (torch.arange(frames) < last)).expand(clips, frames)


def spans(clips: int, frames: int, clip, start, end, hop: float = 0.02) -> Tensor:
    """The frames whose centre lies in any of the spans, (clip, frame) bool: `clip` (span,) numbers, `start` and `end`
    (span,) seconds, the end not included; frames are `hop` seconds apart and centred as `speech.CENTRE` says."""
    edge = np.zeros((clips, frames + 1), dtype=np.int64)
    first, last = (
        np.clip(np.ceil(np.round((np.asarray(t, float) - CENTRE) / hop, 6)), 0, frames).astype(int)
        for t in (start, end)
    )
    np.add.at(edge, (np.asarray(clip, int), first), 1)
    np.add.at(edge, (np.asarray(clip, int), last), -1)
    return torch.from_numpy(edge.cumsum(axis=1)[:, :frames] > 0)
