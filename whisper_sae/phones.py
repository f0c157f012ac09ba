"""When each phone of a clip sounds, as a corpus tells it, and which phone each frame of a model falls into.

A corpus may carry, beside its `metadata.csv`, a `phones.csv` or `phones.tsv`: one row a phone, with `file_name`,
`start_ms` and `end_ms` (or `start_s` and `end_s`), and `phone` (or `label`; where there is a `tier`, the first of
TIERS that is among them counts).
Other columns, such as `ipa` or `manner`, are kept.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

TIERS = ("phone", "phones", "phonetic", "phoneme", "phonemes")


class BadPhones(ValueError):
    """A table of phones that cannot be used; the message is one line and names the file and the field."""


def read(folder: str | Path) -> pd.DataFrame:
    """The phones of a corpus, empty where it tells none: path, start and end (seconds), phone, and what else it says.

    Rows are in order of path and start. Raises BadPhones for a missing column, a time that is no number, a phone
    that ends before it begins, or two phones of a clip that overlap by more than 1 ms.
    """
    path = _table(folder)
    if path is None:
        return none()
    form = {"sep": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}  # in X-SAMPA " is a phone
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, **form)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise BadPhones(f"{path}: not a CSV table: {' '.join(str(error).split())}") from None
    if "tier" in raw:
        tier = raw.tier.str.lower()
        raw = raw[tier == next((name for name in TIERS if (tier == name).any()), None)].drop(columns="tier")
    raw = raw.rename(columns={} if "phone" in raw else {"label": "phone"})
    if lost := [name for name in ("file_name", "phone") if name not in raw]:
        raise BadPhones(f"{path}: no column {lost[0]!r}; it has {', '.join(raw.columns)}")
    found = pd.DataFrame(
        {
            "path": [str((Path(folder) / name).resolve()) for name in raw.file_name],
            "start": _seconds(path, raw, "start"),
            "end": _seconds(path, raw, "end"),
            "phone": raw.phone.to_numpy(),
        }
    )
    used = {"file_name", "phone", "start_ms", "end_ms", "start_s", "end_s", "start", "end", "path"}
    rest = raw[[name for name in raw if name not in used]].reset_index(drop=True)
    found = pd.concat([found, rest], axis=1).sort_values(["path", "start"], kind="stable", ignore_index=True)
    _check(path, found)
    return found


def none() -> pd.DataFrame:
    """What `read` gives where nothing is told."""
    return pd.DataFrame(columns=["path", "start", "end", "phone"]).astype({"start": float, "end": float})


def digest(folder: str | Path) -> str:
    """One number for what a corpus tells of its phones; empty where it tells nothing."""
    path = _table(folder)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path else ""


def _table(folder: str | Path) -> Path | None:
    return next((p for name in ("phones.csv", "phones.tsv") if (p := Path(folder) / name).is_file()), None)


def _seconds(path: Path, raw: pd.DataFrame, name: str) -> np.ndarray:
    column, unit = (f"{name}_ms", 1e-3) if f"{name}_ms" in raw else (f"{name}_s", 1.0)
    if column not in raw:
        raise BadPhones(f"{path}: no column '{name}_ms' or '{name}_s'; it has {', '.join(raw.columns)}")
    values = pd.to_numeric(raw[column], errors="coerce")
    if (bad := ~np.isfinite(values)).any():
        raise BadPhones(f"{path}: {column}: {raw[column][bad].iloc[0]!r} is not a number")
    return values.to_numpy() * unit


def _check(path: Path, found: pd.DataFrame) -> None:
    name = found.path.map(lambda p: Path(p).name)
    if (wrong := found.end < found.start).any():
        raise BadPhones(
            f"{path}: {name[wrong].iloc[0]}: a phone ends before it begins, at {found.start[wrong].iloc[0]:.3f} s"
        )
    same = found.path.eq(found.path.shift())
    if (wrong := same & (found.start < found.end.shift() - 1e-3)).any():
        raise BadPhones(f"{path}: {name[wrong].iloc[0]}: two phones at once, at {found.start[wrong].iloc[0]:.3f} s")


def at(clip: pd.DataFrame, moments: np.ndarray) -> np.ndarray:
    """Which phone of a clip, by its row number in `clip`, sounds at each moment (seconds): (moment,), -1 for none.

    A phone holds [start, end). Of a frame, the moment to ask about is its middle: (i + 0.5) · 20 ms.
    """
    if clip.empty:
        return np.full(len(moments), -1)
    row = np.searchsorted(clip.start.to_numpy(), moments, side="right") - 1
    inside = (row >= 0) & (np.asarray(moments) < clip.end.to_numpy()[row])
    return np.where(inside, row, -1)


def change_around(mel: np.ndarray, moments: np.ndarray, reach: int = 8, hop: float = 0.01) -> np.ndarray:
    """How much the spectrum changes at and around moments (seconds): (moment, 2 reach + 1), the middle is the moment.

    `mel` is (mel bin, mel frame) with a frame every `hop` seconds. Change at frame t is the mean over bins of
    |mel[t + 1] - mel[t - 1]|. Moments so near an end that their surroundings are cut off give NaN.
    """
    step = np.full(mel.shape[1] + 2 * reach, np.nan)
    step[reach + 1 : reach + mel.shape[1] - 1] = np.abs(mel[:, 2:] - mel[:, :-2]).mean(axis=0)
    at = np.round(np.asarray(moments) / hop).astype(int)
    inside = (at >= 0) & (at < mel.shape[1])
    found = step[np.where(inside, at, 0)[:, None] + np.arange(2 * reach + 1)]
    return np.where(inside[:, None], found, np.nan)
