"""Do features write punctuation? Candidates of training speakers, tested on held-out speakers beside matched controls.

    step = store.make(tested(run, seed))
    judged(step)       # a row a candidate: effect, interval, matched controls, p and q
    dosed(step)        # tokens of the kind per 100 words, by scale, of the best and its controls

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

from whisper_sae.cache import Recipe, Step
from whisper_sae.causal import controls, edits, patching
from whisper_sae.devices import long_pass
from whisper_sae.experiments import evaluation_clips, token_features
from whisper_sae.experiments.pipeline import clips, made_by
from whisper_sae.experiments.sae_comparison import dictionary
from whisper_sae.profiles import Profile
from whisper_sae.sae import architectures, training
from whisper_sae.stats import intervals

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
"""Targets whose candidate with the greatest expected effect is followed into the transcripts."""

FOLLOWED = 5
"""How many of its matched controls are, at most."""

NEEDED = ("comma", "full stop")
"""Targets without which there is no punctuation to ask about."""


def lacking(heard: patching.Heard) -> str:
    """Why nothing can be asked of a model, by what it writes of some clips; "" if it can."""
    reasons = [
        token_features.missing(heard.whisper, heard.plain, token_features.TARGETS[name], LEAST) for name in NEEDED
    ]
    return " ".join(reasons) if all(reasons) else ""


def site_of(run: Profile) -> str:
    """The last residual stream of the encoder that a profile records, or else the last site of the encoder."""
    every = [site for site in evaluation_clips.sites_of(run) if site.startswith("encoder")]
    return ([site for site in every if site.endswith(".resid")] or every)[-1]


def in_decoder(heard: patching.Heard, site: str) -> patching.Heard:
    """The same clips at a site of the decoder."""
    return replace(heard, site=site, held=heard.encoded, layer=0)


def activations_at(heard: patching.Heard, given: token_features.Given) -> Tensor:
    """The activations of a site of the decoder on the tokens of the clips' own transcripts: (token, width)."""
    parts: list[Tensor] = []
    for at in torch.arange(len(heard)).split(token_features.BATCH):
        keep = patching.Change(lambda x, clips: parts.append(x[given.used[clips][:, : x.shape[1]]]) or x)
        token_features.run_given(patching.run_of(heard, [(keep, at)]), given)
    return torch.cat(parts).cpu().float()


def decoder_dictionary(
    heard: patching.Heard, given: token_features.Given, seed: int
) -> tuple[architectures.SAE, Tensor]:
    """A BatchTopK SAE of a site of the decoder, trained on the tokens of the clips' own transcripts, and its
    activations on them, (token, feature)."""
    x = activations_at(heard, given)
    scale = (x.shape[1] / x.square().sum(dim=1).mean()).sqrt().item()
    coder = architectures.create("batchtopk", x.shape[1], EXPANSION * x.shape[1], min(K, EXPANSION * x.shape[1]), seed)
    coder.start_on(x[:4096] * scale)
    draw = torch.Generator().manual_seed(seed)

    def batches(start: int):
        for _ in range(start, STEPS):
            yield x[torch.randint(len(x), (512,), generator=draw)] * scale

    how = {"steps": STEPS, "learning_rate": 2e-3, "dead_tokens": 20_000}
    for _ in tqdm(
        training.train(coder, batches, **how), total=STEPS, desc=f"dictionary of {heard.site}", unit=" steps"
    ):
        pass
    coder.calibrate([x[:4096] * scale])
    coder.undo_scale(scale)
    coder = coder.eval().requires_grad_(False)
    return coder, coder.encode(x)


# --------------------------------------------------------------------------------------------- choosing and testing


def chosen(found: token_features.Attributed, targets: list[token_features.Target], each: int = EACH) -> pd.DataFrame:
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
    given: token_features.Given
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


def effects(here: Edits, found: token_features.Attributed, best: pd.DataFrame, targets: list[token_features.Target],
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
    each, heard = np.full((len(table), len(here.coded.heard)), np.nan), here.coded.heard
    for target, mine in table.groupby("target", sort=False):
        keys = [(row.feature, row.scale, row.kind == "random") for row in mine.itertuples()]
        changes = {key: here.change(*key) for key in dict.fromkeys(keys)}
        added = token_features.outcomes(heard, changes, here.given.only(number[target]), progress=progress)[1]
        each[mine.index] = [added[key][0] for key in keys]
    slope = np.nanmean(found.effect, axis=1)
    expected = [(row.scale - 1) * slope[number[row.target], row.feature] for row in table.itertuples()]
    columns = {"sign": np.where(np.array(expected) < 0, -1, 1), "rate": found.rate[table.feature]}
    columns |= {"size": found.size[table.feature], "position": found.position[table.feature]}
    return table.assign(**columns), each


# ------------------------------------------------------------------------------------------------ in transcripts


def strongest(best: pd.DataFrame, target: str) -> pd.Series | None:
    """The candidate of a target, over sites, with the greatest effect expected on training speakers; None without."""
    mine = best[best.target == target].reset_index(drop=True)
    return mine.loc[mine.expected.abs().idxmax()] if len(mine) else None


def doses(here: Edits, feature: int, others: list[int], target: token_features.Target,
          progress: Callable = iter) -> pd.DataFrame:  # fmt: skip
    """Greedy transcripts of each clip with a feature at SCALES, and with its controls and a random direction at
    AT_ENDS: `kind`, `feature`, `scale`, `clip`, `wrote`, and of them `count`, tokens of the target's kind, `words`, and
    `kept`, the share of the unedited transcript's words that are still written in their order."""
    heard, kind = here.coded.heard, token_features.of_kind(token_features.vocabulary(here.coded.heard.whisper), target)
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


def fires_on(
    f: Tensor, given: token_features.Given, held_out: Tensor, other: token_features.Given, words: list[str]
) -> pd.DataFrame:
    """`token_features.fires_on` of a decoder's features, with the token `given` and the `next` one: the token is chosen
    on training speakers, `count`, `precision` and `lift` are those of held-out speakers."""
    rows = []
    for name, which in (("given", "ids"), ("next", "wanted")):
        mine, theirs = (getattr(one, which)[one.used].numpy() for one in (given, other))
        best, fires = token_features.fires_on(f.numpy(), mine), held_out.numpy() > 0
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
        train_on = evaluation_clips.gathered(run, seed, (site,), splits=("train",), most=TRAINED)
        held_out = evaluation_clips.gathered(run, seed, (site,), most=TESTED).fewer(1, seed=seed)
        known, tested_on = train_on.heard[site], held_out.heard[site]
        if set(train_on.speakers) & set(held_out.speakers):
            raise ValueError("candidates must be chosen on other speakers than those that they are tested on")
        targets = [
            one
            for one in token_features.TARGETS.values()
            if not token_features.missing(known.whisper, known.plain, one, LEAST)
        ]
        inside = f"decoder.{known.whisper.config.decoder_layers - 1}.resid"
        every, given = (
            token_features.own_transcripts(known, targets),
            token_features.own_transcripts(tested_on, targets),
        )
        of_tokens, f = decoder_dictionary(in_decoder(known, inside), every, seed)
        coders = {site: evaluation_clips.coder_of(run, seed, site), inside: of_tokens}
        architectures.save(of_tokens, folder, site=inside)
        some, tables, parts, candidates = patching.some(known, np.arange(min(SCORED, len(known)))), [], [], []
        first, places = token_features.own_transcripts(some, targets), {}
        for each, coder in coders.items():
            bar = long_pass(f"punctuation at {each}")
            mine = [one if each == site else in_decoder(one, each) for one in (some, tested_on)]
            found = token_features.attribution(mine[0], coder, first, progress=bar)
            best = chosen(found, targets)
            draw = torch.Generator().manual_seed(seed + architectures.RANDOM_SEED_OFFSET)  # not what the SAE began from
            other = torch.randn(coder.W_dec.shape, generator=draw)
            other *= (coder.W_dec.norm(dim=1) / other.norm(dim=1))[:, None]
            places[each] = here = Edits(patching.Coded(mine[1], coder), given, other)
            table, added = effects(here, found, best, targets, bar)
            tables.append(table.assign(site=each))
            parts.append(added)
            candidates.append(best.assign(site=each))
        table, best = pd.concat(tables, ignore_index=True), pd.concat(candidates, ignore_index=True)
        table.to_csv(folder / "edits.csv", index=False)
        best.to_csv(folder / "candidates.csv", index=False)
        np.save(folder / "each.npy", np.concatenate(parts))
        held_out.clips.assign(speaker=held_out.speakers)[["id", "speaker"]].to_csv(folder / "clips.csv", index=False)
        _followed(places, table, best, {one.name: one for one in targets}).to_csv(folder / "wrote.csv", index=False)
        now = activations_at(in_decoder(tested_on, inside), given)
        words = token_features.vocabulary(known.whisper)
        fires_on(f, every, of_tokens.encode(now), given, words).to_csv(folder / "fires_on.csv", index=False)
        return {"clips": len(given.ids), "speakers": len(set(held_out.speakers)), "sites": [site, inside],
                "trained_on": len(known), "tokens": len(f), "chosen_on": len(some), "features": of_tokens.d_sae,
                "targets": [one.name for one in targets]}  # fmt: skip

    params = {"seed": seed, "site": site, "targets": [list(one) for one in token_features.TARGETS.values()]}
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
        others = mine.feature[mine.kind == "control"].tolist()[:FOLLOWED]
        bar = long_pass(f"transcripts: {name}")
        parts.append(doses(places[top.site], int(top.feature), others, targets[name], bar))
    columns = ["kind", "feature", "scale", "clip", "wrote", "count", "words", "kept", "target", "site"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


# ------------------------------------------------------------------------------------------------- tables


def judged(step: Step) -> pd.DataFrame:
    """A row a candidate, the surest first: `effect`, what the edit adds to the log-odds of the target in the direction
    that attribution expects (nats, mean over held-out speakers), with `low` and `high`; the median, least and greatest
    of its matched controls, each in the direction that attribution expects of it; the random direction at the same
    moments; ratios of rate and rate × size to the median control; `position`, see `Attributed`; p and q.

    p is the greater of that of the signs of speakers (`controls.flipped`) and that of controls (`controls.beyond`,
    pooled over candidates); q the false discovery rate. Candidates with fewer than
    `CONTROLS` controls have none.
    """
    parts, against, place = [], [], []
    for site, known in step.table("edits.csv", dtype={"site": str, "target": str}).groupby("site", sort=False):
        each = token_features.by_speaker(step.array("each.npy")[known.index], _speakers(step))
        signed = known.sign.to_numpy()[:, None] * each
        for (target, of), rows in known.reset_index(drop=True).groupby(["target", "of"], sort=False):
            own, random = (rows.index[rows.kind == kind][0] for kind in ("feature", "random"))
            near = rows.index[rows.kind == "control"]
            others = np.nanmean(signed[near], axis=1) if len(near) else np.zeros(0)
            mine, (low, high) = signed[own], token_features.interval(signed[own])
            ratios = {"rate": np.nan, "rate × size": np.nan}
            if len(near):
                picked = rows.loc[[own, *near]]
                ratios = controls.balance(picked.rate.to_numpy(), picked["size"].to_numpy(), 0, range(1, len(picked)))
            if len(near) == CONTROLS:
                against.append(others)
                place.append(len(parts))
            parts.append({
                "target": target, "site": site, "feature": of, "scale": rows["scale"][own], "sign": rows.sign[own],
                "speakers": int(np.isfinite(mine).sum()), "effect": np.nanmean(mine), "low": low, "high": high,
                "controls": np.median(others) if len(near) else np.nan, "least": others.min(initial=np.inf),
                "greatest": others.max(initial=-np.inf), "matched": len(near),
                "random": np.nanmean(known.sign.to_numpy()[own] * each[random]), "rate ratio": ratios["rate"],
                "mass ratio": ratios["rate × size"], "rate": rows.rate[own], "position": rows.position[own],
                "p_signs": controls.flipped(mine),
            })  # fmt: skip
    table = pd.DataFrame(parts)
    if len(table):
        beyond = np.full(len(table), np.nan)
        if against:
            beyond[place] = controls.beyond(table.effect.to_numpy()[place], np.stack(against)).p
        table["p"] = np.where(np.isfinite(beyond), np.maximum(table.p_signs, beyond), np.nan)
        table["q"] = controls.discoveries(table.p)
        table = table.sort_values(["q", "effect"], ascending=[True, False], na_position="last", ignore_index=True)
    return table


COLUMNS = {"target": "token", "site": "site", "feature": "feature", "scale": "×", "effect": "effect", "low": "from",
           "high": "to", "controls": "controls", "least": "least", "greatest": "greatest", "random": "random",
           "rate ratio": "rate ratio", "mass ratio": "rate × size ratio", "position": "position η²",
           "q": "q"}  # fmt: skip
"""Columns of the table of candidates that a page shows."""


def passed(table: pd.DataFrame, most: float = 0.05) -> pd.DataFrame:
    """The candidates of `judged` whose false discovery rate is at most `most`."""
    return table[table.q <= most]


def of_nothing(step: Step) -> float:
    """The largest change of any outcome by the edit that multiplies a feature by 1, nats."""
    nothing = (step.table("edits.csv").kind == "nothing").to_numpy()
    return float(np.nanmax(np.abs(step.array("each.npy")[nothing]), initial=0.0))


def sentence(table: pd.DataFrame) -> str:
    """What the table of candidates shows, in words with its numbers."""
    good, lone = passed(table), table[table.matched < CONTROLS]
    names = ", ".join(f"{row.feature} at {row.site} ({row.target})" for row in good.itertuples()) or "none"
    apart = np.log(table[["rate ratio", "mass ratio"]].astype(float)).abs().median()
    return (
        f"Beyond their matched controls, at a false discovery rate of 5 %: {names}. {len(lone)} of {len(table)} "
        f"candidates have fewer than {CONTROLS} matched controls and are not tested. Median |log ratio| to "
        f"the controls: {apart['rate ratio']:.2f} in rate, {apart['mass ratio']:.2f} in rate × size."
    )


def changed(step: Step, most: int = 3) -> pd.DataFrame:
    """Transcripts before and after, of the clips that gain or lose most tokens of the kind: `target`, `scale`,
    `before`, `after`; a row each, `most` for a target, at the scale that moves its rate furthest."""
    transcripts, rows = wrote(step), []
    for target, part in transcripts[transcripts.kind == "feature"].groupby("target", sort=False):
        wide = part.pivot(index="clip", columns="scale", values="count")
        scale = (wide.sum() - wide[1.0].sum()).abs().idxmax()
        text = part.pivot(index="clip", columns="scale", values="wrote")
        for clip in (wide[scale] - wide[1.0]).abs().sort_values(ascending=False, kind="stable").index[:most]:
            rows.append((target, scale, text.loc[clip, 1.0], text.loc[clip, scale]))
    return pd.DataFrame(rows, columns=["target", "scale", "before", "after"])


def tokens_of_features(step: Step, most: int = 20) -> pd.DataFrame:
    """The decoder's features that name their token best: the larger side of each feature, `given` or `next`, of
    features that fire on at least 5 tokens of held-out speakers, those with the most firings on the token first."""
    firing = step.table("fires_on.csv", dtype={"token": str, "side": str}, keep_default_na=False)
    firing = firing.assign(lift=pd.to_numeric(firing.lift, errors="coerce"), gain=0.0)
    firing = firing[firing["count"] >= 5]
    firing["gain"] = firing["count"] * np.log(firing.lift)
    best = firing.sort_values("gain", ascending=False, kind="stable").drop_duplicates("feature").head(most)
    return best.assign(token=[repr(token) for token in best.token]).drop(columns="gain").reset_index(drop=True)


def dosed(step: Step) -> pd.DataFrame:
    """A row a target, kind and scale: `rate`, tokens of the kind per 100 words (mean over speakers) with `low` and
    `high`, and `kept`, %; for `control` the median over controls, with `least` and `greatest` in `low` and `high`."""
    transcripts, speaker, rows = wrote(step), _speakers(step), []
    transcripts["rate"] = 100 * transcripts["count"] / np.maximum(transcripts.words, 1)
    for (target, kind, scale), part in transcripts.groupby(["target", "kind", "scale"], sort=False):
        each = [
            token_features.by_speaker(one.sort_values("clip").rate.to_numpy(float), speaker)
            for _, one in part.groupby("feature")
        ]
        means = np.array([one.mean() for one in each])
        low, high = (means.min(), means.max()) if kind == "control" else token_features.interval(each[0])
        site, feature = part.site.iloc[0], -1 if kind == "control" else part.feature.iloc[0]
        rows.append(
            (target, site, feature, kind, scale, np.median(means), low, high, 100 * part.kept.mean(), len(each))
        )
    columns = ["target", "site", "feature", "kind", "scale", "rate", "low", "high", "kept", "features"]
    return pd.DataFrame(rows, columns=columns).sort_values(["target", "kind", "scale"], ignore_index=True)


def wrote(step: Step) -> pd.DataFrame:
    """The transcripts of `doses`."""
    return step.table("wrote.csv", dtype={"wrote": str, "target": str}, keep_default_na=False)


def _speakers(step: Step) -> np.ndarray:
    return step.table("clips.csv", dtype={"speaker": str}).speaker.to_numpy()
