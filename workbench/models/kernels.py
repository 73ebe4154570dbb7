"""Attention over a few keys and linear modules, as a CPU does them fastest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

SHORT = 64
"""Keys up to which attention on a CPU is two matrix products."""
LINEAR_KERNEL: Callable | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""oneDNN's linear module with its activation, as compiled models call it; None in builds without."""


def attend_short(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    mask: Bool[Tensor, "query key"] | Bool[Tensor, "batch 1 query key"] | None,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "batch query d_attn"]:
    """Attention as two batched matrix products: over a few keys several times as fast as the fused kernel of CPUs.

    `softcap` bends scores towards +- itself, which no fused kernel does.
    """
    kv_heads = k.shape[2]
    shared = q.shape[2] // kv_heads
    q = rearrange(q, "b query (kv shared) d -> (b kv) (shared query) d", shared=shared)
    k, v = (rearrange(x, "b key kv d -> (b kv) key d") for x in (k, v))
    unseen = q.new_zeros(())
    if mask is not None:
        unseen = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)
        unseen = torch.cat([unseen] * shared, dim=-2)
        if unseen.ndim == 4:
            unseen = repeat(unseen, "b 1 query key -> (b kv) query key", kv=kv_heads)
    if softcap is None:
        scores = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=scale)
    else:
        scores = softcap * (q @ k.transpose(1, 2) * (scale / softcap)).tanh() + unseen
    weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()  # softmax() is slow over few keys
    read = (weights @ v) / weights.sum(dim=-1, keepdim=True)
    return rearrange(read, "(b kv) (shared query) d -> b query (kv shared d)", shared=shared, kv=kv_heads)


def linear(module: Any, x: Float[Tensor, "... d_in"], *, gelu: bool = False) -> Float[Tensor, "... d_out"]:
    """What a linear module gives, or GELU in its tanh form of that; on a CPU without gradients one kernel of oneDNN."""
    fits = x.is_cpu and x.dtype == torch.float32 and type(module) in (Conv1D, torch.nn.Linear) and module.weight.is_cpu
    if LINEAR_KERNEL is not None and fits and not torch.is_grad_enabled():
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        if weight.is_contiguous() or weight.t().is_contiguous():  # for slices of a larger matrix it is slow
            return LINEAR_KERNEL(x, weight, module.bias, *(("gelu", [], "tanh") if gelu else ("none", [], "")))
    return F.gelu(module(x), approximate="tanh") if gelu else module(x)
