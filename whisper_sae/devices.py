"""Which device computes: the same word for every model, whatever it reads."""

import torch


def pick(device: str) -> torch.device:
    """The device of that name; `auto` is cuda, else mps, else cpu. ValueError where this machine has no such device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros((), device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} cannot be used here: {' '.join(str(error).split())[:200]}") from None
