"""Clips without speech: which clips of a corpus are, which transcripts hold words, and sounds that are made here.

Made are silence, noise of several colours, mains hum, tones in chords, clicks; and noise that is shaped and swells as
speech does, which is nearest to what a model may take for words.
"""

import re

import numpy as np
import pandas as pd
from scipy import signal

RATE = 16_000
KINDS = ("silence", "white", "pink", "hum", "chords", "clicks", "speech-like noise", "whistle")

# ------------------------------------------------------------------------------- clips and transcripts without words

CLASSES = ("label", "category")
"""Columns that name a class of sound, as ESC-50 has them; the first that a table has is taken."""

SPEAKER_FACTS = ("speaker", "gender", "accent")
"""Columns that are filled only for clips in which somebody speaks."""

BRACKETED = re.compile(
    r"\([^()]*(?:\)|$)|\[[^\[\]]*(?:\]|$)|\{[^{}]*(?:\}|$)|<[^<>]*>|（[^（）]*(?:）|$)|【[^【】]*(?:】|$)"
    r"|[♪♫♬][^♪♫♬]*(?:[♪♫♬]|$)|\*[^*]*\*"
)
"""How Whisper writes sounds and music: (upbeat music), [Music], *sighs*, ♪ la la ♪; a bracket that is not closed counts
to the end of the text."""


def has_words(text: str) -> bool:
    """Whether a raw transcript holds words: letters or digits outside brackets, music notes and asterisks.

    The one rule for words and, where nobody speaks, for hallucinated words. `...`, `-`, `♪` and `[Music]` hold none;
    `Hmm.` and `Uh` do: they claim that somebody made a sound of speech, though Whisper's normaliser drops them.
    """
    while (bare := BRACKETED.sub(" ", text)) != text:
        text = bare
    return any(map(str.isalnum, text))


def is_transcribed(clips: pd.DataFrame) -> np.ndarray:
    """Which clips of a table have a transcript with words: (clip,) bool."""
    return np.array([has_words(text) for text in clips.text.astype(str)], dtype=bool)


def class_of(clips: pd.DataFrame) -> np.ndarray:
    """The class of sound of each clip, from the first of CLASSES that there is, else "": (clip,) str."""
    names = [name for name in CLASSES if name in clips]
    return clips[names[0]].astype(str).to_numpy() if names else np.full(len(clips), "")


OF_A_CLASS = "a class of sound; no text, speaker, gender or accent"
AMONG_OTHERS = "no text, speaker, gender or accent, in a corpus that gives text and speakers of other clips"


def is_nonspeech(clips: pd.DataFrame) -> np.ndarray:
    """Which clips a corpus says hold no speech: (clip,) bool; see `reasons`."""
    return reasons(clips) != ""


def reasons(clips: pd.DataFrame) -> np.ndarray:
    """Why clips are taken to hold no speech, OF_A_CLASS or AMONG_OTHERS: (clip,) str, "" for those that are not. The
    one rule for this.

    Such a clip has no transcript, speaker, gender or accent, and either a class of sound (`class_of`) or a corpus that
    gives transcripts and speakers of other clips. A class with the word speech in its name is speech. A clip with a
    speaker and no transcript is speech with an unknown transcript. Of a folder of bare audio nothing is known, so none
    of it is non-speech. A table of several corpora has the column `corpus`.
    """
    words, names = is_transcribed(clips), np.char.lower(class_of(clips).astype(str))
    speech = words | (np.char.find(names, "speech") >= 0)
    for fact in SPEAKER_FACTS:
        if fact in clips:
            speech |= (clips[fact].astype(str) != "").to_numpy()
    corpus = clips.corpus.to_numpy() if "corpus" in clips else np.zeros(len(clips))
    given = pd.DataFrame({"words": words, "speaker": (clips.speaker != "").to_numpy()})
    others = given.groupby(corpus).transform("any").all(axis=1).to_numpy()
    return np.select([speech, names != "", others], ["", OF_A_CLASS, AMONG_OTHERS], "")


# ----------------------------------------------------------------------------------------------------- made sounds


def made(kind: str, seed: int = 0, seconds: float = 3.0) -> np.ndarray:
    """A sound of one of KINDS, (sample,) of 16 kHz, float32, the same for the same seed. ValueError for another
    kind."""
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    time = np.arange(round(seconds * RATE)) / RATE
    loud = 10 ** (rng.uniform(-35, -15) / 20)
    sound = _MAKE[kind](time, rng)
    level = np.sqrt(np.mean(sound**2))
    return (sound * (loud / level if level > 0 else 1)).clip(-1, 1).astype(np.float32)


def _coloured(n: int, rng, power: float) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(n))
    return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (power / 2), n)


def _hum(time, rng) -> np.ndarray:
    pitch = rng.choice([50.0, 60.0])
    return sum(np.sin(2 * np.pi * pitch * n * time + rng.uniform(0, 6)) / n for n in (1, 2, 3, 5))


def _chords(time, rng) -> np.ndarray:
    sound, beat = np.zeros(len(time)), 0.4
    for first in np.arange(0, time[-1], beat):
        root = 110 * 2 ** (rng.integers(0, 24) / 12)
        since = time - first
        decay = np.where((since >= 0) & (since < beat), np.exp(-4 * since), 0)
        sound += decay * sum(np.sin(2 * np.pi * root * ratio * since) for ratio in (1, 1.26, 1.5, 2))
    return sound


def _clicks(time, rng) -> np.ndarray:
    sound = 1e-3 * rng.standard_normal(len(time))
    sound[rng.integers(0, len(time), max(1, round(6 * time[-1])))] += 1.0
    return signal.lfilter([1], [1, -0.7], sound)


def _like_speech(time, rng) -> np.ndarray:
    """Noise under two formants that wander, swelling four times a second, over a buzz at the pitch of a voice."""
    pitch = rng.uniform(90, 240) * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6)))
    source = signal.sawtooth(2 * np.pi * np.cumsum(pitch) / RATE) + 0.3 * rng.standard_normal(len(time))
    sound = np.zeros(len(time))
    for first in range(0, len(time), RATE // 8):
        part = slice(first, first + RATE // 8)
        said = source[part]
        for formant in (rng.uniform(300, 800), rng.uniform(900, 2400)):
            said = signal.lfilter(*signal.iirpeak(formant, 6, RATE), said) + 0.3 * said
        sound[part] = said
    return sound * np.clip(np.sin(2 * np.pi * 4 * time + rng.uniform(0, 6)) + 0.4, 0, None)


def _whistle(time, rng) -> np.ndarray:
    glide = rng.uniform(600, 1500) * 2 ** (rng.uniform(-1, 1) * time / time[-1])
    return np.sin(2 * np.pi * np.cumsum(glide) / RATE)


_MAKE = {
    "silence": lambda time, rng: np.zeros(len(time)),
    "white": lambda time, rng: rng.standard_normal(len(time)),
    "pink": lambda time, rng: _coloured(len(time), rng, 1.0),
    "hum": _hum,
    "chords": _chords,
    "clicks": _clicks,
    "speech-like noise": _like_speech,
    "whistle": _whistle,
}
