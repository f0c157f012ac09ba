"""What can be asked of features and clips, as plain functions: a question is JSON, and so is its answer.

    ask = Questions(drawn, clips, title="encoder.2.resid")
    ask.answer({"ask": "feature", "feature": 30, "most": 5})      # the clips in which it peaks, with its tracks
    ask.answer({"ask": "clip", "clip": 12})                       # the features that peak in a clip
    ask.answer({"ask": "feature", "feature": -1})                 # {"error": "feature: must be a whole number …"}

There is no browser here, and none is needed. A question names a clip by its row in the table, never by a path, and what
is read lies below the folders of the corpus; see FIELDS for all that a question may hold.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from whisper_sae.data import uploads
from whisper_sae.data.clip_table import moments
from whisper_sae.explorer import annotations, comparisons
from whisper_sae.explorer.catalogue import KEPT, LONGEST, Catalogue
from whisper_sae.explorer.messages import Message, number
from whisper_sae.stats import effects
from whisper_sae.viz import media
from whisper_sae.viz.media import FRAME, RATE

MOST, BINS = 100, 32
"""Results at most; bins of the histogram."""

SCALES = (-2.0, 100.0)
"""From and to: what a feature can be multiplied by."""

FEATURES_CHANGED = 16
FIELDS = {
    "about": "",
    "clips": "text, most",
    "feature": "feature, most, low, high, absolute",
    "clip": "clip or upload, most, by (peak or share)",
    "media": "clip or upload, first",
    "track": "clip or upload, feature, first",
    "compare": "a and b, each a clip, an upload, or a column and a value; most",
    "change": "clip or upload, scales {feature: from -2 to 100}, start, end (seconds), control",
    "upload": "name, and the bytes beside the message",
    "note": "feature, category, description, confidence, evidence, who",
    "forget": "feature",
}
"""The questions, and the fields of each."""


class Questions:
    """Questions about the features of one index.

    `drawn` is an `examples.Examples`, `clips` the table of clips with `id speaker text duration path` and labels.
    `filters` are Whisper's mel filters, (frequency, mel bin). `notes` is a `labels.Labels`. `hear` says the codes of a
    sound, (sample,) -> (frame, feature) sparse, for uploads; `steer` what becomes of a transcript when features are
    scaled: see `change`. `roots` are folders; a clip that lies outside of them is not read, whatever the table says.
    `searched`, rows of the table, are the clips that a feature is looked for in; None is all. `languages` are the codes
    of the clips' languages, for `steer`.
    """

    def __init__(self, drawn, clips: pd.DataFrame, *, filters: np.ndarray, roots: Sequence[str | Path], title: str,
                 notes: annotations.Labels | None = None, hear: Callable | None = None, steer: Callable | None = None,
                 drafts: Mapping[int, str] | None = None, searched: Sequence[int] | None = None,
                 languages: Sequence[str] | None = None):  # fmt: skip
        self.drawn, self.index, self.clips = drawn, drawn.index, clips
        self.title, self.notes, self.hear, self.steer = title, notes, hear, steer
        self.sounds, self.drafts = Catalogue(drawn, clips, filters, roots), dict(drafts or {})
        self.languages = languages
        self.noted: dict[int, annotations.Note] | None = None
        self.searched = np.ones(len(clips), dtype=bool) if searched is None else np.zeros(len(clips), dtype=bool)
        if searched is not None:
            self.searched[[int(row) for row in searched]] = True

    # ------------------------------------------------------------------------------------------- one door for all

    def answer(self, message: Mapping, data: bytes = b"") -> dict:
        """The answer to a question, or {"error": one line}."""
        self.noted = None  # a person may have edited the file
        try:
            told = Message(message)
            ask = told.one_of("ask", list(FIELDS))
            if ask == "upload":
                return self.upload(told, data)
            return getattr(self, "clips_named" if ask == "clips" else ask)(told)
        except (ValueError, IndexError, KeyError, OSError) as error:
            return {"error": " ".join(str(error).split())[:500]}

    def about(self, told: Message) -> dict:
        """What can be asked about: the title, numbers, groups, what of the columns is left out of these and why, and
        which of the other questions have an answer."""
        told.finish()
        index = self.index
        return {
            "title": self.title, "features": index.features, "signed": index.signed, "clips": int(self.searched.sum()),
            "all_clips": len(self.clips), "groups": self.sounds.groups, "left_out": self.sounds.left_out,
            "categories": list(annotations.CATEGORIES),
            "can_upload": self.hear is not None, "can_change": self.steer is not None,
            "can_note": self.notes is not None, "scales": list(SCALES), "most_bytes": uploads.BYTES,
            "longest": uploads.LONGEST, "notes": self._notes(), "fires_most": int(np.argmax(index.rates)),
        }  # fmt: skip

    def clips_named(self, told: Message) -> dict:
        """The clips whose name, speaker, labels or text hold all the words asked for."""
        words, most = told.text("text", most=200).casefold().split(), told.whole("most", 1, MOST, 50)
        told.finish()
        here = np.ones(len(self.clips), dtype=bool)
        for word in words:
            here &= self.sounds.searchable.str.contains(word, regex=False).to_numpy()
        found = np.flatnonzero(here)
        return {"found": [self.sounds.clip(row, words=False) for row in found[:most].tolist()], "matched": len(found)}

    # ------------------------------------------------------------------------------------------ feature to clips

    def feature(self, told: Message) -> dict:
        """Clips by the peak of a feature, the farthest from zero first, as many as `most` with low ≤ peak ≤ high.

        The peak of a clip is its largest value; with `absolute` the one farthest from zero, and the range is of its
        magnitude; where only values below zero are asked for (high ≤ 0), its least. `histogram` counts the peaks of all
        clips that are searched, those in which it never fires at 0.
        """
        which, most = self._feature(told), told.whole("most", 1, MOST, 20)
        low, high, absolute = told.number("low"), told.number("high"), told.flag("absolute")
        told.finish()
        if low is not None and high is not None and low > high:
            raise ValueError(f"low: {low:g} is more than high, {high:g}")
        below = self.index.signed and not absolute and high is not None and high <= 0
        side = "negative" if below else "both" if absolute or not self.index.signed else "positive"
        peaks = self.drawn.peaks(which, side)
        peaks = peaks[self.searched[peaks["clip"]]]
        asked = peaks.value.abs() if absolute else peaks.value
        inside = (asked >= (-np.inf if low is None else low)) & (asked <= (np.inf if high is None else high))
        found = peaks.assign(far=peaks.value.abs())[inside].sort_values(["far", "clip"], ascending=[False, True])[:most]
        rows = [self._row(which, row) for row in found.itertuples()]
        return self._known(which) | {
            "histogram": self._histogram(peaks["clip"].to_numpy(), asked.to_numpy(float)),
            "matched": int(inside.sum()), "fires_in": len(peaks), "searched": int(self.searched.sum()),
            "found": rows, "media": self._first_media(rows),
        }  # fmt: skip

    def _first_media(self, rows: list[dict]) -> dict:
        """The sound and the picture of the first clip that was found: who asked sees it without asking again."""
        if not rows:
            return {}
        start, frames = round(rows[0]["first"] * RATE), round(rows[0]["seconds"] * RATE / FRAME)
        try:
            sound, picture = self.sounds.media("clip", rows[0]["clip"]["clip"], start, frames)
        except (ValueError, OSError):
            return {}  # asked for by itself it says why
        return {"sound": sound, "picture": picture, "type": "audio/wav"}

    def _known(self, which: int) -> dict:
        index = self.index
        return {"feature": which, "rate": float(index.rates[which]), "low": float(index.minima[which]),
                "high": float(index.maxima[which])} | self._label(which)  # fmt: skip

    def _histogram(self, clip: np.ndarray, value: np.ndarray) -> dict:
        every = np.zeros(len(self.clips))
        every[clip] = value
        every = every[self.searched]
        low, high = float(every.min(initial=0)), float(every.max(initial=0))
        counts, edges = np.histogram(every, BINS, (low, high if high > low else low + 1))
        return {"counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1])}

    def _row(self, which: int, row) -> dict:
        """A clip in which a feature peaks: where, how high, and its track."""
        clip = int(row.clip)
        _, position = self.index.where(np.array([row.row]))
        at = float(moments(position[0], self.drawn.first[row.piece]))
        first, frames = self.sounds.span(self.sounds.samples(clip), at)
        word = self.sounds.word(clip, at)
        return {
            "clip": self.sounds.clip(clip),
            "value": float(row.value),
            "at": at,
            "word": word,
            "first": first / RATE,
            "seconds": frames * FRAME / RATE,
            "track": _packed(self.drawn.track(which, clip, first, frames)),
        }

    # ------------------------------------------------------------------------------------------ clip to features

    def clip(self, told: Message) -> dict:
        """The features that peak in a clip or an uploaded sound, with their tracks over what is shown of it.

        The highest peak first, or with `by` = share the one that is nearest to the farthest value that its feature has
        in the corpus: what is loud everywhere comes later then.
        """
        kind, which = self._source(told)
        most, by = told.whole("most", 1, MOST, 32), told.one_of("by", ("peak", "share"), "peak")
        told.finish()
        peaks = self.sounds.peaks_in(kind, which)
        share = _over(peaks.value, self.sounds.farthest(peaks.value.to_numpy(), peaks.feature.to_numpy()))
        order = np.lexsort([peaks.feature, -peaks.value.abs(), -np.abs(share if by == "share" else peaks.value)])[:most]
        chosen = peaks.assign(share=share).iloc[order]
        first, frames = self.sounds.span(
            self.sounds.length(kind, which), float(chosen.seconds.iloc[0]) if len(chosen) else 0.0
        )
        found = [self._peak(kind, which, row, first, frames) for row in chosen.itertuples()]
        return {"clip": self.sounds.told(kind, which), "first": first / RATE, "seconds": frames * FRAME / RATE,
                "fires": len(peaks), "found": found}  # fmt: skip

    def _peak(self, kind: str, which: int, row, first: int, frames: int) -> dict:
        """A feature that peaks in a clip: where, how high, and its track."""
        feature, at = int(row.feature), float(row.seconds)
        word = self.sounds.word(which, at) if kind == "clip" else ""
        track = _packed(self.sounds.track(kind, which, feature, first, frames))
        return self._known(feature) | {"value": float(row.value), "share": float(row.share), "at": at, "word": word,
                                       "track": track}  # fmt: skip

    def track(self, told: Message) -> dict:
        """What one feature says of a clip, over what is shown of it."""
        (kind, which), feature, first = self._source(told), self._feature(told), told.number("first", 0, default=0.0)
        told.finish()
        start, frames = self.sounds.span(self.sounds.length(kind, which), first + LONGEST / 2)
        return self._known(feature) | {"track": _packed(self.sounds.track(kind, which, feature, start, frames)),
                                       "first": start / RATE, "seconds": frames * FRAME / RATE}  # fmt: skip

    def media(self, told: Message) -> dict:
        """What is shown of a clip from the moment `first` on: its sound (WAV) and spectrogram (WebP), base64."""
        (kind, which), first = self._source(told), told.number("first", 0, default=0.0)
        told.finish()
        start, frames = self.sounds.span(self.sounds.length(kind, which), first + LONGEST / 2)
        sound, picture = self.sounds.media(kind, which, start, frames)
        return {"sound": sound, "picture": picture, "type": "audio/wav", "first": start / RATE,
                "seconds": frames * FRAME / RATE}  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- uploads

    def upload(self, told: Message, data: bytes) -> dict:
        """Take in a sound file, its bytes, and say under which number it can be asked about."""
        name = told.text("name", "a sound", 200)
        told.finish()
        if self.hear is None:
            raise ValueError("upload: not possible here; only clips of the corpus can be asked about")
        sound = uploads.samples(data)
        return {"upload": self.sounds.take_in(name, sound, self.hear(sound)), "seconds": len(sound) / RATE}

    # ---------------------------------------------------------------------------------------------------- compare

    def compare(self, told: Message) -> dict:
        """What sets `a` and `b` apart: two clips, or two groups of speakers; see `comparisons`."""
        a, b, most = told.inner("a"), told.inner("b"), told.whole("most", 1, MOST, 20)
        told.finish()
        if a.has("column") != b.has("column"):
            raise ValueError("b: a group can be compared with a group only, and a clip with a clip")
        within, in_both = "", []
        if a.has("column"):
            found, names, within, in_both = self._groups_apart(a, b)
        else:
            sources = [self._source(one) for one in (a, b)]
            for one in (a, b):
                one.finish()
            peaks = [self._peak_of_each(*source) for source in sources]
            found = comparisons.of_clips(*peaks, np.maximum(self.index.maxima, -self.index.minima))
            names = [self.sounds.told(*source)["name"] for source in sources]
        rows = found[:most].astype({"feature": int}).to_dict("records")
        plain = [row | self._label(row["feature"]) for row in rows]
        return {"names": names, "groups": "speakers_a" in found, "within": within, "in_both": in_both,
                "compared": len(found), "found": plain}  # fmt: skip

    def _groups_apart(self, a: Message, b: Message) -> tuple[pd.DataFrame, list[str], str, list[str]]:
        """Features, the names of the groups, what is held fixed (the corpus, where there are several, or ""), and the
        speakers who are in both groups and therefore left out."""
        column = a.one_of("column", list(self.sounds.groups))
        if b.one_of("column", list(self.sounds.groups)) != column:
            raise ValueError(f"b: both groups must be of one column, here {column}")
        values = [one.one_of("value", self.sounds.groups[column]) for one in (a, b)]
        for one in (a, b):
            one.finish()
        if values[0] == values[1]:
            raise ValueError("b: the two groups are the same")
        told = self.clips[column].astype(str).to_numpy()
        side = np.select([told == values[0], told == values[1]], ["a", "b"], "")
        several = column != "corpus" and "corpus" in self.clips and self.clips.corpus.nunique() > 1
        corpus = self.clips.corpus.to_numpy(dtype=str) if several else None
        who = effects.named_as(self.clips.speaker)
        in_both = sorted(set(who[side == "a"]) & set(who[side == "b"]) - {""})
        side = np.where(self.searched & ~np.isin(who, in_both), side, "")
        found = comparisons.of_groups(self.index, self.drawn.clip_of, self.clips, side, corpus)
        return found, values, "corpus" if several else "", in_both

    def _peak_of_each(self, kind: str, which: int) -> np.ndarray:
        found, peaks = np.zeros(self.index.features), self.sounds.peaks_in(kind, which)
        found[peaks.feature] = peaks.value
        return found

    # ----------------------------------------------------------------------------------------------------- change

    def change(self, told: Message) -> dict:
        """What Whisper writes of a clip when features are multiplied, from `start` to `end` (seconds) or throughout.

        What `steer(sound, scales, start, end, control, language)` says, passed on; an uploaded sound has no language.
        """
        (kind, which), given = self._source(told), told.given.pop("scales", None)
        start, end, control = told.number("start", 0), told.number("end", 0), told.flag("control")
        told.finish()
        if self.steer is None:
            raise ValueError("change: not possible here; only the features of a trained dictionary can be changed")
        scales = self._scales(given)
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start: {start:g} s is not before the end, {end:g} s")
        sound = self.sounds.sound(kind, which, 0, self.sounds.length(kind, which))
        language = self.languages[which] if self.languages is not None and kind == "clip" else ""
        return self.steer(sound, scales, start, end, control, language) | {"clip": self.sounds.told(kind, which)}

    def _scales(self, given) -> dict[int, float]:
        if not isinstance(given, Mapping) or not given:
            raise ValueError("scales: must name at least one feature and what it is multiplied by")
        if len(given) > FEATURES_CHANGED:
            raise ValueError(f"scales: {len(given)} features; at most {FEATURES_CHANGED} at a time")
        found = {}
        for name, value in given.items():
            which = int(name) if str(name).isascii() and str(name).isdigit() else name
            found[Message({"feature": which}).whole("feature", 0, self.index.features - 1)] = number(
                f"scale of {name!s:.20}", value, *SCALES
            )
        return found

    # ------------------------------------------------------------------------------------------------------- note

    def note(self, told: Message) -> dict:
        """Keep what a person thinks of a feature, in the place of what was kept."""
        which = self._feature(told)
        fields = {name: told.text(name) for name in ("description", "evidence", "who")}
        category = told.one_of("category", annotations.CATEGORIES, "unknown")
        confidence = told.number("confidence", 0, 1)
        told.finish()
        note = annotations.Note(
            which, category, confidence=confidence, when=datetime.date.today().isoformat(), **fields
        )
        self._kept().put(note)
        self.noted = None
        return self._label(which)

    def forget(self, told: Message) -> dict:
        """Remove the note on a feature."""
        which = self._feature(told)
        told.finish()
        if which not in self._kept().notes():
            raise ValueError(f"feature: there is no note on {which}")
        self._kept().remove(which)
        self.noted = None
        return self._label(which)

    def _kept(self) -> annotations.Labels:
        if self.notes is None:
            raise ValueError("note: nothing is kept here")
        return self.notes

    def _notes(self) -> list[dict]:
        return [] if self.notes is None else [_of_note(note) for note in self.notes.notes().values()]

    def _label(self, which: int) -> dict:
        """What a feature may stand for: what a person thinks, or else what scores suggest."""
        if self.noted is None:
            self.noted = {} if self.notes is None else self.notes.notes()
        note = self.noted.get(which)
        if note is not None:
            return {"label": note.description or note.category, "by": "note", "note": _of_note(note)}
        return {"label": self.drafts.get(which, ""), "by": "draft", "note": None}

    # ---------------------------------------------------------------------------------------------- what is meant

    def _feature(self, told: Message) -> int:
        return told.whole("feature", 0, self.index.features - 1)

    def _source(self, told: Message) -> tuple[str, int]:
        """The clip of the corpus or the uploaded sound that is asked about."""
        if told.has("upload"):
            which = told.whole("upload", 0, 1 << 31)
            if which not in self.sounds.uploaded:
                raise ValueError(f"upload: sound {which} is not here any more; the last {KEPT} are kept")
            return "upload", which
        return "clip", told.whole("clip", 0, len(self.clips) - 1)


def _of_note(note: annotations.Note) -> dict:
    return {name: getattr(note, name) for name in annotations.FIELDS}


def _over(value, farthest: np.ndarray) -> np.ndarray:
    """A peak as a share of its feature's farthest; 1 where the corpus has none on that side."""
    value = np.asarray(value, dtype=float)
    return np.divide(value, farthest, out=np.ones(len(value)), where=farthest != 0)


def _packed(track: np.ndarray) -> str:
    """(frame,) as base64 of little-endian float32."""
    return media.text(np.asarray(track, dtype="<f4").tobytes())
