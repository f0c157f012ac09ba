"""Hallucinations on non-speech: how often Whisper writes words where nobody speaks, whether features detect such
clips, and what steering against it costs speech.

    step = store.make(hallucination.bench(run, seed, site))
    hallucination.by_kind(step), hallucination.detected(step), hallucination.steered(step)    # tables

A transcript is hallucinated if the raw text has words (`nonspeech.has_words`). Whether there is a transcript at all is
decided by RULES. Nothing is fitted on what is asked: detectors and directions come from training speakers and from
kinds of sound other than the one that they are tried on.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from whisper_sae.cache import Recipe, Step, need
from whisper_sae.causal import patching
from whisper_sae.data import clip_table, nonspeech
from whisper_sae.devices import long_pass, on_idle_cores
from whisper_sae.experiments import evaluation_clips
from whisper_sae.experiments.pipeline import clips as clips_of
from whisper_sae.experiments.pipeline import made_by, table
from whisper_sae.experiments.sae_comparison import dictionary
from whisper_sae.model import languages, scoring, whisper_model
from whisper_sae.profiles import Profile
from whisper_sae.stats import intervals, probes

EACH = 4
"""Sounds of each kind that are made."""

OF_CORPUS = 60
"""The most sounds of the corpora: as many of each kind as there can be."""

STRENGTHS = (0.0, 0.2, 0.5)
"""How much of the way from speech to non-speech is added; 0 changes nothing."""

DIRECTIONS = ("features", "mean difference", "random")
N_FEATURES = 16
"""Features that the SAE's direction is made of."""

GREEDY, EMPTY_ALLOWED, WHISPER = RULES = ("greedy", "empty allowed", "Whisper's rule")
"""Rules for what is written. Greedy is what every other transcript of the project is: OpenAI's models suppress the end
of text at the beginning, so it cannot be empty. `empty allowed` is the same without that suppression. Whisper's rule
is the first, discarded where `is_silent`."""

NO_SPEECH, MEAN_LOGPROB = 0.6, -1.0
"""Whisper's thresholds, `no_speech_threshold` and `logprob_threshold` of openai/whisper's transcribe()."""


class NoDirection(ValueError):
    """A direction of steering without a finite length above zero."""


def bench(run: Profile, seed: int, site: str, spoken: int = 24) -> Recipe:
    """`clips.csv`: a row a sound without speech and a clip of speech, with its `patching.outcomes`; `detector.csv`:
    each detector's score of them; `steered.csv`: a row a direction, strength, rule and clip.

    Sounds are the corpora's clips without speech (`nonspeech.is_nonspeech`) and EACH of every kind of `nonspeech`.
    Directions, all of one length: of the features that differ most between non-speech and speech; the difference of
    the means; random, another for every clip. For a sound they are made of all other kinds of sound. Sounds have no
    language: they are decoded in that of most clips of speech (`spoken_language`).
    """
    trained = dictionary(run, seed, site)

    def listen(folder: Path, clips: Step, trained: Step) -> dict:
        sounds, about = _sounds(run, seed)
        whisper = whisper_model.load(run.model, run.device, precision=run.precision)
        learnt = evaluation_clips.gathered(run, seed, (site,), ("train",), most=2 * spoken)
        asked = evaluation_clips.gathered(run, seed, (site,)).fewer(most=spoken, seed=seed)
        language = spoken_language(table(run, clips), run.language)
        sound = patching.hear(whisper, sounds, [site], languages=[language] * len(sounds))[site]
        heard = {"sound": sound, "train": learnt.heard[site],
                 "speech": asked.heard[site]}  # fmt: skip
        nothing = {"": patching.Change(lambda x, _: x)}
        spoken_by = pd.DataFrame({"speaker": asked.speakers, "is": "speech"})
        about = pd.concat([about.assign(**{"is": "sound"}), spoken_by], ignore_index=True).fillna("")
        outcomes = [patching.outcomes(heard[side], nothing, progress=on_idle_cores)[""] for side in SIDES]
        about = about.join(pd.concat(outcomes, ignore_index=True))
        about["repeats"] = [scoring.repetition(text) for text in about.wrote]
        about.to_csv(folder / "clips.csv", index=False)
        coder = evaluation_clips.coder_of(run, seed, site)
        means = {side: _means(one, coder) for side, one in heard.items()}
        _detected(means, about).to_csv(folder / "detector.csv", index=False)
        facts, rows = {"reason": ""}, pd.DataFrame(columns=STEERED)
        try:
            changes = _changes(means, about, coder, seed)
        except NoDirection as error:
            facts["reason"] = str(error)
        else:
            rows = _steered(heard, about, changes, asked.scorer)
        rows.to_csv(folder / "steered.csv", index=False)
        has_token = heard["sound"].decoder.no_speech is not None
        return facts | {"sounds": len(sounds), "spoken": len(asked.clips), "speakers": len(set(asked.speakers)),
                        "no_speech_token": has_token, "language": language}  # fmt: skip

    return Recipe(
        "hallucination", listen, {"seed": seed, "site": site, "spoken": spoken, "each": EACH, "strengths": STRENGTHS,
                                  "of_corpus": OF_CORPUS, "thresholds": (NO_SPEECH, MEAN_LOGPROB)},
        needs={"clips": clips_of(run, seed), "trained": trained}, by=made_by(run, "05"),
        label=f"hallucinations on non-speech, {site}",
    )  # fmt: skip


