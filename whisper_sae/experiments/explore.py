"""The explorer: ask a feature for its clips, a clip for its features, and change what Whisper hears, in a notebook.

    explore.explore(run)                            # in JupyterLab, VS Code, Colab: one line
    explore.explore(run, of="neurons")              # the same without a dictionary
    asked = explore.questions(run, 0, run.focus)    # without a browser: see `questions`

Dictionary and neurons are there side by side where both have an index. What is seen is drawn in the browser, what is
asked is answered here, and the two speak over the channel that the notebook has anyway. No server is started, no port
is opened, and no file is named by who asks.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import csc_array
from transformers import WhisperFeatureExtractor

from whisper_sae import cache
from whisper_sae.causal import controls, steering
from whisper_sae.experiments import dashboards, feature_index, pipeline
from whisper_sae.explorer.api import Questions
from whisper_sae.explorer.notebook_widget import Explorer
from whisper_sae.model import languages, whisper_model
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures, io
from whisper_sae.viz import media


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
        except cache.NotMade as error:
            lacking = lacking or error
    if not found:
        raise lacking
    return Explorer(found, feature)


def questions(run: Profile, seed: int = 0, site: str = "", of: str = "dictionary", *, upload: bool = True,
              change: bool = True, clips: Sequence[int] | None = None, title: str = "",
              **which) -> Questions:  # fmt: skip
    """What can be asked of the features of a site, the run's focus if none is named; see `Questions`.

    `of` is as in `meaning.codes`. `upload` and `change` are whether sounds can be handed over and features changed, if
    they can at all. `clips`, rows of the table of clips, are those that features are looked for in; None is all. Raises
    store.NotMade, which says what makes it, where there is no index.
    """
    site = site or run.focus
    drawn = feature_index.examples_in(run, seed, site, of, **which)
    heard = pipeline.table(run, cache.need(pipeline.clips(run, seed)))
    hearing = Hearing(run, seed, site, of, **which) if of in ("dictionary", "neurons") else None
    steers = change and of == "dictionary" and site.rsplit(".", 1)[-1] in ("embed", "resid", "normed")
    return Questions(
        drawn, heard, filters=WhisperFeatureExtractor().mel_filters, roots=list(pipeline.folders(run, seed).values()),
        title=title or f"{of} of {site}", notes=dashboards.notes(run, seed, site, of, **which),
        hear=hearing if upload else None, steer=Steering(hearing, seed) if steers else None, searched=clips,
        languages=languages.of_clips(heard, run.language).tolist(),
    )  # fmt: skip


class Hearing:
    """What the features of a site say of any sound: a call takes (sample,) at 16 kHz and gives codes, (frame, feature).

    The model is loaded when it is called for the first time. A sound longer than a window is heard window by window.
    """

    def __init__(self, run: Profile, seed: int, site: str, of: str, **which):
        self.run, self.site, self.of = run, site, of
        made = cache.need(feature_index.codes(run, seed, site, of, **which))
        trained = feature_index.codes(run, seed, site, of, **which).needs.get("trained")
        self.folder = made.path if trained is None else cache.need(trained).path
        self._ready: tuple[whisper_model.Whisper, Callable] | None = None

    def ready(self) -> tuple[whisper_model.Whisper, Callable]:
        """The model, and what says the codes of frames: (frame, width) -> (frame, feature)."""
        if self._ready is None:
            whisper = whisper_model.load(self.run.model, self.run.device, precision=self.run.precision)
            if self.of == "dictionary":
                io.require_model(self.folder, whisper_model.identity(self.run.model))
                encode = architectures.load(self.folder).to(whisper.device)
            else:
                mean = torch.from_numpy(np.load(self.folder / "mean.npy", allow_pickle=False)).float()
                encode = feature_index.Turned(mean, None).to(whisper.device)
            self._ready = whisper, encode
        return self._ready

    @torch.no_grad()
    def __call__(self, sound: np.ndarray) -> csc_array:
        whisper, encode = self.ready()
        parts = []
        for first in range(0, len(sound), whisper.window):
            part = sound[first : first + whisper.window]
            said = whisper_model.record(whisper, whisper_model.mel(whisper, [part]), [self.site])[self.site][0]
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
