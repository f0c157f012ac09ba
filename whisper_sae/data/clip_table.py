"""Recorded speech as one table of clips, and each clip as 16 kHz mono samples.

A corpus is a directory in one of the layouts of `corpora`. Whatever it calls its columns, the table that comes out
always has those of `COLUMNS`.
"""

import functools
import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr

from whisper_sae.data import containers, corpora
from whisper_sae.data.tables import BadSpeech, one_spelling, plain

RATE = 16_000
"""Samples a second of everything that leaves this file; Whisper knows no other rate."""

HOP = 0.02
"""Seconds from one frame of Whisper's encoder to the next."""

CENTRE = 0.0
"""Seconds from i · HOP to the moment on which frame i is centred.

Whisper's spectrogram is centred (its frame j around 10 j ms), and the encoder's two convolutions see spectral frames
2 i - 2 to 2 i + 2: frame i answers to 32.5 ms on both sides of 20 i ms, not of the middle of the samples from there to
the next frame. `tests/test_timing.py` measures it with clicks.
"""

COLUMNS = [*corpora.COLUMNS, "duration"]
"""Of the table of clips: `duration` in seconds, the others text, empty where the corpus does not say."""

PADDING, SILENCE, SPEECH = 0, 1, 2
KINDS = {PADDING: "padding", SILENCE: "silence", SPEECH: "speech"}
BLOCK = 1 << 20
"""Samples that are decoded at a time."""
HIGHEST = 1e6
"""A sample beyond is refused. Files of floats should stay within 1; some hold integers of 16 bits as floats."""


# ------------------------------------------------------------------------------------------------- the table


def read(place: str | Path) -> pd.DataFrame:
    """The table of clips of a corpus; columns that are not in COLUMNS are kept at the end.

    Only the headers of the sound files are read here; `samples` reads the rest.
    Raises BadSpeech for a table that cannot be used, and for the first file that is missing, empty or not sound.
    """
    clips = corpora.rows(place)
    return _with_duration(clips, [seconds(path) for path in clips.path])


