"""Does an SAE keep what Whisper needs? Its reconstruction replaces the activations of a layer, and WER and
cross-entropy are set beside baselines.

    step = store.make(faithfulness.faithful(run, seed, site))
    faithfulness.summary(step)                                  # a row a condition

A small error of reconstruction may hold just what the decoder needs. So the activations are replaced by the SAE's
reconstruction, and by that of baselines at matched L0, and the model runs on. *Loss recovered* is the share of the
cross-entropy added by the mean activation that is not added: 100 % is as good as untouched, 0 % as bad as the mean
(with the mean in the place of zero as in SAEBench, Karvonen et al. 2025).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from whisper_sae.cache import Recipe, Step, make
from whisper_sae.causal import losses, patching
from whisper_sae.devices import long_pass
from whisper_sae.experiments import evaluation_clips, sae_comparison
from whisper_sae.experiments.pipeline import made_by, recorded, twin
from whisper_sae.model import scoring, whisper_model
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures
from whisper_sae.stats import intervals

UNTOUCHED, ITS, EVERYWHERE = "untouched", "dictionary", "dictionary, padding too"
ZERO, MEAN, RANDOM_INIT = "zero", "the mean", "dictionary of the randomly initialised model"
BRIEF = (ITS, "principal directions", "random dictionary", RANDOM_INIT, MEAN, ZERO)
"""The conditions at every site but the focus."""

SAMPLE = 16
"""Clips that are transcribed where the activations are destroyed; their cross-entropy is that of all clips."""


def random_init(run: Profile) -> Profile:
    """The run of the randomly initialised model whose SAEs are baselines here, with the tokens of a sweep."""
    return replace(twin(run), tokens=run.sweep_tokens or run.tokens)


def faithful(run: Profile, seed: int, site: str, a_speaker: int = 2, most: int = 32, brief: bool = False) -> Recipe:
    """`read.csv`: a row a condition and clip of held-out speakers, at most `a_speaker` of each and `most` in all, with
    the errors of the transcript, the cross-entropy of the reference and the divergence from the untouched model, both
    in nats, and the number of tokens that these are sums of.

    Conditions: untouched; the SAE's reconstruction on valid frames, and at a site of the encoder on padding, too;
    baselines at its L0, see `dictionaries.simple_ways`; the same with the directions of an SAE of the randomly
    initialised model; the mean of the training frames; zero. `brief`: untouched and those of BRIEF alone. Where nothing
    was learnt from the trained model, SAMPLE clips are transcribed, of as many speakers as there are; the counts of the
    others are empty.
    """
    recording = recorded(run, seed, site)
    needs = {"clips": recording.needs["clips"], "activations": recording,
             "trained": sae_comparison.dictionary(run, seed, site),
             "untrained": sae_comparison.dictionary(random_init(run), seed, site)}  # fmt: skip

    def compare(folder: Path, clips: Step, activations: Step, trained: Step, untrained: Step) -> dict:
        some = evaluation_clips.gathered(run, seed, evaluation_clips.sites_of(run), most=most).fewer(
            a_speaker, seed=seed
        )
        ways, numbers = _ways(run, seed, site, clips, activations, trained, untrained)
        heard = some.heard[site]
        changes = {UNTOUCHED: patching.Change(lambda x, _: x, np.zeros(len(some.clips), dtype=bool))}
        valid = None if heard.in_decoder else heard.valid
        changes |= {name: patching.Change(patching.of_frames(say, valid)) for name, say in ways.items()}
        if valid is not None:
            changes[EVERYWHERE] = patching.Change(patching.of_frames(ways[ITS]), where=torch.ones_like(valid))
        changes = {name: change for name, change in changes.items() if not brief or name in (UNTOUCHED, *BRIEF)}
        sample = np.isin(some.clips.index, evaluation_clips.drawn(some.clips, 0, SAMPLE, seed).index)
        transcribed = {name: sample for name in changes if numbers.get(name, (0, False))[1]}
        bar = long_pass(f"splicing at {site}")
        texts = some.clips.text.tolist()
        result = losses.read(heard, changes, texts, progress=bar, transcribed=transcribed)
        parts = []
        for name, one in result.items():
            written = np.array([tokens is not None for tokens in one.tokens])
            texts = patching.said(heard, [tokens or [] for tokens in one.tokens])
            counts = some.scorer.count(texts).astype(float)
            counts.loc[~written] = np.nan
            costs = {"cross_entropy": one.cross_entropy, "divergence": one.divergence, "answers": one.answers}
            parts.append(counts.assign(way=name, speaker=some.speakers, clip=some.clips["clip"], **costs))
        pd.concat(parts, ignore_index=True).to_csv(folder / "read.csv", index=False)
        return {"clips": len(some.clips), "speakers": len(set(some.speakers)),
                "numbers": {name: count for name, (count, _) in numbers.items()}}  # fmt: skip

    params = {"seed": seed, "site": site, "a_speaker": a_speaker, "most": most, "ways": BRIEF if brief else "all"}
    return Recipe(
        "faithfulness", compare, params, needs=needs, by=made_by(run, "05"), label=f"faithfulness at {site}",
    )  # fmt: skip


def made(run: Profile, seed: int, site: str, brief: bool = False) -> Step:
    """`faithful` of a site, and before it what it needs."""
    for one in (run, random_init(run)):
        make(recorded(one, seed, site))
        make(sae_comparison.dictionary(one, seed, site))
    return make(faithful(run, seed, site, brief=brief))


def _ways(run: Profile, seed: int, site: str, clips: Step, activations: Step, trained: Step, untrained: Step) -> tuple:
    """Functions x -> x_hat of frames by name; and of each, how many coefficients a frame it has, and whether only a
    sample is transcribed."""
    x = sae_comparison.frames_of(run, clips, activations, site, "train")[0].sample(16_384, seed)
    l0 = trained.facts["l0"]
    simple = sae_comparison.simple_ways(
        x, run, max(1, round(l0)), seed, {RANDOM_INIT: architectures.load(untrained.path).W_dec.detach()}
    )
    coder = evaluation_clips.coder_of(run, seed, site, whisper_model.pick(run.device))
    ways = {ITS: coder} | {name: partial(_on_cpu, say) for (name, _), say in simple.items()} | {ZERO: torch.zeros_like}
    learnt = ("principal directions", "neurons")
    numbers = {ITS: (l0, False), EVERYWHERE: (l0, False), ZERO: (0, True)}
    return ways, numbers | {name: (count, name not in learnt) for name, count in simple}


def _on_cpu(say, x: torch.Tensor) -> torch.Tensor:
    """A baseline that was fitted on the CPU, applied to activations of any device."""
    return say(x.cpu()).to(x.device)


def summary(step: Step, seed: int = 0) -> pd.DataFrame:
    """A row a condition: `numbers` of coefficients a frame, WER and CER in percent, S, D and I, the `clips` that were
    transcribed, `more`, the WER above the untouched model's on the same clips; cross-entropy and divergence a token in
    nats, and `loss_recovered`, in percent. Intervals are over speakers."""
    every = step.table("read.csv", dtype={"speaker": str}, na_values={name: [""] for name in scoring.COUNTS})
    ways = {name: part.reset_index(drop=True) for name, part in every.groupby("way", sort=False)}
    first, scored = ways[UNTOUCHED], []
    for name, part in ways.items():
        clips = part.words.notna().to_numpy()
        pair = {UNTOUCHED: first[clips], name: part[clips]}
        scored.append(scoring.table(pair, first.speaker[clips], seed=seed).iloc[-1])
    table = pd.DataFrame(scored).reset_index(drop=True)
    table.insert(1, "numbers", table.way.map(step.facts["numbers"]))
    for cost in ("cross_entropy", "divergence"):
        table[cost] = [part[cost].sum() / part.answers.sum() for part in ways.values()]
    lost = np.stack([part.cross_entropy.to_numpy(float) for part in ways.values()])
    columns = ["loss_recovered", "loss_recovered_low", "loss_recovered_high"]
    table[columns] = recovered(lost, list(ways).index(UNTOUCHED), list(ways).index(MEAN), first.speaker, seed=seed)
    return table


def by_site(summaries: dict[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """`summary` tables of several sites, {site: table}, as a row a site and a column a condition that all have, each a
    percentage with its interval."""
    rows = pd.concat([table.assign(site=site) for site, table in summaries.items()])
    rows = rows[rows.way.isin([UNTOUCHED, *BRIEF])]
    ends = rows[[f"{column}_low", f"{column}_high"]].round(1).astype(str).agg("–".join, axis=1)
    cells = rows[column].round(1).astype(str) + (" (" + ends + ")").str.replace(" (nan–nan)", "")
    wide = rows.assign(cell=cells).pivot(index="site", columns="way", values="cell")
    return wide.reindex(index=list(summaries), columns=[UNTOUCHED, *BRIEF]).reset_index()


def recovered(lost: np.ndarray, best: int, worst: int, speakers, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """100 · (Σ lost[worst] - Σ lost) / (Σ lost[worst] - Σ lost[best]) with its interval: (way, 3).

    `lost` is (way, clip), `speakers` (clip,) are drawn with replacement. NaN where nothing is lost by the worst,
    and intervals of fewer than `intervals.LEAST` speakers.
    """
    number, names = pd.factorize(np.asarray(speakers))
    n = len(names)
    sums = np.stack([np.bincount(number, one, n) for one in lost], axis=1)  # (speaker, way)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [
            100 * (total[:, worst, None] - total) / (total[:, worst] - total[:, best])[:, None]
            for total in (sums.sum(axis=0)[None], times @ sums)
        ]
    if not (sums.sum(axis=0)[worst] - sums.sum(axis=0)[best]) > 0:
        return np.stack([np.full(len(lost), np.nan)] * 3, axis=1)
    return np.stack([shares[0][0], *intervals.of_draws(shares[1], n)], axis=1)
