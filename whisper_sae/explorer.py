"""The explorer: ask a feature for its clips, a clip for its features, and change what Whisper hears, in a notebook.

    explorer.explore(run)                            # in JupyterLab, VS Code, Colab: one line
    explorer.explore(run, of="neurons")              # the same without a dictionary
    asked = explorer.questions(run, 0, run.focus)    # without a browser: see `questions`

Dictionary and neurons are there side by side where both have an index. What is seen is drawn in the browser, what is
asked is answered here, and the two speak over the channel that the notebook has anyway. No server is started, no port
is opened, and no file is named by who asks.
"""

from collections.abc import Callable, Mapping, Sequence

import anywidget
import numpy as np
import torch
import traitlets
from scipy.sparse import csc_array
from transformers import WhisperFeatureExtractor

from whisper_sae import (
    controls,
    galleries,
    interchange,
    languages,
    meaning,
    media,
    model,
    recipes,
    sae,
    steering,
    stills,
    store,
    uploads,
)
from whisper_sae.messages import Message
from whisper_sae.profiles import Profile
from whisper_sae.questions import Questions
from whisper_sae.template import TEMPLATE

STILLS = 6
"""Clips that a page without a kernel shows."""

CHUNK = 1 << 21
"""The most bytes of a part of a sound: a notebook server takes messages of less than 10 MiB."""


def explore(run: Profile, seed: int = 0, site: str = "", of: str | Sequence[str] = ("dictionary", "neurons"), *,
            feature: int | None = None, **options) -> "Explorer":  # fmt: skip
    """The explorer of a site, the run's focus if none is named, to be displayed in a notebook.

    `of` names one or several of `meaning.INPUTS`; of several, those that have an index. `feature` is the one to begin
    with, or else the one that fires most often. `options` are those of `questions`. Raises store.NotMade, which says
    what makes it, where there is none.
    """
    wanted, found, lacking = [of] if isinstance(of, str) else list(of), {}, None
    for name in wanted:
        try:
            found[name] = questions(run, seed, site, name, **options)
        except store.NotMade as error:
            lacking = lacking or error
    if not found:
        raise lacking
    return Explorer(found, feature)


class Explorer(anywidget.AnyWidget):
    """Questions in a notebook, by the name of what they are about; the first is shown first. See `explore`."""

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)

    def __init__(self, asked: Mapping[str, Questions], feature: int | None = None):
        self.asked, self.feature, self.parts = dict(asked), feature, {}
        first = next(iter(self.asked.values()))
        if feature is not None and not 0 <= feature < first.index.features:
            raise ValueError(f"feature: there is no {feature}; there are {first.index.features}")
        text = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in
                ("drawing.js", "explorer.js", "drawing.css", "explorer.css")}  # fmt: skip
        super().__init__(
            _esm=text["drawing.js"] + text["explorer.js"],
            _css=f".whisper-explorer {{\n{text['drawing.css']}}}\n{text['explorer.css']}",
        )
        self.on_msg(self._hear)

    def _repr_mimebundle_(self, **_kwargs) -> tuple[dict, dict]:
        """The widget, and for pages without a kernel what can be shown of it: see `stills`."""
        told, metadata = super()._repr_mimebundle_()
        name, asked = next(iter(self.asked.items()))
        answer = asked.answer({"ask": "feature", "feature": self._about(name)["start"], "most": STILLS})
        sounds, tracks = [], []
        for row in answer["found"]:
            clip, first, frames = row["clip"]["clip"], round(row["first"] * media.RATE), round(row["seconds"] / 0.02)
            picture = asked.sounds.media("clip", clip, first, frames)[1]
            sounds.append((asked.sounds.sound("clip", clip, first, frames * media.FRAME), picture))
            tracks.append(asked.sounds.track("clip", clip, answer["feature"], first, frames))
        return told | {"text/html": stills.shown(answer, sounds, tracks, asked.title)}, metadata

    def _hear(self, _widget, content: Mapping, buffers: Sequence) -> None:
        """Answer what the browser asks: {"id", "question"}, and for a sound its bytes beside it."""
        if isinstance(content, Mapping) and "id" in content:
            data, told = b"".join(bytes(part) for part in buffers or []), {"error": "this went wrong; the log has more"}
            try:
                told = self.answer(content.get("question"), data)
            finally:  # whatever happens, who asks is not left waiting
                self.send({"id": content["id"], "answer": told})

    def answer(self, question, data: bytes = b"") -> dict:
        """The answer to a question, or {"error": one line}; `source` says which of the questions' sources is meant."""
        try:
            told = Message(question)
            if told.given.get("ask") == "about":
                return {"sources": [self._about(name) for name in self.asked]}
            asked = self.asked[told.one_of("source", list(self.asked), next(iter(self.asked)))]
            if told.given.get("ask") == "upload" and told.has("parts"):
                data = self._gathered(told, data)
                if data is None:
                    return {"upload": None}
            return asked.answer(told.given, data)
        except ValueError as error:
            return {"error": str(error)}

    def _about(self, name: str) -> dict:
        told = self.asked[name].answer({"ask": "about"})
        if "error" in told:
            raise ValueError(told["error"])
        begin = self.feature if self.feature is not None and self.feature < told["features"] else told["fires_most"]
        return told | {"source": name, "start": begin}

    def _gathered(self, told: Message, data: bytes) -> bytes | None:
        """All bytes of a sound whose last part this is; None where more are to come. There is one sound at a time."""
        most = uploads.BYTES // 1000
        which, part, parts = told.text("upload", most=40), told.whole("part", 0, most), told.whole("parts", 1, most)
        if part == 0:
            self.parts = {which: bytearray()}
        if which not in self.parts:
            raise ValueError("upload: it was broken off by another one")
        if len(data) > CHUNK or len(self.parts[which]) + len(data) > uploads.BYTES:
            self.parts = {}
            raise ValueError(f"upload: more than {uploads.BYTES / 1e6:.0f} MB, or a part of more than {CHUNK:,} bytes")
        self.parts[which] += data
        return bytes(self.parts.pop(which)) if part == parts - 1 else None


