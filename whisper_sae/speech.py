"""Recorded speech as one table of clips, and each clip as 16 kHz mono samples.

A corpus is a directory in the Hugging Face `audiofolder` layout: sound files and a `metadata.csv` with a column
`file_name`. Whatever it calls its columns, the table that comes out always has those of `COLUMNS`.
"""

import functools
import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from scipy.signal import resample_poly

RATE = 16_000
"""Samples a second of everything that leaves this file; Whisper knows no other rate."""

COLUMNS = ["id", "path", "text", "speaker", "gender", "accent", "split", "duration"]
"""Of the table of clips: `duration` in seconds, the others text, empty where the corpus does not say."""

ALIASES = {
    "text": ("text", "transcription", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "gender": ("gender", "sex"),
    "accent": ("accent", "accents"),
    "split": ("split",),
}
SPLITS = ("train", "validation", "test")
PADDING, SILENCE, SPEECH = 0, 1, 2
KINDS = {PADDING: "padding", SILENCE: "silence", SPEECH: "speech"}


class BadSpeech(ValueError):
    """A sound file or table that cannot be used; the message is one line and names the file or the field."""


# ------------------------------------------------------------------------------------------------- the table


def read(folder: str | Path) -> pd.DataFrame:
    """The table of clips of an `audiofolder` directory; columns that are not in COLUMNS are kept at the end.

    Only the headers of the sound files are read here; `samples` reads the rest.
    Raises BadSpeech for a table without `file_name`, a file that is missing, empty or not sound, two clips of one
    name, an unknown split, or a speaker in two splits.
    """
    folder = Path(folder)
    path = folder / "metadata.csv"
    if not folder.is_dir():
        raise BadSpeech(f"corpus: there is no directory {folder}")
    if not path.is_file():
        raise BadSpeech(f"{path}: not found; a corpus is a directory with metadata.csv and the files it names")
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise BadSpeech(f"{path}: not a CSV table: {' '.join(str(error).split())}") from None
    if "file_name" not in raw:
        raise BadSpeech(f"{path}: no column 'file_name'; it has {', '.join(raw.columns)}")
    if raw.empty:
        raise BadSpeech(f"{path}: no rows")
    if twice := raw.file_name[raw.file_name.duplicated()].tolist():
        raise BadSpeech(f"{path}: file_name: {twice[0]!r} stands there {1 + twice.count(twice[0])} times")
    taken = {name: next((alias for alias in known if alias in raw), None) for name, known in ALIASES.items()}
    clips = pd.DataFrame({name: raw[alias] if alias else "" for name, alias in taken.items()}, index=raw.index)
    clips.insert(0, "path", [str(_inside(folder, path, name)) for name in raw.file_name])
    clips.insert(0, "id", _ids(raw.file_name))
    clips["duration"] = [_seconds(Path(sound)) for sound in clips.path]
    extra = raw.drop(columns=["file_name", *filter(None, taken.values())], errors="ignore")
    extra = extra.rename(columns={name: f"{name}_given" for name in extra if name in clips})
    _check_splits(path, clips)
    return pd.concat([clips, extra], axis=1)


def join(corpora: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Several corpora as one table, with a column `corpus`; ids and speakers carry the corpus's name."""
    if len(corpora) == 1:
        ((name, clips),) = corpora.items()
        return clips.assign(corpus=name)
    parts = [
        clips.assign(
            id=f"{name}/" + clips.id,
            speaker=clips.speaker.where(clips.speaker == "", f"{name}/" + clips.speaker),
            corpus=name,
        )
        for name, clips in corpora.items()
    ]
    return pd.concat(parts, ignore_index=True).fillna("")


def draw(clips: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most `most` clips, one a speaker in turn, so that no speaker is drawn twice before all were once."""
    if not most or most >= len(clips):
        return clips
    shuffled = clips.sample(frac=1, random_state=seed)
    turn = shuffled.groupby(_voice(shuffled), sort=False).cumcount()
    return clips.loc[sorted(turn.sort_values(kind="stable").index[:most])].reset_index(drop=True)


def split(clips: pd.DataFrame, seed: int, shares=(0.8, 0.1, 0.1)) -> pd.DataFrame:
    """The table with its column `split` filled in: train, validation and test share no speaker.

    What the corpus has assigned stays, and holds for all clips of the speaker. Other speakers are drawn at random
    within corpus and gender; a clip without a speaker counts as a speaker of its own.
    """
    _check_splits(None, clips)
    voice = _voice(clips)
    given = clips.split != ""
    names = dict(zip(voice[given], clips.split[given], strict=True))
    by = [name for name in ("corpus", "gender") if name in clips]
    unplaced = clips[~voice.isin(names)].assign(voice=voice).sort_values(["voice", *by]).drop_duplicates("voice")
    rng = np.random.default_rng(seed)
    for _, group in unplaced.groupby(by, sort=True):
        voices = rng.permutation(group.voice)
        place = (np.arange(len(voices)) + rng.random()) / len(voices)  # a random phase: small groups too
        drawn = np.searchsorted(np.cumsum(shares), place, side="right").clip(max=2)
        names |= zip(voices, np.array(SPLITS)[drawn], strict=True)
    return clips.assign(split=voice.map(names))


def balance(clips: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Clips, speakers and minutes in each group of the columns `by`."""
    if unknown := [name for name in by if name not in clips]:
        raise BadSpeech(f"column {unknown[0]!r}: the table of clips has {', '.join(clips.columns)}")
    groups = clips.assign(speaker=clips.speaker.replace("", np.nan)).groupby(list(by), sort=True)
    return groups.agg(
        clips=("id", "size"), speakers=("speaker", "nunique"), minutes=("duration", lambda s: s.sum() / 60)
    ).reset_index()


def means_by(clips: pd.DataFrame, labels: list[str], columns: list[str]) -> pd.DataFrame:
    """The mean of numeric columns over the clips of each group of each label: label, group, and the columns."""
    numbers = clips[labels].join(clips[columns].apply(pd.to_numeric, errors="coerce"))
    parts = [
        numbers[numbers[label] != ""].groupby(label)[columns].mean().rename_axis("group").reset_index()
        for label in labels
    ]
    return pd.concat([part.assign(label=label) for part, label in zip(parts, labels, strict=True)] or [pd.DataFrame()])


def digest(folder: str | Path) -> str:
    """One number for every byte of a corpus: its table and the sound files that it names."""
    total, table = hashlib.sha256(), Path(folder) / "metadata.csv"
    try:
        for path in [table, *_named(table, *_stamp(table))]:
            total.update(_bytes_of(path, *_stamp(path)))
    except OSError:
        read(folder)  # says which file is missing, or is none
        raise
    return total.hexdigest()[:12]


def _stamp(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_size, told.st_mtime_ns


@functools.cache
def _named(table: Path, _size: int, _changed: int) -> list[Path]:
    """The sound files that a table names, looked at again only when the table is another."""
    return [Path(path) for path in read(table.parent).path]


@functools.cache
def _bytes_of(path: Path, _size: int, _changed: int) -> bytes:
    """A digest of one file, read again only when its size or time of change is another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# ------------------------------------------------------------------------------------------------- the sound


def samples(path: str | Path) -> np.ndarray:
    """A sound file as float32 samples at 16 kHz, channels averaged: (sample,).

    Resampling is polyphase (scipy's `resample_poly`): flat to 7 kHz, and what lies above 9.3 kHz vanishes (-57 dB)
    instead of folding back.
    Raises BadSpeech for a file that is missing, empty, truncated, not sound, or holds NaN or infinite samples.
    """
    path = Path(path)
    _seconds(path)
    try:
        with soundfile.SoundFile(path) as file:
            sound = file.read(dtype="float32", always_2d=True)  # (sample, channel)
            told, rate = file.frames, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadSpeech(f"{path}: cannot be decoded: {error}") from None
    if len(sound) < told:
        raise BadSpeech(f"{path}: truncated: {len(sound):,} of {told:,} samples can be read")
    if not np.isfinite(sound).all():
        raise BadSpeech(f"{path}: {int((~np.isfinite(sound)).sum()):,} samples are NaN or infinite")
    mono = sound.mean(axis=1)
    if rate == RATE:
        return mono
    shared = math.gcd(rate, RATE)
    return resample_poly(mono, RATE // shared, rate // shared).astype(np.float32)


def windows(clips: pd.DataFrame, window: int) -> pd.DataFrame:
    """What Whisper hears at a time: a row a window, with its clip's row, first sample and number of samples.

    A clip longer than `window` samples is cut into consecutive windows; none overlap, none leave a gap.
    """
    rows = []
    for row, duration in enumerate(clips.duration):
        total = math.ceil(round(duration * RATE, 6))  # what resampling gives
        for first in range(0, total, window):
            rows.append((row, first, min(window, total - first)))
    return pd.DataFrame(rows, columns=["clip", "first", "samples"])


def kinds(sound: np.ndarray, samples_a_frame: int, frames: int) -> np.ndarray:
    """What each of a window's frames holds: SPEECH, SILENCE or PADDING, (frame,) uint8.

    Frame i covers samples [i·samples_a_frame, (i+1)·samples_a_frame); a frame begun is a valid frame, so a
    clip of n samples has ceil(n / samples_a_frame). The rest of the window is PADDING. A frame is SILENCE when its
    energy lies more than 35 dB under the clip's loud frames (95th percentile) or under -70 dB of full scale: a
    rule about energy, so loud noise counts as speech.
    """
    valid = -(-len(sound) // samples_a_frame)
    if valid > frames:
        raise ValueError(f"{len(sound):,} samples need {valid} frames, the window has {frames}")
    padded = np.zeros(valid * samples_a_frame, dtype=np.float64)
    padded[: len(sound)] = sound
    level = 10 * np.log10(np.square(padded.reshape(valid, -1)).mean(axis=1) + 1e-12)  # dB of full scale
    loud = np.quantile(level, 0.95) if valid else 0.0
    found = np.full(frames, PADDING, dtype=np.uint8)
    found[:valid] = np.where(level > max(loud - 35, -70), SPEECH, SILENCE)
    return found


# --------------------------------------------------------------------------------------------------- checks


def _ids(names: pd.Series) -> list[str]:
    """File names without their endings, unless that would give two files one name."""
    short = [Path(name).with_suffix("").as_posix() for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _inside(folder: Path, table: Path, name: str) -> Path:
    if not name:
        raise BadSpeech(f"{table}: file_name: empty in one of the rows")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadSpeech(f"{table}: file_name: {name!r} lies outside {folder}")
    if not path.is_file():
        raise BadSpeech(f"{table}: file_name: there is no file {path}")
    return path


def _seconds(path: Path) -> float:
    """Length of a sound file in seconds, from its header."""
    if not path.is_file():
        raise BadSpeech(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadSpeech(f"{path}: the file is empty")
    _check_whole(path)
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadSpeech(f"{path}: not a sound file that can be read: {error}") from None
    if info.frames == 0:
        raise BadSpeech(f"{path}: holds no samples")
    return info.frames / info.samplerate


def _check_whole(path: Path) -> None:
    """What is left of a truncated WAV, AIFF or Ogg file libsndfile reads without a word, so ask the file itself."""
    size = told = path.stat().st_size
    with open(path, "rb") as file:
        kind, length = file.read(4), file.read(4)
        if kind in (b"RIFF", b"FORM"):
            length = int.from_bytes(length, "little" if kind == b"RIFF" else "big")
            told = length + 8 if length < 0x7FFF0000 else size  # more is written by who could not know it yet
        elif kind == b"OggS":
            file.seek(max(0, size - 65_307))  # no page is longer
            tail = file.read()
            page = tail[max(0, tail.rfind(b"OggS")) :]
            segments = page[26] if len(page) > 26 else 0
            told = size - len(page) + 27 + segments + sum(page[27 : 27 + segments])
    if told > size + 8:  # some programs count the first 8 bytes twice
        raise BadSpeech(f"{path}: truncated: {size:,} of {told:,} bytes")


def _voice(clips: pd.DataFrame) -> pd.Series:
    """Who speaks: the speaker, or the clip itself where no speaker is given."""
    return clips.speaker.where(clips.speaker != "", "clip " + clips.id)


def _check_splits(table: Path | None, clips: pd.DataFrame) -> None:
    where = f"{table}: " if table else ""
    if unknown := set(clips.split) - {*SPLITS, ""}:
        raise BadSpeech(f"{where}split: {sorted(unknown)[0]!r} is not one of {', '.join(SPLITS)}")
    given = clips[(clips.split != "") & (clips.speaker != "")]
    if len(both := (found := given.groupby("speaker").split.nunique())[found > 1]):
        raise BadSpeech(f"{where}split: speaker {both.index[0]!r} is in more than one split")
