"""What the numbers of a dictionary warn of before anybody looks at its features: too few rows, or too dense a code."""

import numpy as np

FEW = 10
"""Training rows for each latent below which there is a warning. Below 1 some latents can have no row of their own."""

DENSE = 0.1
"""The share of latents that may fire on a row before the code is called dense."""

OFTEN = 0.5
"""A latent that fires on more than this share of the rows does not tell rows apart."""


def too_few(rows: int, latents: int) -> str:
    """A warning, in one sentence, where so many different training rows cannot carry so many latents; else ""."""
    ratio = rows / latents
    if ratio >= FEW:
        return ""
    can = f"not even one row a latent, so at most {rows:,} latents can mean anything" if ratio < 1 else "few"
    return (
        f"{rows:,} rows for {latents:,} latents: N / d_sae = {ratio:.3g}, {can}; give more rows (tokens instead of "
        f"their means, more items) or a smaller expansion: {FEW} rows a latent or more"
    )


def too_dense(rates: np.ndarray, asked: str = "") -> str:
    """A warning, in one sentence, where a code is not sparse, with the knob to turn; else "".

    `rates` (latent,) is the share of rows on which each fires. `asked` is the variant, if that is known.
    """
    rates = np.asarray(rates, dtype=float)
    l0, often = rates.sum(), int((rates > OFTEN).sum())
    if l0 <= DENSE * len(rates) and often <= DENSE * len(rates):
        return ""
    knob = "lower k" if asked in ("topk", "batchtopk", "multitopk", "matryoshka") else "raise the penalty (L1)"
    if not asked:
        knob += ", or ask for a k with batchtopk"
    return (
        f"{l0:,.0f} of {len(rates):,} latents fire on a row ({l0 / len(rates):.0%}), and {often:,} on more than half "
        f"of all rows: this code is not sparse, and its latents are no features: {knob}"
    )