def questions(run: Profile, seed: int = 0, site: str = "", of: str = "dictionary", *, upload: bool = True,
              change: bool = True, clips: Sequence[int] | None = None, title: str = "",
              **which) -> Questions:  # fmt: skip
    """What can be asked of the features of a site, the run's focus if none is named; see `Questions`.

    `of` is as in `meaning.codes`. `upload` and `change` are whether sounds can be handed over and features changed, if
    they can at all. `clips`, rows of the table of clips, are those that features are looked for in; None is all. Raises
    store.NotMade, which says what makes it, where there is no index.
    """
    site = site or run.focus
    drawn = meaning.examples_in(run, seed, site, of, **which)
    heard = recipes.table(run, store.need(recipes.clips(run, seed)))
    hearing = Hearing(run, seed, site, of, **which) if of in ("dictionary", "neurons") else None
    steers = change and of == "dictionary" and site.rsplit(".", 1)[-1] in ("embed", "resid", "normed")
    return Questions(
        drawn, heard, filters=WhisperFeatureExtractor().mel_filters, roots=list(recipes.folders(run, seed).values()),
        title=title or f"{of} of {site}", notes=galleries.notes(run, seed, site, of, **which),
        hear=hearing if upload else None, steer=Steering(hearing, seed) if steers else None, searched=clips,
        languages=languages.of_clips(heard, run.language).tolist(),
    )  # fmt: skip


