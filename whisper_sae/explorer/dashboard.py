"""One page of features to look through and listen to: a file that needs nothing but a browser, and no network.

A row a feature, to be sorted and filtered; of the one that is chosen its label, its scores and its examples: sound, the
spectrogram with the activation over it, the words. Nothing here knows where features or sounds come from.

Sounds are Opus in Ogg, about 22 kbit/s, each excerpt once however many features show it; spectrograms are grey WebP.
Together an example takes about 10 kB, so that 300 features with five each are one file of some 15 MB. What the page
shows is JSON in it, which the script turns into text, never into HTML.
"""

import itertools
import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from whisper_sae.report.results import write as write_whole
from whisper_sae.report.template import POLICY, TEMPLATE
from whisper_sae.viz.media import FRAME, RATE, opus, picture
from whisper_sae.viz.media import text as _text

ROOM = 3_500_000
"""Letters that whole clips may take of a page."""

SHOWN = {
    "label": "what it may stand for",
    "by": "`note`, what a person thinks, or `draft`, what scores suggest",
    "category": "of the note",
    "confidence": "of the note, 0 to 1",
    "evidence": "of the note",
    "rate": "the share of frames on which it fires",
    "phone": "its best phone",
    "f1": "how well it detects that",
    "chance": "what F1 is by chance",
    "stage": "where in the phone it fires: onset, steady, offset",
    "phones": "its best phones: a list of (phone, F1)",
    "word": "the word that it often fires in",
    "flag": "what else would explain it, such as loudness",
    "correlates": "what goes with it: a list of (name, value from -1 to 1)",
    "histogram": "how many of its values lie in each of equally wide bins, from `low` to `high`: a list",
    "low": "the least of its values, or 0",
    "high": "the largest",
}
"""Columns of the table of features that the page has a place for; any other is shown under its own name."""


class Example(NamedTuple):
    """What a feature does around one moment of a clip; times are seconds from the start of the clip."""

    feature: int
    kind: str
    """How it was chosen, such as `loudest`."""
    value: float
    """The activation at the moment, which is the middle of the excerpt."""
    first: float
    """Where the excerpt begins; below 0 where the clip begins within it."""
    sound: np.ndarray
    """(sample,) at 16 kHz, whole frames."""
    mel: np.ndarray
    """(mel bin, column), low to high, over the whole excerpt."""
    trace: np.ndarray
    """(frame,) what the feature says there, 0 outside of the clip. Frame i is centred i · 20 ms after `first`; one more
    than `sound` has is that on its end."""
    clip: str
    speaker: str
    seconds: float
    """How long the clip is."""
    text: str = ""
    words: tuple[tuple[float, float, str], ...] = ()
    """(start, end, word) of the whole clip, in order, where they are known."""


class Whole(NamedTuple):
    """A clip from its beginning on, and the features that peak in it."""

    clip: Example
    """What is known of the clip; its `feature`, `kind`, `value` and `trace` count for nothing."""
    peaks: tuple[tuple[int, float, float, float, np.ndarray], ...]
    """(feature, value, share, second, trace): the peak, what share it is of the farthest value of its feature, and
    (frame,) what the feature says over the whole of `clip.sound`; the highest first."""


def packed(examples: Iterable[Example], wholes: Iterable[Whole] = ()) -> dict:
    """Examples as JSON: `clips`, `excerpts` (the sound and the picture of each, once) and `examples` by feature; and
    `wholes`, clips with their features, as many as ROOM has place for.

    Raises ValueError for a sound that is not whole frames, or a trace of another length.
    """
    clips, excerpts, found, where = {}, {}, {}, {}
    examples = iter(examples)
    with ThreadPoolExecutor() as pool:
        while some := list(itertools.islice(examples, 64)):
            fresh = {}
            for one in some:
                _check(one)
                key = (one.clip, round(one.first * RATE))
                if key not in where:
                    where[key] = len(where)
                    fresh[where[key]] = one
                clips.setdefault(one.clip, _clip(one))
                found.setdefault(str(one.feature), []).append(_told(one, where[key]))
            for number, media in zip(fresh, pool.map(_media, fresh.values()), strict=True):
                one = fresh[number]
                clip = list(clips).index(one.clip)
                excerpts[number] = {
                    "clip": clip,
                    "first": round(one.first, 5),
                    "seconds": len(one.sound) / RATE,
                } | media
    told = {"excerpts": [excerpts[n] for n in range(len(excerpts))], "examples": found}
    return told | {"wholes": _wholes(wholes, clips), "clips": list(clips.values())}


