"""The gallery of a run and a site: features, their scores and their examples, gathered and put on one page.

    galleries.page(run, seed, site)                            # reports/<profile>/features-encoder.2.resid.html
    galleries.page(run, seed, site, told)                      # with a table of scores of one's own
    galleries.notes(run, seed, site).put(labels.Note(30, "phone", "/s/", 0.8))      # what a person thinks

Sounds and pictures are a step of the store; notes are read each time, so that the page can be written anew in a moment.
"""

import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm
from transformers import WhisperFeatureExtractor

from whisper_sae import cache
from whisper_sae.cache import Recipe, Step
from whisper_sae.data import audio, clip_table, frame_alignment
from whisper_sae.experiments import phone_selectivity
from whisper_sae.experiments.feature_index import codes as index_of
from whisper_sae.experiments.feature_index import examples_in
from whisper_sae.experiments.phone_tables import digests
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.experiments.sae_comparison import dictionary
from whisper_sae.explorer import annotations, dashboard
from whisper_sae.explorer.dashboard import FRAME, RATE, Example, Whole
from whisper_sae.features import selectivity, sparse_acts, timing
from whisper_sae.features.examples import Examples
from whisper_sae.features.index import Index
from whisper_sae.model import logmel
from whisper_sae.profiles import Profile
from whisper_sae.report import results

AROUND = 50
"""Frames of 20 ms on each side of the peak: an excerpt lasts 2.02 s."""

BINS = 32
"""Of a histogram."""

CLIPS, LONGEST, PEAKS = 40, 30.0, 12
"""Clips that are shown whole, at most; seconds that they may last; features that are shown of each."""


class Page(NamedTuple):
    """A page that was written; a notebook shows it as a link, beside its own page."""

    path: Path
    features: int
    examples: int
    bytes: int

    def _repr_html_(self) -> str:
        name = html.escape(self.path.name)
        return (
            f'<p class="reading"><a href="{name}">{self.features:,} features to look through and listen to</a> '
            f"({self.examples:,} examples; one file, {name} beside this page, {self.bytes / 1e6:.1f} MB)</p>"
        )


def notes(run: Profile, seed: int, site: str, of: str = "dictionary", **which) -> annotations.Labels:
    """What people think of the features of a dictionary: `data/labels/<site>-<key>.toml`, see `labels`.

    The key is that of the dictionary's step, or for other inputs (see `meaning.codes`) that of the index.
    """
    recipe = dictionary(run, seed, site, **which) if of == "dictionary" else index_of(run, seed, site, of, **which)
    return annotations.Labels(cache.root() / "labels", recipe.key, site)


class NoFeature(ValueError):
    """A dictionary has no feature of this number."""

    def __init__(self, number: int, many: int):
        super().__init__(f"features: there is no {number}; there are {many}")
        self.number = number


def page(run: Profile, seed: int, site: str, told: pd.DataFrame | None = None, *, most: int = 300, each: int = 5,
         features: Sequence[int] | None = None, wholes: int = CLIPS, of: str = "dictionary", name: str = "features",
         **which) -> Page:  # fmt: skip
    """Write the gallery of a site to the folder of the report, `<name>-<site>.html`.

    `told` has a row a feature, whose number is its index or in `feature`: columns of `gallery.SHOWN` and any others,
    such as flags and correlates; it goes before what is computed here. Shown are `features`, or those with a note and
    as many as `most` others, drawn among all that fire. `each` examples of a feature, two the loudest and the others
    from deciles below. `wholes` is how many whole clips. Raises NotMade where there is no index.
    """
    kept = notes(run, seed, site, of, **which)
    noted = kept.notes()
    chosen = None if features is None else sorted({int(number) for number in features})
    asked = {"most": most, "each": each, "features": chosen, "also": noted, "wholes": wholes, "of": of}
    try:
        step = cache.make(gathered(run, seed, site, **asked, **which))
    except NoFeature as error:
        raise ValueError(f"{kept.path}: {error}" if error.number in noted else str(error)) from None
    shown = pd.DataFrame(_json(step.path / "features.json"))
    shown = _named(_joined(shown, told), noted)
    drawn = "" if chosen is not None or len(shown) >= step.facts["alive"] else "drawn at random from "
    about = (
        f"{len(shown):,} features, {drawn}the {step.facts['alive']:,} that fire, of the {of} of {site}. "
        f"Each has up to {each} examples: the loudest flatter a feature, so the others come from weaker deciles of the "
        "clips in which it fires. Whole clips, drawn at random, show the features that peak in them."
    )
    path = results.folder(run.name) / f"{name}-{site}{'' if of == 'dictionary' else '-' + of.replace(' ', '-')}.html"
    facts = dashboard.write(
        path, shown, _json(step.path / "examples.json"),
        title=f"What the features of {site} answer to", about=about, banner=run.banner, aside=f"profile {run.name}",
    )  # fmt: skip
    return Page(path, facts["features"], facts["examples"], facts["bytes"])


