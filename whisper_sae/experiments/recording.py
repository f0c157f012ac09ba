"""One pass of Whisper over the clips of a run, for all that its notebooks need of the trained model.

Nearly all of the time goes into the encoder, so it hears each window once. From one batch come the activations of the
encoder's sites and, by the encoder's output, those of the decoder's sites, given each clip's transcript, and greedy
transcripts. What a recording holds is a list of names: sites, and TRANSCRIPTS.

    steps = held(run, seed, whisper, ["encoder.1.resid"], clips)    # {name: the recording that holds it}

A shard of a recording is one of `activations`, and also keeps, where they are held: `decoder.kinds`, (window, position)
of the tokens that are given; `tokens`, (window, position) of the transcript, -1 behind its end; `detected` (window, 1),
the number of the language in `text.languages_of`, and `p_detected` (window, 1).
"""

import json
import platform
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from whisper_sae import parallel, shards
from whisper_sae.activations import extract, store
from whisper_sae.cache import NotMade, Recipe, Step, make, need, where
from whisper_sae.data import clip_table
from whisper_sae.devices import long_pass
from whisper_sae.experiments.selection import clips as clips_of
from whisper_sae.experiments.selection import table
from whisper_sae.model import languages, text, whisper_model
from whisper_sae.model.decoding import most_tokens
from whisper_sae.profiles import Profile

TRANSCRIPTS = "transcripts"
"""What a recording holds where it holds transcripts."""
POOL = 4
"""Batches whose encoder output waits, so that transcripts of about one length are decoded together, two batches at a
time: 74 MB in tiny. With 16 of 32 windows the decoder takes a fifth less time than with 8 as they come; all 32 at once
would save 7 % more, and take twice the memory."""


def held(
    run: Profile, seed: int, whisper: whisper_model.Whisper, asked: list[str], clips: Step, given: str = "transcript"
) -> dict[str, Step]:
    """The recordings that hold sites or TRANSCRIPTS, {name: step}. What none holds yet is recorded in one pass, and
    with it all else that the notebooks of the profile need."""
    found = _finished(run, seed, asked, given)
    if not set(asked) <= set(found):
        more = {*asked, *_needed(run, whisper, clips, given)} - set(found)
        holds = [*whisper_model.sites(whisper.config, more - {TRANSCRIPTS}), *sorted(more & {TRANSCRIPTS})]
        found |= dict.fromkeys(holds, make(recording(run, seed, holds, given)))
    return {name: found[name] for name in asked}


def recording(run: Profile, seed: int, holds: list[str], given: str = "transcript") -> Recipe:
    """What the windows of all clips give, each heard alone; `windows.csv` tells them, and of the decoder
    `decoder-windows.csv` and `tokens.csv`. See the head of this module."""
    params = how(run) | {"holds": holds, "given": given}
    return Recipe(
        "recording", partial(write, run=run, holds=holds, given=given), params,
        needs={"clips": clips_of(run, seed)}, label="recording",
    )  # fmt: skip


def _finished(run: Profile, seed: int, asked: list[str], given: str) -> dict[str, Step]:
    """The recordings of a run that are there, by the names of what they hold. One of which a file that is asked for
    has changed is deleted, with one line."""
    found = {}
    for folder in sorted(where(recording(run, seed, [], given)).parent.glob("[!.]*")):
        with suppress(OSError, ValueError, LookupError, NotMade):
            holds = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["params"]["holds"]
            recipe = recording(run, seed, holds, given)
            if recipe.key == folder.name:
                step = need(recipe)
                if _intact(step, asked):
                    found |= dict.fromkeys(holds, step)
    return found


def _intact(step: Step, asked: list[str]) -> bool:
    names = {*asked, "kinds", "windows"} | ({"decoder.kinds", "tokens"} if TRANSCRIPTS in asked else set())
    files = [file for file in step.manifest["files"] if Path(file).stem.removesuffix(".moments") in names]
    try:
        step.verify(files)
    except ValueError as error:
        print(f"{error}; deleted", file=sys.stderr)
        shutil.rmtree(step.path)
        return False
    return True