SIDES = ("sound", "speech")
STEERED = ["is", "direction", "strength", "rule", "kind", "speaker", *scoring.COUNTS]


def spoken_language(clips: pd.DataFrame, language: str = "") -> str:
    """The language in which sounds without speech are decoded: `language`, if a profile sets it, else that of most
    clips in which somebody may speak."""
    return languages.commonest(clips[~nonspeech.is_nonspeech(clips)], language)


def _sounds(run: Profile, seed: int) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Sounds without speech, and of each its kind and where it is from."""
    every = table(run, need(clips_of(run, seed)))
    kinds = np.where((named := nonspeech.class_of(every)) == "", "corpus", named)
    here = every.assign(kind=kinds)[nonspeech.is_nonspeech(every) & (every.duration < 8)]
    here = evaluation_clips.drawn(here.assign(speaker=here.kind), 0, OF_CORPUS, seed)  # the kinds in turn
    sounds, rows = [clip_table.samples(path) for path in here.path], [(kind, "corpus") for kind in here.kind]
    for kind in nonspeech.KINDS:
        sounds += [nonspeech.made(kind, seed * EACH + number) for number in range(EACH)]
        rows += [(kind, "made")] * EACH
    return sounds, pd.DataFrame(rows, columns=["kind", "source"])


# ------------------------------------------------------------------------------------------------- the rules


def is_silent(outcomes: pd.DataFrame) -> np.ndarray:
    """Which clips Whisper takes for silence, (clip,) bool: p of no speech > 0.6 and mean log-probability < -1."""
    return ((outcomes.no_speech > NO_SPEECH) & (outcomes.mean_logprob < MEAN_LOGPROB)).to_numpy()


def texts(outcomes: pd.DataFrame) -> dict[str, list[str]]:
    """{rule: the transcript of each clip} of a table of `patching.outcomes`; without Whisper's rule where the model has
    no token for no speech."""
    found = {GREEDY: outcomes.wrote.tolist(), EMPTY_ALLOWED: outcomes.wrote_or_empty.tolist()}
    if outcomes.no_speech.notna().all():
        found[WHISPER] = np.where(is_silent(outcomes), "", outcomes.wrote).tolist()
    return found


# ---------------------------------------------------------------------------------------------- detectors, directions


def _means(heard: patching.Heard, coder) -> tuple[np.ndarray, np.ndarray]:
    """The mean code and the mean activation of each clip over its valid frames: (clip, feature), (clip, width)."""
    coded = patching.Coded(heard, coder)
    frames = coded.frames.shape[1]
    entries = coded.codes.tocoo()
    total = np.zeros((len(heard), coded.codes.shape[1]))
    np.add.at(total, (entries.row // frames, entries.col), entries.data)
    total /= np.maximum(coded.frames.sum(dim=1).cpu().numpy(), 1)[:, None]
    x = torch.stack([one[valid].mean(dim=0) for one, valid in zip(heard.held, heard.valid, strict=True)])
    return total, x.cpu().numpy()


def _detected(means: dict, about: pd.DataFrame) -> pd.DataFrame:
    """Scores of non-speech: a row a detector, fold and clip; `clip` is the row of `about`. Probes of the mean codes and
    of the mean activations, fitted on training speakers and kinds of other folds; and without fitting Whisper's own
    p of no speech and, for the less sure, minus the mean log-probability."""
    sound = (about["is"] == "sound").to_numpy()
    kinds, rows = about.kind[sound].to_numpy(), []
    number = {kind: turn % 4 for turn, kind in enumerate(dict.fromkeys(kinds))}
    fold = np.array([number[kind] for kind in kinds])
    for place, name in enumerate(("features", "activations")):
        x = {side: means[side][place] for side in means}
        for turn in range(4):
            known = np.concatenate([x["sound"][fold != turn], x["train"]])
            probe = probes.fit(known, np.r_[np.ones((fold != turn).sum()), np.zeros(len(x["train"]))], 0.1)
            clips = np.r_[np.flatnonzero(fold == turn), np.flatnonzero(~sound)]
            scores = probe.decision_function(np.concatenate([x["sound"][fold == turn], x["speech"]]))
            rows.append(pd.DataFrame({"detector": name, "fold": turn, "clip": clips, "score": scores}))
    for name, scores in (("p(no speech)", about.no_speech), ("-mean log-probability", -about.mean_logprob)):
        if scores.notna().all():
            rows.append(pd.DataFrame({"detector": name, "fold": 0, "clip": about.index, "score": scores}))
    return pd.concat(rows, ignore_index=True)


def directions(
    silent: tuple[np.ndarray, np.ndarray], spoken: tuple[np.ndarray, np.ndarray], W_dec: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Directions from speech to non-speech, (width,) each and equally long, from the `_means` of either side.

    Raises NoDirection where one is not finite or is zero, so that none can reach a model.
    """
    if not len(silent[0]) or not len(spoken[0]):
        raise NoDirection(f"directions: {len(silent[0])} sounds and {len(spoken[0])} clips of speech are left")
    gap = silent[0].mean(axis=0) - spoken[0].mean(axis=0)
    spread = np.sqrt(silent[0].var(axis=0) + spoken[0].var(axis=0)) + 1e-6
    top = np.argsort(-np.abs(gap) / spread)[:N_FEATURES]
    along = {
        "features": torch.from_numpy(gap[top]).float() @ W_dec[top.tolist()].cpu().float(),
        "mean difference": torch.from_numpy(silent[1].mean(axis=0) - spoken[1].mean(axis=0)).float(),
    }
    length = along["mean difference"].norm()
    for name, way in along.items():
        if not (torch.isfinite(way).all() and way.norm() > 0):
            raise NoDirection(f"directions: {name!r} has no length: the SAE or the site says the same of both sides")
    return {name: way * (length / way.norm()) for name, way in along.items()}


