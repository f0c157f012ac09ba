"""Words where nobody speaks: how often, whether features tell them, and what steering against them costs speech.

    step = store.make(hallucination.bench(run, seed, site))
    hallucination.by_kind(step), hallucination.steered(step)    # tables

Nothing is fitted on what is asked: detector and directions come from training speakers and from kinds of sound other
than those that they are tried on.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from whisper_sae import causal, intervals, model, nonspeech, patching, probes, scoring, speech
from whisper_sae.dictionaries import dictionary
from whisper_sae.profiles import Profile
from whisper_sae.recipes import clips as clips_of
from whisper_sae.recipes import made_by, table
from whisper_sae.store import Recipe, Step, need

EACH = 8
"""Sounds of each kind that are made."""

STRENGTHS = (0.0, 0.1, 0.2, 0.5)
"""How much of the way from speech to its absence is gone; 0 changes nothing."""

DIRECTIONS = ("features", "mean difference", "random")
NAMED = 16
"""Features that the SAE's direction is made of."""


def bench(run: Profile, seed: int, site: str, spoken: int = 24) -> Recipe:
    """`sounds.csv`: a row a sound without speech, what is written of it; `detector.csv`, how sure a probe is that each
    transcript is of no speech; `steered.csv`, a row a direction, strength and clip, what is written under it.

    Sounds: the corpus's clips without words, and EACH of every kind of `nonspeech`. Directions, all of one length: of
    the features that differ most between speech and its absence, what they say more; the difference of the means;
    random.
    """
    trained = dictionary(run, seed, site)

    def listen(folder: Path, clips: Step, trained: Step) -> dict:
        sounds, told = _sounds(run, seed)
        whisper = model.load(run.model, run.device, precision=run.precision)
        heard = patching.hear(whisper, sounds, [site])[site]
        told["wrote"] = patching.said(heard, heard.plain)
        told["repeats"] = [scoring.repetition(text) for text in told.wrote]
        told.to_csv(folder / "sounds.csv", index=False)
        learnt = causal.gathered(run, seed, (site,), ("train",), most=2 * spoken)
        asked = causal.gathered(run, seed, causal.sites_of(run)).fewer(most=spoken, seed=seed)
        coder = causal.coder_of(run, seed, site)
        parts = {name: (patching.Coded(one, coder), one) for name, one in
                 {"sound": heard, "train": learnt.heard[site], "test": asked.heard[site]}.items()}  # fmt: skip
        _detected(parts, told).to_csv(folder / "detector.csv", index=False)
        _steered(parts, told, asked, coder, seed).to_csv(folder / "steered.csv", index=False)
        return {"sounds": len(told), "spoken": len(asked.clips), "speakers": len(set(asked.speakers))}

    return Recipe(
        "hallucination", listen, {"seed": seed, "site": site, "spoken": spoken, "each": EACH, "strengths": STRENGTHS},
        needs={"clips": clips_of(run, seed), "trained": trained}, by=made_by(run, "05"),
        code=(*causal.CODE, nonspeech, scoring, probes, bench, _sounds, _detected, _steered, _directions, _clip_means,
              causal.gathered, causal.drawn), label=f"words where nobody speaks, {site}",
    )  # fmt: skip