# ------------------------------------------------------------------------------------------- what is recorded


def side_of(run: Profile, side: str) -> list[str]:
    """The sites or patterns of a profile that lie in the `encoder` or the `decoder`. BadModel where there is none."""
    found = [site for site in run.sites if not site.startswith("encoder" if side == "decoder" else "decoder")]
    if not found:
        raise whisper_model.BadModel(f"sites: none of {', '.join(run.sites)} lies in the {side}")
    return found


def sites_of(whisper: whisper_model.Whisper, patterns: list[str], side: str) -> list[str]:
    """The sites that patterns match in the `encoder` or the `decoder`. BadModel where there is none."""
    found = [site for site in whisper_model.sites(whisper.config, patterns) if site.startswith(side)]
    if not found:
        raise whisper_model.BadModel(f"sites: none of {', '.join(patterns)} lies in the {side}")
    return found


def middle_of(site: str) -> str:
    """The neurons of the MLP in the layer of a site; "" where that lies in no layer."""
    side, *rest = site.split(".")
    return f"{side}.{rest[0]}.mlp_hidden" if len(rest) == 2 else ""


def heard_alone(run: Profile) -> bool:
    """Whether encoder sites are recorded of all clips, each in a window of its own, as the decoder needs them."""
    return run.windows == "clip" and not run.on_the_fly


def _needed(run: Profile, whisper: whisper_model.Whisper, clips: Step, given: str) -> list[str]:
    """What the notebooks of a profile will need of its model, and can have: of a randomly initialised model the sites
    alone, and of the start of transcripts alone nothing but what is asked for."""
    found, trained = [], not run.model.startswith(whisper_model.UNTRAINED)
    if given != "transcript":
        return found
    if heard_alone(run):
        with suppress(whisper_model.BadModel):
            found += sites_of(whisper, side_of(run, "encoder"), "encoder")
            found += [middle_of(run.focus)] * (trained and run.focus in found and bool(middle_of(run.focus)))
    with suppress(whisper_model.BadModel):
        if trained and run.precision == "float32":  # as transcripts always are
            _require_text(run, whisper)
            found.append(TRANSCRIPTS)
    with suppress(whisper_model.BadModel):
        sites = sites_of(whisper, side_of(run, "decoder"), "decoder")
        spoken_to(run, whisper, table(run, clips), given)
        found += sites
    return found


def _require_text(run: Profile, whisper: whisper_model.Whisper) -> None:
    whisper.require_decoder()
    whisper.require_tokenizer()
    text.require_language(whisper, run.language)


@dataclass
class Given:
    """What the decoder is given: of which windows, `windows`, and of each their row in the table of all, (window,);
    `tokens` as `text.strings` tells them; `ids` and `kinds` (window, position)."""

    windows: pd.DataFrame
    row: np.ndarray
    tokens: pd.DataFrame
    ids: torch.Tensor
    kinds: np.ndarray


def spoken_to(run: Profile, whisper: whisper_model.Whisper, heard: pd.DataFrame, given: str) -> Given:
    """What the decoder is given of each clip that fits into a window and is in a language of the model. BadModel where
    there is no such clip, or its transcript is too long."""
    _require_text(run, whisper)
    every = clip_table.windows(heard, whisper.window)
    spoken = languages.of_clips(heard, run.language)
    whole = ~every["clip"].duplicated(keep=False) & text.can_decode(whisper, spoken)[every["clip"]]
    windows = every[whole].reset_index(drop=True)
    if windows.empty:
        longer = f"longer than a window of {whisper.window / clip_table.RATE:g} s"
        raise whisper_model.BadModel(f"every clip is {longer}, or in a language that {whisper.name} does not have")
    ids, lengths = text.given(whisper, heard.text[windows["clip"]].tolist(), spoken[windows["clip"]])
    if given == "start":
        ids, lengths = ids[:, :1], np.ones_like(lengths)
    if (most := int(lengths.max())) > whisper.config.max_target_positions:
        long = heard.id[windows["clip"][int(lengths.argmax())]]
        raise whisper_model.BadModel(
            f"{long}: its transcript is {most} tokens; the decoder takes {whisper.config.max_target_positions}"
        )
    tokens = text.strings(whisper, ids, lengths).rename(columns={"row": "window"})
    kinds = np.zeros(ids.shape, dtype=np.uint8)
    kinds[tokens.window, tokens.position] = np.where(tokens.word < 0, 1, 2)
    return Given(windows, np.flatnonzero(whole), tokens, ids, kinds)


