"""Attention over a few keys, linear modules and norms, as a processor or a GPU does them fastest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    """What a linear module gives, or GELU in its tanh form of that; on a CPU one kernel of oneDNN.

    Of a module whose weights are trained the gradients are left to torch.
    """
    weight = _weight(module, x)
    if weight is None:
        return F.gelu(module(x), approximate="tanh") if gelu else module(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _product(x, weight, module.bias, "gelu" if gelu else "none")
    output = _Frozen.apply(x, weight, module.bias)
    return F.gelu(output, approximate="tanh") if gelu else output


def fused_norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A norm; the RMS norm of Llama and its kin runs in two launches on a GPU, where its own code makes seven."""
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return module  # Cohere's, of the same attribute, takes the mean away; Gemma's weights are counted from 1

    return lambda x: rms_norm(module, x) if x.is_cuda else module(x)


def rms_norm(module: Any, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """What the RMS norm of Llama and its kin gives, rounded where it rounds."""
    return module.weight * F.rms_norm(x, x.shape[-1:], eps=module.variance_epsilon)


def _weight(module: Any, x: Tensor) -> Float[Tensor, "d_out d_in"] | None:
    """The weights of a module that oneDNN's kernel can stand in for; None for any other."""
    if LINEAR_KERNEL is None or type(module) not in (Conv1D, torch.nn.Linear):
        return None
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    if not (x.is_cpu and x.dtype == torch.float32 and weight.is_cpu):
        return None
    trained = weight.requires_grad or (module.bias is not None and module.bias.requires_grad)
    if trained and torch.is_grad_enabled():
        return None
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else None  # it is slow for other strides


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    assert LINEAR_KERNEL is not None
    return LINEAR_KERNEL(x, weight, bias, activation, [], "tanh" if activation == "gelu" else "")


class _Frozen(torch.autograd.Function):
    """The kernel forward, and backward with the weights transposed: on a few rows faster than torch's own gradient,
    twice as fast where a vocabulary is unembedded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return _product(gradient.contiguous(), weight.t(), None), None, None
