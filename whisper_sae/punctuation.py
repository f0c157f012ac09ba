"""Do features write punctuation? Candidates of training speakers, tested on held-out speakers beside matched controls.

    step = store.make(tested(run, seed))
    punctuation_tables.judged(step)       # a row a candidate: effect, interval, matched controls, p and q
    punctuation_tables.dosed(step)        # tokens of the kind per 100 words, by scale, of the best and its controls

Two sites: the last layer of the encoder that is recorded, with its trained dictionary, and the last layer of the
decoder, with a small one that is trained here on the model's own transcripts, since references often have no
punctuation. What is measured and how candidates are chosen is in `token_features`.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from whisper_sae import causal, controls, edits, intervals, patching, sae, train
from whisper_sae import token_features as tf
from whisper_sae.dictionaries import dictionary
from whisper_sae.profiles import Profile
from whisper_sae.recipes import clips, made_by
from whisper_sae.store import Recipe, Step

TRAINED, SCORED, TESTED = 96, 24, 24
"""Clips of training speakers that the decoder's dictionary is trained on, how many of them attribution takes, and clips
of held-out speakers."""

EACH, CONTROLS, LEAST = 3, 10, 20
"""Candidates of each target and site; matched controls of each; and how often a kind of token must be written."""

EXPANSION, K, STEPS = 2, 16, 300
"""The decoder's dictionary: latents for each dimension, how many fire on a token, and steps of 512 tokens."""

SCALES, AT_ENDS = (-1.0, 0.0, 2.0, 4.0), (0.0, 4.0)
"""What activations are multiplied by in the dose-response curves, and in those of the controls."""

DOSED = ("comma", "th")
"""Targets whose feature with the greatest expected effect is followed into the transcripts."""

NEEDED = ("comma", "full stop")
"""Targets without which there is no punctuation to ask about."""


def lacking(heard: patching.Heard) -> str:
    """Why nothing can be asked of a model, by what it writes of some clips; "" if it can."""
    reasons = [tf.missing(heard.whisper, heard.plain, tf.TARGETS[name], LEAST) for name in NEEDED]
    return " ".join(reasons) if all(reasons) else ""


def site_of(run: Profile) -> str:
    """The last residual stream of the encoder that a profile records, or else the last site of the encoder."""
    every = causal.sites_of(run)
    return ([site for site in every if site.endswith(".resid")] or every)[-1]


def in_decoder(heard: patching.Heard, site: str) -> patching.Heard:
    """The same clips at a site of the decoder."""
    return replace(heard, site=site, held=heard.encoded, layer=0)


def activations_at(heard: patching.Heard, given: tf.Given) -> Tensor:
    """The activations of a site of the decoder on the tokens of the clips' own transcripts: (token, width)."""
    parts: list[Tensor] = []
    for at in torch.arange(len(heard)).split(tf.BATCH):
        keep = patching.Change(lambda x, clips: parts.append(x[given.used[clips][:, : x.shape[1]]]) or x)
        tf.run_given(patching.run_of(heard, [(keep, at)]), given)
    return torch.cat(parts).cpu().float()


def decoder_dictionary(heard: patching.Heard, given: tf.Given, seed: int) -> tuple[sae.SAE, Tensor]:
    """A BatchTopK SAE of a site of the decoder, trained on the tokens of the clips' own transcripts, and its
    activations on them, (token, feature)."""
    x = activations_at(heard, given)
    scale = (x.shape[1] / x.square().sum(dim=1).mean()).sqrt().item()
    coder = sae.create("batchtopk", x.shape[1], EXPANSION * x.shape[1], min(K, EXPANSION * x.shape[1]), seed)
    coder.start_on(x[:4096] * scale)
    draw = torch.Generator().manual_seed(seed)

    def batches(start: int):
        for _ in range(start, STEPS):
            yield x[torch.randint(len(x), (512,), generator=draw)] * scale

    how = {"steps": STEPS, "learning_rate": 2e-3, "dead_tokens": 20_000}
    for _ in tqdm(train.train(coder, batches, **how), total=STEPS, desc=f"dictionary of {heard.site}", unit=" steps"):
        pass
    coder.calibrate([x[:4096] * scale])
    coder.undo_scale(scale)
    coder = coder.eval().requires_grad_(False)
    return coder, coder.encode(x)


