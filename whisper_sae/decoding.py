"""Whisper's decoder written out: greedy transcripts and teacher-forced answers, many clips at a time.

`generate` of transformers prepares each call for half a second of options that nobody here uses. This is the same
arithmetic on the same weights, step by step: keys and values of what was heard are made once, those of what was written
are kept, and clips that have come to their end leave the batch. Every site of the decoder can be seen and answered on
the way, by the names that `sites` has.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisper_sae.hooks import normed

See = Callable[[str, Tensor, Tensor], Tensor]
"""What is said at a site, (row, position, width), and which rows of the batch these are, (row,): what is said
instead."""


LEFT = 2 / 3
"""Those that have come to their end leave the batch when no more than this share goes on: leaving costs a copy."""


def _as_it_is(_site: str, x: Tensor, _rows: Tensor) -> Tensor:
    return x


class Decoder:
    """The decoder of a `model.Whisper`, and how a transcript begins: `prompt` (position,) and what is never written."""

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
        self.out = whisper.whole.proj_out
        self.heads = config.decoder_attention_heads

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
    def write(self, encoded: Tensor, see: See = _as_it_is) -> list[list[int]]:
        """The tokens that are written of what was heard, (row, frame, width): greedy, without prompt and end."""
        rows = torch.arange(len(encoded), device=encoded.device)
        heard, written = self.listened(encoded), [None] * len(self.net.layers)
        ids = torch.tensor([self.prompt], device=encoded.device).expand(len(encoded), -1)
        found: list[list[int]] = [[] for _ in rows]
        going, place = torch.ones(len(rows), dtype=torch.bool), 0
        while going.any() and place + ids.shape[1] < self.longest:
            said = self.step(ids, place, heard, written, see, rows)
            place += ids.shape[1]
            ids = self._chosen(said[:, -1], first=place == len(self.prompt))[:, None]
            going &= ids[:, 0].cpu() != self.end
            for row, token, on in zip(rows.tolist(), ids[:, 0].tolist(), going.tolist(), strict=True):
                if on:
                    found[row].append(token)
            if going.sum() <= LEFT * len(rows):
                rows, ids, heard, written = self._left(going, rows, ids, heard, written)
                going = going[going]
        return found

    def _chosen(self, said: Tensor, first: bool) -> Tensor:
        logits = self.out(said)
        logits[:, self.never] = -torch.inf
        if first:
            logits[:, self.not_first] = -torch.inf
        return logits.argmax(dim=-1)

    @staticmethod
    def _left(going: Tensor, rows: Tensor, ids: Tensor, heard: list, written: list) -> tuple:
        """Without those that have come to their end."""
        here = going.nonzero().squeeze(1).to(rows.device)
        heard, written = ([tuple(part[here] for part in pair) for pair in held] for held in (heard, written))
        return rows[here], ids[here], heard, written

    # ------------------------------------------------------------------------------------------ teacher forcing

    @torch.no_grad()
    def logits(self, encoded: Tensor, ids: Tensor, see: See = _as_it_is) -> Tensor:
        """What the decoder answers when it is given `ids`, (row, position): (row, position, token). Position p is about
        the token after it; nothing is suppressed."""
        rows = torch.arange(len(encoded), device=encoded.device)
        written = [None] * len(self.net.layers)
        return self.out(self.step(ids, 0, self.listened(encoded), written, see, rows))


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
