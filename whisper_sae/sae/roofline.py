"""What hearing a window costs, and what this machine can do: how near a run is to the best.

Multiplications and additions count as two operations. With T = 1,500 positions of width d, L layers, an MLP of width m
and M mel bins, a window of Whisper's encoder costs

    2·2T·3M·d + 2·T·3d·d + L·(2·T·(4·d² + 2·d·m) + 4·T²·d)

for its two convolutions, the projections of attention and the MLP, and attention itself.
"""

import time

import torch


def operations(config) -> int:
    """Of one window in the encoder of a Whisper with this configuration."""
    T, d, L = config.max_source_positions, config.d_model, config.encoder_layers
    stem = 2 * 2 * T * 3 * config.num_mel_bins * d + 2 * T * 3 * d * d
    return stem + L * (2 * T * (4 * d * d + 2 * d * config.encoder_ffn_dim) + 4 * T * T * d)


def multiplied(device, config, precision: str = "float32", seconds: float = 0.1) -> float:
    """Operations a second of this machine now, in a product of the MLP's shape: (T, d) by (d, m)."""
    dtype = getattr(torch, precision)
    x = torch.randn(config.max_source_positions, config.d_model, device=device).to(dtype)
    weight = torch.randn(config.encoder_ffn_dim, config.d_model, device=device).to(dtype)
    torch.nn.functional.linear(x, weight)
    _finish(device)
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(5):
            torch.nn.functional.linear(x, weight)
        _finish(device)
        times += 5
    return 2 * times * x.numel() * config.encoder_ffn_dim / (time.perf_counter() - started)


def _finish(device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
