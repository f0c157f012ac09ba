"""The recipe of the whole: which results there are, what each is made from, and which code makes it.

This file sits on top of the leaves and does nothing but join them; notebooks give its recipes to the store:

    acts = store.make(recipes.activations(run, seed))   # makes it, unless it is there
    acts = store.need(recipes.activations(run, seed))   # or says which notebook makes it
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from whisper_sae import devices, parallel
from whisper_sae.activations import extract, store
from whisper_sae.activations.extract import sound_of
from whisper_sae.cache import Recipe, Step
from whisper_sae.data import clip_table
from whisper_sae.experiments import recording
from whisper_sae.experiments.recording import seconds_of, side_of
from whisper_sae.experiments.selection import (
    DRAWN_BY,
    clips,
    corpora,
    fetched,
    folders,
    lying_here,
    made_by,
    table,
    told_of,
)
from whisper_sae.model import whisper_model
from whisper_sae.profiles import Profile

__all__ = [
    "DRAWN_BY",
    "SHOWN",
    "activations",
    "at",
    "clip_means",
    "clips",
    "corpora",
    "decoded",
    "fetched",
    "folders",
    "lying_here",
    "made_by",
    "other_ways",
    "recorded",
    "seconds_of",
    "side_of",
    "sound_of",
    "table",
    "told_of",
    "twin",
    "windows_of",
]

SHOWN = 128
"""Windows that are stored, for figures, where a profile asks for training on the fly."""


def activations(run: Profile, seed: int) -> Recipe:
    """The activations of the encoder's sites of a profile in every clip, without padding; `windows.csv` tells the
    windows. Where each clip is heard alone, they are those of a recording (`recording`), in one pass with all else.

    With `on_the_fly` only of SHOWN windows, drawn at random.
    """
    sites = side_of(run, "encoder")

    def link(folder: Path, clips: Step) -> dict:
        whisper = recording.planner(run)
        wanted = recording.sites_of(whisper, sites, "encoder")
        return recording.linked(folder, recording.held(run, seed, whisper, wanted, clips), run)

    def plan(clips: Step, whisper: whisper_model.Whisper) -> tuple:
        heard = table(run, clips)
        windows = extract.planned(run, whisper, heard)
        if run.on_the_fly:
            windows = extract.some(windows, SHOWN, seed)
        return whisper, recording.sites_of(whisper, sites, "encoder"), heard, windows

    def listen(folder: Path, clips: Step) -> dict:
        planned = plan(clips, recording.planner(run))
        whisper, wanted, _, windows = planned
        cost = extract.expected(run, whisper, windows, wanted)
        alone = " if this machine did it alone" if parallel.client() else ""
        print(f"listening: {extract.said(cost)}{alone}", file=sys.stderr)
        store.require_room(folder, cost["bytes"])
        windows.to_csv(folder / "windows.csv", index=False)

        def begin(planned: tuple = ()) -> tuple[Callable, Callable]:
            whisper, wanted, heard, windows = planned or plan(clips, recording.loaded(run, params["model"]))
            return extract.listener(run, whisper, heard, windows, wanted)

        return {"device": str(whisper.device)} | store.write(
            folder, cost["windows"], **recording.by_whom(begin, planned), shard=run.shard_windows,
            batch=run.batch_windows, dtype=run.dtype, pieces=extract.pieces(whisper, windows),
            progress=partial(tqdm, desc="listening"),
        )  # fmt: skip

    params = recording.how(run) | {"sites": sites, "windows": run.windows}
    params |= {"shown": SHOWN, "seed": seed} if run.on_the_fly else {}
    make, code = (link, (recording.write,)) if recording.heard_alone(run) else (listen, ())
    return Recipe(
        "activations", make, params, code,
        needs={"clips": clips(run, seed)}, by=made_by(run, "01"), label="activations",
    )  # fmt: skip


def other_ways(run: Profile, seed: int, most: int = 16) -> Recipe:
    """`other_ways.csv`: how what is heard changes when clips are packed, or matrices multiplied in bfloat16.

    Of at most `most` clips, by as few speakers as have them; `listening.compare` says what the columns mean. The facts
    have how many windows all clips are, each heard `alone` and `packed`.
    """
    base = replace(run, windows="clip", precision="float32")
    ways = {"packed": replace(base, windows="packed")}
    if devices.multiplies_bfloat16(whisper_model.pick(run.device)):
        ways["bfloat16"] = replace(base, precision="bfloat16")
    sites = side_of(run, "encoder")

    def look(folder: Path, clips: Step) -> dict:
        heard = table(run, clips)
        voices = heard[heard.speaker != ""].groupby("speaker").size().sample(frac=1, random_state=seed)
        turn = {voice: n for n, voice in enumerate(voices.sort_values(ascending=False, kind="stable").index)}
        few = heard.loc[heard.speaker.map(turn).sort_values(kind="stable").index[:most]].reset_index(drop=True)
        whisper = whisper_model.load(run.model, run.device)
        wanted = recording.sites_of(whisper, sites, "encoder")
        extract.compare(base, ways, few, wanted).to_csv(folder / "other_ways.csv", index=False)
        alone, packed = (extract.planned(way, whisper, heard).heard.nunique() for way in (base, ways["packed"]))
        return {"clips": len(few), "speakers": int(few.speaker.nunique()), "ways": list(ways), "alone": alone,
                "packed": packed}  # fmt: skip

    params = recording.how(base) | {"sites": sites, "most": most, "seed": seed, "ways": list(ways)}
    return Recipe(
        "other-ways", look, params,
        needs={"clips": clips(run, seed)}, by=made_by(run, "01"), label="other ways of hearing",
    )  # fmt: skip


def decoded(run: Profile, seed: int, given: str = "transcript") -> Recipe:
    """The activations of the decoder's sites of a profile while the decoder is given each clip's transcript (teacher
    forcing): those of a recording (`recording`).

    A row is a token that is given, the prompt's too; `tokens.csv` tells each row's window, position, token and word,
    and frames of kind 1 are the prompt. `given="start"` gives `<|startoftranscript|>` alone: one row a clip.
    A clip longer than a window is left out, because nothing says which of its words are in which window, and one in a
    language that the model does not have (`text.can_decode`).
    """
    sites = side_of(run, "decoder")
    if given not in ("transcript", "start"):
        raise ValueError(f"given: {given!r} is not one of transcript, start")

    def link(folder: Path, clips: Step) -> dict:
        whisper = recording.planner(run)
        whisper.require_decoder()
        whisper.require_tokenizer()
        wanted = recording.sites_of(whisper, sites, "decoder")
        facts = recording.linked(folder, recording.held(run, seed, whisper, wanted, clips, given), run)
        return facts | {"clips_left_out": clips.facts["clips"] - facts["windows"]}

    params = recording.how(run) | {"sites": sites, "given": given}
    return Recipe(
        "decoder-activations", link, params, (recording.write,),
        needs={"clips": clips(run, seed)}, by=made_by(run, "01"), label=f"decoder activations, given the {given}",
    )  # fmt: skip


def recorded(run: Profile, seed: int, site: str) -> Recipe:
    """The recording that holds a site: `activations`, or for a site of the decoder `decoded`."""
    return decoded(run, seed) if site.startswith("decoder") else activations(run, seed)


def windows_of(heard: pd.DataFrame, windows: pd.DataFrame, split: str) -> np.ndarray:
    """Which windows belong to clips of a split: (window,) bool."""
    return (heard.split.to_numpy() == split)[windows["clip"].to_numpy()]


def at(run: Profile, site: str) -> Profile:
    """The same run, of one site alone."""
    return replace(run, sites=(site,), focus=site)


def twin(run: Profile) -> Profile:
    """The same run with a model of the same config that was never trained: what architecture alone gives."""
    return replace(run, model=whisper_model.UNTRAINED + run.model)


def clip_means(run: Profile, clips: Step, activations: Step, site: str) -> np.ndarray:
    """What a site says of each clip on average over its frames of speech: (clip, width); NaN where it has none."""
    heard, windows = table(run, clips), activations.table("windows.csv")
    held = store.Activations(activations.path)
    total, count = np.zeros((len(heard), held.sites[site])), np.zeros(len(heard))
    for number, clip in enumerate(windows["clip"]):
        speaking = held.kinds[number][held.kinds[number] > 0] == clip_table.SPEECH
        total[clip] += held.window(site, number)[speaking].sum(axis=0, dtype=np.float64)
        count[clip] += speaking.sum()
    return total / np.where(count > 0, count, np.nan)[:, None]
