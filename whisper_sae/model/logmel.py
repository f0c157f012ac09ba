"""Log-mel spectrograms on torch: a batch at a time, on any device, and only of what sounds.

What Whisper is given is a window of 30 s, whatever a clip lasts. Of the silence that fills it up every frame is the
same, so only the frames that a clip reaches are transformed. Equal to transformers' `WhisperFeatureExtractor`.
"""

import functools
import itertools

import numpy as np
import torch

FLOOR = 1e-10
"""Energies under this count as this: silence is log10 of it."""


def log_mel(
    sounds: list[np.ndarray], filters: np.ndarray, *, window: int, n_fft: int, hop: int, device="cpu", starts=None
) -> torch.Tensor:
    """Spectrograms of clips of at most `window` samples: (clip, mel bin, window / hop) float32, on `device`.

    `filters` is (frequency, mel bin). Levels are clamped to 80 dB below the clip's loudest point, as Whisper does it.
    Where several clips were packed into one window, `starts` has for each window the samples at which they begin, and
    each is clamped by its own loudest point; otherwise a soft clip would be lost beside a loud one.
    """
    frames, longest = window // hop, max(len(sound) for sound in sounds)
    reached = min(frames, -(-(longest + n_fft // 2) // hop))  # frames with any sound in them
    length = window if reached == frames else min(window, reached * hop + n_fft)
    padded = torch.zeros(len(sounds), length)
    for row, sound in zip(padded, sounds, strict=True):
        row[: len(sound)] = torch.from_numpy(np.ascontiguousarray(sound, dtype=np.float32))
    spectrum = torch.stft(
        padded.to(device), n_fft, hop, window=_hann(n_fft, torch.device(device)), return_complex=True
    )  # fmt: skip
    power = torch.view_as_real(spectrum[..., :reached]).square().sum(dim=-1)  # (clip, frequency, frame)
    bank = torch.from_numpy(np.ascontiguousarray(filters.T, dtype=np.float32)).to(device)
    level = (bank @ power).clamp_(min=FLOOR).log10_()
    loudest = level.amax(dim=(1, 2), keepdim=True).clamp(min=np.log10(FLOOR))  # silence is everywhere else
    found = loudest.new_full((len(sounds), filters.shape[1], frames), np.log10(FLOOR))
    found[..., :reached] = level
    floor = loudest - 8.0
    if starts and any(len(begun) > 1 for begun in starts):
        floor = floor.repeat(1, 1, frames)
        for row, begun in enumerate(starts):
            edges = [0, *(start // hop for start in begun[1:]), frames]
            for first, last in itertools.pairwise(edges):
                floor[row, :, first:last] = found[row, :, first:last].max() - 8.0
    return torch.maximum(found, floor).add_(4.0).div_(4.0)


@functools.lru_cache(maxsize=4)
def _hann(n_fft: int, device: torch.device) -> torch.Tensor:
    return torch.hann_window(n_fft, device=device)
