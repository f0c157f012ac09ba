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

from whisper_sae import patching, text


class Read(NamedTuple):
    """What is written under a change, and the costs of what was said: tokens a clip, and three (clip,) arrays."""

    tokens: list[list[int]]
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
         batch: int = patching.BATCH, progress: Callable = iter) -> dict[str, Read]:  # fmt: skip
    """{name: Read} of every clip under each change; `texts` (clip,) are what was said. Each is run once for both."""
    told = forced(heard, texts)
    before = [part for at in torch.arange(len(heard)).split(batch) for part in _costs(heard, told, at)]
    unchanged = np.array([cost for cost, _ in before])
    nothing = np.zeros(len(heard))
    count = told.counted.sum(dim=1).numpy()
    found = {name: Read(list(heard.plain), unchanged.copy(), nothing.copy(), count) for name in changes}
    for parts in progress(list(patching.batches(heard, changes, batch))):
        clips = torch.cat([clips for _, clips in parts])
        run = patching.run_of(heard, [(changes[name], mine) for name, mine in parts])
        wrote, costs = run.write(), _costs(heard, told, clips, run)
        names = [name for name, mine in parts for _ in mine]
        for name, clip, tokens, (cost, away) in zip(names, clips.tolist(), wrote, costs, strict=True):
            one = found[name]
            one.tokens[clip], one.cross_entropy[clip], one.divergence[clip] = tokens, cost, away
    return found


def _costs(heard: patching.Heard, told: Forced, clips: Tensor, run=None) -> list[tuple[float, float]]:
    """Cross-entropy and divergence of some clips, (cost, divergence) each; without `run`, unchanged."""
    ids, counted = told.ids[clips], told.counted[clips]
    longest = int(counted.any(dim=0).nonzero().max()) + 1
    ids, counted, wanted = ids[:, :longest], counted[:, :longest], told.wanted[clips][:, :longest]
    plain = heard.decoder.logits(heard.encoded[clips], ids).log_softmax(dim=-1)
    wanted = wanted.to(plain.device)
    now = plain
    if run is not None:
        see = {"see": run.see()} if run.see else {}
        now = heard.decoder.logits(run.encoded, ids, **see).log_softmax(dim=-1)
    cost = -now.gather(-1, wanted[..., None])[..., 0].cpu().double()
    away = (plain.exp() * (plain - now)).sum(dim=-1).cpu().double()
    return list(zip((cost * counted).sum(dim=1).tolist(), (away * counted).sum(dim=1).tolist(), strict=True))


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
    logits = heard.decoder.logits(encoded, told.ids[clips, :longest], *([see()] if see else []))
    right = told.wanted[clips, :longest, None].to(logits.device)
    others = logits.scatter(-1, right, -torch.inf).logsumexp(dim=-1)
    found = torch.zeros(len(clips), told.ids.shape[1], dtype=torch.float64)
    odds = (logits.gather(-1, right)[..., 0] - others).cpu().double()
    found[:, :longest] = odds * told.counted[clips, :longest]
    return found
