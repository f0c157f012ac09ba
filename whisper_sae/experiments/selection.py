"""Which clips a run hears: its corpora, copies of those that lie on a hub, and the table of the clips drawn of them."""

import csv
import math
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from whisper_sae.cache import Recipe, Step, make
from whisper_sae.data import clip_table, hub
from whisper_sae.data.corpora import find, rows
from whisper_sae.model import languages
from whisper_sae.profiles import Profile

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
        params = {
            "corpus": corpus.removeprefix(str(kept)),
            "tables": clip_table.digest(kept, pd.DataFrame({"path": []})),
        }
    else:
        params = {"corpus": corpus}
    return Recipe("corpus", get, params | choice | ({"seed": seed} if choice else {}), label=f"copy of {corpus}")


def _kept_by_the_hub(corpus: str) -> Path | None:
    """The directory of a local data set in parquet, `directory` or `directory:configuration:split`."""
    for name in (corpus, corpus.rsplit(":", 2)[0]):
        place = Path(name).expanduser()
        if place.is_dir():
            return place if find(place).layout == "parquet" else None
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
            raise clip_table.BadSpeech(f"corpus: two are called {name!r}; rename one of the directories")
        found[name] = place
    return found


def folders(run: Profile, seed: int) -> dict[str, Path]:
    """The directories of the corpora of a profile by short name; sources are made first."""
    return {name: find(place).folder for name, place in _made(run, seed).items()}


def lying_here(run: Profile) -> dict[str, Path]:
    """The directories of the corpora that are not copied first; of a copy there is nothing but sound and its table."""
    here = {name: place for name, place in corpora(run, 0).items() if isinstance(place, Path)}
    return {name: find(place).folder for name, place in here.items()}


def _made(run: Profile, seed: int) -> dict[str, Path]:
    """The directories or tables of the corpora of a profile; sources are made first."""
    return {
        name: make(place).path / "corpus" if isinstance(place, Recipe) else place
        for name, place in corpora(run, seed).items()
    }


def told_of(run: Profile, seed: int) -> pd.DataFrame:
    """All clips that the corpora of a profile have, before any is chosen or listened to: `speech.COLUMNS` and more."""
    return clip_table.join({name: rows(place) for name, place in _made(run, seed).items()})


# ------------------------------------------------------------------------------------------------ clips


def clips(run: Profile, seed: int) -> Recipe:
    """`clips.csv`: the clips of a profile, with their speaker-disjoint split. Each file has been decoded once: those
    that cannot be are in `rejected.csv`, with the reason."""
    known = corpora(run, seed)
    sources = {name: place for name, place in known.items() if isinstance(place, Recipe)}

    def make_clips(folder: Path, **_sources: Step) -> dict:
        where, roots = _made(run, seed), folders(run, seed)
        drawn = clip_table.join({name: _drawn(run, place, seed) for name, place in where.items()})
        _check_columns(run, drawn)
        kept, rejected = _decode_all(drawn)
        _check_rejected(run, len(drawn), _below(rejected, roots))
        for name, told in {"rejected.csv": rejected, "clips.csv": clip_table.split(kept, seed)}.items():
            told = _below(told, roots)
            told.to_csv(folder / name, index=False, quoting=csv.QUOTE_NONNUMERIC)  # keeps a carriage return in a name
        return {
            "clips": len(kept), "speakers": int(kept.speaker[kept.speaker != ""].nunique()),
            "minutes": round(kept.duration.sum() / 60, 2), "rejected": len(rejected),
            "layouts": {name: find(place).layout for name, place in where.items()},
            "short": clip_table.short(kept, run.balance, run.clips_per_group) if run.balance else [],
        }  # fmt: skip

    local = {
        name: clip_table.digest(place, _drawn(run, place, seed)) for name, place in known.items() if name not in sources
    }
    params = {"corpora": local, "seed": seed} | {name: getattr(run, name) for name in (*DRAWN_BY, "most_rejected")}
    params["decoders"] = clip_table.decoders()
    if run.language:  # all that is decoded of the clips depends on it
        params["language"] = languages.code_of(run.language)
    return Recipe(
        "clips", make_clips, params, needs=sources, by=made_by(run, "01"), label="table of clips",
    )  # fmt: skip


def _drawn(run: Profile, place: Path, seed: int, called: str = "") -> pd.DataFrame:
    """The clips of one corpus that a profile asks for; nothing has been listened to yet."""
    told = rows(place)
    found = clip_table.only(told, run.only)
    if found.empty:
        raise clip_table.BadSpeech(f"only: no clip of {called or place} is {' or '.join(run.only)}")
    found = clip_table.draw(
        found, run.clips, seed, by=run.balance, per_group=run.clips_per_group, per_speaker=run.clips_per_speaker
    )
    if found.empty:
        raise clip_table.BadSpeech(f"balance: no clip of {called or place} has a label for {', '.join(run.balance)}")
    return found


def _check_columns(run: Profile, drawn: pd.DataFrame) -> None:
    if unknown := [one for one in run.only if one.partition("=")[0] not in drawn]:
        raise clip_table.BadSpeech(
            f"only: {unknown[0]!r}: no corpus has the column; there are {', '.join(drawn.columns)}"
        )


def _check_rejected(run: Profile, total: int, rejected: pd.DataFrame) -> None:
    allowed = math.ceil(run.most_rejected * total)
    if len(rejected) > allowed or len(rejected) == total:
        first = "; ".join(f"{row.path[-100:]}: {row.reason[:80]}" for row in rejected.head(3).itertuples())
        raise clip_table.BadSpeech(
            f"{len(rejected)} of {total} sound files cannot be used, most_rejected = {run.most_rejected:g} allows "
            f"{allowed}; mend them or take them out: {first}{' …' if len(rejected) > 3 else ''}"
        )


def _decode_all(drawn: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every file is decoded, so that a bad one is known before hours are spent; all of them are counted."""
    return clip_table.inspect(
        drawn, lambda paths: tqdm(paths, desc="decoding", unit=" clips", disable=len(drawn) < 200)
    )


def _below(found: pd.DataFrame, roots: dict[str, Path]) -> pd.DataFrame:
    """The table with paths as they are below their corpora, so that it says the same on every machine."""
    paths = [Path(p).relative_to(roots[c]).as_posix() for p, c in zip(found.path, found.corpus, strict=True)]
    return found.assign(path=paths)


def table(run: Profile, step: Step) -> pd.DataFrame:
    """The table of clips that a step of `clips` holds, text but for `duration`; paths as they are on this machine."""
    found = step.table("clips.csv", dtype=str).astype({"duration": float})  # 01 and 1 are two labels of a corpus
    where = folders(run, step.manifest["params"]["seed"])
    return found.assign(path=[str(where[c] / p) for c, p in zip(found.corpus, found.path, strict=True)])