def inspect(clips: pd.DataFrame, progress: Callable = iter) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The clips whose sound can be decoded to its end, with their duration; and the others, as path and reason."""
    lengths, reasons = [], []
    for path in progress(clips.path):
        try:
            lengths.append(decoded(path))
            reasons.append("")
        except BadSpeech as error:
            lengths.append(math.nan)
            reasons.append(str(error).removeprefix(f"{plain(path)}: "))
    fine = np.array([not reason for reason in reasons], dtype=bool)
    rejected = clips.assign(reason=reasons)[~fine].reset_index(drop=True)
    whole = _with_duration(clips, lengths)[fine].reset_index(drop=True)
    return whole, rejected[[name for name in ("corpus", "path", "reason") if name in rejected]]


def _with_duration(clips: pd.DataFrame, lengths: list[float]) -> pd.DataFrame:
    clips = clips.copy()
    clips.insert(len(corpora.COLUMNS), "duration", np.asarray(lengths, dtype=float))
    return clips


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
    joined = pd.concat(parts, ignore_index=True).fillna("")
    return joined.assign(**{name: one_spelling(joined[name]) for name in ("gender", "accent")})


def only(clips: pd.DataFrame, wanted: tuple[str, ...]) -> pd.DataFrame:
    """The clips that every named column allows: `column=value`, several values of a column being alternatives.

    `column=*` takes any value but none. A column that the table has not got allows everything. Case does not count.
    """
    values = {}
    for one in wanted:
        column, _, value = one.partition("=")
        values.setdefault(column, set()).add(value.strip().casefold())
    for column, allowed in values.items():
        if column in clips:
            folded = clips[column].str.strip().str.casefold()
            clips = clips[folded.isin(allowed) | (("*" in allowed) & (folded != ""))]
    return clips.reset_index(drop=True)


def draw(
    clips: pd.DataFrame, most: int, seed: int, *, by: tuple[str, ...] = (), per_group: int = 0, per_speaker: int = 0
) -> pd.DataFrame:
    """At most `most` clips, one a speaker in turn, so that no speaker is drawn twice before all were once.

    With `by`, as many of each group of these columns: `per_group`, or all that the smallest has, or an equal part
    of `most`, whichever is least; a group that has fewer gives all, and a clip without one of the labels is left
    out. `per_speaker` is the most that a speaker gives. 0 is no limit.
    """
    if not by and not per_speaker and (not most or most >= len(clips)):
        return clips
    shuffled = clips.sample(frac=1, random_state=seed)
    turn = shuffled.groupby(_voice(shuffled), sort=False).cumcount()
    order = turn[turn < per_speaker] if per_speaker else turn
    order = order.sort_values(kind="stable")
    if by:
        group = _groups(clips, by)[order.index]
        group = group[group != ""]
        sizes = group.value_counts()
        limits = [per_group or sizes.min(), *([max(1, most // len(sizes))] if most else [])] if len(sizes) else [0]
        order = order[group.index[group.groupby(group).cumcount() < min(limits)]]
    return clips.loc[sorted(order.index[: most or None])].reset_index(drop=True)


def _groups(clips: pd.DataFrame, by: tuple[str, ...]) -> pd.Series:
    """The group of each clip by name, such as `female, scottish`; empty where a label is missing."""
    _check_columns(clips, by)
    named = clips[list(by)].agg(", ".join, axis=1) if len(clips) else pd.Series("", index=clips.index)
    return named.where((clips[list(by)] != "").all(axis=1), "")


def split(clips: pd.DataFrame, seed: int, shares=(0.8, 0.1, 0.1)) -> pd.DataFrame:
    """The table with its column `split` filled in: train, validation and test share no speaker.

    What the corpus has assigned stays, and holds for all clips of the speaker. Other speakers are drawn at random
    within corpus and gender; a clip without a speaker counts as a speaker of its own. Every part gets a speaker where
    there are three, unless the corpus has placed them otherwise. One or two speakers are in every part: their clips are
    drawn, one by one (see `parts_share_speakers`).
    """
    corpora.check_splits(clips)
    voice = _voice(clips)
    if voice.nunique() < 3 and (clips.speaker != "").any() and (clips.split == "").all():
        return clips.assign(split=split(clips.assign(speaker=""), seed, shares).split)
    given = clips.split != ""
    names = dict(zip(voice[given], clips.split[given], strict=True))
    by = [name for name in ("corpus", "gender") if name in clips]
    unplaced = clips.assign(voice=voice)[~voice.isin(names)].sort_values(["voice", *by]).drop_duplicates("voice")
    rng = np.random.default_rng(seed)
    for _, group in unplaced.groupby(by, sort=True):
        voices = rng.permutation(group.voice)
        place = (np.arange(len(voices)) + rng.random()) / len(voices)  # a random phase: small groups too
        drawn = np.searchsorted(np.cumsum(shares), place, side="right").clip(max=2)
        names |= zip(voices, np.array(corpora.SPLITS)[drawn], strict=True)
    people = set(voice[clips.speaker != ""])
    for some in (people, set(voice)):  # a part of people, where there are three
        _fill({name: names[name] for name in sorted(some)}, set(unplaced.voice), names, rng)
    return clips.assign(split=voice.map(names))


def parts_share_speakers(clips: pd.DataFrame) -> bool:
    """Whether a speaker is in more than one part, because `split` had one or two speakers to divide."""
    return bool((clips[clips.speaker != ""].groupby("speaker").split.nunique() > 1).any())


def has_valid_split(clips: pd.DataFrame) -> bool:
    """Whether no speaker is in two parts, which only one or two speakers may be."""
    return not parts_share_speakers(clips) or clips.speaker[clips.speaker != ""].nunique() < 3


def _fill(some: dict[str, str], movable: set[str], names: dict[str, str], rng: np.random.Generator) -> None:
    """Put one of the movable voices into each part that has none of `some`, from the part that has most of them."""
    for part in corpora.SPLITS:
        have = {split: [voice for voice, own in some.items() if own == split] for split in corpora.SPLITS}
        if have[part]:
            continue
        free = {split: [v for v in of if v in movable] for split, of in have.items() if len(of) > 1}
        if most := max(free.values(), key=len, default=[]):
            moved = most[rng.integers(len(most))]
            some[moved] = names[moved] = part


def balance(clips: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Clips, speakers and minutes in each group of the columns `by`."""
    _check_columns(clips, by)
    groups = clips.assign(speaker=clips.speaker.replace("", np.nan)).groupby(list(by), sort=True)
    return groups.agg(
        clips=("id", "size"), speakers=("speaker", "nunique"), minutes=("duration", lambda s: s.sum() / 60)
    ).reset_index()


