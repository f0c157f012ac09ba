"""Clips without speech, each with a name for what it is: what a recogniser must answer with silence.

All are made from formulas here; nothing is recorded, so nothing needs a licence.
"""

import numpy as np
from scipy.signal import butter, lfilter

RATE = 16_000


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def _coloured(rng, count: int, slope: float) -> np.ndarray:
    """Gaussian noise whose power falls with frequency to the power `slope`: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20)
    return np.fft.irfft(spectrum * frequency ** (-slope / 2), count)


def _band(sound, low, high):
    return lfilter(*butter(2, [low, high], "band", fs=RATE), sound)


def _drops(rng, count: int, rate: float, make) -> np.ndarray:
    """Short sounds at random moments, about `rate` a second."""
    sound = np.zeros(count)
    for start in rng.integers(0, count, rng.poisson(rate * count / RATE) + 1):
        piece = make()[: count - start]
        sound[start : start + len(piece)] += piece
    return sound


def silence(rng, seconds):
    return np.zeros(round(seconds * RATE))


def white(rng, seconds):
    return _coloured(rng, round(seconds * RATE), 0)


def pink(rng, seconds):
    return _coloured(rng, round(seconds * RATE), 1)


def brown(rng, seconds):
    return _coloured(rng, round(seconds * RATE), 2)


def hum(rng, seconds):
    mains, time = (50, 60)[rng.integers(2)], _time(seconds)
    return sum(rng.uniform(0.3, 1) / k * np.sin(2 * np.pi * (mains * k * time + rng.random())) for k in range(1, 12))


def clicks(rng, seconds):
    return _drops(rng, round(seconds * RATE), rng.uniform(1, 8), lambda: rng.choice([-1, 1]) * np.hanning(24))


def tone(rng, seconds):
    return np.sin(2 * np.pi * rng.uniform(150, 3500) * _time(seconds))


def chirp(rng, seconds):
    time = _time(seconds)
    low, high = rng.uniform(100, 900), rng.uniform(1200, 6000)
    frequency = low + (high - low) * (time / seconds % 1 if rng.random() < 0.5 else 1 - time / seconds)
    return np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


def rain(rng, seconds):
    count = round(seconds * RATE)
    drop = np.exp(-np.arange(160) / 30)
    drops = _drops(rng, count, rng.uniform(80, 300), lambda: drop * rng.standard_normal(160) * rng.exponential())
    return _band(drops, 1000, 7000) + 0.1 * white(rng, seconds)


def wind(rng, seconds):
    count = round(seconds * RATE)
    gust = np.interp(np.arange(count), np.linspace(0, count, 8), rng.uniform(0.1, 1, 8))
    low = rng.uniform(150, 400)
    return gust * _band(rng.standard_normal(count), low, 2.5 * low)


def engine(rng, seconds):
    time = _time(seconds)
    speed = rng.uniform(25, 60) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.2, 1) * time))
    phase = 2 * np.pi * np.cumsum(speed) / RATE
    return sum(rng.uniform(0.2, 1) / np.sqrt(k) * np.sin(k * phase) for k in range(1, 20)) + 0.3 * rng.standard_normal(
        len(time)
    )


def bell(rng, seconds):
    pitch = rng.uniform(300, 1200)

    def strike():
        time = _time(1.5)
        partials = (0.5, 1, 1.19, 1.5, 2, 2.74, 4.1)
        return sum(np.exp(-time * (2 + 2 * p)) * np.sin(2 * np.pi * pitch * p * time) / p for p in partials)

    return _drops(rng, round(seconds * RATE), 1.0, strike)


def bird(rng, seconds):
    def chirrup():
        time = _time(rng.uniform(0.05, 0.2))
        frequency = rng.uniform(2200, 4500) + rng.uniform(-1200, 1200) * time / time[-1]
        return np.hanning(len(time)) * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)

    return _drops(rng, round(seconds * RATE), 4, chirrup)


def knock(rng, seconds):
    pitch = rng.uniform(90, 300)

    def thump():
        time = _time(0.12)
        return np.exp(-time * 50) * (np.sin(2 * np.pi * pitch * time) + 0.2 * rng.standard_normal(len(time)))

    return _drops(rng, round(seconds * RATE), 2.5, thump)


KINDS = {
    make.__name__: make
    for make in (silence, white, pink, brown, hum, clicks, tone, chirp, rain, wind, engine, bell, bird, knock)
}
