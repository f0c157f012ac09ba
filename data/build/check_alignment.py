"""Do the phone times agree with the sound? Measured at boundaries where physics says what must happen.

    python data/build/check_alignment.py [folder] [cases]

- **Voiceless stops** (p t k): the event is the release, so the spectrum rises, summed over bands, in dB.
- **Voiced stops** (b d g): the event is the start of the murmur, after which the release follows some 40 ms later, so
  the spectrum changes, either way. So too for **fricatives** (f s z S T v Z D).

Two criteria, each with its own chance:

- `within`: the largest change within ±60 ms lies within 20 ms of the boundary. It is hard on short phones, as the next
  boundary often lies in the same stretch and may be the louder one. Chance: boundaries moved by 25 to 60 ms.
- `own`: the largest change in the boundary's own stretch, which reaches halfway into the phones on either side (at most
  60 ms), lies within 20 ms of it. `own_chance` is the part of that stretch which lies so near.

The first was fixed before anything was measured; the second, and the unsigned change for voiced stops, were added after
it was seen that b, d and g answer at their release. Both are told.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

RATE, HOP = 16_000, 32  # 2 ms
STOPS, FRICATIVES = ["p", "b", "t", "d", "k", "g"], ["f", "s", "z", "S", "T", "v", "Z", "D"]
VOICELESS = ["p", "t", "k"]
NEAR, REACH = 20.0, 60.0  # ms


def bands(sound: np.ndarray) -> np.ndarray:
    """Log energy in 20 bands every 2 ms, in dB over windows of 8 ms: (frame, band); frame i is centred on 2 i ms."""
    width = 128
    padded = np.pad(sound.astype(np.float64), (width // 2, width))
    frames = np.lib.stride_tricks.sliding_window_view(padded, width)[::HOP] * np.hanning(width)
    power = np.abs(np.fft.rfft(frames, 256)) ** 2
    edges = np.unique(np.geomspace(3, 129, 21).astype(int))
    summed = np.stack([power[:, a:b].sum(axis=1) for a, b in pairwise(edges)], axis=1)
    floor = np.quantile(summed.sum(axis=1), 0.98) * 1e-6
    return 10 * np.log10(summed + floor)


def change(log: np.ndarray, rising: bool, half: int = 6) -> np.ndarray:
    """How much the spectrum rises (or changes at all) from the `half` frames before to those after: (frame,)."""
    sums = np.cumsum(np.pad(log, ((half + 1, half), (0, 0)), mode="edge"), axis=0)
    after, before = sums[2 * half :] - sums[half:-half], sums[half:-half] - sums[: -2 * half]
    step = (after - before) / half
    return (np.maximum(step, 0) if rising else np.abs(step)).mean(axis=1)[: len(log)]


def offset(curve: np.ndarray, at_ms: float, before: float = REACH, after: float = REACH) -> float:
    """Where around a moment the curve is highest: ms after it."""
    first = max(int(np.ceil((at_ms - before) / 2)), 0)
    last = min(int((at_ms + after) / 2) + 1, len(curve))
    return 2 * (first + int(np.argmax(curve[first:last]))) - at_ms


def measure(folder: Path, cases: int, seed: int = 0) -> pd.DataFrame:
    """One row a sampled boundary, the same number of every phone: phone, class, offset_ms, and that of a moved one."""
    phones = pd.read_csv(folder / "phones.csv", keep_default_na=False)
    since = phones.start_ms - phones.groupby("file_name").start_ms.shift()
    phones["before"] = since.fillna(2 * REACH)
    rng, rows, sounds = np.random.default_rng(seed), [], {}
    for phone in STOPS + FRICATIVES:
        found = phones[phones.phone == phone]
        most = min(len(found), -(-cases // (len(STOPS) if phone in STOPS else len(FRICATIVES))))
        for row in found.iloc[np.sort(rng.permutation(len(found))[:most])].itertuples():
            if row.file_name not in sounds:
                sounds[row.file_name] = bands(soundfile.read(folder / row.file_name)[0])
            curve = change(sounds[row.file_name], rising=phone in VOICELESS)
            before, after = min(REACH, row.before / 2), min(REACH, (row.end_ms - row.start_ms) / 2)
            own = offset(curve, row.start_ms, before, after)
            near = min(before, NEAR) + min(after, NEAR)
            moved = row.start_ms + rng.choice([-1, 1]) * rng.uniform(25, 60)
            rows.append(
                {"phone": phone, "class": "stop" if phone in STOPS else "fricative", "file_name": row.file_name,
                 "offset_ms": offset(curve, row.start_ms), "moved_ms": offset(curve, moved), "own": abs(own) <= NEAR,
                 "own_chance": near / (before + after)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def summary(cases: pd.DataFrame, by: str) -> pd.DataFrame:
    """Cases, share within 20 ms, median offset, and the share at moved boundaries (chance)."""
    within = cases.assign(within=cases.offset_ms.abs() <= NEAR, chance=cases.moved_ms.abs() <= NEAR)
    return within.groupby(by).agg(
        cases=("within", "size"),
        within=("within", "mean"),
        median_ms=("offset_ms", "median"),
        chance=("chance", "mean"),
        own=("own", "mean"),
        own_chance=("own_chance", "mean"),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[1] / "demo" / "corpus"
    parser.add_argument("folder", type=Path, nargs="?", default=here)
    parser.add_argument("cases", type=int, nargs="?", default=200, help="of stops, and as many of fricatives")
    asked = parser.parse_args()
    result = measure(asked.folder, asked.cases)
    print(summary(result, "phone").round(2).to_string(), summary(result, "class").round(3).to_string(), sep="\n\n")
