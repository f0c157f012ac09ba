"""The explorer as a widget: questions of a browser, answered over the channel that the notebook has anyway.

No server is started, no port is opened, and no file is named by who asks. `experiments.explore` makes one of a profile.
"""

from collections.abc import Mapping, Sequence

import anywidget
import traitlets

from whisper_sae.data import uploads
from whisper_sae.explorer.api import Questions
from whisper_sae.explorer.messages import Message
from whisper_sae.report.template import TEMPLATE
from whisper_sae.viz import media, stills

STILLS = 6
"""Clips that a page without a kernel shows."""

CHUNK = 1 << 21
"""The most bytes of a part of a sound: a notebook server takes messages of less than 10 MiB."""


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