def _wholes(wholes: Iterable[Whole], clips: dict[str, dict]) -> list[dict]:
    found, room = [], ROOM
    for one in wholes:
        _check(one.clip)
        clips.setdefault(one.clip.clip, _clip(one.clip))
        part = {"clip": list(clips).index(one.clip.clip), "first": 0.0, "seconds": len(one.clip.sound) / RATE}
        rows = [
            _told(one.clip._replace(value=value, trace=trace), 0)
            | {"feature": feature, "share": _plain(share), "at": at}
            for feature, value, share, at, trace in one.peaks
        ]
        for row in rows:
            del row["kind"], row["excerpt"]
        found.append({"part": part | _media(one.clip), "found": rows})
        room -= len(found[-1]["part"]["sound"]) + len(found[-1]["part"]["picture"]) + sum(len(r["trace"]) for r in rows)
        if room < 0:
            break
    return found


def _check(one: Example) -> None:
    if len(one.sound) % FRAME or not len(one.sound):
        raise ValueError(f"sound: {len(one.sound)} samples of {one.clip} are not whole frames of {FRAME}")
    if len(one.trace) - len(one.sound) // FRAME not in (0, 1):
        raise ValueError(f"trace: {len(one.trace)} frames of {one.clip}, whose sound has {len(one.sound) // FRAME}")


def _clip(one: Example) -> dict:
    words = [[round(start, 3), round(end, 3), word] for start, end, word in one.words]
    return {
        "name": one.clip,
        "speaker": one.speaker,
        "seconds": round(one.seconds, 3),
        "text": one.text,
        "words": words,
    }


def _told(one: Example, excerpt: int) -> dict:
    trace = np.asarray(one.trace, dtype=np.float64)
    most = float(np.abs(trace).max(initial=0)) or 1.0
    steps = np.round(127 * trace / most).astype(np.int8)
    return {"kind": one.kind, "value": _plain(one.value), "excerpt": excerpt, "most": _plain(most),
            "trace": _text(steps.tobytes())}  # fmt: skip


def _media(one: Example) -> dict:
    return {"sound": _text(opus(one.sound)), "picture": _text(picture(one.mel))}


def write(path: str | Path, features: pd.DataFrame, examples: dict | Iterable[Example], *, title: str,
          about: str = "", banner: str = "", home: str = "index.html", aside: str = "") -> dict:  # fmt: skip
    """Write the page, whole or not at all; returns how many `features`, `examples`, `excerpts` and `bytes` it has.

    `features` has a row a feature: its number in `feature`, and of SHOWN what is known. `examples` are Examples, or
    what `packed` made of them. `about` is a sentence under the title, `aside` a word in its corner, `home` what the
    page belongs to. Raises ValueError for a table without numbers or with one twice, and for an example of a feature
    that it has not got.
    """
    rows = _rows(features)
    held = examples if isinstance(examples, dict) else packed(examples)
    if lost := held["examples"].keys() - {str(row["feature"]) for row in rows}:
        raise ValueError(f"examples: there are some of feature {min(lost, key=int)}, which the table has not got")
    known = {row["feature"] for row in rows}
    if lost := {row["feature"] for one in held.get("wholes", ()) for row in one["found"]} - known:
        raise ValueError(f"clips: one has feature {min(lost)}, which the table has not got")
    names = ("style.css", "gallery.css", "drawing.css", "drawing.js", "gallery.js")
    files = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in names}
    data = json.dumps({"features": rows} | held, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":  # so that nothing in it ends the script
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    environment = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("gallery.html.j2").render(
        title=title, about=about, home=home, aside=aside, run={"banner": banner}, policy=POLICY, data=Markup(data),
        style=Markup("".join(files[name] for name in names[:3])),
        script=Markup("".join(files[name] for name in names[3:])),
    )  # fmt: skip
    write_whole(Path(path), text)
    shown = sum(map(len, held["examples"].values()))
    return {"features": len(rows), "examples": shown, "excerpts": len(held["excerpts"]), "bytes": len(text.encode())}


def _rows(features: pd.DataFrame) -> list[dict]:
    """The table as JSON: what is not known is left out, and what the page has no place for goes to `more`."""
    if "feature" not in features:
        raise ValueError(f"features: no column 'feature'; it has {', '.join(map(str, features))}")
    if features.feature.duplicated().any():
        raise ValueError(f"features: {features.feature[features.feature.duplicated()].iloc[0]} is there twice")
    found = []
    for row in features.to_dict("records"):
        told = {str(name): _plain(value) for name, value in row.items()}
        told = {name: value for name, value in told.items() if value not in (None, "", [])}
        more = [[name, value] for name, value in told.items() if name not in SHOWN and name != "feature"]
        found.append({"feature": int(row["feature"])} | {name: told[name] for name in SHOWN if name in told})
        found[-1] |= {"more": more} if more else {}
    return found


def _plain(value):
    """A value as JSON has it: numbers to five digits, None for what is no number, else text."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return None if value is None or value is pd.NA or value is pd.NaT else str(value)