def gathered(run: Profile, seed: int, site: str, *, most: int = 300, each: int = 5, features=None, also=(),
             wholes: int = CLIPS, of: str = "dictionary", **which) -> Recipe:  # fmt: skip
    """`features.json` and `examples.json`, as `gallery.write` takes them, of some features of a site; see `page`."""
    indexed = index_of(run, seed, site, of, **which)
    needs = {"indexed": indexed} | {name: indexed.needs[name] for name in ("clips", "activations")}
    params = {"site": site, "seed": seed, "most": most, "each": each, "features": features, "also": sorted(also)}
    params |= {"wholes": wholes, "told": digests(run)}

    def write(folder: Path, indexed: Step, clips: Step, activations: Step) -> dict:
        drawn = examples_in(run, seed, site, of, **which)
        heard = table(run, clips)
        alive = np.flatnonzero(drawn.index.rates > 0)
        numbers = _chosen(alive, drawn.index.features, most, features, also, seed)
        scored = phone_scores(run, drawn.index, heard, activations, seed)
        _rows(drawn, numbers, scored).to_json(folder / "features.json", orient="records", double_precision=6)
        made = dashboard.packed(_examples(drawn, heard, numbers, each), _wholes(drawn, heard, numbers, wholes, seed))
        (folder / "examples.json").write_text(json.dumps(made, separators=(",", ":")), encoding="utf-8")
        return {"features": len(numbers), "alive": len(alive)}

    return Recipe(
        "gallery", write, params, needs=needs, by=made_by(run, "06"), label=f"gallery of {site}",
    )  # fmt: skip


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def _chosen(alive: np.ndarray, many: int, most: int, features, also, seed: int) -> list[int]:
    """The numbers of the features to show, in order; ValueError for one that is not there."""
    if features is None:
        drawn = np.random.default_rng(seed).permutation(alive)[:most]
        features = {*drawn.tolist(), *also}
    if wrong := [number for number in features if not 0 <= number < many]:
        raise NoFeature(wrong[0], many)
    return sorted(features)


# ---------------------------------------------------------------------------------------------------- scores


def phone_scores(run: Profile, index: Index, heard: pd.DataFrame, recording: Step, seed: int = 0) -> pd.DataFrame:
    """The best phone of every feature, a row each: `phone`, `f1`, `chance`, `stage`, `phones` (the three best).

    Phone and threshold are chosen on some speakers, and F1 is that of others: see `phonetics.asked`. `chance` is the F1
    of always saying the phone, and a phone that is no better is not told. Of a signed input only what is above zero is
    asked. No columns where phones are told of fewer than two speakers.
    """
    try:
        known = phone_selectivity.asked(run, heard, recording, seed=seed)
    except frame_alignment.BadPhones:
        known = None
    if known is None or known.apart != "speakers":
        return pd.DataFrame(index=range(index.features))
    mine = sparse_acts.only(index.columns(0, index.features), known.here)
    scores = selectivity.scores(mine, known.frames, known.choosing)
    fires = np.nan_to_num(timing.stages(mine, known.frames, known.where.third[known.here]))
    return _best(scores, fires)


def _best(scores: selectivity.Scores, fires: np.ndarray, many: int = 3) -> pd.DataFrame:
    """The phones that were best where thresholds were chosen, and what they are worth; none where that is chance.

    `fires` is (feature, label, third) as `timing.stages` tells it.
    """
    share = scores.count / scores.count.sum()
    chance, rows = 2 * share / (1 + share), []
    for feature, order in enumerate(np.argsort(-scores.f1_chosen, axis=1, kind="stable")[:, :many]):
        top = order[0]
        f1 = np.nan_to_num(scores.f1[feature])
        if f1[top] <= chance[top]:
            rows.append({})
            continue
        stage = timing.STAGES[fires[feature, top].argmax()]
        told = [[str(scores.names[n]), round(float(f1[n]), 4)] for n in order]
        rows.append(
            {"phone": str(scores.names[top]), "f1": f1[top], "chance": chance[top], "stage": stage, "phones": told}
        )
    return pd.DataFrame(rows, columns=["phone", "f1", "chance", "stage", "phones"])


def _rows(drawn: Examples, numbers: list[int], scored: pd.DataFrame) -> pd.DataFrame:
    """What is known of the features without listening, a row each."""
    index, rows = drawn.index, []
    rates, low, high = index.rates, index.minima, index.maxima
    for number in numbers:
        _, values = index.activations(number)
        counts, _ = np.histogram(values, BINS, (float(low[number]), float(high[number]) or 1.0))
        ends = {"low": float(low[number]), "high": float(high[number])}
        rows.append({"feature": number, "rate": float(rates[number]), "histogram": counts.tolist()} | ends)
    found = pd.DataFrame(rows, columns=["feature", "rate", "histogram", "low", "high"])
    return found.join(scored, on="feature")


