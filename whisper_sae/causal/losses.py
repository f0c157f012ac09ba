"""What a change costs before it shows in words: cross-entropy and divergence while the decoder is given what was said.

A transcript changes only when another token wins. Given the right tokens one after the other (teacher forcing), how
sure the decoder is of each next one changes with everything, so small effects can be seen, and no early mistake hides
later ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whisper_sae.causal import patching
from whisper_sae.model import text


class Read(NamedTuple):
    """The transcripts under a change, and the costs of the references: tokens a clip, and three (clip,) arrays."""

    tokens: list[list[int] | None]
    """None for a clip that was not to be transcribed."""
    cross_entropy: np.ndarray
    """The sum over the text's tokens, its end among them, of -log p: nats."""
    divergence: np.ndarray
    """The sum over the same of KL(unchanged || changed): nats."""
    answers: np.ndarray
    """How many tokens that are."""


class Forced(NamedTuple):
    """What the decoder is given, ids (clip, position), what it should answer, and which answers count."""

    ids: Tensor
    wanted: Tensor
    counted: Tensor


def forced(heard: patching.Heard, texts: Sequence[str]) -> Forced:
    """The prompt and each text, and from the end of the prompt on the token that follows, its end at last.

    ValueError names a text that is too long for the decoder.
    """
    ids, lengths = text.given(heard.whisper, list(texts), heard.languages)
    most = heard.whisper.config.max_target_positions
    if lengths.max() > most:
        raise ValueError(f"texts: number {lengths.argmax()} is {lengths.max()} tokens; the decoder takes {most}")
    place = torch.arange(ids.shape[1])
    wanted = torch.cat([ids[:, 1:], torch.full((len(ids), 1), heard.decoder.end)], dim=1)
    wanted[place == torch.from_numpy(lengths)[:, None] - 1] = heard.decoder.end
    counted = (place >= len(heard.decoder.prompt) - 1) & (place < torch.from_numpy(lengths)[:, None])
    return Forced(ids, wanted, counted)


@torch.no_grad()
def read(heard: patching.Heard, changes: Mapping[str, patching.Change], texts: Sequence[str],
         batch: int = patching.BATCH, progress: Callable = iter,
         transcribed: Mapping[str, np.ndarray] | None = None) -> dict[str, Read]:  # fmt: skip
    """{name: Read} of every clip under each change; `texts` (clip,) are the references.

    `transcribed`, {name: (clip,) bool}, restricts which clips are transcribed under a change, since a transcript
    costs more than its losses; a change that it does not name is transcribed in all.
    """
    batch_of = forced(heard, texts)
    count, n_clips = batch_of.counted.sum(dim=1).numpy(), len(heard)
    result = {name: Read([None] * n_clips, np.zeros(n_clips), np.zeros(n_clips), count) for name in changes}
    wanted = {name: torch.ones(n_clips, dtype=torch.bool) for name in changes}
    wanted |= {name: torch.from_numpy(mask) for name, mask in (transcribed or {}).items()}
    steps = [(clips, name) for clips in torch.arange(n_clips).split(batch) for name in changes]
    baseline, of_clips = None, None
    for clips, name in progress(steps):
        if of_clips is not clips:
            baseline, of_clips = _baseline(heard, batch_of, clips), clips
        change, one = changes[name], result[name]
        one.cross_entropy[clips] = baseline.cross_entropy
        for clip in clips.tolist():
            one.tokens[clip] = list(heard.plain[clip]) if wanted[name][clip] else None
        touched = torch.ones(len(clips), dtype=torch.bool)
        if change.touched is not None:
            touched = torch.from_numpy(np.asarray(change.touched)[clips.numpy()])
        if not touched.any():
            continue
        run = patching.run_of(heard, [(change, clips[touched])])
        one.cross_entropy[clips[touched]], one.divergence[clips[touched]] = _costs(heard, baseline, touched, run)
        to_write = wanted[name][clips[touched]]
        if to_write.any():
            for clip, tokens in zip(clips[touched][to_write].tolist(), run.at(to_write).write(), strict=True):
                one.tokens[clip] = tokens
    return result


class _Baseline(NamedTuple):
    """The unchanged model on some clips: token positions that count, `ids` and `counted` (clip, position), their
    targets (token,), probabilities (token, vocabulary), entropies (token,) and the cross-entropy of each clip."""

    ids: Tensor
    counted: Tensor
    targets: Tensor
    p: Tensor
    entropy: Tensor
    cross_entropy: np.ndarray


def _baseline(heard: patching.Heard, forced_: Forced, clips: Tensor) -> _Baseline:
    counted = forced_.counted[clips]
    longest = int(counted.any(dim=0).nonzero().max()) + 1
    ids, counted = forced_.ids[clips, :longest], counted[:, :longest]
    logits = heard.decoder.logits(heard.encoded[clips], ids, counted=counted)
    targets = forced_.wanted[clips, :longest][counted].to(logits.device)
    total = logits.logsumexp(dim=-1)
    cost = _of_clips(total - logits.gather(-1, targets[:, None])[:, 0], counted)
    p = (logits - total[:, None]).exp_()
    return _Baseline(ids, counted, targets, p, total - torch.linalg.vecdot(p, logits), cost)