def _sounds(run: Profile, seed: int) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Sounds without speech, and of each its kind and where it is from."""
    heard = table(run, need(clips_of(run, seed)))
    mute = heard[(heard.text.str.strip() == "") & (heard.duration < 8)].head(128)
    sounds = [speech.samples(path) for path in mute.path]
    kinds = mute.label if "label" in mute else pd.Series("corpus", index=mute.index)
    rows = [(kind or "corpus", "corpus") for kind in kinds]
    for kind in nonspeech.KINDS:
        sounds += [nonspeech.made(kind, seed * EACH + number) for number in range(EACH)]
        rows += [(kind, "made")] * EACH
    return sounds, pd.DataFrame(rows, columns=["kind", "source"])


def _clip_means(coded: patching.Coded) -> np.ndarray:
    """The mean code of each clip over its valid frames: (clip, feature)."""
    frames = coded.frames.shape[1]
    entries = coded.codes.tocoo()
    total = np.zeros((len(coded.heard), coded.codes.shape[1]))
    np.add.at(total, (entries.row // frames, entries.col), entries.data)
    return total / np.maximum(coded.frames.sum(dim=1).numpy(), 1)[:, None]


def _detected(parts: dict, told: pd.DataFrame) -> pd.DataFrame:
    """How sure a probe is that nobody speaks, a row a sound and a held-out clip; it has met neither its kind nor its
    speaker. Inputs: mean codes, and for comparison the mean of what the site says."""
    means = {"features": {name: _clip_means(coded) for name, (coded, _) in parts.items()}}
    means["what the site says"] = {
        name: torch.stack([x[v].mean(dim=0) for x, v in zip(one.held, one.valid, strict=True)]).numpy()
        for name, (_, one) in parts.items()
    }
    kinds, rows = told.kind.to_numpy(), []
    folds = {kind: turn % 4 for turn, kind in enumerate(dict.fromkeys(kinds))}
    fold = np.array([folds[kind] for kind in kinds])
    for name, x in means.items():
        for turn in range(4):
            known = np.concatenate([x["sound"][fold != turn], x["train"]])
            probe = probes.fit(known, np.r_[np.ones((fold != turn).sum()), np.zeros(len(x["train"]))], 0.1)
            apart = probe.decision_function(np.concatenate([x["sound"][fold == turn], x["test"]]))
            mine = (fold == turn).nonzero()[0]
            said = patching.said(parts["test"][1], parts["test"][1].plain)
            asked_of = [("sound", kinds[n], told.wrote[n]) for n in mine] + [("speech", "", text) for text in said]
            rows += [(name, turn, *one, sure) for one, sure in zip(asked_of, apart, strict=True)]
    return pd.DataFrame(rows, columns=["input", "fold", "is", "kind", "wrote", "sure"])


def _directions(parts: dict, prone: np.ndarray, coder, seed: int) -> dict[str, torch.Tensor]:
    """Ways from speech to its absence, (width,) each and equally long; sounds that are `prone` are left out."""
    silent, spoken = (_clip_means(parts[name][0]) for name in ("sound", "train"))
    gap = silent[~prone].mean(axis=0) - spoken.mean(axis=0)
    spread = np.sqrt(silent[~prone].var(axis=0) + spoken.var(axis=0)) + 1e-6
    named = np.argsort(-np.abs(gap) / spread)[:NAMED]
    ways = {"features": torch.from_numpy(gap[named]).float() @ coder.W_dec[named.tolist()]}
    (_, mute), (_, voiced) = parts["sound"], parts["train"]
    mute = patching.some(mute, ~prone)
    ways["mean difference"] = mute.held[mute.valid].mean(dim=0) - voiced.held[voiced.valid].mean(dim=0)
    ways["random"] = torch.randn(len(coder.b_dec), generator=torch.Generator().manual_seed(seed))
    length = ways["mean difference"].norm()
    return {name: way * (length / way.norm()) for name, way in ways.items()}


def _steered(parts: dict, told: pd.DataFrame, asked: causal.Gathered, coder, seed: int) -> pd.DataFrame:
    """What is written of the kinds in which words were heard, and of speech, under each direction and strength."""
    prone = told.kind.isin(set(told.kind[told.wrote != ""])).to_numpy()
    rows, counts = [], []
    ways = _directions(parts, prone, coder, seed)
    changes = {
        (name, strength): patching.Change(lambda x, _, step=strength * ways[name]: x + step)
        for name in DIRECTIONS
        for strength in STRENGTHS
        if strength
    }
    bar = lambda batches: tqdm(batches, desc="steering", unit=" batches")  # noqa: E731
    for kind, heard, which in (
        ("sound", patching.some(parts["sound"][1], prone), told[prone].reset_index(drop=True)),
        ("speech", parts["test"][1], None),
    ):
        wrote = patching.write(heard, changes, progress=bar) if len(heard) else {key: [] for key in changes}
        wrote |= {(name, 0.0): patching.said(heard, heard.plain) for name in DIRECTIONS}
        for (name, strength), texts in wrote.items():
            if which is None:
                counts = asked.scorer.count(texts).assign(speaker=asked.speakers, kind="")
            else:
                counts = scoring.Scorer([""] * len(texts)).count(texts).assign(speaker="", kind=which.kind)
            rows.append(counts.assign(**{"is": kind, "direction": name, "strength": strength, "wrote": texts}))
    return pd.concat(rows, ignore_index=True)


# ------------------------------------------------------------------------------------------------- the tables


def by_kind(step: Step) -> pd.DataFrame:
    """A row a kind of sound: how many, and of how many words were written; with repeats, the mean share of runs of
    three words that a made-up text says again; the likeliest kinds first."""
    told = _texts(step, "sounds.csv")
    told["made_up"] = told.wrote != ""
    rows = told.groupby(["source", "kind"], sort=False).agg(
        sounds=("wrote", "size"), made_up=("made_up", "sum"), repeats=("repeats", "mean"), an_example=("wrote", "max")
    )
    return rows.sort_values("made_up", ascending=False, kind="stable").reset_index()


def detected(step: Step) -> pd.DataFrame:
    """A row an input: the AUC of telling sounds from speech, and made-up transcripts from those of speech, each with
    its interval; NaN where a side has fewer than 6."""
    told, rows = _texts(step, "detector.csv"), []
    for name, part in told.groupby("input", sort=False):
        speech_ = part[part["is"] == "speech"].groupby(["wrote", part.groupby(["fold", "is"]).cumcount()]).sure.mean()
        sound = part[part["is"] == "sound"]
        row = {"input": name}
        for what, mine in (("no_speech", sound), ("made_up", sound[sound.wrote != ""])):
            row[what], n = np.nan, (len(mine), len(speech_))
            if min(n) >= 2:
                row[what] = roc_auc_score(np.r_[np.ones(n[0]), np.zeros(n[1])], np.r_[mine.sure, speech_])
            found = intervals.of_auc(np.array([row[what]]), *n)
            row |= {f"{what}_low": found.low[0], f"{what}_high": found.high[0], f"{what}_n": n[0]}
        rows.append(row | {"speech_n": len(speech_)})
    return pd.DataFrame(rows)


def steered(step: Step, seed: int = 0) -> pd.DataFrame:
    """A row a direction and strength: `made_up`, the percentage of the sounds of prone kinds of which words are
    written, with the interval of a proportion, and the WER of speech with its own over speakers; `more` is above the
    untouched."""
    told, rows = _texts(step, "steered.csv"), []
    for name, part in told.groupby("direction", sort=False):
        spoken = {strength: one for strength, one in part[part["is"] == "speech"].groupby("strength")}
        rates = scoring.table({f"{s:g}": one.reset_index(drop=True) for s, one in sorted(spoken.items())},
                              spoken[0.0].speaker.tolist(), seed=seed)  # fmt: skip
        for (strength, one), rate in zip(sorted(spoken.items()), rates.itertuples(), strict=True):
            sound = part[(part["is"] == "sound") & (part.strength == strength)]
            share, low, high = proportion(int((sound.wrote != "").sum()), len(sound))
            rows.append((name, strength, share, low, high, len(sound), rate.WER, rate.WER_low, rate.WER_high, rate.more,
                         rate.more_low, rate.more_high, rate.speakers, len(one)))  # fmt: skip
    columns = ["direction", "strength", "made_up", "made_up_low", "made_up_high", "sounds", "WER", "WER_low",
    "WER_high",
               "more", "more_low", "more_high", "speakers", "clips"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def proportion(found: int, of: int, z: float = 1.96) -> tuple[float, float, float]:
    """A percentage and its 95 % interval (Wilson 1927); NaN of nothing."""
    if not of:
        return np.nan, np.nan, np.nan
    share, weight = found / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    reach = z * np.sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return 100 * share, 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)


def _texts(step: Step, name: str) -> pd.DataFrame:
    texts = {column: str for column in ("wrote", "kind", "speaker", "direction", "is", "input", "source")}
    return step.table(name, dtype=texts, keep_default_na=False)
