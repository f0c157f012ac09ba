"""Which phone each feature goes with: recipes that ask the features of an index, and set the answers against chance.

    step = store.make(phonetics.detection(run, seed, site))     # how well the best features detect each phone
    step = store.make(phonetics.answers(run, seed, site))       # what each feature goes with, and what is chance

Both ask whatever `meaning.codes` makes an index of: a dictionary, neurons, principal directions, random directions.
Features of a signed index have two sides, the lower ones numbered on from the upper: feature + the number of features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step, need
from whisper_sae.data import clip_table, frame_alignment, phonology
from whisper_sae.experiments import feature_index
from whisper_sae.experiments.phone_tables import digests, phones_of
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.features import index, phone_detection, selectivity, sparse_acts, timing
from whisper_sae.features.tuning import ByLabel, by_label_histogram
from whisper_sae.profiles import Profile
from whisper_sae.stats import null_distribution
from whisper_sae.stats.intervals import LEAST

LEAST_FRAMES = 25
"""Labels with fewer frames are not asked about, where any has more."""

TOLERANCE = 0.01
"""Seconds around an edge between two phones in which a frame's centre counts for neither: half a frame."""

SHIFTS = 100
"""How often the alignment is shifted to see what chance gives."""

SHIFTED = 20
"""How many shifted alignments are then treated as if they were the true one, to see what is found in them."""

SWAPS = 50
"""How often clips swap their alignments to see what the time since a window began gives by itself."""

TIMED = 60
"""Of how many features, those with the highest F1 among the found, the lag of the peak is looked for."""

PART = 256
"""Sides of an index that are asked at a time."""

STANDS_OUT = 1.25
"""How many times the mean of a phone's thirds a feature must say in one of them for that to be its stage."""


class Asked(NamedTuple):
    """The frames of an index that have a label, in the order of its rows."""

    here: np.ndarray
    """(row,) which rows these are."""
    frames: sparse_acts.Frames
    choosing: np.ndarray
    """(frame,) on which is chosen; on the others is scored."""
    apart: str
    """What the two have no share of: "speakers" or "clips"."""
    few: dict[str, int]
    """Labels that are left out since they have fewer than LEAST_FRAMES, and how many each has."""
    texts: dict[str, int]
    """How many clips are `scored`, how many of them say what a clip said that was chosen on (`shared`), and how many
    clips were left out so that none does (`left_out`)."""
    where: frame_alignment.Placed
    """(row,)."""
    clock: timing.Clock
    """(row,)."""
    window: np.ndarray
    """(row,) in which Whisper heard it, with others where windows are packed,"""
    position: np.ndarray
    """(row,) and as which of its frames."""
    told: pd.DataFrame


def asked(run: Profile, heard: pd.DataFrame, recording: Step, column: str = "ipa", seed: int = 0) -> Asked:
    """The labelled frames of a recording. `column` of the phones is asked: ipa, manner, word, or a class of
    `articulation`, such as place, voicing or height.

    Chosen is on the training speakers and scored on the others. Where either are fewer than `intervals.LEAST`, half of
    all speakers are the one, and of a single speaker half of the clips. Where both read the same sentences, these are
    held out, too, as far as speakers suffice, see `_other_texts`. Not asked is what is no phone, such as a corpus's
    marks of something else, nor a label with fewer than LEAST_FRAMES. Raises BadPhones where none is told.
    """
    windows, counts = recording.table("windows.csv"), store.Activations(recording.path).counts
    clip = np.repeat(windows["clip"].to_numpy(), counts)
    within = np.concatenate([np.arange(n) for n in counts])
    moment = clip_table.moments(within, np.repeat(windows["first"].to_numpy(), counts))
    speaker = heard.speaker.where(heard.speaker != "", heard.id).to_numpy()[clip]
    told = phones_of(run, heard)
    told = told.assign(**{column: _classes(told, column)})
    where = frame_alignment.placed(told, clip, moment)
    label = frame_alignment.labels(told, where, column, TOLERANCE)
    if not (label != "").any():
        raise frame_alignment.BadPhones(f"phones: no corpus of this profile tells a phone's {column}")
    number, names = pd.factorize(label, sort=True)
    count = np.where(names == "", 0, np.bincount(number))
    common = count >= min(LEAST_FRAMES, count.max())
    common &= count > 0
    few = {str(names[n]): int(count[n]) for n in np.flatnonzero(~common & (count > 0))}
    here, place = common[number], np.cumsum(common) - 1
    voice, piece = (pd.factorize(of[here])[0] for of in (speaker, clip))
    known = sparse_acts.Frames(place[number[here]], names[common], voice, piece)
    choosing, apart = _choosing((heard.split == "train").to_numpy()[clip[here]], known, seed)
    text = pd.factorize(_texts(heard))[0][clip[here]]
    kept = _other_texts(choosing, known, text, seed)
    texts = _overlap(choosing[kept], text[kept], piece[kept]) | {"left_out": len(set(piece)) - len(set(piece[kept]))}
    here[here] = kept
    voice, piece = (pd.factorize(of[here])[0] for of in (speaker, clip))
    known, choosing = sparse_acts.Frames(known.label[kept], known.names, voice, piece), choosing[kept]
    window, at = (np.repeat(windows[name].to_numpy(), counts) for name in ("heard", "at"))
    return Asked(
        here, known, choosing, apart, few, texts, where, timing.Clock(clip, moment, speaker), window, at + within, told
    )