# --------------------------------------------------------------------------------------------- choosing and testing


def chosen(found: tf.Attributed, targets: list[tf.Target], each: int = EACH) -> pd.DataFrame:
    """The features of a site that attribution expects to move each target most: a row each, `target`, `feature`,
    `expected` (nats, at the target's scale, mean over clips) and `t` over clips. They fire in half of the clips."""
    rows, often = [], found.clips >= found.effect.shape[1] / 2
    for number, target in enumerate(targets):
        effect = (target.scale - 1) * found.effect[number][np.isfinite(found.effect[number, :, 0])]
        if len(effect) < intervals.LEAST:
            continue
        mean, error = effect.mean(axis=0), effect.std(axis=0, ddof=1) / np.sqrt(len(effect))
        best = np.argsort(-np.where(often, np.abs(mean), -1), kind="stable")[:each]
        rows += [(target.name, int(f), mean[f], mean[f] / max(error[f], 1e-12)) for f in best if mean[f] and often[f]]
    return pd.DataFrame(rows, columns=["target", "feature", "expected", "t"])


class Edits(NamedTuple):
    """What is needed to change features of a site in clips of held-out speakers."""

    coded: patching.Coded
    given: tf.Given
    other: Tensor
    """(feature, width): random directions as long as the SAE's own."""

    @property
    def where(self) -> Tensor | None:
        """At a site of the decoder, the positions of `Given.used` and all after them; None in the encoder."""
        heard = self.coded.heard
        places = torch.arange(heard.whisper.config.max_target_positions) >= len(heard.decoder.prompt) - 1
        return places.expand(len(heard), -1) if heard.in_decoder else None

    def change(self, feature: int, scale: float, random: bool = False) -> patching.Change:
        return self.coded.edit(edits.scale({feature: scale}), self.where, self.other if random else None)


def effects(here: Edits, found: tf.Attributed, best: pd.DataFrame, targets: list[tf.Target],
            progress: Callable = iter) -> tuple[pd.DataFrame, np.ndarray]:  # fmt: skip
    """Effects of candidates and of their controls: a row an edit, with `target`, `feature`, `of` (the candidate that it
    is a control of, or itself), `kind` (`feature`, `control`, `random`, `nothing`), `sign` (the direction in which
    attribution expects the target to move), rate and size; and what it adds to the outcome of each clip, (row, clip).
    """
    number, rows = {target.name: place for place, target in enumerate(targets)}, []
    for row in best.itertuples():
        target, pool = targets[number[row.target]], np.flatnonzero((found.clips > 0) & (found.size > 0))
        taken = best.feature[best.target == row.target]
        near = controls.matched(found.rate, found.size, row.feature, np.setdiff1d(pool, taken), CONTROLS)
        each = [(row.feature, "feature"), (row.feature, "random"), *((int(f), "control") for f in near)]
        rows += [(row.target, feature, row.feature, kind, target.scale) for feature, kind in each]
    if rows:
        rows.append((*rows[0][:3], "nothing", 1.0))
    table = pd.DataFrame(rows, columns=["target", "feature", "of", "kind", "scale"])
    keys = [(row.feature, row.scale, row.kind == "random") for row in table.itertuples()]
    changes = {key: here.change(*key) for key in dict.fromkeys(keys)}
    added = tf.outcomes(here.coded.heard, changes, here.given, progress=progress)[1]
    each = np.array([added[key][number[row.target]] for key, row in zip(keys, table.itertuples(), strict=True)])
    slope = np.nanmean(found.effect, axis=1)
    expected = [(row.scale - 1) * slope[number[row.target], row.feature] for row in table.itertuples()]
    told = {"sign": np.where(np.array(expected) < 0, -1, 1), "rate": found.rate[table.feature]}
    told |= {"size": found.size[table.feature], "position": found.position[table.feature]}
    return table.assign(**told), each.reshape(len(table), -1)


