"""Speech from espeak-ng whose truth is known: the samples of a sentence, and when each phone and word of it sounds.

The library is called in this process (ctypes, Debian's libespeak-ng1), because a program call a clip would cost more
than the synthesis, and because only the library tells its events: "phoneme t begins 412 ms into the sound".

A voice's vocal tract is shortened by a factor `tract` = d / 441: the sentence is spoken at rate / tract and played
`tract` times faster, which moves formants and pitch up by `tract` and leaves the rate where it was. It is the same
resampling that brings espeak's 22,050 Hz to our 16,000 Hz, so it costs nothing, and as its ratio is a fraction of
integers, a time in the one sound is a time in the other exactly: seconds / tract.
"""

import ctypes
import ctypes.util
import functools
import json
import math
import os
from dataclasses import dataclass

import numpy as np
from scipy.signal import firwin, resample_poly

RATE = 16_000
NATIVE = 22_050
TRACTS = 441
"""`tract` is a multiple of 1/441: 16,000 / (22,050 · d/441) = 320 / d."""

WORD, PHONEME, END = 1, 7, 5
PARAMETER = {"rate": 1, "volume": 2, "pitch": 3, "range": 4}
UTF8, ENDPAUSE = 1, 0x1000


class Merged(RuntimeError):
    """Two words are spoken as one ("should have"), and where one ends cannot be told."""


@dataclass
class Spoken:
    """A sentence as sound: float32 samples at 16 kHz in [-1, 1], and rows of (start_s, end_s, name[, word index])."""

    samples: np.ndarray
    phones: list[tuple[float, float, str, int]]
    words: list[tuple[float, float, str]]


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_pieces: list[np.ndarray] = []
_events: list[tuple[int, int, int, int, str, int]] = []  # type, sample, text position, length, name, milliseconds


@_CALLBACK
def _hear(sound, count, events):
    if sound and count:
        _pieces.append(np.ctypeslib.as_array(sound, (count,)).copy())
    i = 0
    while events[i].type:
        event = events[i]
        name = ""
        if event.type == PHONEME:
            at = ctypes.addressof(event) + _Event.id.offset
            name = ctypes.string_at(at, 8).split(b"\0")[0].decode("utf-8", "replace")
        _events.append((event.type, event.sample, event.text_position, event.length, name, event.audio_position))
        i += 1
    return 0


@functools.cache
def _library(ipa: bool):
    """libespeak-ng, started: synchronous, with phoneme events."""
    lib = ctypes.CDLL(ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1")
    options = 1 | (2 if ipa else 0)
    if lib.espeak_Initialize(2, 200, None, options) != NATIVE:
        raise RuntimeError("espeak-ng: did not start at 22,050 Hz; apt-get install espeak-ng libespeak-ng1")
    lib.espeak_SetSynthCallback(_hear)
    return lib


def speak(text: str, voice, pure: bool = False) -> Spoken:
    """Say `text` in `voice` (see voices.Voice); `pure`: in a child process.

    The library keeps a noise generator and a flutter counter from sentence to sentence, so the same call twice does not
    give the same samples. A child forked from a process that has never spoken starts from the same state every time:
    with `pure` the sound depends on the arguments alone. Without, on all that this process has said before.
    """
    return _in_child(text, voice) if pure else _say(text, voice)


def ipa(text: str, voice) -> list[str]:
    """The phones of `speak` in the alphabet of the IPA, which espeak spells as the accent has it; pure."""
    return [name for _, _, name, _ in _in_child(text, voice, ipa=True).phones]


def _say(text: str, voice, ipa: bool = False) -> Spoken:
    lib = _library(ipa)
    tract = voice.tract / TRACTS
    if lib.espeak_SetVoiceByName(voice.name.encode()):
        raise RuntimeError(f"espeak-ng: no voice {voice.name}")
    settings = {"rate": round(voice.rate / tract), "pitch": voice.pitch, "range": voice.range, "volume": 80}
    for name, value in settings.items():
        lib.espeak_SetParameter(PARAMETER[name], value, 0)
    _pieces.clear()
    _events.clear()
    raw = text.encode()
    if lib.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, UTF8, None, None) or lib.espeak_Synchronize():
        raise RuntimeError(f"espeak-ng: could not say {text!r}")
    native = np.concatenate(_pieces).astype(np.float64) / 32768
    up = math.gcd(320, voice.tract)
    sound = resample_poly(native, 320 // up, voice.tract // up, window=_filter(320 // up, voice.tract // up))
    return Spoken(sound.astype(np.float32), *_truth(text, _events, NATIVE * tract))


@functools.cache
def _filter(up: int, down: int) -> np.ndarray:
    """resample_poly's own low-pass, made once a ratio instead of once a sentence."""
    most = max(up, down)
    return firwin(20 * most + 1, 1 / most, window=("kaiser", 5.0))


def _truth(text: str, events, rate: float):
    """Phones and words in seconds of the sound as played; `rate` is how many of espeak's samples a second of it takes.

    A phone begins at its event. It ends at the next event of a phone or a word, so that the silence espeak puts
    before a word's first stop belongs to no phone; a pause ends what stands before it and is no phone itself.
    """
    told = [e for e in events if e[0] in (WORD, PHONEME, END)]
    phones, begun = [], []  # begun: (start, position in the text) of each word event
    for event, then in zip(told, [*told[1:], told[-1]], strict=True):
        start, end = event[1] / rate, then[1] / rate
        if event[0] == WORD and event[2]:  # at position 0 there is one now and then behind the last word
            begun.append((start, event[2] - 1))
        elif event[0] == PHONEME and event[4].strip("_:;|ʲ") and end > start:
            phones.append((start, end, event[4], len(begun) - 1))
    return _parted(text, phones, begun)


def _parted(text: str, phones, begun):
    """Phones and words, one entry a word: espeak says "in the" and its like as one, and here they are parted again."""
    out, words = [], []
    for group, (start, at) in enumerate(begun):
        until = begun[group + 1][1] if group + 1 < len(begun) else len(text)
        mine = [phone for phone in phones if phone[3] == group]
        names = text[at:until].split()
        cut = len(mine)
        if len(names) == 2 and names[1] == "the":
            cut = max((i for i, phone in enumerate(mine) if phone[2][0] in "Ddtð"), default=len(mine))
        elif len(names) != 1:
            raise Merged(f"espeak-ng says {names} as one word")
        for name, part in zip(names, (mine[:cut], mine[cut:]), strict=False):
            begin = start if name is names[0] or not part else part[0][0]
            out += [(a, b, phone, len(words)) for a, b, phone, _ in part]
            words.append((begin, part[-1][1] if part else begin, name))  # swallowed whole: a word of no length
    return out, words


def _in_child(text: str, voice, ipa: bool = False) -> Spoken:
    if _library.cache_info().currsize:
        raise RuntimeError("espeak: this process has spoken; pure speech needs one that has not")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with os.fdopen(write, "wb") as out:
                said = _say(text, voice, ipa)
                facts = json.dumps({"phones": said.phones, "words": said.words}).encode()
                out.write(len(facts).to_bytes(8, "little") + facts + said.samples.tobytes())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    size = int.from_bytes(data[:8], "little")
    if not size:
        raise RuntimeError(f"espeak-ng: could not say {text!r}")
    facts = json.loads(data[8 : 8 + size])
    sound = np.frombuffer(data[8 + size :], dtype=np.float32)
    return Spoken(sound, [tuple(p) for p in facts["phones"]], [tuple(w) for w in facts["words"]])