# ------------------------------------------------------------------------------------------------ the pass


@dataclass
class Plan:
    """A pass that is about to begin: its model, the clips, their windows, and what is recorded of them."""

    whisper: whisper_model.Whisper
    heard: pd.DataFrame
    windows: pd.DataFrame
    encoder: list[str]
    decoder: list[str]
    given: Given | None
    transcripts: bool
    languages: np.ndarray
    """The language of each window's clip, (window,)."""


def plan(run: Profile, holds: list[str], given: str, clips: Step, whisper: whisper_model.Whisper) -> Plan:
    heard = table(run, clips)
    windows = extract.planned(replace(run, windows="clip"), whisper, heard)
    sides = {side: [name for name in holds if name.startswith(side)] for side in ("encoder", "decoder")}
    if transcripts := TRANSCRIPTS in holds:
        _require_text(run, whisper)
    decoder_inputs = spoken_to(run, whisper, heard, given) if sides["decoder"] else None
    spoken = languages.of_clips(heard, run.language)[windows["clip"]]
    return Plan(whisper, heard, windows, **sides, given=decoder_inputs, transcripts=transcripts, languages=spoken)


def write(folder: Path, clips: Step, run: Profile, holds: list[str], given: str) -> dict:
    """Write a recording into a folder, shard by shard, and return facts."""
    identity, planned = whisper_model.identity(run.model), plan(run, holds, given, clips, planner(run))
    whisper, decoder_inputs, windows = planned.whisper, planned.given, planned.windows
    _announce(folder, run, planned)
    windows.to_csv(folder / "windows.csv", index=False)
    if decoder_inputs is not None:
        decoder_inputs.windows.to_csv(folder / "decoder-windows.csv", index=False)
        decoder_inputs.tokens.to_csv(folder / "tokens.csv", index=False)

    def begin(planned: Plan | None = None) -> tuple[Callable, Callable]:
        return hearing(run, planned or plan(run, holds, given, clips, loaded(run, identity)))

    return {"device": str(whisper.device), "clips": len(planned.heard)} | store.write(
        folder, len(windows), **by_whom(begin, planned), shard=run.shard_windows, batch=run.batch_windows,
        dtype=run.dtype, progress=long_pass("listening"),
    )  # fmt: skip


def hearing(run: Profile, planned: Plan) -> tuple[Callable, Callable]:
    """`hear` and `prepare` of a recording, as `activations.write` takes them."""
    further = planned.transcripts or bool(planned.decoder)
    sites = [*planned.encoder, *([whisper_model.OUTPUT] if further else [])]
    listen, prepare = extract.listener(run, planned.whisper, planned.heard, planned.windows, sites)
    waiting: list[torch.Tensor] = []

    def hear(numbers: range, ready: tuple) -> tuple[dict, np.ndarray, dict]:
        said, kinds = listen(numbers, ready)
        encoded, more = said.pop(whisper_model.OUTPUT, None), {}
        if planned.decoder:
            more |= _of_decoder(run, planned, numbers, encoded)
        if planned.transcripts:
            if numbers.start % run.shard_windows == 0:  # an error may have left some of another shard
                waiting.clear()
            waiting.append(encoded)
            if len(waiting) == POOL or numbers.stop % run.shard_windows == 0 or numbers.stop == len(planned.windows):
                pool = torch.cat(waiting)
                more |= _transcribed(run, planned, range(numbers.stop - len(pool), numbers.stop), pool)
                waiting.clear()
        return said, kinds, more

    return hear, prepare