def _texts(heard: pd.DataFrame) -> pd.Series:
    """What is said in each clip, without case and punctuation; the clip's own name where nobody told."""
    plain = heard.text.str.lower().str.replace(r"[\W_]+", " ", regex=True).str.strip()
    return plain.where(plain != "", "clip " + heard.id)


def _other_texts(choosing: np.ndarray, known: sparse_acts.Frames, text: np.ndarray, seed: int) -> np.ndarray:
    """Which frames to keep, (frame,) bool, so that no sentence is both chosen and scored on.

    Clips to be scored whose sentence was chosen on are left out, if that leaves half of the frames and, on both sides,
    as many speakers as intervals need (or as there are). Else half of the sentences are for choosing and half for
    scoring. Where neither leaves enough, as where everyone reads one sentence, all are kept.
    """
    met = ~choosing & np.isin(text, text[choosing])
    sides = (choosing, ~choosing)
    if not met.any():
        return np.ones(len(choosing), dtype=bool)

    def enough(kept: np.ndarray) -> bool:
        left = [(len(np.unique(known.speaker[side & kept])), len(np.unique(known.speaker[side]))) for side in sides]
        return all(now >= min(LEAST, before) for now, before in left)

    new, half = ~met, sparse_acts.half_of(text, seed)
    if enough(new) and (new & ~choosing).sum() >= met.sum():
        return new
    dealt = choosing == half
    return dealt if len(np.unique(text)) > 1 and enough(dealt) else np.ones(len(choosing), dtype=bool)


def _overlap(choosing: np.ndarray, text: np.ndarray, piece: np.ndarray) -> dict[str, int]:
    """How many clips are scored, and how many of these say what was said where was chosen."""
    met = ~choosing & np.isin(text, text[choosing])
    return {"scored": len(set(piece[~choosing])), "shared": len(set(piece[met]))}


def unaskable(run: Profile, heard: pd.DataFrame, recording: Step, seed: int = 0) -> str:
    """Why phones cannot be asked about, in a sentence; "" where they can."""
    try:
        known = asked(run, heard, recording, seed=seed)
    except frame_alignment.BadPhones:
        return "No corpus of this profile has times of phones, so nothing is asked about phones."
    if len(known.frames.names) < 2:
        return f"All labelled frames are of one phone, {known.frames.names[0]}, so nothing is asked about phones."
    if known.choosing.all() or not known.choosing.any():
        return "All phones are in one clip, so none is left to score on, and nothing is asked about phones."
    return ""


def _classes(told: pd.DataFrame, column: str) -> pd.Series:
    """What is told of each phone in a column, or of its articulation; "" where that is nothing."""
    if column in told:
        return told[column].replace("phone", "") if column == "manner" else told[column]
    return told.ipa.map(phonology.classes(told.ipa.unique(), "ipa")[column]).fillna("")