def _changes(means: dict, about: pd.DataFrame, coder, seed: int) -> dict[str, dict[tuple, patching.Change]]:
    """{side: {(direction, strength): change}}; each sound has the directions of all kinds but its own."""
    kinds = about.kind[about["is"] == "sound"].to_numpy()
    of_kind = {
        kind: directions([x[kinds != kind] for x in means["sound"]], means["train"], coder.W_dec)
        for kind in dict.fromkeys(kinds)
    }
    every = directions(means["sound"], means["train"], coder.W_dec)
    each = {"sound": [of_kind[kind] for kind in kinds], "speech": [every] * int((about["is"] == "speech").sum())}
    rng, found = torch.Generator().manual_seed(seed), {}
    for side, known in each.items():
        ways = {name: torch.stack([one[name] for one in known]) for name in DIRECTIONS if name != "random"}
        drawn = torch.randn(ways["mean difference"].shape, generator=rng)
        length = ways["mean difference"].norm(dim=1, keepdim=True)
        ways["random"] = drawn / drawn.norm(dim=1, keepdim=True) * length
        found[side] = {
            (name, strength): _adding(strength * way)
            for name, way in ways.items()
            for strength in STRENGTHS
            if strength
        }
    return found


def _adding(step: torch.Tensor) -> patching.Change:
    """A change that adds a vector of each clip's own, (clip, width), on all its frames."""
    return patching.Change(lambda x, clips: x + step.to(x)[clips.to(x.device)][:, None])


def _steered(heard: dict, about: pd.DataFrame, changes: dict, scorer: scoring.Scorer) -> pd.DataFrame:
    """A row a side, direction, strength, rule and clip, with the counts of `scoring`."""
    rows = []
    for side in SIDES:
        here = about[about["is"] == side].reset_index(drop=True)
        found = patching.outcomes(heard[side], changes[side], progress=long_pass("steering"))
        found |= {(name, 0.0): here for name in DIRECTIONS}
        count = scorer if side == "speech" else scoring.Scorer([""] * len(here))
        for (name, strength), outcome in found.items():
            for rule, wrote in texts(outcome).items():
                facts = {"is": side, "direction": name, "strength": strength, "rule": rule}
                rows.append(count.count(wrote).assign(**facts, kind=here.kind, speaker=here.speaker))
    return pd.concat(rows, ignore_index=True)[STEERED]


# ------------------------------------------------------------------------------------------------- the tables


