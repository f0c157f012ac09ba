"""Who is speaking, asked of every feature of a site: what it says of each clip of speech, and of each speaker.

The recipe stands on those of `meaning` and is used like them; the rest turns clips into speakers with their labels.
`contrasts` and `voice_probes` ask on.

    step = store.make(voices.of_features(run, seed, site))
    cast = voices.cast(step, heard, "rate")                   # clips -> speakers, with their labels
    found = contrasts.two(cast, "gender", strata="accent")    # a row a feature, and what chance gives
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step
from whisper_sae.data import clip_table, speaker_labels
from whisper_sae.experiments.feature_index import codes
from whisper_sae.experiments.pipeline import made_by, told_of
from whisper_sae.features import examples, index, sparse_acts
from whisper_sae.profiles import Profile
from whisper_sae.stats import effects, intervals, matching, power

FIRINGS = 1 << 22
"""About so many firings are read from an index at a time."""

MEASURES = ("rate", "when_firing")
"""On what share of a clip's frames of speech a feature fires, and its mean on those, NaN where it never does."""


def of_features(run: Profile, seed: int, site: str, of: str = "dictionary", **which) -> Recipe:
    """`rate.npy` and `when_firing.npy`: what each side of an index says of each clip's speech, (clip, side) float32.

    `clips.csv` has a row for each: `clip`, its row in the table of clips, and its `frames` of speech. Silence does not
    count, for how much of it a clip has is not a matter of the voice; a clip without speech is not there.
    """
    said = codes(run, seed, site, of, **which)

    def average(folder: Path, activations: Step, codes: Step) -> dict:
        held, found = store.Activations(activations.path), index.Index(codes.path)
        here = held.valid_kinds() == clip_table.SPEECH
        clip = np.repeat(activations.table("windows.csv")["clip"].to_numpy(), held.counts)[here]
        names, number = np.unique(clip, return_inverse=True)
        count, sides = np.bincount(number), len(found.firings) - 1
        rate, when = (
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (len(names), sides))
            for name in MEASURES
        )
        for first, last in tqdm(_blocks(found.firings), desc=f"clips at {site}", unit=" blocks"):
            columns = sparse_acts.only(found.columns(first, last), here)
            fired = sparse_acts.coincidences(columns, number, len(names)).T
            total = sparse_acts.coincidences(columns, number, len(names), columns.data).T
            rate[:, first:last] = fired / count[:, None]
            when[:, first:last] = np.where(fired > 0, total / np.maximum(fired, 1), np.nan)
        rate.flush(), when.flush()
        pd.DataFrame({"clip": names, "frames": count}).to_csv(folder / "clips.csv", index=False)
        return {"clips": len(names), "sides": sides, "features": found.features, "frames": int(here.sum())}

    return Recipe(
        "voices", average, {"site": site, "of": of},
        needs={"activations": said.needs["activations"], "codes": said}, by=made_by(run, "04"),
        label=f"{of} of {site}, clip by clip",
    )  # fmt: skip


def _blocks(firings: np.ndarray) -> list[tuple[int, int]]:
    """Sides by so many that about FIRINGS of them are read at a time: (first, last) of each block."""
    cuts = np.searchsorted(firings[:-1], np.arange(FIRINGS, firings[-1], FIRINGS))
    edges = np.unique(np.r_[0, cuts, len(firings) - 1]).tolist()
    return list(itertools.pairwise(edges))


# ------------------------------------------------------------------------------------------------- speakers


def labels_of(heard: pd.DataFrame) -> list[str]:
    """The columns that `effects.voices` needs of a table of clips: the labels that `speaker_labels.choose` chooses, and
    `corpus` where speakers come from several."""
    chosen = speaker_labels.choose(heard)
    return [*chosen.values, *(["corpus"] if chosen.corpus is not None else [])]


def values(step: Step, measure: str) -> np.ndarray:
    """What a step of `of_features` has of a measure, or of "mean", the product of the two: (clip, side) float64."""
    if measure != "mean":
        return step.array(f"{measure}.npy").astype(np.float64)
    return values(step, "rate") * np.nan_to_num(values(step, "when_firing"))


