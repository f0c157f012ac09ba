"""Whisper's decoder written out: greedy transcripts and teacher-forced answers, many clips at a time.

`generate` of transformers prepares each call for half a second of options that nobody here uses. This is the same
arithmetic on the same weights, step by step: keys and values of what was heard are made once, those of what was written
are kept, and clips that have come to their end leave the batch. Every site of the decoder can be seen and answered on
the way, by the names that `sites` has.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisper_sae.model.hooks import normed

See = Callable[[str, Tensor, Tensor], Tensor]
"""What is said at a site, (row, position, width), and which rows of the batch these are, (row,): what is said
instead."""


def _of(held: list[tuple[Tensor, Tensor]], rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of some rows."""
    return [tuple(part[rows] for part in pair) for pair in held]


ROUNDS = 3
"""How often a draft is mended before it is given up: a word that is another one takes a round or two."""

LEFT = 2 / 3
"""Those that have come to their end leave the batch when no more than this share goes on: leaving costs a copy."""


LOOP, PERIOD = 30, 8
"""A transcript ends when its last LOOP tokens repeat a sequence of at most PERIOD tokens over and over: no speech does
that, and a layer whose activations are destroyed would repeat itself up to the last position."""


def is_loop(tokens: list[int]) -> bool:
    """Whether the last LOOP tokens are one sequence of at most PERIOD tokens, repeated."""
    last = tokens[-LOOP:]
    return len(last) == LOOP and any(last[period:] == last[:-period] for period in range(1, PERIOD + 1))


def until_loop(tokens: list[int]) -> list[int]:
    """The tokens up to the first place where they are a loop: see `is_loop`."""
    ends = (end for end in range(LOOP, len(tokens)) if is_loop(tokens[:end]))
    return tokens[: next(ends, len(tokens))]


SPARE, TOKENS_A_SECOND = 32, 16
"""A transcript has at most SPARE + TOKENS_A_SECOND · seconds tokens. OpenAI's limit is 224 tokens a window whatever is
in it; a layer whose activations are destroyed would write twice as many of a clip of a second. The references of 1,083
clips in five corpora have at most 5.6 tokens a second, and no more than a third of this limit; the transcripts that
tiny.en writes of 48 clips of LibriSpeech, and of the first 32, at most 4.9 a second and 27 % of it."""


def most_tokens(seconds: Sequence[float] | Tensor) -> Tensor:
    """The number of tokens at which transcripts of clips of so many seconds, (clip,), are cut: (clip,), on the CPU."""
    return torch.from_numpy(np.ceil(SPARE + TOKENS_A_SECOND * np.asarray(seconds, np.float64))).long()


NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""Names of the token by which Whisper says that a window holds no speech; the second is older."""


def no_speech_token(whisper) -> int | None:
    """The number of a model's NO_SPEECH; without a name the token before `<|notimestamps|>`, as in transformers; None
    where there is neither."""
    words = whisper.tokenizer.get_vocab() if whisper.tokenizer is not None else {}
    if named := [words[name] for name in NO_SPEECH if name in words]:
        return named[0]
    after = getattr(whisper.whole.generation_config, "no_timestamps_token_id", None)
    return None if after is None else after - 1


class Confidence(NamedTuple):
    """How sure a model is of its transcripts, (row,) each: see `Decoder.confidence`."""

    no_speech: Tensor
    mean_logprob: Tensor
    first_token: Tensor
    """The token that would begin the transcript without the suppression at the beginning (`Decoder.allowing_empty`)."""


def _as_it_is(_site: str, x: Tensor, _rows: Tensor) -> Tensor:
    return x


class Decoder:
    """The decoder of a `model.Whisper`, and how a transcript begins: `prompt` (position,) and what is never written.

    Settings come from generation_config.json; without it transformers takes the suppressed tokens and the end of text
    from config.json. Methods take `prompts` (row, position) where clips are in several languages; None is `prompt` for
    all. They take `limits` (row,), see `most_tokens`, where the duration of clips is known.
    """

    def __init__(self, whisper, prompt: list[int]):
        self.net: nn.Module = whisper.require_decoder()
        told, config = whisper.whole.generation_config, whisper.config
        self.prompt, self.end = list(prompt), int(config.eos_token_id)
        if told.eos_token_id is not None:
            self.end = int(told.eos_token_id[0] if isinstance(told.eos_token_id, list) else told.eos_token_id)
        self.never = torch.tensor(told.suppress_tokens or [], dtype=torch.long)
        self.not_first = torch.tensor(told.begin_suppress_tokens or [], dtype=torch.long)
        longest = (told.max_length or config.max_target_positions) + len(self.prompt)
        self.longest = min(longest, config.max_target_positions)
        self.no_speech = no_speech_token(whisper)
        self.out = whisper.whole.proj_out
        self.heads = config.decoder_attention_heads

    def allowing_empty(self) -> "Decoder":
        """The same without the suppression at the beginning. OpenAI's models suppress the end of text there, so that no
        transcript can be empty, whatever is in the window."""
        other = copy.copy(self)
        other.not_first = self.not_first[:0]
        return other

    # ------------------------------------------------------------------------------------------------ one step

    def listened(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keys and values of what was heard, (row, frame, width), in each layer: (row, head, frame, …) each."""
        return [
            (self._split(layer.encoder_attn.k_proj(encoded)), self._split(layer.encoder_attn.v_proj(encoded)))
            for layer in self.net.layers
        ]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def step(self, ids: Tensor, first: int, heard: list, written: list, see: See, rows: Tensor) -> Tensor:
        """What the decoder says of the next tokens, `ids` (row, position) from position `first` on: (row, position,
        width). `written` holds each layer's keys and values of what came before, and takes in these."""
        x = self.net.embed_tokens(ids) + self.net.embed_positions.weight[first : first + ids.shape[1]]
        x = see("decoder.embed", x, rows)
        for number, layer in enumerate(self.net.layers):
            x = self._layer(number, layer, x, heard[number], written, see, rows)
        return self.net.layer_norm(x)

    def _layer(self, number: int, layer: nn.Module, x: Tensor, heard: tuple, written: list, see: See, rows: Tensor):
        def at(part: str, said: Tensor) -> Tensor:
            return see(f"decoder.{number}.{part}", said, rows)

        own, cross, before = layer.self_attn, layer.encoder_attn, layer.self_attn_layer_norm(x)
        key, value = self._split(own.k_proj(before)), self._split(own.v_proj(before))
        if written[number] is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(written[number], (key, value), strict=True))
        written[number] = (key, value)
        told = self._attended(own, before, key, value, causal=x.shape[1] > 1)
        x = x + at("attn", own.out_proj(at("heads", told)))
        told = self._attended(cross, layer.encoder_attn_layer_norm(x), *heard)
        x = x + at("cross", cross.out_proj(at("cross_heads", told)))
        inside = at("mlp_pre", layer.fc1(at("mlp_in", layer.final_layer_norm(x))))
        x = x + at("mlp", layer.fc2(at("mlp_hidden", layer.activation_fn(inside))))
        return at("resid", x)

    def _attended(self, attention: nn.Module, x: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
        query = self._split(attention.q_proj(x) * attention.scaling)
        said = F.scaled_dot_product_attention(query, key, value, scale=1.0, is_causal=causal)
        return said.transpose(1, 2).flatten(2)

    # --------------------------------------------------------------------------------------------- transcripts

    @torch.no_grad()
    def write(self, encoded: Tensor, see: See = _as_it_is, prompts: Tensor | None = None,
              limits: Tensor | None = None) -> list[list[int]]:  # fmt: skip
        """The tokens that are written of what was heard, (row, frame, width): greedy, without prompt and end; a loop is
        cut (`is_loop`), and what is longer than its limit."""
        most = self._most(limits, len(encoded))
        return self._greedy(self.listened(encoded), self._begun(prompts, len(encoded)), most, see)

    def _most(self, limits: Tensor | None, count: int) -> Tensor:
        """The number of tokens at which each transcript is cut: (row,), on the CPU."""
        most = torch.full((count,), self.longest - len(self.prompt))
        return most if limits is None else torch.minimum(most, limits)

    def _begun(self, prompts: Tensor | None, count: int) -> Tensor:
        return torch.tensor([self.prompt]).expand(count, -1) if prompts is None else prompts

    def _greedy(self, heard: list, prompts: Tensor, most: Tensor, see: See = _as_it_is) -> list[list[int]]:
        count, device = len(heard[0][0]), heard[0][0].device
        rows, written = torch.arange(count, device=device), [None] * len(self.net.layers)
        ids = prompts.to(device)
        found: list[list[int]] = [[] for _ in range(count)]
        going, place, most = most > 0, 0, most.tolist()
        while going.any() and place + ids.shape[1] < self.longest:
            said = self.step(ids, place, heard, written, see, rows)
            place += ids.shape[1]
            first = torch.arange(len(rows) if place == len(self.prompt) else 0)
            ids = self._suppressed(self.out(said[:, -1]), first).argmax(dim=-1, keepdim=True)
            going &= ids[:, 0].cpu() != self.end
            for row, token, on in zip(rows.tolist(), ids[:, 0].tolist(), going.tolist(), strict=True):
                if on:
                    found[row].append(token)
            cut = [is_loop(found[row]) or len(found[row]) >= most[row] for row in rows.tolist()]
            going &= ~torch.tensor(cut)
            if going.sum() <= LEFT * len(rows):
                here = going.nonzero().squeeze(1).to(device)
                rows, ids, heard, written = rows[here], ids[here], _of(heard, here), _of(written, here)
                going = going[going]
        return found

    @torch.no_grad()
    def check(self, encoded: Tensor, drafts: list[list[int]], prompts: Tensor | None = None,
              limits: Tensor | None = None) -> list[list[int]]:  # fmt: skip
        """What `write` writes, found sooner where it is near to a draft, tokens a row.

        A draft is given as a whole, and where the decoder answers each token with the next one, it is what would have
        been written. Where it does not, its first other answer takes the place of the draft's, and what is left of the
        draft is tried behind it. A row that needs more than ROUNDS, or whose draft the decoder confirms in less than
        half of its tokens, is decoded from the beginning.
        """
        cross_kv, found, guesses = self.listened(encoded), [[] for _ in drafts], [list(draft) for draft in drafts]
        begun = self._begun(prompts, len(drafts))
        rows, most, from_start = list(range(len(drafts))), self._most(limits, len(drafts)), []
        for _ in range(ROUNDS):
            kv = _of(cross_kv, torch.tensor(rows, device=encoded.device))
            answers = self._answers(kv, begun[rows].tolist(), [guesses[row][: most[row]] for row in rows])
            still = []
            for answer, row in zip(answers, rows, strict=True):
                guess = guesses[row][: most[row]]
                confirmed = [token == other for token, other in zip(guess, answer, strict=False)]
                at = confirmed.index(False) if False in confirmed else len(guess)
                other = self.end if at == most[row] else answer[at]
                guesses[row] = guess[:at] if other == self.end else [*guess[:at], other, *guess[at + 1 :]]
                if other == self.end:
                    found[row] = until_loop(guesses[row])
                else:
                    (still if 2 * sum(confirmed) >= len(guess) else from_start).append(row)
            rows = still
            if not rows:
                break
        if left := sorted(rows + from_start):
            kv = _of(cross_kv, torch.tensor(left, device=encoded.device))
            for row, tokens in zip(left, self._greedy(kv, begun[left], most[left]), strict=True):
                found[row] = tokens
        return found

    def _answers(self, heard: list, prompts: list[list[int]], guesses: list[list[int]]) -> list[list[int]]:
        """The token that follows each part of each guess, from the first token on: a list a row, one longer."""
        width = max(map(len, guesses))
        given = [
            [*begun, *guess, *[self.end] * (width - len(guess))] for begun, guess in zip(prompts, guesses, strict=True)
        ]
        ids = torch.tensor(given, device=heard[0][0].device)
        rows = torch.arange(len(ids), device=ids.device)
        hidden = self.step(ids, 0, heard, [None] * len(self.net.layers), _as_it_is, rows)[:, len(self.prompt) - 1 :]
        counts = torch.tensor([len(guess) + 1 for guess in guesses])
        counted = torch.arange(hidden.shape[1]) < counts[:, None]  # the output matrix is most of the work
        logits = self._suppressed(self.out(hidden[counted.to(hidden.device)]), counts.cumsum(0) - counts)
        return [part.tolist() for part in logits.argmax(dim=-1).split(counts.tolist())]

    def _suppressed(self, logits: Tensor, first: Tensor) -> Tensor:
        """Logits, (position, token), without the tokens that are never written; in place. `first` are the numbers of
        the positions at which a transcript begins."""
        logits[:, self.never] = -torch.inf
        logits[first[:, None], self.not_first] = -torch.inf
        return logits

    @torch.no_grad()
    def confidence(self, encoded: Tensor, tokens: list[list[int]], see: See = _as_it_is,
                   prompts: Tensor | None = None,
                   limits: Tensor | None = None) -> Confidence:  # fmt: skip
        """By what openai/whisper decides that a window is silent, of transcripts, tokens a row.

        `no_speech` is p of that token at the first token of the prompt, nothing suppressed; NaN where a model has no
        such token. `mean_logprob` is Σ log p / (n + 1) over n tokens and the end of text, where that was reached, with
        suppression (openai/whisper, decoding.py: `no_speech_probs`, `avg_logprob`).
        """
        begun, width, most = len(self.prompt), max(map(len, tokens)), self._most(limits, len(encoded))
        prompts = self._begun(prompts, len(encoded)).tolist()
        given = [[*first, *one, *[self.end] * (width - len(one))] for first, one in zip(prompts, tokens, strict=True)]
        ids = torch.tensor(given, device=encoded.device)
        rows = torch.arange(len(ids), device=ids.device)
        said = self.step(ids, 0, self.listened(encoded), [None] * len(self.net.layers), see, rows)
        at_start = self.out(said[:, 0]).softmax(dim=-1)
        silent = at_start[:, self.no_speech].cpu() if self.no_speech is not None else torch.full((len(ids),), math.nan)
        mean, first_token = torch.zeros(len(ids)), torch.zeros(len(ids), dtype=torch.long)
        for row, one in enumerate(tokens):
            cut = is_loop(one) or len(one) >= most[row]
            answers = torch.tensor(one if cut else [*one, self.end], device=ids.device)
            logits = self._suppressed(
                self.out(said[row, begun - 1 : begun - 1 + max(1, len(answers))]), torch.arange(0)
            )
            first_token[row] = logits[0].argmax()
            logits = self._suppressed(logits[: len(answers)], torch.arange(min(1, len(answers))))
            mean[row] = logits.log_softmax(dim=-1).gather(1, answers[:, None]).sum() / (len(one) + 1)
        return Confidence(silent, mean, first_token)

    # ------------------------------------------------------------------------------------------ teacher forcing

    @torch.no_grad()
    def logits(self, encoded: Tensor, ids: Tensor, see: See = _as_it_is, counted: Tensor | None = None) -> Tensor:
        """Logits of teacher forcing with `ids`, (row, position): (row, position, token), or with `counted`, (row,
        position) bool, of these positions alone, in order: (counted, token). Position p is about the token after it;
        nothing is suppressed. The output matrix is most of the work, so positions that do not count are left out."""
        rows = torch.arange(len(encoded), device=encoded.device)
        written = [None] * len(self.net.layers)
        hidden = self.step(ids.to(encoded.device), 0, self.listened(encoded), written, see, rows)
        return self.out(hidden if counted is None else hidden[counted.to(hidden.device)])


def answering(site: str, look: Callable[[Tensor, Tensor], Tensor], norm: nn.LayerNorm | None = None) -> See:
    """A `See` that lets `look` answer at one site of the decoder: (row, position, width) and the rows -> the same
    shape.

    A `normed` site needs the final layer norm, `norm`: what `look` adds there is added to the residual stream in its
    units, by each position's own mean and deviation.
    """
    place = site.replace(".normed", ".resid")

    def see(here: str, x: Tensor, rows: Tensor) -> Tensor:
        if here != place:
            return x
        return look(x, rows) if norm is None else beneath(norm, x, lambda said: look(said, rows))

    return see


def beneath(norm: nn.LayerNorm, x: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
    """x with what `look` adds to its layer norm's output, turned back into the units of x: what is not changed there is
    not changed here, to the bit. (…, width)"""
    said, moments = normed(norm, x)
    return x + (look(said) - said) / norm.weight * moments[..., 1:]