def _of_decoder(run: Profile, planned: Plan, numbers: range, encoded: torch.Tensor) -> dict[str, np.ndarray]:
    """Rows of the decoder's sites in those of some windows whose clips it is given, as they are stored."""
    whisper, decoder_inputs = planned.whisper, planned.given
    at = np.flatnonzero((decoder_inputs.row >= numbers.start) & (decoder_inputs.row < numbers.stop))
    kinds = decoder_inputs.kinds[at][:, : max(1, int((decoder_inputs.kinds[at] > 0).sum(axis=1).max(initial=1)))]
    widths = whisper_model.sites(whisper.config, planned.decoder)
    said = {site: torch.empty(*kinds.shape, width) for site, width in widths.items()}
    said |= {f"{site}.moments": torch.empty(*kinds.shape, 2) for site in widths if site.endswith(".normed")}
    if len(at):
        ids, output = (
            decoder_inputs.ids[at][:, : kinds.shape[1]],
            encoded[torch.from_numpy(decoder_inputs.row[at] - numbers.start)],
        )
        said = whisper_model.record(whisper, None, planned.decoder, ids, output)
    return store.valid(said, kinds, numbers, run.dtype) | {"decoder.kinds": decoder_inputs.kinds[at]}


def _transcribed(run: Profile, planned: Plan, numbers: range, encoded: torch.Tensor) -> dict[str, np.ndarray]:
    """Transcripts of some windows, and of a multilingual model the language that it detects."""
    whisper, known = planned.whisper, list(text.languages_of(planned.whisper))
    here = slice(numbers.start, numbers.stop)
    seconds, spoken = planned.windows.samples.to_numpy()[here] / clip_table.RATE, planned.languages[here]
    tokens = np.full((len(numbers), whisper.config.max_target_positions), -1, np.int32)
    detected, p = np.zeros((len(numbers), 1), np.int32), np.zeros((len(numbers), 1), np.float32)
    for rows in extract.by_length(seconds, 2 * run.batch_windows):
        some = encoded[torch.from_numpy(rows)]
        for row, ids in zip(rows, text.write(whisper, some, spoken[rows], most_tokens(seconds[rows])), strict=True):
            tokens[row, : len(ids)] = ids
        if known:
            codes, p[rows, 0] = text.detect_languages(whisper, some)
            detected[rows, 0] = [known.index(code) for code in codes]
    return {"tokens": tokens} | ({"detected": detected, "p_detected": p} if known else {})


# -------------------------------------------------------------------------------------------- what it will take


def _announce(folder: Path, run: Profile, planned: Plan) -> None:
    """Print what the pass will take; raises NoRoom where it does not fit."""
    whisper, decoder_inputs, more = planned.whisper, planned.given, 0.0
    sites = [*planned.encoder, *([whisper_model.OUTPUT] if planned.transcripts or planned.decoder else [])]
    cost = extract.expected(run, whisper, planned.windows, sites)
    if planned.transcripts:
        seconds = planned.windows.samples.to_numpy() / clip_table.RATE
        more += extract.seconds_of_transcripts(whisper, seconds, run.batch_windows, POOL)
    if decoder_inputs is not None:
        widths, rows = whisper_model.sites(whisper.config, planned.decoder), int((decoder_inputs.kinds > 0).sum())
        cost["bytes"] += store.size_of(widths, rows, *decoder_inputs.kinds.shape, run.dtype)
        more += extract.seconds_of_given(whisper, decoder_inputs.ids, planned.decoder)
    cost["seconds"] += more
    part = f", {more:.0f} s of it in the decoder" if more else ""
    alone = " if this machine did it alone" if parallel.client() else ""
    print(f"listening: {extract.said(cost)}{part}{alone}", file=sys.stderr)
    store.require_room(folder, cost["bytes"])


