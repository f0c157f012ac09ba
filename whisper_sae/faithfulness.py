"""Does a dictionary keep what Whisper needs? Its reconstruction in the place of the layer, in words, losses and rivals.

    step = store.make(faithfulness.faithful(run, seed, site))
    faithfulness.summary(step)                                  # a row a way of saying the layer

A small error of reconstruction may hold just what the decoder listens to. So the layer is replaced by what the
dictionary says of it, and by what its rivals say in as many numbers, and Whisper goes on. *Recovered* is the share of
what saying the mean destroys that is kept: 100 % is as good as untouched, 0 % as bad as the mean.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from whisper_sae import causal, dictionaries, intervals, losses, model, patching, scoring
from whisper_sae.profiles import Profile
from whisper_sae.recipes import made_by, recorded
from whisper_sae.store import Recipe, Step

UNTOUCHED, ITS, EVERYWHERE = "untouched", "dictionary", "dictionary, padding too"
ZERO, MEAN = "zero", "the mean"
BRIEF = (ITS, "principal directions", "random dictionary", MEAN)
"""What a site is replaced by where layers are compared only."""


def faithful(run: Profile, seed: int, site: str, a_speaker: int = 2, brief: bool = False) -> Recipe:
    """`read.csv`: a row a way and clip of held-out speakers, with the errors in what is written, the cross-entropy of
    what was said and the divergence from the untouched, in nats, and how many tokens that is.

    Ways: untouched; the dictionary's reconstruction on valid frames, and on padding, too; rivals that spend as many
    numbers a frame, see `dictionaries.simple_ways`; the mean of the training frames; zero. `brief`: untouched and those
    of BRIEF alone.
    """
    heard = recorded(run, seed, site)
    needs = {"clips": heard.needs["clips"], "activations": heard, "trained": dictionaries.dictionary(run, seed, site)}

    def compare(folder: Path, clips: Step, activations: Step, trained: Step) -> dict:
        some = causal.gathered(run, seed, causal.sites_of(run)).fewer(a_speaker, seed=seed)
        ways, numbers = _ways(run, seed, site, clips, activations, trained)
        untouched = {UNTOUCHED: patching.Change(lambda x, _: x, np.zeros(len(some.clips), dtype=bool))}
        changes = untouched | {name: patching.Change(lambda x, _, say=say: _flat(say, x)) for name, say in ways.items()}
        changes[EVERYWHERE] = replace(changes[ITS], where=torch.ones_like(some.heard[site].valid))
        changes = {name: change for name, change in changes.items() if not brief or name in (UNTOUCHED, *BRIEF)}
        told = some.clips.text.tolist()
        bar = lambda batches: tqdm(batches, desc=f"splicing at {site}", unit=" batches")  # noqa: E731
        found = losses.read(some.heard[site], changes, told, progress=bar)
        parts = []
        for name, one in found.items():
            counts = some.scorer.count(patching.said(some.heard[site], one.tokens))
            costs = {"cross_entropy": one.cross_entropy, "divergence": one.divergence, "answers": one.answers}
            parts.append(counts.assign(way=name, speaker=some.speakers, clip=some.clips["clip"], **costs))
        pd.concat(parts, ignore_index=True).to_csv(folder / "read.csv", index=False)
        return {"clips": len(told), "speakers": len(set(some.speakers)), "numbers": numbers}

    params = {"seed": seed, "site": site, "a_speaker": a_speaker, "ways": BRIEF if brief else "all"}
    return Recipe(
        "faithfulness", compare, params, needs=needs, by=made_by(run, "05"), label=f"faithfulness at {site}",
    )  # fmt: skip


def _ways(run: Profile, seed: int, site: str, clips: Step, activations: Step, trained: Step) -> tuple[dict, dict]:
    """Functions x -> x_hat of frames by name, and how many numbers a frame each says."""
    learnt = dictionaries.frames_of(run, clips, activations, site, "train")[0].sample(16_384, seed)
    l0 = trained.facts["l0"]
    simple = dictionaries.simple_ways(learnt, run, max(1, round(l0)), seed)
    coder = causal.coder_of(run, seed, site, model.pick(run.device))
    ways = {ITS: coder} | {name: partial(_on_cpu, say) for (name, _), say in simple.items()}
    return ways | {ZERO: torch.zeros_like}, {ITS: l0, EVERYWHERE: l0} | dict(simple.keys()) | {ZERO: 0}


def _on_cpu(say, x: torch.Tensor) -> torch.Tensor:
    """A baseline that was fitted on the CPU, applied to activations of any device."""
    return say(x.cpu()).to(x.device)


def _flat(say, x: torch.Tensor) -> torch.Tensor:
    return say(x.flatten(0, -2)).reshape(x.shape)


def summary(step: Step, seed: int = 0) -> pd.DataFrame:
    """A row a way: `numbers` a frame, WER and CER in percent, S, D and I, cross-entropy and divergence a token in nats,
    and what is recovered of what the mean destroys, in percent: `WER_recovered` and `loss_recovered`, each with an
    interval over speakers; `more` is the WER above the untouched, with its interval."""
    told = step.table("read.csv", dtype={"speaker": str})
    ways = {name: part.reset_index(drop=True) for name, part in told.groupby("way", sort=False)}
    first = ways[UNTOUCHED]
    found = scoring.table(ways, first.speaker, seed=seed)
    found.insert(1, "numbers", found.way.map(step.facts["numbers"]))
    for cost in ("cross_entropy", "divergence"):
        found[cost] = [part[cost].sum() / part.answers.sum() for part in ways.values()]
    for name, wrong in (("WER_recovered", "errors"), ("loss_recovered", "cross_entropy")):
        lost = np.stack([part[wrong].to_numpy(float) for part in ways.values()])
        found[[name, f"{name}_low", f"{name}_high"]] = recovered(
            lost, list(ways).index(UNTOUCHED), list(ways).index(MEAN), first.speaker, seed=seed
        )
    return found


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
