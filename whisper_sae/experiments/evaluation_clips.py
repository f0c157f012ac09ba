"""Which clips are edited, heard once for all that is asked of them: what the recipes of causal effects begin with.

Effects are asked of speakers on whom nothing was trained or chosen, unless a recipe says otherwise.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from whisper_sae.cache import need
from whisper_sae.causal import patching
from whisper_sae.data import clip_table, nonspeech
from whisper_sae.experiments.pipeline import clips, table
from whisper_sae.experiments.sae_comparison import dictionary
from whisper_sae.model import languages, scoring, text, whisper_model
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures, io

HELD_OUT = ("validation", "test")

HELD = 6 * 10**8
"""Bytes of activations that are held of one set of clips."""


@dataclass
class Gathered:
    """Some clips, a row each, and what was heard of them at each site."""

    clips: pd.DataFrame
    """As `recipes.table` has them; `clip` is the row there, `nonspeech` whether nobody speaks."""
    heard: dict[str, patching.Heard]
    scorer: scoring.Scorer
    """Against the references, each with the normaliser of its language."""
    left_out: int = 0
    """Clips that do not fit: longer than a window, or with a transcript of more tokens than the decoder takes."""

    @property
    def speakers(self) -> np.ndarray:
        """(clip,) names; a clip of nobody's is its own."""
        return self.clips.speaker.where(self.clips.speaker != "", self.clips.id).to_numpy()

    @property
    def spoken(self) -> np.ndarray:
        """(clip,) bool: the transcript has words."""
        return nonspeech.is_transcribed(self.clips)

    def sound(self, row: int) -> np.ndarray:
        """The samples of a clip, 16 kHz: (sample,)."""
        return clip_table.samples(self.clips.path[row])

    def fewer(self, a_speaker: int = 0, most: int = 0, seed: int = 0) -> "Gathered":
        """The same of at most `a_speaker` clips of each speaker and `most` in all; 0 is any number. See `drawn`."""
        return self.at(drawn(self.clips, a_speaker, most or len(self.clips), seed).index.to_numpy())

    def at(self, rows: np.ndarray) -> "Gathered":
        """The same of some clips, their row numbers or (clip,) bool."""
        numbers = np.arange(len(self.clips))[rows]
        if numbers.tolist() == list(range(len(self.clips))):
            return self
        clips, scorer = self.clips.iloc[numbers].reset_index(drop=True), self.scorer.at(numbers.tolist())
        return Gathered(clips, patching.some_at_sites(self.heard, rows), scorer, self.left_out)


@functools.lru_cache(maxsize=2)
def gathered(run: Profile, seed: int, sites: tuple[str, ...], splits: tuple[str, ...] = HELD_OUT,
             spoken: bool | None = True, most: int = 108) -> Gathered:  # fmt: skip
    """Clips of some splits that fit in a window and the decoder and are in its language, with a transcript, without
    speech (`spoken=False`: see `nonspeech.is_nonspeech`) or all (None), heard at `sites`.

    At most `most`, and no more than HELD bytes hold, drawn at random, the speakers in turn. The last few that were
    asked for are remembered: do not change them. ValueError where there is none.
    """
    every = table(run, need(clips(run, seed)))
    whisper = whisper_model.load(run.model, run.device, precision=run.precision)
    words, silent = nonspeech.is_transcribed(every), nonspeech.is_nonspeech(every)
    of_kind = {True: words, False: silent, None: np.full(len(every), True)}[spoken]
    asked = every.assign(nonspeech=silent)[every.split.isin(splits) & of_kind]
    in_language = languages.of_clips(asked, run.language)
    tokens = text.given(whisper, asked.text.tolist(), in_language)[1]
    short = (asked.duration * clip_table.RATE).round() <= whisper.window
    fits = (tokens <= whisper.config.max_target_positions) & text.can_decode(whisper, in_language)
    here = asked[short & fits]
    if here.empty:
        kind = {True: "with a transcript ", False: "without speech ", None: ""}[spoken]
        raise ValueError(f"clips: none {kind}of {' or '.join(splits)} fits in a window and the decoder")
    held = 1 + sum(site.startswith("encoder") for site in sites)
    a_clip = 4 * whisper.positions * whisper.config.d_model * held
    chosen = drawn(here, 0, max(1, min(most, HELD // a_clip)), seed)
    sounds = [clip_table.samples(path) for path in chosen.path]
    text.require_language(whisper, run.language)
    spoken = languages.of_clips(chosen, run.language).tolist()
    heard = patching.hear(whisper, sounds, sites, languages=spoken)
    scorer = scoring.Scorer(_references(chosen), text.normalisers(whisper, spoken))
    left_out = len(asked) - len(here)
    return Gathered(chosen.assign(clip=chosen.index).reset_index(drop=True), heard, scorer, left_out)


def _references(clips: pd.DataFrame) -> list[str | None]:
    """What a `scoring.Scorer` compares with: the transcript, "" where nobody speaks, None where it is not known."""
    known = zip(clips.text, nonspeech.is_transcribed(clips), clips.nonspeech, strict=True)
    return [text if words else "" if silent else None for text, words, silent in known]


def lacking(run: Profile, seed: int, sites: tuple[str, ...]) -> str:
    """Why nothing can be patched, in one sentence; "" if it can."""
    try:
        gathered(run, seed, sites)
    except ValueError as error:  # no clip with a transcript; no decoder or tokenizer
        return (
            f"Nothing can be patched here: {error}. Patching needs held-out speakers with transcripts, and a decoder."
        )
    return ""


def drawn(here: pd.DataFrame, a_speaker: int, most: int, seed: int) -> pd.DataFrame:
    """At most `most` rows, each speaker's in turn and at most `a_speaker` of one (0: any number), in their old
    order."""
    who = here.speaker.where(here.speaker != "", here.id)
    mixed = here.sample(frac=1, random_state=seed)
    turn = mixed.groupby(who.loc[mixed.index]).cumcount()
    if a_speaker:
        turn = turn[turn < a_speaker]
    return here.loc[turn.sort_values(kind="stable").index[:most]].sort_index()


def sites_of(run: Profile) -> tuple[str, ...]:
    """The sites that a profile names, encoder sites first; those of the decoder are named by a pattern of their own."""
    return tuple(whisper_model.sites(whisper_model._config(run.model), list(run.sites)))


def coder_of(run: Profile, seed: int, site: str, device: str | torch.device = "cpu") -> architectures.SAE:
    """The trained SAE of a site on a device, ready to be used; it has to be made before.

    Stored frames are on the CPU, and `patching.Coded` copies an SAE to the model's device by itself: only who applies
    it to what a model computes needs `device`.
    """
    folder = need(dictionary(run, seed, site)).path
    io.require_model(folder, whisper_model.identity(run.model))
    return architectures.load(folder).requires_grad_(False).to(device)
