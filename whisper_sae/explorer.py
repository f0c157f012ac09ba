"""The explorer: ask a feature for its clips, a clip for its features, and change what Whisper hears, in a notebook.

    explorer.explore(run)                            # in JupyterLab, VS Code, Colab: one line
    explorer.explore(run, of="neurons")              # the same without a dictionary
    asked = explorer.questions(run, 0, run.focus)    # without a browser: see `questions`

What is seen is drawn in the browser; what is asked is answered here, and the two speak over the channel that the
notebook has anyway. No server is started, no port is opened, and no file is named by who asks.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import csc_array
from transformers import WhisperFeatureExtractor

from whisper_sae import galleries, meaning, model, recipes, sae, store
from whisper_sae.profiles import Profile
from whisper_sae.questions import Questions


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
    hearing = Hearing(run, seed, site, of, **which) if upload and of in ("dictionary", "neurons") else None
    return Questions(
        drawn, heard, filters=WhisperFeatureExtractor().mel_filters, roots=list(recipes.folders(run, seed).values()),
        title=title or f"{of} of {site}", notes=galleries.notes(run, seed, site, of, **which), hear=hearing,
        steer=None, searched=clips,
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
                encode = sae.load(self.folder).to(whisper.device).encode
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
            parts.append(encode(valid).cpu().numpy())
        return csc_array(np.concatenate(parts))
