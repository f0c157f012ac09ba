"""Hooks that listen to a module or speak in its place, and always leave; and a layer norm that can be undone.

One tool records and patches, so the two cannot disagree.
"""

from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def watching(module: nn.Module, see, side: str = "output"):
    """Call `see` with what goes into (`input`) or comes out of (`output`) a module; what it returns is said instead.

    The hook leaves with the block, whatever happens in it. Modules that return a tuple and modules that return a
    tensor are the same to `see`: in transformers 5 Whisper's layers return a tensor, before they returned a tuple.
    """

    def after(_module, _inputs, output):
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        new = see(hidden)
        if new is not None:
            return (new, *rest) if isinstance(output, tuple) else new

    def before(_module, inputs, named):
        hidden = inputs[0] if inputs else named["hidden_states"]
        new = see(hidden)
        if new is not None:
            return ((new, *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": new})

    if side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def normed(norm: nn.LayerNorm, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer norm makes of `hidden`, and the mean and deviation of each frame: (…, width), (…, 2)."""
    mean = hidden.mean(dim=-1, keepdim=True)
    deviation = (hidden.var(dim=-1, keepdim=True, correction=0) + norm.eps).sqrt()
    said = (hidden - mean) / deviation * norm.weight + norm.bias
    return said, torch.cat([mean, deviation], dim=-1)


def unnormed(norm: nn.LayerNorm, said: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """What `normed` was given, from what it gave: (…, width)."""
    if not norm.weight.all():
        raise ValueError("normed: a weight of the final layer norm is 0, so that it cannot be inverted")
    mean, deviation = moments.unbind(dim=-1)
    return (said - norm.bias) / norm.weight * deviation[..., None] + mean[..., None]


def under_norm(norm: nn.LayerNorm, look):
    """A function that sees a residual stream as the layer norm makes it; what it returns is turned back."""

    def see(hidden):
        said, moments = normed(norm, hidden)
        new = look(said)
        return None if new is None or new is said else unnormed(norm, new, moments)

    return see
