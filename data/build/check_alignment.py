"""Do the phone times agree with the sound? Asked of every stop and fricative, where phonetics says what must happen.

    python data/build/check_alignment.py [folder]

Where such a phone begins, one of five things must rise in the sound, each a weighted sum of band levels in dB:

- `burst`: noise above 1 kHz begins, at the release of p t k, and of b d g unless they follow a vowel;
- `closure`: what is between 0.3 and 2.5 kHz falls, as the mouth shuts for b d g or narrows for v D after a vowel;
- `voice`: what is below 500 Hz begins, for v D after a pause;
- `hiss`: noise above 2.5 kHz begins, for f T s S z Z after a pause;
- `noise`: noise above 2.5 kHz grows against what is below 1 kHz, for fricatives after any other sound.

It is found within 20 ms if the largest rise within ±60 ms of the boundary, from one 12 ms to the next, lies so near.
`chance` is the same at a random moment of the same clip's speech. The next boundary is often within the 60 ms too, and
where what rises there is larger the case counts as a miss. The five were chosen on other voices, of another seed.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

RATE, STEP = 16_000, 2  # ms from frame to frame
VOICELESS, VOICED = ["p", "t", "k"], ["b", "d", "g"]
STRONG, WEAK = ["f", "T", "s", "S", "z", "Z"], ["v", "D"]
NEAR, REACH, HALF = 20.0, 60.0, 12 // STEP

WIDTH, BINS = 128, 256
EDGES = np.unique(np.geomspace(3, BINS // 2 + 1, 21).astype(int))
CENTRES = (EDGES[:-1] + EDGES[1:] - 1) / 2 * RATE / BINS


def _mean(of: np.ndarray) -> np.ndarray:
    return of / of.sum()


RISES = {
    "burst": _mean(CENTRES > 1000),
    "closure": -_mean((CENTRES > 300) & (CENTRES < 2500)),
    "voice": _mean(CENTRES < 500),
    "hiss": _mean(CENTRES > 2500),
    "noise": _mean(CENTRES > 2500) - _mean(CENTRES < 1000),
}


def expected(phone: str, before: str, paused: bool) -> str:
    """What must rise where `phone` begins, after a phone of manner `before` and perhaps a pause."""
    if phone in VOICED + WEAK and before == "vowel" and not paused:
        return "closure"
    if phone in VOICELESS + VOICED:
        return "burst"
    if paused:
        return "voice" if phone in WEAK else "hiss"
    return "noise"


def bands(sound: np.ndarray) -> np.ndarray:
    """Level of each band in dB over windows of 8 ms: (frame, band); frame i is centred on STEP · i ms."""
    padded = np.pad(sound.astype(np.float64), (WIDTH // 2, WIDTH))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WIDTH)[:: RATE * STEP // 1000] * np.hanning(WIDTH)
    power = np.abs(np.fft.rfft(frames, BINS)) ** 2
    summed = np.add.reduceat(power, EDGES[:-1], axis=1)
    return 10 * np.log10(summed + np.quantile(summed.sum(axis=1), 0.98) * 1e-6)


def rise(level: np.ndarray) -> np.ndarray:
    """How much higher the HALF frames from each on are than the HALF before it, on average."""
    sums = np.cumsum(np.pad(level, (HALF + 1, HALF), mode="edge"))
    after, before = sums[2 * HALF :] - sums[HALF:-HALF], sums[HALF:-HALF] - sums[: -2 * HALF]
    return ((after - before) / HALF)[: len(level)]


def offset(curve: np.ndarray, at: float) -> float:
    """How many ms after the moment `at` the curve is highest, within REACH of it."""
    first = max(int(np.ceil((at - REACH) / STEP)), 0)
    return STEP * (first + int(np.argmax(curve[first : int((at + REACH) / STEP) + 1]))) - at


def measure(folder: Path, late: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """One row a stop or fricative: phone, class, what is expected, offset_ms, and that of a random moment. With `late`,
    of a table that is wrong by so many ms."""
    phones = pd.read_csv(folder / "phones.csv", keep_default_na=False)
    rng, rows = np.random.default_rng(seed), []
    for name, clip in phones.groupby("file_name"):
        levels = bands(soundfile.read(folder / name)[0])
        before = clip.shift().fillna({"manner": "", "end_ms": -1.0})
        for row, manner, end in zip(clip.itertuples(), before.manner, before.end_ms, strict=True):
            if row.phone not in VOICELESS + VOICED + STRONG + WEAK:
                continue
            what = expected(row.phone, manner, row.start_ms - end > 1)
            curve = rise(levels @ RISES[what])
            anywhere = rng.uniform(clip.start_ms.min(), clip.end_ms.max())
            rows.append((row.phone, row.manner, what, offset(curve, row.start_ms + late), offset(curve, anywhere)))
    return pd.DataFrame(rows, columns=["phone", "class", "expected", "offset_ms", "random_ms"])


def summary(cases: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """Cases, share within 20 ms, the same at random moments, and the median offset."""
    near = cases.assign(within=cases.offset_ms.abs() <= NEAR, chance=cases.random_ms.abs() <= NEAR)
    shares = near.groupby(by).agg({"within": ["size", "mean"], "chance": "mean", "offset_ms": "median"})
    return shares.set_axis(["cases", "within", "chance", "median_ms"], axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[1] / "demo" / "corpus"
    parser.add_argument("folder", type=Path, nargs="?", default=here)
    result = measure(parser.parse_args().folder)
    for by in ("phone", ["class", "expected"], "class"):
        print(summary(result, by).round(3).to_string(), end="\n\n")