def askable(
    run: Profile, heard: pd.DataFrame, recording: Step, columns: Sequence[str], seed: int = 0
) -> tuple[list[str], dict[str, str]]:
    """The columns of phones that can be asked about, see `asked`; and why others cannot."""
    found, refused = [], {}
    for column in columns:
        try:
            known = asked(run, heard, recording, column, seed)
        except frame_alignment.BadPhones:
            refused[column] = "not known of any phone"
            continue
        if len(known.frames.names) < 2:
            refused[column] = f"all are {known.frames.names[0]}" + _listed(known.few, "; ")
        elif known.choosing.all() or not known.choosing.any():
            refused[column] = "all are in one clip, so none is left to score on"
        else:
            found.append(column)
    return found, refused


def _listed(few: dict[str, int], before: str = "") -> str:
    """Labels that are left out, with their frames; "" of none."""
    names = ", ".join(f"{name} ({count})" for name, count in few.items())
    return f"{before}fewer than {LEAST_FRAMES} frames: {names}" if few else ""


def asked_about(steps: dict[str, Step], refused: dict[str, str]) -> pd.DataFrame:
    """Which columns of phones are asked: a row each of `steps`, {column: step of `detection`}, and of those that
    `askable` refused, with how many labels count, and a note of what is left out and why."""
    rows = [(name, "yes", step.facts["labels"], _listed(step.facts["few"])) for name, step in steps.items()]
    rows += [(name, "no", 0, why) for name, why in refused.items()]
    return pd.DataFrame(rows, columns=["column", "asked", "labels", "left out"])


def _choosing(train: np.ndarray, known: sparse_acts.Frames, seed: int) -> tuple[np.ndarray, str]:
    if min(len(np.unique(known.speaker[side])) for side in (train, ~train)) >= LEAST:
        return train, "speakers"
    half = sparse_acts.half_of(known.speaker, seed)
    return (half, "speakers") if not half.all() else (sparse_acts.half_of(known.clip, seed), "clips")