def cast(step: Step, heard: pd.DataFrame, measure: str = "rate") -> effects.Voices:
    """Speakers' means of their clips' values, and their labels: see `effects.voices`. `heard` is the table of clips.

    Labels are those of `speaker_labels.choose`; with several corpora the result has a `corpus`. Where no clip names a
    speaker it has no rows.
    """
    rows = heard.iloc[step.table("clips.csv")["clip"].to_numpy()]
    chosen = speaker_labels.choose(rows)
    labels = chosen.values if chosen.corpus is None else chosen.values.assign(corpus=chosen.corpus)
    if (effects.named_as(rows.speaker) == "").all():
        return effects.Voices(np.empty((0, step.facts["sides"])), labels[:0], np.empty(0, dtype=int), len(rows))
    return effects.voices(values(step, measure), rows.speaker, labels)


def labels_asked(step: Step, heard: pd.DataFrame) -> pd.DataFrame:
    """Which labels are asked about, and what of them is left out and why: `speaker_labels.Chosen.report`."""
    return speaker_labels.choose(heard.iloc[step.table("clips.csv")["clip"].to_numpy()]).report


def covariates(step: Step, heard: pd.DataFrame) -> pd.DataFrame:
    """Numbers told of the clips, as means of speakers, in the order of `cast`; what is the same for all is left out."""
    rows = heard.iloc[step.table("clips.csv")["clip"].to_numpy()]
    numbers = rows.drop(columns=speaker_labels.NOT_LABELS - {"duration"}, errors="ignore")
    numbers = numbers.apply(pd.to_numeric, errors="coerce")
    found = matching.of_speakers(numbers.dropna(axis=1, how="all"), rows.speaker)
    return found.loc[:, found.nunique() > 1]


def sampled(run: Profile, seed: int, step: Step, heard: pd.DataFrame, label: str) -> pd.DataFrame:
    """What was kept of the corpora of a profile, and what was dropped: a row a group of a label, "" for no label.

    Columns: group; clips and speakers that the corpora have; `kept` and `dropped` clips, kept being those that count
    here: drawn by the profile (`only`, `balance`, `clips_per_speaker`, …), readable, with speech and a speaker; and
    `speakers_kept`, `least` and `most` clips of one.
    """
    told = told_of(run, seed)
    kept = heard.iloc[step.table("clips.csv")["clip"].to_numpy()]
    parts = []
    for rows in (told, kept[kept.speaker != ""]):
        group = effects.tidy(rows[label]) if label in rows else np.full(len(rows), "")
        who = rows.speaker.to_numpy()
        each = pd.DataFrame({"group": group, "who": who}).groupby("group").who
        parts.append(each.agg(clips="size", speakers=lambda names: names[names != ""].nunique()))
    counts = pd.DataFrame({"group": group, "who": who}).value_counts().groupby("group").agg(["min", "max"])
    found = parts[0].assign(kept=parts[1].clips, speakers_kept=parts[1].speakers, least=counts["min"],
                            most=counts["max"]).fillna(0).astype(int)  # fmt: skip
    found.insert(3, "dropped", found.clips - found.kept)
    return found.reset_index()


def likeness(step: Step, heard: pd.DataFrame, features) -> float:
    """How alike clips of a speaker are by firing rate: the median ICC of `features`; NaN where fewer than
    `intervals.LEAST` speakers have two clips."""
    who = heard.speaker.iloc[step.table("clips.csv")["clip"]]
    if (who[who != ""].value_counts() > 1).sum() < intervals.LEAST:
        return np.nan
    return float(np.nanmedian(power.likeness(values(step, "rate")[:, features], who).icc))


def groups_of(cast: effects.Voices, label: str) -> tuple[str, str]:
    """The two most frequent groups of a label, in order of the alphabet."""
    told = cast.labels[label]
    return tuple(sorted(told[told != ""].value_counts(sort=True).index[:2]))


