"""The recipe of the whole: which results there are, what each is made from, and which code makes it.

This file sits on top of the leaves and does nothing but join them; notebooks give its recipes to the store:

    acts = store.make(recipes.activations(run, seed))   # makes it, unless it is there
    acts = store.need(recipes.activations(run, seed))   # or says which notebook makes it
"""

import csv
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from whisper_sae import activations as frames
from whisper_sae import (
    cluster,
    devices,
    hub,
    languages,
    listening,
    model,
    speech,
    text,
)
from whisper_sae import corpora as places
from whisper_sae.listening import sound_of
from whisper_sae.profiles import Profile
from whisper_sae.store import Recipe, Step, make

DRAWN_BY = ("only", "balance", "clips", "clips_per_group", "clips_per_speaker")
"""The fields of a profile that say which clips of a corpus it asks for; where none is set it asks for all."""


def made_by(run: Profile, number: str) -> str:
    """The command that runs a notebook of a profile, and so makes its results."""
    return f"python -m whisper_sae {run.source or run.name} {number}"


# ------------------------------------------------------------------------------------------- model and corpus


def fetched(corpus: str, run: Profile | None = None, seed: int = 0) -> Recipe:
    """A corpus of the hub, or a local copy of one, as a directory in `audiofolder` layout: the clips that a profile
    draws of it, chosen by what is told of them before any sound is fetched; all of them, if it asks for all."""
    choice = {name: getattr(run, name) for name in DRAWN_BY if run and getattr(run, name)}

    def choose(told: Path) -> list[int]:
        return [hub.number_of(path) for path in _drawn(run, told, seed, corpus).path]

    chooser = choose if choice else None  # a whole corpus is not fetched again because drawing has changed

    def get(folder: Path) -> dict:
        return hub.fetch(corpus, folder / "corpus", chooser, lambda rows: tqdm(rows, desc=corpus, unit=" clips"))

    if kept := _kept_by_the_hub(corpus):  # known by what it holds, wherever it lies
        params = {"corpus": corpus.removeprefix(str(kept)), "tables": speech.digest(kept, pd.DataFrame({"path": []}))}
    else:
        params = {"corpus": corpus}
    return Recipe("corpus", get, params | choice | ({"seed": seed} if choice else {}), label=f"copy of {corpus}")


def _kept_by_the_hub(corpus: str) -> Path | None:
    """The directory of a local data set in parquet, `directory` or `directory:configuration:split`."""
    for name in (corpus, corpus.rsplit(":", 2)[0]):
        place = Path(name).expanduser()
        if place.is_dir():
            return place if places.find(place).layout == "parquet" else None
    return None


def corpora(run: Profile, seed: int) -> dict[str, Path | Recipe]:
    """The corpora of a profile by short name: a local directory or table, or the recipe of a source."""
    found = {}
    for corpus in run.corpus:
        if kept := _kept_by_the_hub(corpus):
            name, place = kept.name, fetched(corpus, run, seed)
        elif Path(corpus).exists() or corpus.startswith((".", "/", "~")):
            place = Path(corpus).expanduser().absolute()
            name = f"{place.parent.name}-{place.stem}" if place.is_file() else place.name
        else:
            name, place = corpus.split(":")[0].split("@")[0], fetched(corpus, run, seed)
        if name in found:
            raise speech.BadSpeech(f"corpus: two are called {name!r}; rename one of the directories")
        found[name] = place
    return found


def folders(run: Profile, seed: int) -> dict[str, Path]:
    """The directories of the corpora of a profile by short name; sources are made first."""
    return {name: places.find(place).folder for name, place in _made(run, seed).items()}


def lying_here(run: Profile) -> dict[str, Path]:
    """The directories of the corpora that are not copied first; of a copy there is nothing but sound and its table."""
    here = {name: place for name, place in corpora(run, 0).items() if isinstance(place, Path)}
    return {name: places.find(place).folder for name, place in here.items()}


def _made(run: Profile, seed: int) -> dict[str, Path]:
    """The directories or tables of the corpora of a profile; sources are made first."""
    return {
        name: make(place).path / "corpus" if isinstance(place, Recipe) else place
        for name, place in corpora(run, seed).items()
    }


def told_of(run: Profile, seed: int) -> pd.DataFrame:
    """All clips that the corpora of a profile have, before any is chosen or listened to: `speech.COLUMNS` and more."""
    return speech.join({name: places.rows(place) for name, place in _made(run, seed).items()})


# ------------------------------------------------------------------------------------------------ clips