# ------------------------------------------------------------------------------------------------ in transcripts


def strongest(best: pd.DataFrame, target: str) -> pd.Series | None:
    """The candidate of a target, over sites, with the greatest effect expected on training speakers; None without."""
    mine = best[best.target == target].reset_index(drop=True)
    return mine.loc[mine.expected.abs().idxmax()] if len(mine) else None


def doses(here: Edits, feature: int, others: list[int], target: tf.Target,
          progress: Callable = iter) -> pd.DataFrame:  # fmt: skip
    """Greedy transcripts of each clip with a feature at SCALES, and with its controls and a random direction at
    AT_ENDS: `kind`, `feature`, `scale`, `clip`, `wrote`, and of them `count`, tokens of the target's kind, `words`, and
    `kept`, the share of the unedited transcript's words that are still written in their order."""
    heard, kind = here.coded.heard, tf.of_kind(tf.vocabulary(here.coded.heard.whisper), target)
    asked = [("feature", feature, scale) for scale in SCALES] + [("random", feature, scale) for scale in AT_ENDS]
    asked += [("control", other, scale) for other in others for scale in AT_ENDS]
    changes = {(name, one, scale): here.change(one, scale, name == "random") for name, one, scale in asked}
    wrote = patching.tokens(heard, changes, progress=progress) | {("feature", feature, 1.0): heard.plain}
    rows, plain = [], patching.said(heard, heard.plain)
    for key, every in wrote.items():
        for clip, (tokens, now) in enumerate(zip(every, patching.said(heard, every), strict=True)):
            rows.append((*key, clip, now, int(kind[tokens].sum()), len(now.split()), kept(plain[clip], now)))
    columns = ["kind", "feature", "scale", "clip", "wrote", "count", "words", "kept"]
    return pd.DataFrame(rows, columns=columns).assign(target=target.name, site=heard.site)


def kept(before: str, after: str) -> float:
    """The share of words that are still written in their order, whatever their case and punctuation."""
    strip = lambda text: ["".join(filter(str.isalnum, word)).lower() for word in text.split()]  # noqa: E731
    was, now = strip(before), strip(after)
    same = difflib.SequenceMatcher(None, was, now, autojunk=False).get_matching_blocks()
    return sum(block.size for block in same) / max(1, len(was))


# ----------------------------------------------------------------------------------------------------- the recipe


def fires_on(f: Tensor, given: tf.Given, held_out: Tensor, other: tf.Given, words: list[str]) -> pd.DataFrame:
    """`token_features.fires_on` of a decoder's features, with the token `given` and the `next` one: the token is chosen
    on training speakers, `count`, `precision` and `lift` are those of held-out speakers."""
    rows = []
    for name, which in (("given", "ids"), ("next", "wanted")):
        mine, theirs = (getattr(one, which)[one.used].numpy() for one in (given, other))
        best, fires = tf.fires_on(f.numpy(), mine), held_out.numpy() > 0
        for row in best.itertuples():
            both, fired, base = (fires[:, row.feature] & (theirs == row.token)).sum(), fires[:, row.feature].sum(), (
                theirs == row.token).mean()  # fmt: skip
            precise = both / max(1, fired)
            rows.append((row.feature, name, words[row.token] or "end of text", fires[:, row.feature].mean(), both,
                         precise, precise / base if base else np.nan))  # fmt: skip
    return pd.DataFrame(rows, columns=["feature", "side", "token", "rate", "count", "precision", "lift"])


