"""Whisper's encoder with one product where there were three: the same numbers from self-attention with less copying.

transformers makes queries, keys and values one after the other and copies each into another order. Here they come from
one matrix, and attention reads them where they lie. The weights are not doubled: the old ones become its parts.
"""

import torch
from torch import nn
from torch.nn import functional


def fuse(encoder: nn.Module) -> None:
    """Let every layer of an encoder attend in this way; hooks hear what they heard before."""
    for layer in encoder.layers:
        _fuse(layer.self_attn)


def _fuse(attention: nn.Module) -> None:
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = torch.cat([part.weight.data for part in parts])
    bias = torch.cat([torch.zeros_like(weight[: len(p.weight), 0]) if p.bias is None else p.bias.data for p in parts])
    for part, rows in zip(parts, weight.chunk(3), strict=True):
        part.weight.data = rows

    def forward(hidden_states: torch.Tensor, *_masks, **_told) -> tuple[torch.Tensor, None]:
        whole = functional.linear(hidden_states, weight, bias)  # (clip, frame, 3 · width)
        heads = whole.unflatten(-1, (3, attention.num_heads, attention.head_dim))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (clip, head, frame, width of a head) each
        said = functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        return attention.out_proj(said.transpose(1, 2).flatten(2)), None

    attention.forward = forward