def short(clips: pd.DataFrame, by: tuple[str, ...], wanted: int) -> list[str]:
    """The groups, of each corpus, that have fewer clips than wanted, each in a few words."""
    sizes = _groups(clips, ("corpus", *by)).value_counts(sort=False)
    return [f"{group}: {size} of {wanted}" for group, size in sorted(sizes.items()) if size < wanted]


def _check_columns(clips: pd.DataFrame, names: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in clips]:
        raise BadSpeech(f"column {unknown[0]!r}: the table of clips has {', '.join(clips.columns)}")


def means_by(clips: pd.DataFrame, labels: list[str], columns: list[str]) -> pd.DataFrame:
    """The mean of numeric columns over the clips of each group of each label: label, group, and the columns."""
    numbers = clips[labels].join(clips[columns].apply(pd.to_numeric, errors="coerce"))
    parts = [
        numbers[numbers[label] != ""].groupby(label)[columns].mean().rename_axis("group").reset_index()
        for label in labels
    ]
    return pd.concat([part.assign(label=label) for part, label in zip(parts, labels, strict=True)] or [pd.DataFrame()])


def digest(place: str | Path, clips: pd.DataFrame | None = None) -> str:
    """One number for every byte of a corpus: its tables and the sound files of its clips, or of those given.

    A file that cannot be read counts as such, so that the number changes when it can.
    """
    found = corpora.find(place)
    clips = corpora.rows(place) if clips is None else clips
    total = hashlib.sha256(found.layout.encode())
    tables = [(os.path.relpath(table, found.folder), table) for table in found.tables]
    for name, path in [*tables, *((path.removeprefix(str(found.folder)), path) for path in clips.path)]:
        total.update(os.fsencode(name) + b"\0")
        try:
            told = os.stat(path)
            plain_file = stat.S_ISREG(told.st_mode)  # a named pipe would be waited for
            _listed()[str(path)] = (told.st_size, told.st_mtime_ns)
            total.update(_bytes_of(str(path), told.st_size, told.st_mtime_ns) if plain_file else b"no file")
        except OSError as error:
            total.update(f"errno {error.errno}".encode())
    return total.hexdigest()[:12]


