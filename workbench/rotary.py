"""Rotary positions: how queries and keys are turned by where they stand."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from workbench.models import Model


def rotation(model: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """How queries and keys [.. head d_head] at positions [..] are rotated: not at all, interleaved, or by halves."""
    bridge: Any = model.bridge
    attention = bridge.blocks[0].attn.original_component
    if hasattr(bridge, "pos_embed"):
        return lambda x, positions: x
    if hasattr(attention, "embed_positions"):  # GPT-J: pairs of neighbours
        sines, cosines = attention.embed_positions.to(model.dtype).chunk(2, dim=-1)
        sines, cosines = (table.repeat_interleave(2, dim=-1) for table in (sines, cosines))

        def turn(x: Tensor) -> Tensor:
            pairs = rearrange(x, "... (n two) -> ... n two", two=2)
            return rearrange(torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1), "... n two -> ... (n two)")
    else:
        everywhere = torch.arange(model.n_ctx, device=model.device)[None]
        example = torch.zeros(1, dtype=model.dtype, device=model.device)
        cosines, sines = (table[0] for table in bridge.rotary_emb.original_component(example, everywhere))

        def turn(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat([-second, first], dim=-1)

    size = cosines.shape[-1]

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = cosines[positions][..., None, :], sines[positions][..., None, :]
        rotated = x[..., :size] * cos + turn(x[..., :size]) * sin
        return rotated if size == x.shape[-1] else torch.cat([rotated, x[..., size:]], dim=-1)

    return rotate
