"""The recipe of the whole: which results there are, what each is made from, and which code makes it.

This file sits on top of the leaves and does nothing but join them; notebooks give its recipes to the store:

    acts = store.make(recipes.activations(run, seed))   # makes it, unless it is there
    acts = store.need(recipes.activations(run, seed))   # or says which notebook makes it
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from whisper_sae import activations as frames
from whisper_sae import hub, measure, model, sae, speech, standin, train
from whisper_sae.profiles import Profile
from whisper_sae.store import Recipe, Step, make


def _by(run: Profile, number: str) -> str:
    return f"python -m whisper_sae {run.source or run.name} {number}"


# ------------------------------------------------------------------------------------------- model and corpus


def stand_in() -> Recipe:
    """A Whisper that was never trained, and a corpus of tones."""
    return Recipe("stand-in", standin.make, {}, code=(standin,), label="stand-in model and corpus")


def fetched(corpus: str) -> Recipe:
    """A corpus of the hub, whole, as a local directory in `audiofolder` layout; clips are drawn from it later."""

    def get(folder: Path) -> dict:
        return hub.fetch(corpus, folder / "corpus", progress=lambda rows: tqdm(rows, desc=corpus, unit=" clips"))

    return Recipe("corpus", get, {"corpus": corpus}, code=(hub,), label=f"copy of {corpus}")


def weights(run: Profile) -> str:
    """Where the model of a profile is: a local directory, or a hub id."""
    return str(make(stand_in()).path / "model") if run.model == "stand-in" else run.model


def corpora(run: Profile) -> dict[str, Path | Recipe]:
    """The corpora of a profile by short name: a local directory, or the recipe of a source."""
    found = {}
    for corpus in run.corpus:
        if corpus == "stand-in":
            name, place = corpus, stand_in()
        elif Path(corpus).is_dir() or corpus.startswith((".", "/", "~")):
            name, place = Path(corpus).name, Path(corpus)
        else:
            name, place = corpus.split(":")[0], fetched(corpus)
        if name in found:
            raise speech.BadSpeech(f"corpus: two are called {name!r}; rename one of the directories")
        found[name] = place
    return found


def folders(run: Profile) -> dict[str, Path]:
    """The directories of the corpora of a profile by short name; sources are made first."""
    return {
        name: make(place).path / "corpus" if isinstance(place, Recipe) else place
        for name, place in corpora(run).items()
    }


# ------------------------------------------------------------------------------------------------ clips


def clips(run: Profile, seed: int) -> Recipe:
    """`clips.csv`: every clip, with its speaker-disjoint split; each file has been decoded once, to find bad ones."""
    sources = {name: place for name, place in corpora(run).items() if isinstance(place, Recipe)}

    def make_clips(folder: Path, **_sources: Step) -> dict:
        where = folders(run)
        drawn = {name: speech.draw(speech.read(place), run.clips, seed) for name, place in where.items()}
        table = speech.split(speech.join(drawn), seed)
        _decode_all(table)
        relative = [Path(p).relative_to(where[c].resolve()) for p, c in zip(table.path, table.corpus, strict=True)]
        table.assign(path=[path.as_posix() for path in relative]).to_csv(folder / "clips.csv", index=False)
        return {"clips": len(table), "speakers": int(table.speaker[table.speaker != ""].nunique()),
                "minutes": round(table.duration.sum() / 60, 2)}  # fmt: skip

    local = {name: speech.digest(place) for name, place in corpora(run).items() if name not in sources}
    params = {"corpora": local, "clips": run.clips, "seed": seed}
    return Recipe(
        "clips",
        make_clips,
        params,
        code=(speech, clips, _decode_all),
        needs=sources,
        by=_by(run, "01"),
        label="table of clips",
    )


def table(run: Profile, step: Step) -> pd.DataFrame:
    """The table of clips that a step of `clips` holds, with paths as they are on this machine."""
    text = {name: str for name in [*speech.COLUMNS, "corpus"] if name != "duration"}
    found = step.table("clips.csv", dtype=text)
    where = folders(run)
    return found.assign(path=[str(where[c] / p) for c, p in zip(found.corpus, found.path, strict=True)])


def _decode_all(table: pd.DataFrame) -> None:
    """Decode every file, so that a bad one is known before hours are spent; all of them are counted."""
    bad = []
    for path in tqdm(table.path, desc="decoding", unit=" clips", disable=len(table) < 200):
        try:
            speech.samples(path)
        except speech.BadSpeech as error:
            bad.append(str(error))
    if bad:
        more = f" (and {len(bad) - 1} more files)" if len(bad) > 1 else ""
        raise speech.BadSpeech(bad[0] + more + "; mend it or take its row out of metadata.csv")


# --------------------------------------------------------------------------------------------- activations


def activations(run: Profile, seed: int) -> Recipe:
    """What the sites of a profile say of every clip, without padding; `windows.csv` tells which window is which."""
    sources = {"stand_in": stand_in()} if run.model == "stand-in" else {}
    if any(site.startswith("decoder") for site in run.sites):
        raise model.BadModel(
            "sites: only encoder sites can be recorded for a whole corpus; see model.record for others"
        )

    def listen(folder: Path, clips: Step, **_sources: Step) -> dict:
        whisper = model.load(weights(run), run.device)
        wanted = list(model.sites(whisper.config, run.sites))
        heard = table(run, clips)
        windows = speech.windows(heard, whisper.window)
        windows.to_csv(folder / "windows.csv", index=False)

        def hear(numbers: range) -> tuple[dict, np.ndarray]:
            sounds = [sound_of(heard, windows, number) for number in numbers]
            kinds = [speech.kinds(sound, whisper.samples_a_frame, whisper.positions) for sound in sounds]
            return model.record(whisper, model.mel(whisper, sounds), wanted), np.stack(kinds)

        return frames.write(
            folder, len(windows), hear, shard=run.shard_windows, batch=run.batch_windows, dtype=run.dtype,
            progress=lambda batches: tqdm(batches, desc="listening", unit=" batches"),
        ) | {"device": str(whisper.device)}  # fmt: skip

    params = {name: getattr(run, name) for name in ("dtype", "shard_windows", "batch_windows")}
    params |= {"model": run.model if sources else model.identity(run.model), "sites": list(run.sites)}
    return Recipe(
        "activations", listen, params, code=(speech, model, frames, activations, sound_of, table), label="activations",
        needs={"clips": clips(run, seed), **sources}, by=_by(run, "01"),
    )  # fmt: skip


def sound_of(heard: pd.DataFrame, windows: pd.DataFrame, number: int) -> np.ndarray:
    """The samples of one window, 16 kHz: (sample,)."""
    clip, first, samples = windows.loc[number, ["clip", "first", "samples"]]
    return speech.samples(heard.path[clip])[first : first + samples]


def windows_of(heard: pd.DataFrame, windows: pd.DataFrame, split: str) -> np.ndarray:
    """Which windows belong to clips of a split: (window,) bool."""
    return (heard.split.to_numpy() == split)[windows["clip"].to_numpy()]


# -------------------------------------------------------------------------------------------- dictionaries


def dictionary(run: Profile, seed: int, site: str, k: int) -> Recipe:
    """One SAE of one site: `sae.safetensors`, `sae.json`, `history.csv`, `firing.npy` (validation firing rates)."""

    def fit(folder: Path, clips: Step, activations: Step) -> dict:
        rows, _ = frames_of(run, clips, activations, site, "train")
        sample = rows.sample(65_536, seed)
        scale = math.sqrt(rows.width / sample.square().sum(dim=1).mean().item())
        coder = sae.create(run.variant, rows.width, run.expansion * rows.width, k, seed)
        coder.start_on(sample[:4096] * scale)
        device = model.pick(run.device)
        coder.to(device)
        size = min(run.batch_tokens, len(rows))
        steps = math.ceil(run.tokens / size)

        def batches(start: int):
            return (x.to(device) * scale for x in rows.batches(size, steps, seed, start))

        work = folder / "training.pt"
        history = _watched(
            train.train(coder, batches, steps=steps, learning_rate=run.learning_rate,
                        dead_tokens=run.dead_tokens, checkpoint=work),
            steps, f"{site} k={k}",
        )  # fmt: skip
        coder.to("cpu")
        if isinstance(coder, sae.BatchTopK):
            coder.calibrate(rows.sample(size, seed + turn) * scale for turn in range(8))
        coder.undo_scale(scale)
        sae.save(coder, folder, site=site, model=Path(run.model).name, scale=scale)
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
        work.unlink()
        return _held_out(coder, *frames_of(run, clips, activations, site), folder)

    names = ("variant", "expansion", "tokens", "batch_tokens", "learning_rate", "dead_tokens")
    params = {name: getattr(run, name) for name in names} | {"site": site, "k": k, "seed": seed}
    return Recipe(
        "dictionary", fit, params, code=(sae, train, measure, frames, dictionary, frames_of, windows_of, _held_out),
        needs={"clips": clips(run, seed), "activations": activations(run, seed)},
        by=_by(run, "02"), label=f"dictionary of {site}, k = {k}",
    )  # fmt: skip


def _watched(history, steps: int, title: str) -> list[dict]:
    """Run a training to its end under a progress bar."""
    bar, rows = tqdm(total=steps, desc=title, unit=" steps"), []
    for row in history:
        rows.append(row)
        bar.update()
        if bar.n % 20 == 0:
            bar.set_postfix(fvu=f"{row['fvu']:.3f}", l0=f"{row['l0']:.0f}", dead=f"{row['dead']:.1%}", refresh=False)
    bar.close()
    return rows


def _held_out(coder: sae.SAE, rows: frames.Rows, voices: np.ndarray, folder: Path) -> dict:
    rates = measure.firing(coder.encode, rows.chunks(4096))
    np.save(folder / "firing.npy", rates)
    scores = measure.reconstruction(coder, rows.chunks(4096), voices)
    return {**scores, "l0": float(rates.sum()), "dead": float((rates == 0).mean())}


def frames_of(run: Profile, clips: Step, activations: Step, site: str, split: str = "validation"):
    """The frames of a site in the clips of a split, and the number of each frame's speaker: (Rows, (row,))."""
    heard, windows = table(run, clips), activations.table("windows.csv")
    rows = frames.Activations(activations.path).rows(site, windows_of(heard, windows, split))
    speakers = pd.factorize(heard.speaker.where(heard.speaker != "", heard.id))[0]
    return rows, rows.per_window(speakers[windows["clip"].to_numpy()[rows.windows]])


def score(run: Profile, clips: Step, activations: Step, site: str, say) -> dict:
    """How well `say`, a function x -> x_hat, re-says the held-out frames of a site; see `measure.reconstruction`."""
    rows, voices = frames_of(run, clips, activations, site)
    return measure.reconstruction(say, rows.chunks(4096), voices)
