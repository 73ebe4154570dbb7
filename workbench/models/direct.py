"""Forward passes by a model's blocks alone, without the hooks of every part, which take long to launch on a GPU.

On a processor computing takes longer than launching, and the model itself runs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine import graphs
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [batch pos kv_head d_head] of each layer."""


def direct(model: Model, pos: int) -> Blocks | None:
    """The blocks that give the logits of prompts of so many tokens faster than the model does; None where there are
    none: hooks of edits are applied, the model's parts are not known or do not reach as far, or launching is quick."""
    if not graphs.pays(model.device) or model.edit_hooks():
        return None
    blocks = model.once(_known)
    if blocks is None or not blocks.reaches(pos):
        return None
    model.check_direct()
    model.check_settled()
    return blocks


def _known(model: Model) -> Blocks | None:
    try:
        return blocks_of(model)
    except BlocksError:
        return None


@torch.no_grad()
def forward(
    blocks: Blocks, ids: Int[Tensor, "batch new"], mask: Int[Tensor, "batch pos"], cache: Cache, *, keep_last: int
) -> Float[Tensor, "batch kept vocab"]:
    """Logits of the last positions of texts padded on the left, of which all but `ids` is in the cache already; their
    keys and values are added to it."""
    new = ids.shape[1]
    places = torch.arange(mask.shape[1], device=ids.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    own = positions[:, -new:]
    rows, columns = places[-new:, None], places[None]
    # Padding sees itself, so that nothing is divided by nothing; no token sees it.
    seen = (mask[:, None].bool() & (columns <= rows)) | (columns == rows)
    distance = own[:, :, None] - positions[:, None]
    resid = blocks.resid_pre(blocks.embed_tokens(ids), own)
    for layer in range(blocks.n_layers):
        p = blocks.project(layer, resid, own)
        if layer < len(cache):
            k, v = (torch.cat(pair, dim=1) for pair in zip(cache[layer], (p.k, p.v), strict=True))
            cache[layer] = (k, v)
        else:
            k, v = p.k, p.v
            cache.append((k, v))
        window = blocks.window(layer)
        allowed = seen if window is None else seen & (distance < window)
        heads = blocks.attend(layer, p.q, k, v, allowed[:, None])
        if layer == blocks.n_layers - 1:
            heads, resid = (x[:, -keep_last:].contiguous() for x in (heads, resid))
        attn = blocks.attn_out(layer, heads)
        resid = resid + attn + blocks.mlp_out(layer, resid, attn)
    return blocks.unembed(resid)