@functools.cache
def _bytes_of(path: str, _size: int, _changed: int) -> bytes:
    """A digest of one file, read again only when its size or time of change is another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@functools.cache
def _listed() -> dict[str, tuple[int, int]]:
    """Size and time of change of each sound file when its digest was taken, in this process."""
    return {}


def _require_unchanged(path: str | Path) -> None:
    """BadSpeech for a file that was replaced since its digest went into a key."""
    before = _listed().get(str(path))
    if before and (told := os.stat(path)) and before != (told.st_size, told.st_mtime_ns):
        raise BadSpeech(f"{path}: has changed since the clips were listed; run this again from its beginning")


# ------------------------------------------------------------------------------------------------- the sound


def decoders() -> dict[str, str]:
    """Versions of what decides the samples of a sound file: libsndfile decodes it, soxr resamples it."""
    return {"libsndfile": soundfile.__libsndfile_version__, "soxr": soxr.__version__}


def samples(path: str | Path) -> np.ndarray:
    """A sound file as float32 samples at 16 kHz, channels averaged: (sample,).

    Resampling is soxr's: flat to 7.2 kHz, and what lies above 8.2 kHz vanishes (-130 dB) instead of folding back.
    Raises BadSpeech for a file that is missing, empty, truncated, not sound, or holds NaN or infinite samples.
    """
    with opened(path) as file:
        return resampled(np.concatenate(list(decode(path, file))), file.samplerate)


def decoded(path: str | Path) -> float:
    """Length in seconds of a sound file that can be decoded to its end; a long one takes no more memory than a short.

    Raises BadSpeech as `samples` does.
    """
    with opened(path) as file:
        count = sum(map(len, decode(path, file)))
    if file.format in ("MP3", "MPEG", "OGG") and (wrong := containers.fault(path, count)):
        raise BadSpeech(f"{path}: {wrong}")
    return count / file.samplerate


def opened(path: str | Path) -> soundfile.SoundFile:
    """A sound file at its first sample, checked as `seconds` does; close it, or use it in a `with`."""
    seconds(path)
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise BadSpeech(f"{path}: cannot be decoded: {error}") from None
    _require_unchanged(path)
    return file


def decode(path: str | Path, file: soundfile.SoundFile, start: int = 0, most: float = math.inf) -> Iterator[np.ndarray]:
    """The next samples, at most so many, of a file that stands at `start`: float32, in blocks, channels averaged.

    Raises BadSpeech if there are fewer than the file says, and after the last block if one was NaN or infinite.
    """
    count, odd, highest, told = 0, 0, 0.0, min(most, file.frames - start)
    try:
        while count < most and len(block := file.read(min(BLOCK, most - count), dtype="float32", always_2d=True)):
            count, odd = count + len(block), odd + int((~np.isfinite(block)).sum())  # block: (sample, channel)
            highest = max(highest, float(block.max()), float(-block.min()))
            yield block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadSpeech(f"{path}: cannot be decoded: {error}") from None
    if count < told - (file.frames // 100 if file.subtype == "MPEG_LAYER_III" else 0):  # MP3 may only guess its length
        raise BadSpeech(f"{path}: truncated: {count:,} of {told:,} samples can be read")
    if odd:
        raise BadSpeech(f"{path}: {odd:,} samples are NaN or infinite")
    if highest > HIGHEST:
        raise BadSpeech(f"{path}: a sample of {highest:.3g}, which is no sound: the loudest is 1 in a file of floats")


def resampled(mono: np.ndarray, rate: int) -> np.ndarray:
    """Samples at `rate` as samples at 16 kHz: a sample begun is a sample, and silence follows the last."""
    if rate == RATE:
        return mono
    beyond = np.zeros(2 * math.ceil(rate / RATE), dtype=np.float32)
    return soxr.resample(np.concatenate([mono, beyond]), rate, RATE)[: -(-len(mono) * RATE // rate)]


def moments(frames: np.ndarray, first: np.ndarray | int = 0) -> np.ndarray:
    """Seconds from the start of a clip on which frames are centred, of a window that begins at its sample `first`; to a
    microsecond, so that 7 · 20 ms is 0.14 s, as a table of phones has it."""
    return np.round(np.asarray(first) / RATE + np.asarray(frames) * HOP + CENTRE, 6)


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


def seconds(path: str | Path) -> float:
    """Length of a sound file in seconds, from its header. Raises BadSpeech for what has none."""
    path = Path(path)
    try:
        if not path.is_file():
            raise BadSpeech(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size == 0:
            raise BadSpeech(f"{path}: the file is empty")
        _check_whole(path)
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        way_out = "; convert it to FLAC" if path.suffix.lower() in corpora.FOREIGN else ""
        raise BadSpeech(f"{path}: not a sound file that can be read: {error}{way_out}") from None
    except OSError as error:
        raise BadSpeech(f"{path}: cannot be read: {error.strerror}") from None
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
