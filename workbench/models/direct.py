"""Forward passes by a model's blocks alone, without the hooks of every part, which take long to launch on a GPU.

On a processor computing takes longer than launching, and the model itself runs, unless texts are long (1,000 tokens
take half of the time without its eager attention), or all begin with the same passage, such as demonstrations: that is
run once for all of them, and within `keeping_passage` once for several batches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine import graphs
from workbench.machine.shown import Shown
from workbench.models.batching import PASSAGE
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model
from workbench.models.tokens import Tokens

_LONG = 512
"""Tokens from which on the model's own attention takes longer than the fused one."""
Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [batch pos kv_head d_head] of each layer."""


_last: ContextVar[list[tuple[Blocks, Tensor, Cache]] | None] = ContextVar("the last passage", default=None)
"""If it is kept: the blocks that ran it, its tokens [1 pos], and its keys and values."""


@dataclass(kw_only=True, eq=False)
class Direct(Shown):
    """Texts padded on the left on their way through a model's blocks, and what of them is in the cache already."""

    blocks: Blocks
    ids: Int[Tensor, "batch new"]
    """Tokens that are not in the cache."""
    mask: Int[Tensor, "batch pos"]
    """Of all: 1 for a token, 0 for padding."""
    cache: Cache = field(default_factory=list)

    def logits(self, *, keep_last: int, goes_on: bool = False) -> Float[Tensor, "batch kept vocab"]:
        """Of the last positions; if it `goes_on`, what was new is in the cache then."""
        return forward(self.blocks, self.ids, self.mask, self.cache, keep_last=keep_last, goes_on=goes_on)


def direct(model: Model, tokens: Tokens, *, keep: int = 1, new: int = 0) -> Direct | None:
    """How the logits of the last `keep` positions are had faster than from the model, where `new` tokens follow.

    None where they are not: hooks of edits are applied, the model's parts are not known or do not reach as far, or
    launching is quick and the texts are short and begin differently.
    """
    if model.edit_hooks():
        return None
    passage = shared_passage(tokens, keep=keep)
    if passage < PASSAGE and tokens.ids.shape[1] < _LONG and not graphs.pays(model.device):
        return None
    blocks = model.once(_known)
    if blocks is None or not blocks.reaches(tokens.ids.shape[1] + new):
        return None
    model.check_direct()
    model.check_settled()
    if passage < PASSAGE:
        return Direct(blocks=blocks, ids=tokens.ids, mask=tokens.mask)
    rows, longest = tokens.ids.shape
    left = longest - passage
    first = tokens.ids[tokens.mask.sum(dim=1).argmax(), :passage][None]  # the longest text has no padding
    cache = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in _run_passage(blocks, first)]
    lengths = tokens.mask.sum(dim=1, keepdim=True) - passage
    own = torch.arange(left, 0, -1, device=lengths.device) <= lengths
    mask = torch.cat([first.new_ones(rows, passage), own.to(first.dtype)], dim=1)
    return Direct(blocks=blocks, ids=tokens.ids[:, -left:], mask=mask, cache=cache)


@contextmanager
def keeping_passage() -> Iterator[None]:
    """Within the block, in which nothing changes a model, the last passage that was run is kept: texts that are asked
    about later and begin as it does go on from there."""
    token = _last.set([])
    try:
        yield
    finally:
        _last.reset(token)


def _run_passage(blocks: Blocks, ids: Int[Tensor, "1 pos"]) -> Cache:
    """Keys and values of a passage; what the last one that was kept begins with is taken from it."""
    last, done = _last.get(), 0
    cache: Cache = []
    for owner, before, kept in last or ():
        n = min(before.shape[1], ids.shape[1])
        done = int((before[:, :n] == ids[:, :n]).long().cumprod(dim=1).sum()) if owner is blocks else 0
        cache = [(k[:, :done], v[:, :done]) for k, v in kept] if done else []
    if done < ids.shape[1]:
        forward(blocks, ids[:, done:], torch.ones_like(ids), cache, keep_last=1, goes_on=True)
        if last is not None:
            last[:] = [(blocks, ids, cache)]
    return cache


def shared_passage(tokens: Tokens, *, keep: int) -> int:
    """How many tokens all texts begin with, where the last `keep` of each are left behind them; 0 for a single text."""
    lengths = tokens.mask.sum(dim=1).tolist()
    most = min(lengths) - keep
    if len(lengths) == 1 or most < 1:
        return 0
    longest = tokens.ids.shape[1]
    begun = torch.stack([row[longest - length :][:most] for row, length in zip(tokens.ids, lengths, strict=True)])
    same = (begun == begun[0]).all(dim=0)
    return int(same.long().cumprod(dim=0).sum())


def _known(model: Model) -> Blocks | None:
    try:
        return blocks_of(model)
    except BlocksError:
        return None


@torch.no_grad()
def forward(
    blocks: Blocks,
    ids: Int[Tensor, "batch new"],
    mask: Int[Tensor, "batch pos"],
    cache: Cache,
    *,
    keep_last: int,
    goes_on: bool,
) -> Float[Tensor, "batch kept vocab"]:
    """Logits of the last positions of texts of which all but `ids` is in the cache already, with padding before that or
    behind it; if it `goes_on`, their keys and values are added to the cache."""
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
        k, v = p.k, p.v
        if layer < len(cache):
            k, v = (torch.cat(pair, dim=1) for pair in zip(cache[layer], (k, v), strict=True))
        if goes_on:
            cache[layer : layer + 1] = [(k, v)]
        window = blocks.window(layer)
        allowed = seen if window is None else seen & (distance < window)
        heads = blocks.attend(layer, p.q, k, v, allowed[:, None])
        if layer == blocks.n_layers - 1:
            heads, resid = (x[:, -keep_last:].contiguous() for x in (heads, resid))
        attn = blocks.attn_out(layer, heads)
        resid = resid + attn + blocks.mlp_out(layer, resid, attn)
    return blocks.unembed(resid)
