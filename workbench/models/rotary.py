"""Rotary positions: how queries and keys are turned by where they stand."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from workbench.machine.precision import float32_products
from workbench.models.model import Model

Rotate = Callable[[Tensor, Tensor], Tensor]
"""Queries or keys [.. head d_head], and their positions [..], to the same rotated."""

LONGEST = 8192
"""Positions that tables are made for."""


def rotations(model: Model) -> tuple[list[Rotate], int]:
    """How each layer rotates, and up to how many positions that holds.

    With rotary positions of two kinds (Gemma 3) layers differ, in SmolLM 3 some do not rotate, and models with
    learned positions never do.
    """
    bridge: Any = model.bridge
    attentions = [bridge.blocks[layer].attn.original_component for layer in range(model.n_layers)]
    if hasattr(bridge, "pos_embed"):
        return [_unrotated] * model.n_layers, model.n_ctx
    if hasattr(attentions[0], "embed_positions"):  # GPT-J
        sines, cosines = attentions[0].embed_positions.to(model.dtype).chunk(2, dim=-1)
        sines, cosines = (table.repeat_interleave(2, dim=-1) for table in (sines, cosines))
        return [_rotation(cosines, sines, _turned_neighbours)] * model.n_layers, model.n_ctx

    rotary, n_pos = bridge.rotary_emb.original_component, min(model.n_ctx, LONGEST)
    if getattr(rotary, "rope_type", None) in ("dynamic", "longrope"):  # longer prompts rotate otherwise
        n_pos = min(n_pos, rotary.config.rope_parameters.get("original_max_position_embeddings", n_pos))
    positions = torch.arange(n_pos, device=model.device)[None]
    example = torch.zeros(1, dtype=model.dtype, device=model.device)
    module = sys.modules[type(attentions[0]).__module__]
    turn = getattr(module, "rotate_half", _turned_halves)  # Cohere's turns neighbours

    def rotation(*kind: str) -> Rotate:
        with float32_products():  # angles are a product, which TF32 would round to some thousandths of a turn
            cosines, sines = (table[0] for table in rotary(example, positions, *kind))
        return _rotation(cosines, sines, turn)

    if hasattr(rotary, "layer_types"):
        by_kind = {kind: rotation(kind) for kind in rotary.layer_types}
        return [by_kind[kind] for kind in rotary.config.layer_types], n_pos
    everywhere = rotation()
    return [everywhere if getattr(each, "use_rope", True) else _unrotated for each in attentions], n_pos


def _rotation(cosines: Tensor, sines: Tensor, turn: Callable[[Tensor], Tensor]) -> Rotate:
    """By tables [pos d], the first d dimensions of each head, paired as `turn` pairs them."""
    size = cosines.shape[-1]

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = cosines[positions][..., None, :], sines[positions][..., None, :]
        rotated = (x[..., :size] * cos + turn(x[..., :size]) * sin).to(x.dtype)  # OLMo's tables are float32
        return rotated if size == x.shape[-1] else torch.cat([rotated, x[..., size:]], dim=-1)

    return rotate


def _unrotated(x: Tensor, positions: Tensor) -> Tensor:
    return x


def _turned_neighbours(x: Tensor) -> Tensor:
    pairs = rearrange(x, "... (n two) -> ... n two", two=2)
    return rearrange(torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1), "... n two -> ... (n two)")


def _turned_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