# ----------------------------------------------------------------------------------------- results made of it


def linked(folder: Path, steps: dict[str, Step], run: Profile) -> dict:
    """Fill a folder with the shards of some sites of the encoder, or of the decoder, that recordings hold, and return
    facts. Files are hard links: they take no room."""
    first, in_decoder = next(iter(steps.values())), next(iter(steps)).startswith("decoder")
    kinds, windows_file = ("decoder.kinds", "decoder-windows.csv") if in_decoder else ("kinds", "windows.csv")
    sources = {kinds: first.path} | {site: step.path for site, step in steps.items()}
    moments = {f"{site}.moments": step.path for site, step in steps.items() if site.endswith(".normed")}
    names = {name: name for name in (*steps, *moments)} | {kinds: "kinds"}
    for number in range(first.facts["shards"]):
        store.link(sources | moments, folder, names, number)
    shards.link_file(first.path / windows_file, folder / "windows.csv")
    if in_decoder:
        shards.link_file(first.path / "tokens.csv", folder / "tokens.csv")
    device = ", ".join(sorted({step.facts["device"] for step in steps.values()}))
    return {"device": device} | store.write_index(folder, first.facts["shards"], run.dtype)


def transcripts_in(whisper: whisper_model.Whisper, step: Step) -> pd.DataFrame:
    """The transcripts that a recording holds: a row a window, with its `clip` and the text, `wrote`; of a multilingual
    model the language that it detects, `detected`, and its probability, `p_detected`."""
    folders = [shards.place(step.path, number) for number in range(step.facts["shards"])]
    every = {
        name: np.concatenate([np.load(folder / f"{name}.npy") for folder in folders])
        for name in ("tokens", "detected", "p_detected")
        if (folders[0] / f"{name}.npy").exists()
    }
    wrote = text.texts(whisper, [row[row >= 0].tolist() for row in every["tokens"]])
    found = step.table("windows.csv")[["clip"]].assign(wrote=wrote)
    if "detected" in every:
        codes = np.array(list(text.languages_of(whisper)))
        found = found.assign(detected=codes[every["detected"][:, 0]], p_detected=every["p_detected"][:, 0])
    return found


def seconds_of(run: Profile, seed: int, step: Step) -> float:
    """Seconds of the passes in which activations were recorded, or of making them where no recording is kept."""
    found = _finished(run, seed, [], "transcript") if heard_alone(run) else {}
    passes = {found[site].key: found[site].manifest["seconds"] for site in step.facts["sites"] if site in found}
    return sum(passes.values()) or step.manifest["seconds"]


# ------------------------------------------------------------------------------------------ by whom, and how


def planner(run: Profile) -> whisper_model.Whisper:
    """The model by which a recording is planned; where a cluster makes it, this machine need not have its device."""
    if parallel.client():
        return whisper_model.load(run.model, "cpu")
    return whisper_model.load(run.model, run.device, precision=run.precision)


def loaded(run: Profile, identity: str) -> whisper_model.Whisper:
    """The model of a profile in a process that works for another one, which knows it as `identity`."""
    if (found := whisper_model.identity(run.model)) != identity:
        raise whisper_model.BadModel(
            f"{run.model}: is {found} on {platform.node()}, and {identity} where the run was started"
        )
    return whisper_model.load(run.model, run.device, precision=run.precision)


def by_whom(begin: Callable, planned) -> dict:
    """For `frames.write`: shards are written by the cluster, if there is one, or else here, as is already planned."""
    if parallel.client():
        return {"begin": begin, "each": parallel.each}
    return {"begin": partial(begin, planned)}


def how(run: Profile) -> dict:
    """The fields of a profile that change what is recorded, or in which order."""
    fields = ("dtype", "precision", "shard_windows", "batch_windows")
    return {name: getattr(run, name) for name in fields} | {"model": whisper_model.identity(run.model)}