def clips(run: Profile, seed: int) -> Recipe:
    """`clips.csv`: the clips of a profile, with their speaker-disjoint split. Each file has been decoded once: those
    that cannot be are in `rejected.csv`, with the reason."""
    known = corpora(run, seed)
    sources = {name: place for name, place in known.items() if isinstance(place, Recipe)}

    def make_clips(folder: Path, **_sources: Step) -> dict:
        where, roots = _made(run, seed), folders(run, seed)
        drawn = speech.join({name: _drawn(run, place, seed) for name, place in where.items()})
        _check_columns(run, drawn)
        kept, rejected = _decode_all(drawn)
        _check_rejected(run, len(drawn), _below(rejected, roots))
        for name, told in {"rejected.csv": rejected, "clips.csv": speech.split(kept, seed)}.items():
            told = _below(told, roots)
            told.to_csv(folder / name, index=False, quoting=csv.QUOTE_NONNUMERIC)  # keeps a carriage return in a name
        return {
            "clips": len(kept), "speakers": int(kept.speaker[kept.speaker != ""].nunique()),
            "minutes": round(kept.duration.sum() / 60, 2), "rejected": len(rejected),
            "layouts": {name: places.find(place).layout for name, place in where.items()},
            "short": speech.short(kept, run.balance, run.clips_per_group) if run.balance else [],
        }  # fmt: skip

    local = {
        name: speech.digest(place, _drawn(run, place, seed)) for name, place in known.items() if name not in sources
    }
    params = {"corpora": local, "seed": seed} | {name: getattr(run, name) for name in (*DRAWN_BY, "most_rejected")}
    params["decoders"] = speech.decoders()
    if run.language:  # all that is decoded of the clips depends on it
        params["language"] = languages.code_of(run.language)
    return Recipe(
        "clips", make_clips, params, needs=sources, by=made_by(run, "01"), label="table of clips",
    )  # fmt: skip


def _drawn(run: Profile, place: Path, seed: int, called: str = "") -> pd.DataFrame:
    """The clips of one corpus that a profile asks for; nothing has been listened to yet."""
    told = places.rows(place)
    found = speech.only(told, run.only)
    if found.empty:
        raise speech.BadSpeech(f"only: no clip of {called or place} is {' or '.join(run.only)}")
    found = speech.draw(
        found, run.clips, seed, by=run.balance, per_group=run.clips_per_group, per_speaker=run.clips_per_speaker
    )
    if found.empty:
        raise speech.BadSpeech(f"balance: no clip of {called or place} has a label for {', '.join(run.balance)}")
    return found


def _check_columns(run: Profile, drawn: pd.DataFrame) -> None:
    if unknown := [one for one in run.only if one.partition("=")[0] not in drawn]:
        raise speech.BadSpeech(f"only: {unknown[0]!r}: no corpus has the column; there are {', '.join(drawn.columns)}")


def _check_rejected(run: Profile, total: int, rejected: pd.DataFrame) -> None:
    allowed = math.ceil(run.most_rejected * total)
    if len(rejected) > allowed or len(rejected) == total:
        first = "; ".join(f"{row.path[-100:]}: {row.reason[:80]}" for row in rejected.head(3).itertuples())
        raise speech.BadSpeech(
            f"{len(rejected)} of {total} sound files cannot be used, most_rejected = {run.most_rejected:g} allows "
            f"{allowed}; mend them or take them out: {first}{' …' if len(rejected) > 3 else ''}"
        )