class Hearing:
    """What the features of a site say of any sound: a call takes (sample,) at 16 kHz and gives codes, (frame, feature).

    The model is loaded when it is called for the first time. A sound longer than a window is heard window by window.
    """

    def __init__(self, run: Profile, seed: int, site: str, of: str, **which):
        self.run, self.site, self.of = run, site, of
        made = store.need(meaning.codes(run, seed, site, of, **which))
        trained = meaning.codes(run, seed, site, of, **which).needs.get("trained")
        self.folder = made.path if trained is None else store.need(trained).path
        self._ready: tuple[model.Whisper, Callable] | None = None

    def ready(self) -> tuple[model.Whisper, Callable]:
        """The model, and what says the codes of frames: (frame, width) -> (frame, feature)."""
        if self._ready is None:
            whisper = model.load(self.run.model, self.run.device, precision=self.run.precision)
            if self.of == "dictionary":
                interchange.require_model(self.folder, model.identity(self.run.model))
                encode = sae.load(self.folder).to(whisper.device)
            else:
                mean = torch.from_numpy(np.load(self.folder / "mean.npy", allow_pickle=False)).float()
                encode = meaning.Turned(mean, None).to(whisper.device)
            self._ready = whisper, encode
        return self._ready

    @torch.no_grad()
    def __call__(self, sound: np.ndarray) -> csc_array:
        whisper, encode = self.ready()
        parts = []
        for first in range(0, len(sound), whisper.window):
            part = sound[first : first + whisper.window]
            said = model.record(whisper, model.mel(whisper, [part]), [self.site])[self.site][0]
            valid = said[: -(-len(part) // whisper.samples_a_frame)]
            codes = encode.encode(valid) if self.of == "dictionary" else encode(valid)
            parts.append(codes.cpu().numpy())
        return csc_array(np.concatenate(parts))


class Steering:
    """What Whisper writes of a sound when features of a site are multiplied; see `steering.steer`.

    What is longer than a window is heard window by window.
    """

    def __init__(self, hearing: Hearing, seed: int = 0):
        self.hearing, self.drawn = hearing, np.random.default_rng(seed)

    def __call__(self, sound: np.ndarray, scales: Mapping[int, float], start: float | None = None,
                 end: float | None = None, control: bool = False, language: str = "") -> dict:  # fmt: skip
        """Three transcripts, `baseline`, `reconstructed`, `edited`; `tracks`, {feature: (as it is, changed)} by frame;
        and with `control` what matched features would do, each multiplied by the scale of the feature that it is the
        control of, else None; `of` are the features that have one. They are decoded in `language`, a code, or the
        profile's."""
        seconds = (0.0 if start is None else start, np.inf if end is None else end)
        language = language or languages.code_of(self.hearing.run.language) or languages.ENGLISH
        told = self._told(sound, scales, seconds, language)
        other = None
        if control:
            matched = self.matched(sound, list(scales))
            turned = {control: scales[feature] for feature, control in matched.items()}
            again = self._told(sound, turned, seconds, language) if matched else told
            other = {"features": list(turned), "of": list(matched), "text": again["edited" if matched else "baseline"]}
        return told | {"control": other}

    def _told(self, sound: np.ndarray, scales: Mapping[int, float], seconds: tuple, language: str) -> dict:
        whisper, coder = self.hearing.ready()
        parts = []
        for first in range(0, len(sound), whisper.window):
            before = first / media.RATE
            inside = tuple(max(0.0, edge - before) for edge in seconds)
            part = sound[first : first + whisper.window]
            site = self.hearing.site
            parts.append(steering.steer(whisper, coder, site, part, scales, seconds=inside, language=language))
        joined = {
            name: " ".join(filter(None, (getattr(part, of) for part in parts)))
            for name, of in {"baseline": "plain", "reconstructed": "resaid", "edited": "edited"}.items()
        }
        tracks = {
            feature: [
                np.concatenate([getattr(part, of)[feature] for part in parts]).tolist() for of in ("tracks", "after")
            ]
            for feature in scales
        }
        return joined | {"tracks": tracks}

    def matched(self, sound: np.ndarray, features: Sequence[int]) -> dict[int, int]:
        """The control of each feature: another one that fires in the sound, drawn from the four nearest in firing rate
        and in rate × size there, none beyond `controls.CALIPER`. A feature without one is not there."""
        codes = self.hearing(sound)
        _, coder = self.hearing.ready()
        fires = np.diff(codes.indptr)
        length = coder.W_dec.detach().norm(dim=1).cpu().numpy()
        size = length * np.asarray(abs(codes).sum(axis=0)).ravel() / np.maximum(fires, 1)
        rate, found = fires / codes.shape[0], {}
        for feature in features:
            pool = np.setdiff1d(np.flatnonzero(fires), [*features, *found.values()])
            if len(near := controls.matched(rate, size, feature, pool, 4)):
                found[feature] = int(self.drawn.choice(near))
        return found
