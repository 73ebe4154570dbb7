"""Attention by torch's fused kernels, within what those of a GPU can do and without what they take long to prepare."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

ROWS = 32_768
"""Rows of a batch that attend at once: a batch is a dimension of a GPU's grid, which ends at 65,535."""


def attend_fused(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    mask: Bool[Tensor, "query key"] | Bool[Tensor, "rows 1 query key"] | None,
    scale: float,
    *,
    causal: bool = False,
    cudnn: bool = True,
    rows: int = ROWS,
) -> Float[Tensor, "batch query d_attn"]:
    """Attention by the fused kernels, of so many rows at a time.

    Args:
        mask: which keys each query sees; of all rows, or of each.
        causal: whether queries see the keys up to their own place, which takes no mask.
        cudnn: whether cuDNN may be used, which plans for seconds for every new shape.
        rows: how many attend at once.
    """
    if len(q) > rows:
        split = mask is not None and mask.ndim == 4 and len(mask) > 1
        masks = mask.split(rows) if mask is not None and split else [mask] * -(-len(q) // rows)
        pieces = zip(q.split(rows), k.split(rows), v.split(rows), masks, strict=True)
        return torch.cat([attend_fused(*piece, scale, causal=causal, cudnn=cudnn, rows=rows) for piece in pieces])
    shared = k.shape[2] != q.shape[2]
    if not cudnn:
        if shared and mask is not None and q.dtype != torch.float32:  # which no other kernel takes together
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        with _without_cudnn():
            return attend_fused(q, k, v, mask, scale, causal=causal, rows=rows)
    heads = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=causal, scale=scale,
        enable_gqa=shared,
    )  # fmt: skip
    return rearrange(heads, "batch head query d -> batch query (head d)")


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """The choice is made as attention is called: its gradient is that of the kernel that was taken."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
