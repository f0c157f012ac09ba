"""Which device computes: the same word for every model, whatever it reads."""

import torch


def pick(device: str) -> torch.device:
    """The device of that name; `auto` is cuda, else cpu. ValueError where this machine has no such device.

    `auto` leaves out mps (Apple): training needs sparse CSR products (`sparse`), and scores need float64, which PyTorch
    does not have there. On cuda, float32 is float32: convolutions would round to TF32 (10 bits) by default.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device).startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        torch.zeros((), device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} cannot be used here: {' '.join(str(error).split())[:200]}") from None