def by_kind(step: Step) -> pd.DataFrame:
    """A row a kind of sound: how many sounds, of how many words are written under each rule, the medians of p of no
    speech and of the mean log-probability, and a transcript; the most hallucinated kinds first."""
    every = _read(step, "clips.csv")
    sounds = every[every["is"] == "sound"].reset_index(drop=True)
    rules = {rule: [nonspeech.has_words(text) for text in wrote] for rule, wrote in texts(sounds).items()}
    sounds = sounds.assign(**rules)
    how = {rule: (rule, "sum") for rule in rules}
    rows = sounds.groupby(["kind", "source"], sort=False).agg(
        sounds=("wrote", "size"), **how, no_speech=("no_speech", "median"), mean_logprob=("mean_logprob", "median"),
        example=("wrote", "max"),
    )  # fmt: skip
    return rows.sort_values(list(rules)[::-1], ascending=False, kind="stable").reset_index()


def detected(step: Step) -> pd.DataFrame:
    """A row a detector: the AUC of sounds without speech against clips of speech, and of those sounds alone of which
    words are written though an empty transcript is allowed, with intervals.

    Intervals are those of as many sounds and as many speakers; NaN where either is below `intervals.LEAST`.
    """
    every = _read(step, "clips.csv")
    words = np.array([nonspeech.has_words(text) for text in every.wrote_or_empty])
    sound = (every["is"] == "sound").to_numpy()
    speakers, rows = every.speaker[~sound].nunique(), []
    for name, part in step.table("detector.csv").groupby("detector", sort=False):
        score = part.groupby("clip").score.mean().reindex(every.index).to_numpy()
        row = {"detector": name}
        for what, asked in (("non_speech", sound), ("hallucinated", sound & words)):
            auc, n = np.nan, int(asked.sum())
            if n and (~sound).any():
                auc = roc_auc_score(np.r_[np.ones(n), np.zeros((~sound).sum())], np.r_[score[asked], score[~sound]])
            ends = intervals.of_auc(np.array([auc]), max(n, 1), max(speakers, 1))
            row |= {what: auc, f"{what}_low": ends.low[0], f"{what}_high": ends.high[0], f"{what}_n": n}
        rows.append(row | {"speech_n": int((~sound).sum()), "speakers": speakers})
    return pd.DataFrame(rows)


def steered(step: Step, seed: int = 0) -> pd.DataFrame:
    """A row a direction, strength and rule: `hallucinated`, the percentage of the sounds of which words are written,
    with the interval of a proportion, `fewer`, how much it is below the untouched, with an interval over kinds of
    sound; and the WER of speech with its own over speakers, `more` being above the untouched. Empty where nothing could
    be steered."""
    rows = []
    for (name, rule), part in _read(step, "steered.csv").groupby(["direction", "rule"], sort=False):
        sides = {}
        for side in SIDES:
            here = part[part["is"] == side].sort_values("strength", kind="stable")
            sides[side] = {strength: one.reset_index(drop=True) for strength, one in here.groupby("strength")}
        sound, spoken = sides["sound"], sides["speech"]
        rates = scoring.table({f"{s:g}": one for s, one in spoken.items()}, spoken[0.0].speaker.tolist(), seed=seed)
        wrote = np.stack([one.hallucinated for one in sound.values()])
        drop = scoring.compared(wrote, np.ones(wrote.shape[1]), sound[0.0].kind, seed=seed)
        for number, (strength, rate) in enumerate(zip(sound, rates.itertuples(), strict=True)):
            share, low, high = proportion(int(wrote[number].sum()), wrote.shape[1])
            rows.append({
                "direction": name, "strength": strength, "rule": rule, "hallucinated": share, "hallucinated_low": low,
                "hallucinated_high": high, "fewer": 0 - drop.more[number], "fewer_low": 0 - drop.more_high[number],
                "fewer_high": 0 - drop.more_low[number], "sounds": wrote.shape[1], "kinds": drop.speakers,
                "WER": rate.WER, "WER_low": rate.WER_low, "WER_high": rate.WER_high, "more": rate.more,
                "more_low": rate.more_low, "more_high": rate.more_high, "clips": rate.clips, "speakers": rate.speakers,
            })  # fmt: skip
    return pd.DataFrame(rows)


def proportion(found: int, of: int, z: float = 1.96) -> tuple[float, float, float]:
    """A percentage and its 95 % interval (Wilson 1927), NaN of fewer than `intervals.LEAST`."""
    if not of:
        return np.nan, np.nan, np.nan
    share, weight = found / of, z * z / of
    if of < intervals.LEAST:
        return 100 * share, np.nan, np.nan
    middle = (share + weight / 2) / (1 + weight)
    reach = z * np.sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return 100 * share, 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)


def _read(step: Step, name: str) -> pd.DataFrame:
    """A table of the bench; numbers that there are none of are NaN, an empty transcript is a text."""
    words = ("wrote", "wrote_or_empty", "kind", "speaker", "direction", "is", "source", "rule")
    numbers = ("no_speech", "mean_logprob", "hallucinated")
    return step.table(name, dtype=dict.fromkeys(words, str), na_values=dict.fromkeys(numbers, ""))