def crossed(cast: effects.Voices, label: str, by: str) -> bool:
    """Whether every group of `by` has two speakers or more of each group of `label`, in one corpus or another."""
    known = cast.labels.assign(corpus="" if cast.corpus is None else cast.corpus)
    known = known[(known[label] != "") & (known[by] != "")]
    if label == by or known.empty:
        return False
    least = pd.crosstab([known[by], known.corpus], known[label]).min(axis=1)
    return int(least.groupby(level=0).max().min()) > 1


def asked(cast: effects.Voices, label: str) -> np.ndarray:
    """(feature,) bool: those of `intervals.LEAST` values or more, and as many speakers of each group who have one.

    With two values, one of them a single speaker's, a deal of labels may make d as large as one likes.
    """
    told, groups = cast.labels[label].to_numpy(), groups_of(cast, label)
    least = [np.isfinite(cast.means[told == name]).sum(axis=0) for name in groups]
    values = (np.diff(np.sort(cast.means, axis=0), axis=0) > 0).sum(axis=0) + 1  # NaN is last, and greater than none
    enough = (np.min(least, axis=0) >= intervals.LEAST) & (values >= intervals.LEAST)
    return effects.live(cast.means, intervals.LEAST) & enough


def answerable(cast: effects.Voices, label: str) -> bool:
    """Whether a label has two groups, of `intervals.LEAST` speakers or more each, beside which any other is small.

    With several corpora only speakers of those count that have both groups.
    """
    told = cast.labels[label].to_numpy()
    counts = pd.Series(told[told != ""]).value_counts()
    if len(counts) < 2 or counts.iloc[2:].sum() >= counts.iloc[1]:
        return False
    groups = groups_of(cast, label)
    told = compared(cast, told, groups)
    return min((told == name).sum() for name in groups) >= intervals.LEAST


def compared(cast: effects.Voices, told: np.ndarray, groups: tuple[str, str]) -> np.ndarray:
    """A label (speaker,) of two groups alone, and only in corpora that have both; "" for everyone else."""
    corpus = np.zeros(len(told)) if cast.corpus is None else cast.corpus
    both = set(corpus[told == groups[0]]) & set(corpus[told == groups[1]])
    return np.where(np.isin(told, groups) & np.isin(corpus, list(both)), told, "").astype(str)


def alike(shelf: examples.Examples, heard: pd.DataFrame, feature: int, label: str, groups, n: int = 2) -> pd.DataFrame:
    """Examples of a feature in which a voice of either group says it equally strongly: n pairs, the strongest first.

    Of each speaker the clip with the highest peak; `kind` says the group and the speaker. Fewer where voices are few.
    Where clips come from several corpora, the two of a pair come from one.
    """
    peaks = shelf.loudest(feature, len(heard), per_speaker=1)
    told = speaker_labels.choose(heard[[name for name in ("speaker", "corpus", label) if name in heard]]).values
    told = told[label].to_numpy()[peaks["clip"]] if label in told else np.full(len(peaks), "")
    corpus = heard.get("corpus", pd.Series("", heard.index)).iloc[peaks["clip"]].to_numpy()
    one, other = (peaks.assign(corpus=corpus)[told == name] for name in groups)
    pairs = []
    while len(pairs) < 2 * n and set(one.corpus) & set(other.corpus):
        same = np.equal.outer(one.corpus.to_numpy(), other.corpus.to_numpy())
        gap = np.abs(np.subtract.outer(one.value.to_numpy(), other.value.to_numpy()))
        top = min(one.value.max(), other.value.max())
        low = np.minimum.outer(one.value.to_numpy(), other.value.to_numpy())
        gap = np.where(low >= top / 2, gap, gap.max() + gap)  # a weak pair comes last
        i, j = np.unravel_index(np.argmin(np.where(same, gap, np.inf)), gap.shape)
        parts = [one.iloc[[i]].assign(kind=f"{groups[0]} {one.speaker.iloc[i]}"),
                 other.iloc[[j]].assign(kind=f"{groups[1]} {other.speaker.iloc[j]}")]  # fmt: skip
        pairs += [part.drop(columns="corpus") for part in parts]
        one, other = one.drop(one.index[i]), other.drop(other.index[j])
    return pd.concat(pairs, ignore_index=True) if pairs else peaks[:0]
