"""Numbers as they are stored, in 16 bits or 32, and as they are read again.

float16 has 11 significant bits and ends at 65,504; bfloat16 has 8 and ends where float32 does. numpy knows no
bfloat16: it is kept as uint16, the upper half of a float32.
"""

import numpy as np
import torch

DTYPES = ("float16", "bfloat16", "float32")
WAY_OUT = {"float16": ": use bfloat16 or float32", "bfloat16": ": use float32"}


def itemsize(dtype: str) -> int:
    """Bytes of a stored number."""
    return getattr(torch, dtype).itemsize


def narrowed(values: torch.Tensor, dtype: str, what: str) -> np.ndarray:
    """Values of any shape as they are stored. ValueError, after `what`, if any is not finite or too large for it."""
    narrow = values.to(getattr(torch, dtype))
    if not torch.isfinite(narrow).all():
        finite = torch.isfinite(values).all()
        raise ValueError(f"{what} are {f'too large for {dtype}{WAY_OUT[dtype]}' if finite else 'NaN or infinite'}")
    return (narrow.view(torch.uint16) if dtype == "bfloat16" else narrow).cpu().numpy()


def widened(stored: np.ndarray) -> np.ndarray:
    """What was stored as bfloat16, in float32; anything else as it is."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored
