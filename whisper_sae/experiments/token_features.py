"""Which features move a token that Whisper writes, such as a comma: attribution patching chooses, real edits test.

    given = own_transcripts(heard, [TARGETS["comma"]])
    scores = attribution(heard, coder, given)                  # of training speakers: which features may matter
    effect = outcomes(heard, {"": coded.edit(edits.scale({f: 4}))}, given)[""]      # of held-out speakers: do they?

The outcome is a log-odds in nats, averaged over positions of the transcript that the unedited model writes, which is
given to the decoder token by token (teacher forcing). Attribution patching (Nanda 2023,
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al. 2023, arXiv 2310.10348)
approximates the effect of every feature's scale with one backward pass per clip. It only chooses candidates: the
approximation is first order, so the effects that are reported come from edits.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whisper_sae.causal import patching
from whisper_sae.stats import intervals

BINS = 32
"""Parts of the time, or of the positions, in which a feature's mean is taken to see whether it follows position."""

BATCH = 8
"""Clips in one batch: a backward pass keeps the activations of all layers above the site."""


class Target(NamedTuple):
    """A kind of token and the positions at which it is measured."""

    name: str
    pattern: str
    """A regular expression for the whole decoded token, its leading space included."""
    where: str
    """`word ends` and `word starts`: the mean log-odds of the kind at all such positions. `words`: the mean log-odds of
    the written token at word starts where it is of the kind, less the mean at all other word starts."""
    scale: float
    """What activations are multiplied by when a feature is tested: 0 ablates."""


TARGETS = {
    one.name: one
    for one in (
        Target("comma", r",", "word ends", 4.0),
        Target("full stop", r"\.", "word ends", 4.0),
        Target("capital", r" [A-Z].*", "word starts", 4.0),
        Target("th", r" [Tt]h.*", "words", 0.0),
    )
}
"""What notebook 5 asks about. Punctuation is rare, so a feature is amplified; words with "th" are frequent, so it is
ablated."""


def vocabulary(whisper) -> list[str]:
    """The text of every token of a model, a leading space included; "" for special tokens: (token,)."""
    tokenizer = whisper.require_tokenizer()
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    every = range(whisper.config.vocab_size)
    return ["" if token in special else tokenizer.decode([token]) for token in every]


def of_kind(words: Sequence[str], target: Target) -> np.ndarray:
    """Which tokens are of a target's kind: (token,) bool."""
    return np.array([bool(word) and re.fullmatch(target.pattern, word) is not None for word in words], dtype=bool)


def missing(whisper, written: Sequence[Sequence[int]], target: Target, least: int) -> str:
    """Why a target cannot be measured in transcripts, tokens a clip, in one sentence; "" if it can."""
    kind = of_kind(vocabulary(whisper), target)
    if not kind.any():
        return f"{target.name}: no token of the model's vocabulary of {len(kind):,} is of this kind."
    count = int(sum(kind[tokens].sum() for tokens in written if len(tokens)))
    return "" if count >= least else f"{target.name}: written {count} times; {least} are the least."


class Given(NamedTuple):
    """Transcripts that the decoder is given, and the positions at which each target is measured."""

    ids: Tensor
    """(clip, position): the prompt and the written tokens, filled with the end of text."""
    wanted: Tensor
    """(clip, position): the token that was written next."""
    used: Tensor
    """(clip, position) bool: positions whose next token belongs to the transcript or ends it."""
    kinds: Tensor
    """(target, token) bool."""
    weights: Tensor
    """(target, clip, position): the outcome of a clip is the sum of weight × log-odds over positions; 0 in all of them
    where a clip lacks a kind of position."""
    answered: tuple[bool, ...]
    """(target,): whether the log-odds are those of the written token; otherwise of all tokens of the kind together."""

    @property
    def has(self) -> Tensor:
        """(target, clip) bool: the clip has positions at which the target is measured."""
        return (self.weights != 0).any(dim=-1)

    def only(self, target: int) -> "Given":
        """The same of one target: quicker, for logits are made at its positions alone."""
        at = slice(target, target + 1)
        return self._replace(kinds=self.kinds[at], weights=self.weights[at], answered=self.answered[at])


def own_transcripts(heard: patching.Heard, targets: Sequence[Target]) -> Given:
    """The greedy transcripts of the unedited model (`heard.plain`), ready to be given to the decoder.

    A word ends where the next token is punctuation, begins with a space, or is the end of text; it starts where the
    next token begins with a space. The first token of a transcript and what follows punctuation are no word ends.
    """
    words, decoder = vocabulary(heard.whisper), heard.decoder
    marks = np.array([bool(word) and not any(map(str.isalnum, word)) for word in words])
    spaced = np.array([word.startswith(" ") for word in words])
    prompts = heard.prompts()
    begun = [decoder.prompt] * len(heard) if prompts is None else prompts.tolist()
    first, width = len(decoder.prompt), len(decoder.prompt) + max(map(len, heard.plain), default=0)
    ids = torch.full((len(heard), width), decoder.end)
    used = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (start, tokens) in enumerate(zip(begun, heard.plain, strict=True)):
        ids[row, : first + len(tokens)] = torch.tensor([*start, *tokens])
        used[row, first - 1 : first + len(tokens)] = True
    wanted = torch.cat([ids[:, 1:], torch.full((len(ids), 1), decoder.end)], dim=1)
    now, then = ids.numpy(), wanted.numpy()
    inside = used.numpy() & (np.arange(width) >= first)
    starts = used.numpy() & spaced[then]
    ends = inside & ~marks[now] & (marks[then] | spaced[then] | (then == decoder.end))
    kinds = np.stack([of_kind(words, target) for target in targets])
    parts = []
    for target, kind in zip(targets, kinds, strict=True):
        if target.where == "words":
            parts.append(_share(starts & kind[then]) - _share(starts & ~kind[then]))
            parts[-1] *= ((starts & kind[then]).any(axis=1) & (starts & ~kind[then]).any(axis=1))[:, None]
        elif target.where in ("word ends", "word starts"):
            parts.append(_share(ends if target.where == "word ends" else starts))
        else:
            raise ValueError(f"target {target.name}: where is {target.where!r}, not word ends, word starts or words")
    weights = torch.from_numpy(np.stack(parts)).float()
    answered = tuple(target.where == "words" for target in targets)
    return Given(ids, wanted, used, torch.from_numpy(kinds), weights, answered)


def _share(at: np.ndarray) -> np.ndarray:
    """Weights of a mean over chosen positions, (clip, position)."""
    return at / np.maximum(at.sum(axis=1, keepdims=True), 1)


def _outcome(heard: patching.Heard, given: Given, clips: Tensor, encoded: Tensor, see=None, keys=None) -> Tensor:
    """The outcome of each target in some clips, sums of log P / (1 - P): (target, item), nats. `keys` are the keys and
    values of the cross-attention (`Decoder.listened`) where they are known."""
    decoder, rows = heard.decoder, torch.arange(len(clips), device=encoded.device)
    longest = int(given.used[clips].any(dim=0).nonzero().max()) + 1
    ids, layers = given.ids[clips, :longest].to(encoded.device), [None] * len(decoder.net.layers)
    keys = decoder.listened(encoded) if keys is None else keys
    hidden = decoder.step(ids, 0, keys, layers, see or (lambda _site, x, _rows: x), rows)
    weights = given.weights[:, clips, :longest].to(encoded.device)
    item, position = (weights != 0).any(dim=0).nonzero(as_tuple=True)
    logits, wanted = decoder.out(hidden[item, position]), given.wanted[clips][:, :longest].to(encoded.device)
    found = []
    for kind, answered, weight in zip(given.kinds, given.answered, weights, strict=True):
        here = weight[item, position].nonzero().squeeze(1)
        part, at = logits[here], item[here]
        if answered:
            right = wanted[item[here], position[here], None]
            odds = part.gather(1, right)[:, 0] - part.scatter(1, right, -torch.inf).logsumexp(dim=1)
        else:
            tokens = kind.nonzero()[:, 0].to(part.device)
            others = part.index_fill(1, tokens, -torch.inf).logsumexp(dim=1)
            odds = part.index_select(1, tokens).logsumexp(dim=1) - others
        each = weight[item[here], position[here]] * odds
        found.append(torch.zeros(len(clips), device=each.device).index_add(0, at, each))
    return torch.stack(found)


@torch.no_grad()
def run_given(run: patching.Run, given: Given) -> Tensor:
    """The outcomes of the clips of a run while the decoder is given their transcripts: (target, item), nats."""
    return _outcome(run.heard, given, run.clips, run.encoded, run.see and run.see())


@torch.no_grad()
def outcomes(heard: patching.Heard, changes: Mapping[str, patching.Change], given: Given,
             batch: int = BATCH, progress: Callable = iter) -> tuple[np.ndarray, dict]:  # fmt: skip
    """The outcomes of unedited clips, (target, clip), and {name: how much each change adds to them}, nats; NaN where a
    clip has no position at which the target is measured."""
    plain = torch.cat(
        [_outcome(heard, given, at, heard.encoded[at]).cpu() for at in torch.arange(len(heard)).split(batch)], dim=1
    )
    nowhere = ~given.has
    plain[nowhere] = torch.nan
    added = {name: torch.where(nowhere, torch.nan, torch.zeros_like(plain)).numpy() for name in changes}
    work, keys, of = list(patching.batches(heard, changes, batch)), None, None
    if heard.in_decoder:  # the encoder's output stays, and so do keys and values of a batch of clips
        work = [[(name, at)] for at in torch.arange(len(heard)).split(batch) for name in changes]
    for parts in progress(work):
        run = patching.run_of(heard, [(changes[name], clips) for name, clips in parts])
        if heard.in_decoder and of != run.clips.tolist():
            keys, of = heard.decoder.listened(run.encoded), run.clips.tolist()
        now = _outcome(heard, given, run.clips, run.encoded, run.see and run.see(), keys)
        more = now.cpu() - plain[:, run.clips]
        names = [name for name, clips in parts for _ in clips]
        for column, (name, clip) in enumerate(zip(names, run.clips.tolist(), strict=True)):
            added[name][:, clip] = more[:, column].numpy()
    return plain.numpy(), added


class Attributed(NamedTuple):
    """How features of a site are expected to move the outcomes, and how often they fire."""

    effect: np.ndarray
    """(target, clip, feature): the derivative of the outcome by the feature's scale at 1, nats; scaled by s, the
    outcome changes by about (s - 1) × this. NaN where a clip has no position at which the target is measured."""
    rate: np.ndarray
    """(feature,): the share of frames, or tokens, on which it fires."""
    size: np.ndarray
    """(feature,): its mean activation where it fires times the norm of its decoder direction."""
    clips: np.ndarray
    """(feature,): in how many clips it fires."""
    position: np.ndarray
    """(feature,): the share of its variance that position explains, in BINS equal parts of the longest clip (η²)."""


def attribution(heard: patching.Heard, coder, given: Given, batch: int = BATCH,
                progress: Callable = iter) -> Attributed:  # fmt: skip
    """Attribution patching of every feature's scale: Σ over frames of f · (∂ outcome / ∂x · W_dec), one backward pass
    per batch and target. Only valid frames count, at a site of the decoder `Given.used`."""
    parts, fired, total, touched, square = [], 0, 0, 0, 0
    mask_of = given.used if heard.in_decoder else heard.valid
    longest = int(mask_of.any(dim=0).nonzero().max()) + 1
    by_bin, frames = torch.zeros(BINS, coder.d_sae), torch.zeros(BINS)
    for clips in progress(torch.arange(len(heard)).split(batch)):
        seen = []

        def keep(x: Tensor, _clips: Tensor, seen=seen) -> Tensor:
            seen.append(x.detach().requires_grad_())
            return seen[-1]

        with torch.enable_grad():
            run = patching.run_of(heard, [(patching.Change(keep), clips)])
            results = _outcome(heard, given, clips, run.encoded, run.see and run.see())
        x = seen[-1]
        mask = mask_of[clips][:, : x.shape[1]].to(x.device)
        item, place = mask.nonzero(as_tuple=True)
        with torch.no_grad():
            f = coder.encode(x.detach()[mask])
        slopes = []
        for result in results:
            slope = torch.autograd.grad(result.sum(), x, retain_graph=True)[0][mask] @ coder.W_dec.detach().T
            slopes.append(f.new_zeros(len(clips), f.shape[1]).index_add_(0, item, f * slope))
        parts.append(torch.stack(slopes).cpu())
        fires = f.new_zeros(len(clips), f.shape[1]).index_add_(0, item, (f > 0).to(f))
        fired, total, touched = fired + fires.sum(dim=0), total + f.sum(dim=0), touched + (fires > 0).sum(dim=0)
        square, part = square + f.square().sum(dim=0), (place * BINS // longest).cpu()
        by_bin.index_add_(0, part, f.cpu())
        frames.index_add_(0, part, torch.ones(len(part)))
    effect = torch.cat(parts, dim=1)
    effect[~given.has] = torch.nan
    mean = (total / int(mask_of.sum())).cpu()
    between = by_bin.square().div(frames.clamp_min(1)[:, None]).sum(dim=0) - mean.square() * frames.sum()
    within = (square.cpu() - mean.square() * frames.sum()).clamp_min(1e-12)
    size = total / fired.clamp_min(1) * coder.W_dec.detach().norm(dim=1)
    counts = [(fired / int(mask_of.sum())), size, touched]
    return Attributed(effect.numpy(), *(part.cpu().numpy() for part in counts), (between / within).numpy())


# ------------------------------------------------------------------------------------- which tokens it fires on


def fires_on(f: np.ndarray, tokens: np.ndarray) -> pd.DataFrame:
    """The token of each feature that its firing goes with best: a row a feature that ever fires, with `feature`,
    `token`, `count` (both), and `lift`, P(token | fires) / P(token).

    f (row, feature), tokens (row,). The best has the largest count × log lift, a term of the mutual information.
    """
    names, of = np.unique(tokens, return_inverse=True)
    fires = (np.asarray(f) > 0).astype(np.float64)
    both = np.zeros((len(names), fires.shape[1]))
    np.add.at(both, of, fires)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = both / fires.sum(axis=0) / (np.bincount(of) / len(of))[:, None]
        gain = np.where(both > 0, both * np.log(lift), -np.inf)
    live = np.flatnonzero(fires.any(axis=0))
    best = gain[:, live].argmax(axis=0)
    columns = {"feature": live, "token": names[best], "count": both[best, live].astype(int), "lift": lift[best, live]}
    return pd.DataFrame(columns)


# ---------------------------------------------------------------------------------------------- over speakers

DRAWS = 2000
"""Draws of a bootstrap over speakers."""


def interval(each: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over speakers, (speaker,), from a bootstrap over them; NaN for few."""
    each = each[np.isfinite(each)]
    drawn = np.random.default_rng(seed).integers(0, max(1, len(each)), (DRAWS, len(each)))
    low, high = intervals.of_draws(each[drawn].mean(axis=1), len(each)) if len(each) else (np.nan, np.nan)
    return float(low), float(high)


def by_speaker(each: np.ndarray, speaker: np.ndarray) -> np.ndarray:
    """The mean of each speaker's clips, (…, clip) -> (…, speaker); NaN where none has a value."""
    names = pd.factorize(speaker)[0]
    parts = [pd.DataFrame(np.atleast_2d(each)[:, names == name].T).mean().to_numpy() for name in range(names.max() + 1)]
    return np.stack(parts, axis=-1).reshape(*np.shape(each)[:-1], -1)