def _costs(heard: patching.Heard, baseline: _Baseline, rows: Tensor, run: patching.Run) -> tuple:
    """Cross-entropy and KL(unchanged || changed) of the clips `rows` (clip,) bool of a baseline, under a change.

    With logits z and log Z = logsumexp z, KL = Σ p log p − Σ p z + log Z: no second table of the vocabulary's size.
    """
    counted = baseline.counted[rows]
    tokens = torch.repeat_interleave(rows, baseline.counted.sum(dim=1)).to(baseline.p.device)
    how = {"see": run.see()} if run.see else {}
    logits = heard.decoder.logits(run.encoded, baseline.ids[rows], counted=counted, **how)
    total = logits.logsumexp(dim=-1)
    cost = total - logits.gather(-1, baseline.targets[tokens, None])[:, 0]
    away = total - torch.linalg.vecdot(baseline.p[tokens], logits) - baseline.entropy[tokens]
    return _of_clips(cost, counted), _of_clips(away, counted)


def _of_clips(values: Tensor, counted: Tensor) -> np.ndarray:
    """Sums over each clip's positions that count: (clip,)."""
    table = torch.zeros(counted.shape, dtype=torch.float64)
    table[counted] = values.cpu().double()
    return table.sum(dim=1).numpy()


class Words(NamedTuple):
    """Every word of some texts, and which token is of which."""

    clip: np.ndarray
    """(word,)"""
    place: np.ndarray
    """(word,): its number in its text."""
    of_token: np.ndarray
    """(clip, position): the number of the word whose token is answered there, -1 for none."""


def words_of(heard: patching.Heard, told: Forced) -> Words:
    """The words of the texts that the decoder is given, as `text.strings` parts them."""
    tokens = text.strings(heard.whisper, told.ids, told.counted.long().cumsum(dim=1).argmax(dim=1).numpy() + 1)
    spoken = tokens[tokens.word >= 0]
    known = spoken.drop_duplicates(["row", "word"])
    number = pd.Series(np.arange(len(known)), index=pd.MultiIndex.from_frame(known[["row", "word"]]))
    of_token = np.full(told.ids.shape, -1)
    each = number.loc[pd.MultiIndex.from_frame(spoken[["row", "word"]])].to_numpy()
    of_token[spoken.row, spoken.position - 1] = each  # a token is answered where the one before it is given
    return Words(known.row.to_numpy(), known.word.to_numpy(), of_token)


@torch.no_grad()
def by_word(heard: patching.Heard, changes: Mapping[str, patching.Change], texts: Sequence[str],
            batch: int = patching.BATCH, progress: Callable = iter) -> tuple[Words, dict[str, np.ndarray]]:  # fmt: skip
    """How much less sure of each word the decoder is under each change than untouched, {name: (word,)}: log-odds, nats.

    It is the mean over the word's tokens of log p / (1 - p), after those before it were given. -log p itself hardly
    moves where p is near 1, and so would be a few words' that are. Much cheaper than `read`, for nothing is written."""
    told = forced(heard, texts)
    words = words_of(heard, told)
    untouched = torch.zeros(told.ids.shape, dtype=torch.float64)
    for at in torch.arange(len(heard)).split(batch):
        untouched[at] = _odds(heard, told, heard.encoded[at], at)
    tokens = np.bincount(words.of_token[words.of_token >= 0], minlength=len(words.clip))
    less = {name: np.zeros(len(words.clip)) for name in changes}
    for parts in progress(list(patching.batches(heard, changes, batch))):
        clips = torch.cat([clips for _, clips in parts])
        run = patching.run_of(heard, [(changes[name], mine) for name, mine in parts])
        lost = (untouched[clips] - _odds(heard, told, run.encoded, clips, run.see)).numpy()
        names = [name for name, mine in parts for _ in mine]
        for name, clip, row in zip(names, clips.tolist(), lost, strict=True):
            here = words.of_token[clip] >= 0
            np.add.at(less[name], words.of_token[clip][here], row[here])
    return words, {name: lost / tokens for name, lost in less.items()}


def _odds(heard: patching.Heard, told: Forced, encoded: Tensor, clips: Tensor, see=None) -> Tensor:
    """log p / (1 - p) of each token that should be answered: (item, position), 0 where none counts."""
    longest = int(told.counted[clips].any(dim=0).nonzero().max()) + 1
    counted = told.counted[clips, :longest]
    how = {"see": see()} if see else {}
    logits = heard.decoder.logits(encoded, told.ids[clips, :longest], counted=counted, **how)
    targets = told.wanted[clips, :longest][counted].to(logits.device)[:, None]
    right = logits.gather(-1, targets)[:, 0]
    others = logits.scatter_(-1, targets, -torch.inf).logsumexp(dim=-1)
    odds = torch.zeros(len(clips), told.ids.shape[1], dtype=torch.float64)
    odds[:, :longest][counted] = (right - others).cpu().double()
    return odds