def _decode_all(drawn: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every file is decoded, so that a bad one is known before hours are spent; all of them are counted."""
    return speech.inspect(drawn, lambda paths: tqdm(paths, desc="decoding", unit=" clips", disable=len(drawn) < 200))


def _below(found: pd.DataFrame, roots: dict[str, Path]) -> pd.DataFrame:
    """The table with paths as they are below their corpora, so that it says the same on every machine."""
    paths = [Path(p).relative_to(roots[c]).as_posix() for p, c in zip(found.path, found.corpus, strict=True)]
    return found.assign(path=paths)


def table(run: Profile, step: Step) -> pd.DataFrame:
    """The table of clips that a step of `clips` holds, text but for `duration`; paths as they are on this machine."""
    found = step.table("clips.csv", dtype=str).astype({"duration": float})  # 01 and 1 are two labels of a corpus
    where = folders(run, step.manifest["params"]["seed"])
    return found.assign(path=[str(where[c] / p) for c, p in zip(found.corpus, found.path, strict=True)])


# --------------------------------------------------------------------------------------------- activations


SHOWN = 128
"""Windows that are stored, for figures, where a profile asks for training on the fly."""


def activations(run: Profile, seed: int) -> Recipe:
    """What the encoder's sites of a profile say of every clip, without padding; `windows.csv` tells the windows.

    With `on_the_fly` only of SHOWN windows, drawn at random.
    """
    sites = side_of(run, "encoder")

    def plan(clips: Step, whisper: model.Whisper) -> tuple:
        heard = table(run, clips)
        windows = listening.planned(run, whisper, heard)
        if run.on_the_fly:
            windows = listening.some(windows, SHOWN, seed)
        return whisper, _wanted(whisper, sites, "encoder"), heard, windows

    def listen(folder: Path, clips: Step) -> dict:
        planned = plan(clips, _planner(run))
        whisper, wanted, _, windows = planned
        cost = listening.expected(run, whisper, windows, wanted)
        alone = " if this machine did it alone" if cluster.client() else ""
        print(f"listening: {listening.said(cost)}{alone}", file=sys.stderr)
        frames.require_room(folder, cost["bytes"])
        windows.to_csv(folder / "windows.csv", index=False)

        def begin(planned: tuple = ()) -> tuple[Callable, Callable]:
            whisper, wanted, heard, windows = planned or plan(clips, _loaded(run, params["model"]))
            return listening.listener(run, whisper, heard, windows, wanted)

        return {"device": str(whisper.device)} | frames.write(
            folder, cost["windows"], **_by_whom(begin, planned), shard=run.shard_windows,
            batch=run.batch_windows, dtype=run.dtype, pieces=listening.pieces(whisper, windows),
            progress=partial(tqdm, desc="listening"),
        )  # fmt: skip

    params = _how(run) | {"sites": sites, "windows": run.windows}
    params |= {"shown": SHOWN, "seed": seed} if run.on_the_fly else {}
    return Recipe(
        "activations", listen, params,
        needs={"clips": clips(run, seed)}, by=made_by(run, "01"), label="activations",
    )  # fmt: skip


def _planner(run: Profile) -> model.Whisper:
    """The model by which a recording is planned; where a cluster makes it, this machine need not have its device."""
    if cluster.client():
        return model.load(run.model, "cpu")
    return model.load(run.model, run.device, precision=run.precision)


def _loaded(run: Profile, identity: str) -> model.Whisper:
    """The model of a profile in a process that works for another one, which knows it as `identity`."""
    if (found := model.identity(run.model)) != identity:
        raise model.BadModel(f"{run.model}: is {found} on {platform.node()}, and {identity} where the run was started")
    return model.load(run.model, run.device, precision=run.precision)


def _by_whom(begin: Callable, planned: tuple) -> dict:
    """For `frames.write`: shards are written by the cluster, if there is one, or else here, as is already planned."""
    if cluster.client():
        return {"begin": begin, "each": cluster.each}
    return {"begin": partial(begin, planned)}


def _how(run: Profile) -> dict:
    """The fields of a profile that change what is recorded, or in which order."""
    fields = ("dtype", "precision", "shard_windows", "batch_windows")
    return {name: getattr(run, name) for name in fields} | {"model": model.identity(run.model)}


def other_ways(run: Profile, seed: int, most: int = 16) -> Recipe:
    """`other_ways.csv`: how what is heard changes when clips are packed, or matrices multiplied in bfloat16.

    Of at most `most` clips, by as few speakers as have them; `listening.compare` says what the columns mean. The facts
    have how many windows all clips are, each heard `alone` and `packed`.
    """
    base = replace(run, windows="clip", precision="float32")
    ways = {"packed": replace(base, windows="packed")}
    if devices.multiplies_bfloat16(model.pick(run.device)):
        ways["bfloat16"] = replace(base, precision="bfloat16")
    sites = side_of(run, "encoder")

    def look(folder: Path, clips: Step) -> dict:
        heard = table(run, clips)
        voices = heard[heard.speaker != ""].groupby("speaker").size().sample(frac=1, random_state=seed)
        turn = {voice: n for n, voice in enumerate(voices.sort_values(ascending=False, kind="stable").index)}
        few = heard.loc[heard.speaker.map(turn).sort_values(kind="stable").index[:most]].reset_index(drop=True)
        whisper = model.load(run.model, run.device)
        wanted = _wanted(whisper, sites, "encoder")
        listening.compare(base, ways, few, wanted).to_csv(folder / "other_ways.csv", index=False)
        alone, packed = (listening.planned(way, whisper, heard).heard.nunique() for way in (base, ways["packed"]))
        return {"clips": len(few), "speakers": int(few.speaker.nunique()), "ways": list(ways), "alone": alone,
                "packed": packed}  # fmt: skip

    params = _how(base) | {"sites": sites, "most": most, "seed": seed, "ways": list(ways)}
    return Recipe(
        "other-ways", look, params,
        needs={"clips": clips(run, seed)}, by=made_by(run, "01"), label="other ways of hearing",
    )  # fmt: skip


def decoded(run: Profile, seed: int, given: str = "transcript") -> Recipe:
    """What the decoder's sites of a profile say while the decoder is given each clip's transcript (teacher forcing).

    A row is a token that is given, the prompt's too; `tokens.csv` tells each row's window, position, token and word,
    and frames of kind 1 are the prompt. `given="start"` gives `<|startoftranscript|>` alone: one row a clip.
    A clip longer than a window is left out, because nothing says which of its words are in which window, and one in a
    language that the model does not have (`text.can_decode`).
    """
    sites = side_of(run, "decoder")
    if given not in ("transcript", "start"):
        raise ValueError(f"given: {given!r} is not one of transcript, start")

    def plan(clips: Step, whisper: model.Whisper) -> tuple:
        whisper.require_decoder()
        whisper.require_tokenizer()
        wanted = _wanted(whisper, sites, "decoder")
        heard = table(run, clips)
        every = speech.windows(heard, whisper.window)
        text.require_language(whisper, run.language)
        spoken = languages.of_clips(heard, run.language)
        whole = ~every["clip"].duplicated(keep=False) & text.can_decode(whisper, spoken)[every["clip"]]
        windows = every[whole].reset_index(drop=True)
        if windows.empty:
            longer = f"longer than a window of {whisper.window / speech.RATE:g} s"
            raise model.BadModel(f"every clip is {longer}, or in a language that {whisper.name} does not have")
        spoken = spoken[windows["clip"]]
        ids, lengths = text.given(whisper, heard.text[windows["clip"]].tolist(), spoken)
        if given == "start":
            ids, lengths = ids[:, :1], np.ones_like(lengths)
        if (most := int(lengths.max())) > whisper.config.max_target_positions:
            long = heard.id[windows["clip"][int(lengths.argmax())]]
            raise model.BadModel(
                f"{long}: its transcript is {most} tokens; the decoder takes {whisper.config.max_target_positions}"
            )
        tokens = text.strings(whisper, ids, lengths).rename(columns={"row": "window"})
        kinds = np.zeros(ids.shape, dtype=np.uint8)
        kinds[tokens.window, tokens.position] = np.where(tokens.word < 0, 1, 2)
        return whisper, wanted, heard, windows, tokens, ids, kinds

    def listen(folder: Path, clips: Step) -> dict:
        planned = plan(clips, _planner(run))
        whisper, _, heard, windows, tokens, *_ = planned
        windows.to_csv(folder / "windows.csv", index=False)
        tokens.to_csv(folder / "tokens.csv", index=False)

        def begin(planned: tuple = ()) -> tuple[Callable, Callable]:
            whisper, wanted, heard, windows, _, ids, kinds = planned or plan(clips, _loaded(run, params["model"]))

            def read(numbers: range) -> list[np.ndarray]:
                return [sound_of(heard, windows, number) for number in numbers]

            def hear(numbers: range, sounds: list[np.ndarray]) -> tuple[dict, np.ndarray]:
                here = slice(numbers.start, numbers.stop)
                return model.record(whisper, model.mel(whisper, sounds), wanted, ids[here]), kinds[here]

            return hear, read

        return {"device": str(whisper.device), "clips_left_out": len(heard) - len(windows)} | frames.write(
            folder, len(windows), **_by_whom(begin, planned), shard=run.shard_windows,
            batch=run.batch_windows, dtype=run.dtype, progress=partial(tqdm, desc="speaking"),
        )  # fmt: skip

    params = _how(run) | {"sites": sites, "given": given}
    return Recipe(
        "decoder-activations", listen, params,
        needs={"clips": clips(run, seed)}, by=made_by(run, "01"), label=f"decoder activations, given the {given}",
    )  # fmt: skip


def side_of(run: Profile, side: str) -> list[str]:
    """The sites or patterns of a profile that lie in the `encoder` or the `decoder`. BadModel where there is none."""
    found = [site for site in run.sites if not site.startswith("encoder" if side == "decoder" else "decoder")]
    if not found:
        raise model.BadModel(f"sites: none of {', '.join(run.sites)} lies in the {side}")
    return found


def _wanted(whisper: model.Whisper, patterns: list[str], side: str) -> list[str]:
    found = [site for site in model.sites(whisper.config, patterns) if site.startswith(side)]
    if not found:
        raise model.BadModel(f"sites: none of {', '.join(patterns)} lies in the {side}")
    return found


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
    return replace(run, model=model.UNTRAINED + run.model)


def clip_means(run: Profile, clips: Step, activations: Step, site: str) -> np.ndarray:
    """What a site says of each clip on average over its frames of speech: (clip, width); NaN where it has none."""
    heard, windows = table(run, clips), activations.table("windows.csv")
    held = frames.Activations(activations.path)
    total, count = np.zeros((len(heard), held.sites[site])), np.zeros(len(heard))
    for number, clip in enumerate(windows["clip"]):
        speaking = held.kinds[number][held.kinds[number] > 0] == speech.SPEECH
        total[clip] += held.window(site, number)[speaking].sum(axis=0, dtype=np.float64)
        count[clip] += speaking.sum()
    return total / np.where(count > 0, count, np.nan)[:, None]