def tested(run: Profile, seed: int) -> Recipe:
    """`edits.csv` and `each.npy`, see `effects`; `candidates.csv`, see `chosen`; `clips.csv`; `wrote.csv`, see `doses`;
    `fires_on.csv`, see `fires_on`. Candidates are of training speakers, all effects of held-out ones."""
    site = site_of(run)

    def measure(folder: Path, clips: Step, trained: Step) -> dict:
        train_on = causal.gathered(run, seed, (site,), splits=("train",), most=TRAINED)
        held_out = causal.gathered(run, seed, causal.sites_of(run)).fewer(1, most=TESTED, seed=seed)
        known, tested_on = train_on.heard[site], held_out.heard[site]
        assert not set(train_on.speakers) & set(held_out.speakers), (
            "candidates were chosen on speakers they are tested on"
        )
        targets = [one for one in tf.TARGETS.values() if not tf.missing(known.whisper, known.plain, one, LEAST)]
        inside = f"decoder.{known.whisper.config.decoder_layers - 1}.resid"
        every, given = tf.own_transcripts(known, targets), tf.own_transcripts(tested_on, targets)
        of_tokens, f = decoder_dictionary(in_decoder(known, inside), every, seed)
        coders = {site: causal.coder_of(run, seed, site), inside: of_tokens}
        sae.save(of_tokens, folder, site=inside)
        some, tables, parts, told = patching.some(known, np.arange(min(SCORED, len(known)))), [], [], []
        first, places = tf.own_transcripts(some, targets), {}
        for each, coder in coders.items():
            bar = lambda items, each=each: tqdm(items, desc=f"punctuation at {each}", unit=" batches")  # noqa: E731
            mine = [one if each == site else in_decoder(one, each) for one in (some, tested_on)]
            found = tf.attribution(mine[0], coder, first, progress=bar)
            best = chosen(found, targets)
            other = torch.randn(coder.W_dec.shape, generator=torch.Generator().manual_seed(seed))
            other *= (coder.W_dec.norm(dim=1) / other.norm(dim=1))[:, None]
            places[each] = here = Edits(patching.Coded(mine[1], coder), given, other)
            table, added = effects(here, found, best, targets, bar)
            tables.append(table.assign(site=each))
            parts.append(added)
            told.append(best.assign(site=each))
        table, best = pd.concat(tables, ignore_index=True), pd.concat(told, ignore_index=True)
        table.to_csv(folder / "edits.csv", index=False)
        best.to_csv(folder / "candidates.csv", index=False)
        np.save(folder / "each.npy", np.concatenate(parts))
        held_out.clips.assign(speaker=held_out.speakers)[["id", "speaker"]].to_csv(folder / "clips.csv", index=False)
        _followed(places, table, best, {one.name: one for one in targets}).to_csv(folder / "wrote.csv", index=False)
        now = activations_at(in_decoder(tested_on, inside), given)
        words = tf.vocabulary(known.whisper)
        fires_on(f, every, of_tokens.encode(now), given, words).to_csv(folder / "fires_on.csv", index=False)
        return {"clips": len(given.ids), "speakers": len(set(held_out.speakers)), "sites": [site, inside],
                "trained_on": len(known), "tokens": len(f), "chosen_on": len(some), "features": of_tokens.d_sae,
                "targets": [one.name for one in targets]}  # fmt: skip

    params = {"seed": seed, "site": site, "targets": [list(one) for one in tf.TARGETS.values()]}
    return Recipe(
        "punctuation", measure, params, needs={"clips": clips(run, seed), "trained": dictionary(run, seed, site)},
        by=made_by(run, "05"), label="features that write punctuation",
    )  # fmt: skip


def _followed(places: dict[str, Edits], table: pd.DataFrame, best: pd.DataFrame, targets: dict) -> pd.DataFrame:
    """`doses` of the strongest candidate of each target in DOSED."""
    parts = []
    for name in DOSED:
        if (top := strongest(best, name)) is None:
            continue
        mine = table[(table.site == top.site) & (table.target == name) & (table.of == top.feature)]
        others = mine.feature[mine.kind == "control"].tolist()
        bar = lambda items, name=name: tqdm(items, desc=f"transcripts: {name}", unit=" batches")  # noqa: E731
        parts.append(doses(places[top.site], int(top.feature), others, targets[name], bar))
    columns = ["kind", "feature", "scale", "clip", "wrote", "count", "words", "kept", "target", "site"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