def detection(run: Profile, seed: int, site: str, of: str = "dictionary", column: str = "ipa", **which) -> Recipe:
    """`labels.csv`: the best detector of each label and how well it does on others than it was chosen on; `draws.npy`:
    the mean over labels for each draw of the speakers. See `detectors.dictionary_score`."""
    made = feature_index.codes(run, seed, site, of, **which)

    def score(folder: Path, clips: Step, activations: Step, built: Step) -> dict:
        known = asked(run, table(run, clips), activations, column, seed)
        found = index.Index(built.path)
        parts = (found.columns(first, min(first + PART, found.sides)) for first in range(0, found.sides, PART))
        parts = tqdm(parts, desc=f"asking the {of}", unit=" parts", total=-(-found.sides // PART))
        every, choosing = _every_row(known)
        told = phone_detection.dictionary_score(
            parts, every, choosing, scored=known.here & ~choosing, everywhere=_everywhere(known, column), seed=seed
        )
        told.table.to_csv(folder / "labels.csv", index=False)
        np.save(folder / "draws.npy", told.draws)
        facts = {"f1": told.f1, "low": told.low, "high": told.high, "features": found.sides, "apart": known.apart}
        counted, scored = told.table[told.table.counted], known.frames.speaker[~known.choosing]
        facts |= {"labels": len(counted), "chance": float(counted.chance.mean()), "speakers": len(np.unique(scored))}
        facts |= dict(zip(("f1_all", "all_low", "all_high"), told.everywhere, strict=True))
        return facts | {"frames": len(known.choosing), "texts": known.texts, "few": known.few}

    return Recipe(
        "detection", score, {"seed": seed, "column": column, "told": digests(run)},
        needs={"clips": made.needs["clips"], "activations": made.needs["activations"], "built": made},
        by=made_by(run, "06"), label=f"{column} from the {of} of {site}",
    )  # fmt: skip


def _every_row(known: Asked) -> tuple[sparse_acts.Frames, np.ndarray]:
    """What is known of all rows of an index, not of the labelled ones alone, and on which is chosen: (row,)."""

    def spread(part: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(known.here), part.dtype)
        whole[known.here] = part
        return whole

    label, names, speaker, clip = known.frames
    return sparse_acts.Frames(spread(label), names, spread(speaker), spread(clip)), spread(known.choosing)


def _everywhere(known: Asked, column: str) -> sparse_acts.Frames:
    """The label of every frame of the scored clips, up to the edges and in pauses, as `detectors.dictionary_score` has
    it: (row,)."""
    names, clock = known.frames.names, known.clock
    label = pd.Index(names).get_indexer(frame_alignment.labels(known.told, known.where, column))
    label = np.where(label < 0, len(names), label)
    scored = np.isin(clock.clip, clock.clip[known.here][~known.choosing])
    return sparse_acts.Frames(np.where(scored, label, -1), names, pd.factorize(clock.speaker)[0], clock.clip)


def score_of(step: Step) -> phone_detection.DictionaryScore:
    """What a step of `detection` found, as it was."""
    facts = step.facts
    return phone_detection.DictionaryScore(
        facts["f1"], facts["low"], facts["high"], read(step, "labels.csv"), step.array("draws.npy"), facts["speakers"],
        (facts["f1_all"], facts["all_low"], facts["all_high"]),
    )  # fmt: skip


def compared(steps: dict[str, Step]) -> pd.DataFrame:
    """Steps of `detection` that asked the same, side by side: see `detectors.beside`."""
    return phone_detection.beside({name: score_of(step) for name, step in steps.items()})


def read(step: Step, name: str) -> pd.DataFrame:
    """A table of `detection` or `answers`; what could not be said is NaN, and labels are text, "NA" and "null" too."""
    texts = {column: str for column in ("label", "stage")}
    numbers = [column for column in step.table(name, nrows=0) if column not in texts]
    return step.table(name, dtype=texts, na_values={column: [""] for column in numbers})


def answers(run: Profile, seed: int, site: str, of: str = "dictionary", column: str = "ipa", **which) -> Recipe:
    """`features.csv`: a row a side of a feature, the label that goes best with it and its scores, what chance gives,
    and when in the phone it fires; `labels.csv`: frames of each label and how many features were found for it.

    `found` in features.csv is whether that feature and label are a discovery at a false discovery rate of 5 %, beyond
    alignments that were shifted in time and beyond those that clips swapped; `pairs` with how many labels they are.
    The facts say how many pairs were tested and found, how many were beyond shifts alone (`by_shifts`) and beyond swaps
    alone (`by_swaps`), and, in `shifted`, how many are found in alignments that were shifted in time.
    """
    made = feature_index.codes(run, seed, site, of, **which)

    def answer(folder: Path, clips: Step, activations: Step, built: Step) -> dict:
        known = asked(run, table(run, clips), activations, column, seed)
        found = index.Index(built.path)
        every = found.columns(0, found.sides)
        mine = sparse_acts.only(every, known.here)
        scores = selectivity.scores(mine, known.frames, known.choosing)
        verdict, facts = _against_chance(mine, known, seed)
        told = scores.best().reset_index()
        number = np.searchsorted(known.frames.names, told.label)
        rows = np.arange(len(told))
        told["chance"] = _f1_of_always(known)[number]
        told["z"], told["q"] = verdict.z[rows, number], verdict.q[rows, number]
        told["found"], told["pairs"] = verdict.found()[rows, number], verdict.found().sum(axis=1)
        third = known.where.third[known.here]
        stages = timing.stages(mine, known.frames, third, mine.data)[rows, number]
        told[[*timing.STAGES]] = stages
        told["stage"] = _stage(stages)
        told[["lag", "lag_low", "lag_high"]] = _lags(every, told, known, column)
        told.to_csv(folder / "features.csv", index=False)
        labels = {"label": known.frames.names, "frames": known.frames.count, "found": verdict.found().sum(axis=0)}
        pd.DataFrame(labels).to_csv(folder / "labels.csv", index=False)
        facts |= {"tested": int(np.isfinite(verdict.p).sum()), "found": int(verdict.found().sum())}
        facts |= {"features": len(told), "apart": known.apart, "frames": len(known.choosing), "texts": known.texts}
        return facts | {"windows": len(np.unique(known.window[known.here]))}

    return Recipe(
        "answers", answer, {"seed": seed, "column": column, "told": digests(run)},
        needs={"clips": made.needs["clips"], "activations": made.needs["activations"], "built": made},
        by=made_by(run, "06"), label=f"what the {of} of {site} say of each {column}",
    )  # fmt: skip


def _against_chance(mine: csc_array, known: Asked, seed: int) -> tuple[null_distribution.Verdict, dict]:
    """How AUC stands out from alignments that were shifted and from alignments that were swapped, and how many
    discoveries there are beyond each; and if a shifted one is the true."""
    ranked, label = selectivity.ranked(mine, known.frames), known.frames.label
    shifts = tqdm(
        null_distribution.shifts(known.frames.clip, SHIFTS, seed), desc="shifting", unit=" alignments", total=SHIFTS
    )
    swaps = null_distribution.swaps(known.window[known.here], known.position[known.here], SWAPS, seed=seed)
    swaps = tqdm(swaps, desc="swapping", unit=" alignments", total=SWAPS)
    null, swapped = (null_distribution.null(ranked.auc, label, orders) for orders in (shifts, swaps))
    observed, spread, size = ranked.auc(label), ranked.spread, ranked.expected
    by_shifts, by_swaps = (null_distribution.judge(observed, each, spread, size) for each in (null, swapped))
    shifted = []
    for left_out in range(min(SHIFTED, SHIFTS - null_distribution.APART)):
        others = np.delete(null, left_out, axis=0)
        shifted.append(int(null_distribution.judge(null[left_out], others, spread, size).found().sum()))
    counts = {name: int(each.found().sum()) for name, each in (("by_shifts", by_shifts), ("by_swaps", by_swaps))}
    return null_distribution.both(by_shifts, by_swaps), counts | {"shifted": shifted}


def _f1_of_always(known: Asked) -> np.ndarray:
    """The F1 of always saying a label: (label,)."""
    mine = known.frames.label[~known.choosing]
    share = np.bincount(mine, minlength=len(known.frames.names)) / max(1, len(mine))
    return 2 * share / (1 + share)


def _stage(means: np.ndarray) -> np.ndarray:
    """The third of the phone in which a feature says most, "" where none stands out: means, (feature, third)."""
    means = np.nan_to_num(means)
    clear = means.max(axis=1) > STANDS_OUT * np.maximum(means.mean(axis=1), 1e-12)
    return np.where(clear, np.array(timing.STAGES)[means.argmax(axis=1)], "")


def _lags(every: csc_array, told: pd.DataFrame, known: Asked, column: str) -> np.ndarray:
    """Seconds from the middle of its phone to a feature's peak, and the interval: (feature, 3), NaN but for TIMED."""
    lags = np.full((len(told), 3), np.nan)
    middles = {label: (rows["clip"], (rows.start + rows.end) / 2) for label, rows in known.told.groupby(column)}
    best = told[told.found].sort_values("f1_chosen", ascending=False, kind="stable").index[:TIMED]
    for row in tqdm(best, desc="timing peaks", unit=" features"):
        late = timing.latency(every, row, known.clock, *middles[told.label[row]])
        lags[row] = late.lag, late.low, late.high
    return lags


def by_phone(run: Profile, seed: int, site: str, of: str, number: int, **which) -> ByLabel:
    """What one feature says of the frames of each phone, from both of its sides, speakers counted once each. The index
    of `meaning.codes` has to be made before."""
    made = feature_index.codes(run, seed, site, of, **which)
    clips, recording = need(made.needs["clips"]), need(made.needs["activations"])
    known = asked(run, table(run, clips), recording, seed=seed)
    found = index.Index(need(made).path)
    rows, value = found.activations(number)
    line = np.zeros(found.rows, np.float32)
    line[rows] = value
    asked_of = known.frames
    return by_label_histogram(line[known.here], asked_of.names[asked_of.label], asked_of.speaker)


def planted(known: Asked, seed: int) -> tuple[int, selectivity.Scores]:
    """A label, the commonest, and the scores of two made-up features: one fires on it, and one on it in an alignment
    that was shifted in time; both fire on a fiftieth of the other frames as well, more weakly."""
    frames_, rng = known.frames, np.random.default_rng(seed)
    label = int(frames_.count.argmax())
    shifted = frames_.label[next(null_distribution.shifts(frames_.clip, 1, seed + 1))]
    on = np.stack([frames_.label == label, shifted == label], axis=1)
    astray = rng.uniform(size=on.shape) < 0.02
    made = on * rng.uniform(1, 2, on.shape) + astray * rng.uniform(0, 1, on.shape)
    return label, selectivity.scores(sparse_acts.of_chunks([made]), frames_, known.choosing)
