"""Which frames a dictionary is fed and scored on: read from what was recorded, or heard on the fly.

Both give the same frames in the same order, so a recipe does not care which it is; it only names what it needs.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from whisper_sae.activations import extract, store, streaming
from whisper_sae.activations.dataset import Rows, Source
from whisper_sae.cache import Recipe, Step
from whisper_sae.experiments.pipeline import recorded, table, windows_of
from whisper_sae.model import whisper_model
from whisper_sae.profiles import Profile


def on_the_fly(run: Profile, site: str) -> bool:
    """Whether the frames of a site are heard when they are needed; a decoder's, a row a token, are always stored."""
    return run.on_the_fly and not site.startswith("decoder")


def needs(run: Profile, seed: int, site: str) -> dict[str, Recipe]:
    """What has to be made before: the clips, and the recording of the site unless it is heard on the fly."""
    recording = recorded(run, seed, site)
    return {"clips": recording.needs["clips"]} | ({} if on_the_fly(run, site) else {"activations": recording})


def asked(run: Profile, site: str) -> dict:
    """For the key of a result: what on the fly decides what is heard, which else the recording's key stands for."""
    if not on_the_fly(run, site):
        return {}
    names = ("dtype", "precision", "windows", "batch_windows")
    return {"heard": {name: getattr(run, name) for name in names} | {"model": whisper_model.identity(run.model)}}


class Fed(NamedTuple):
    """Frames of some sites: where they come from, the table of clips, and that of windows."""

    source: Source
    clips: pd.DataFrame
    windows: pd.DataFrame
    buffer: int

    def rows(self, site: str | tuple[str, ...], split: str) -> tuple[Rows, np.ndarray]:
        """The frames of a site, or of several side by side, in a split, and the number of each frame's speaker.

        Raises ValueError for a split of which there are no clips."""
        inside, together = windows_of(self.clips, self.windows, split), self.windows.get("heard")
        if not inside.any():
            raise ValueError(f"clips: none are of {split} speakers; three speakers are needed, or a column `split`")
        rows = self.source.rows(site, inside, together=together, buffer=self.buffer)
        speakers = pd.factorize(self.clips.speaker.where(self.clips.speaker != "", self.clips.id))[0]
        return rows, rows.per_window(speakers[self.windows["clip"].to_numpy()[rows.windows]])


def fed(run: Profile, clips: Step, activations_: Step | None, sites: tuple[str, ...]) -> Fed:
    """The frames of some sites as a profile asks for them: what was recorded is read, or nothing of it on the fly."""
    heard = table(run, clips)
    if activations_ is not None and not on_the_fly(run, sites[0]):
        source, windows = store.Activations(activations_.path), activations_.table("windows.csv")
    else:
        source, windows = heard_live(run, heard, sites)
    return Fed(source, heard, windows, run.shuffle_buffer)


def heard_live(
    run: Profile, heard: pd.DataFrame, sites: tuple[str, ...], **options
) -> tuple[streaming.Live, pd.DataFrame]:
    """A source that hears some sites say what they say of the clips, and its windows; `options` are those of `Live`."""
    whisper = whisper_model.load(run.model, run.device, precision=run.precision)
    widths = whisper_model.sites(whisper.config, sites)
    windows = extract.planned(run, whisper, heard)
    hear, prepare = extract.listener(run, whisper, heard, windows, list(widths))
    source = streaming.Live(
        hear, extract.pieces(whisper, windows), widths, batch=run.batch_windows, dtype=run.dtype, prepare=prepare,
        **{"positions": whisper.positions, "keep": run.shuffle_buffer} | options,
    )  # fmt: skip
    return source, windows