def _joined(shown: pd.DataFrame, told: pd.DataFrame | None) -> pd.DataFrame:
    """The table with what is told besides, which goes before what it has."""
    if told is None:
        return shown
    told = told.set_index("feature") if "feature" in told else told
    if told.index.duplicated().any():
        raise ValueError(f"told: feature {told.index[told.index.duplicated()][0]} is there twice")
    return shown.drop(columns=[name for name in told if name in shown]).join(told, on="feature")


def _named(shown: pd.DataFrame, noted: dict[int, annotations.Note]) -> pd.DataFrame:
    """The table with a label for each feature: the note on it, or else a draft."""
    found = []
    for row in shown.to_dict("records"):
        note = noted.get(row["feature"])
        if note is None:
            found.append({"label": annotations.draft(row), "by": "draft"})
        else:
            told = {"category": note.category, "confidence": note.confidence, "evidence": note.evidence}
            found.append({"label": note.description or note.category, "by": "note"} | told)
    columns = ["label", "by", "category", "confidence", "evidence"]
    return shown.drop(columns=[name for name in columns if name in shown]).join(pd.DataFrame(found, columns=columns))


# -------------------------------------------------------------------------------------------------- examples


def _examples(drawn: Examples, heard: pd.DataFrame, numbers: list[int], each: int) -> Iterator[Example]:
    """`each` examples of every feature, of as many clips: two the loudest, then from ever weaker deciles."""
    filters = WhisperFeatureExtractor().mel_filters
    below = np.linspace(9, 1, max(each - 2, 0) + 2).round().astype(int)[1:-1]
    for number in tqdm(numbers, desc="gallery", unit=" features"):
        lower = drawn.deciles(number)
        wanted = [drawn.loudest(number, n=2)[:each], *(lower[lower.kind == f"decile {n}"] for n in below), lower]
        rows = pd.concat(wanted, ignore_index=True).drop_duplicates("clip")[:each]
        for row in rows.sort_values("value", key=abs, ascending=False, kind="stable").itertuples():
            yield _one(drawn, heard, number, row, filters)


def _wholes(drawn: Examples, heard: pd.DataFrame, numbers: list[int], most: int, seed: int) -> Iterator[Whole]:
    """Clips of as many speakers as there are, drawn at random, and those of the features that peak highest in them."""
    filters, here = WhisperFeatureExtractor().mel_filters, heard.assign(row=range(len(heard)))
    here = here[(here.duration <= LONGEST) & (drawn.frames > 0)]
    for row in (clip_table.draw(here, most, seed) if most else here.head(0)).itertuples():
        frames = int(np.ceil(round(row.duration * RATE, 6) / FRAME))
        sound = np.zeros(frames * FRAME, np.float32)
        inside = audio.excerpt(row.path, 0, len(sound))
        sound[: len(inside)] = inside
        mel = logmel.log_mel([sound], filters, window=len(sound), n_fft=400, hop=160)[0].numpy()
        peaks = drawn.features_of(row.row, n=drawn.index.features)
        peaks = peaks[peaks.feature.isin(numbers)][:PEAKS]
        traces = [drawn.track(feature, row.row, 0, frames) for feature in peaks.feature]
        told = None if drawn.words is None else drawn.words.get(row.row)
        words = () if told is None else tuple(told.itertuples(index=False, name=None))
        about = str(row.id), str(row.speaker), float(row.duration), str(row.text), words
        clip = Example(0, "", 0.0, 0.0, sound, mel, np.zeros(frames), *about)
        shown = zip(peaks.feature, peaks.value, peaks.share, peaks.seconds.round(3), traces, strict=True)
        yield Whole(clip, tuple((int(feature), *map(float, three), trace) for feature, *three, trace in shown))


def _one(drawn: Examples, heard: pd.DataFrame, number: int, row, filters: np.ndarray) -> Example:
    first = round((row.seconds - clip_table.CENTRE) * RATE) - AROUND * FRAME
    samples = 2 * AROUND * FRAME  # from the centre of a frame to that of another: the moment is in the middle
    sound = np.zeros(samples, np.float32)
    inside = audio.excerpt(heard.path[row.clip], max(first, 0), first + samples - max(first, 0))
    sound[max(-first, 0) : max(-first, 0) + len(inside)] = inside
    mel = logmel.log_mel([sound], filters, window=samples, n_fft=400, hop=160)[0].numpy()
    told = None if drawn.words is None else drawn.words.get(row.clip)
    words = () if told is None else tuple(told.itertuples(index=False, name=None))
    clip, trace = heard.loc[row.clip], drawn.track(number, row.clip, first, 2 * AROUND + 1)
    return Example(
        number, row.kind, float(row.value), first / RATE, sound, mel, trace,
        str(clip["id"]), str(clip.speaker), float(clip.duration), str(clip.text), words,
    )  # fmt: skip
