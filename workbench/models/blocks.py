"""A model's blocks, part by part, on chosen positions only.

`Model.logits` runs whole prompts. Where everything before a layer and before a position is known already, as in
causal tracing and in the optimisation of an edit's value, most of that is repeated work. `Blocks` runs the rest:
norms, projections and MLPs act on any positions, attention takes the keys and values of earlier positions as
given. It calls the modules of the hooked model, so that edits of its weights are seen and gradients flow.

Every family's arithmetic is found by what its modules have (`parts`), and is compared with the model's own states once
(`blocks_check`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.attention import attend_fused
from workbench.models.contribution import Contribution
from workbench.models.kernels import SHORT, attend_short, linear
from workbench.models.model import Model
from workbench.models.parts import Change, Parts
from workbench.models.rotary import rotations
from workbench.models.unembedding import Unembedding

LONGEST_WINDOW = 1024
"""A window beyond this is not relied on, since the model's own attention over it would be too large to compare."""


class BlocksError(ValueError):
    """A model whose blocks cannot be run part by part; the message says what to use instead."""


def unknown(model: Model, why: str) -> BlocksError:
    """What to raise where they cannot."""
    return BlocksError(
        f"the blocks of {model.name} ({type(model.hf).__name__}) cannot be run part by part: {why}; "
        "use the plain engine"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Projections(Shown):
    """Queries, keys and values of some positions, rotated where the model rotates them."""

    q: Float[Tensor, "... head d_head"]
    """Queries."""
    k: Float[Tensor, "... kv_head d_head"]
    """Keys; fewer heads than queries where heads share them."""
    v: Float[Tensor, "... kv_head d_head"]
    """Values."""

    def at(self, index: Any) -> "Projections":
        """Those of some tokens, by an index or a mask."""
        return Projections(q=self.q[index], k=self.k[index], v=self.v[index])

    def replaced(self, tokens: Int[Tensor, " some"], by: "Projections") -> "Projections":
        """With those of some tokens replaced, a new object; tokens are the first dimension."""
        pairs = ((self.q, by.q), (self.k, by.k), (self.v, by.v))
        q, k, v = (mine.index_copy(0, tokens, others) for mine, others in pairs)
        return Projections(q=q, k=k, v=v)


class Blocks:
    """The parts of a model's blocks, of every family whose modules `Parts` and `rotations` know.

    `blocks_check.blocks_of` makes them, and sees to it that they are the model's.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.n_layers: int = model.n_layers
        self.short: int = SHORT if model.device.type == "cpu" else 0
        """Keys up to which attention is two matrix products, as is faster on a CPU; the fused kernel for more."""
        self.cudnn: bool = model.device.type != "cuda"
        """Whether attention may be cuDNN's."""
        bridge: Any = model.bridge
        hf: Any = model.hf
        self._blocks = [Parts(bridge.blocks[at], config=hf.config, layer=at) for at in range(model.n_layers)]
        self._rotations, self._longest = rotations(model)
        self._embed: Callable = bridge.embed.original_component
        self._positions: Any = bridge.pos_embed.original_component if hasattr(bridge, "pos_embed") else None
        self.unembed = Unembedding(model)
        """Logits of a residual stream that leaves the last layer."""
        self.parallel: bool = bool(getattr(bridge.cfg, "parallel_attn_mlp", False))
        self._embed_scale: float = getattr(hf.config, "embedding_multiplier", 1.0)
        windows = [parts.window for parts in self._blocks if parts.window is not None]
        self._longest = min([self._longest, *(window for window in windows if window > LONGEST_WINDOW)])

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees at most, itself included; None for all before it."""
        return self._blocks[layer].window

    def reaches(self, pos: int) -> bool:
        """Whether they are known to hold for prompts of so many tokens."""
        return pos <= self._longest

    def check_reach(self, pos: int) -> None:
        """BlocksError for a prompt of more tokens than the blocks reach."""
        if not self.reaches(pos):
            raise unknown(self.model, f"a prompt has {pos} tokens, and they are known to hold up to {self._longest}")

    # ---- ends

    def embed_tokens(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings, where noise is added; BlocksError for prompts longer than the blocks reach."""
        self.check_reach(ids.shape[1])
        embeddings = self._embed(ids)
        return embeddings if self._embed_scale == 1 else embeddings * self._embed_scale

    def resid_pre(
        self, embeddings: Float[Tensor, "... pos d_model"], positions: Int[Tensor, "... pos"] | None = None
    ) -> Tensor:
        """The residual stream that enters layer 0, of tokens at `positions`; None for those from 0 on."""
        if self._positions is None:
            return embeddings
        at = torch.arange(embeddings.shape[-2], device=embeddings.device) if positions is None else positions
        table = self._positions.weight
        rows = F.embedding((at + getattr(self._positions, "offset", 0)).to(table.device), table)
        return embeddings + rows.to(embeddings.device)

    # ---- parts of a block

    def project(
        self, layer: int, resid: Float[Tensor, "... d_model"], positions: Int[Tensor, " n"] | Int[Tensor, "m n"]
    ) -> Projections:
        """Queries, keys and values from the residual stream that enters a layer, of tokens at `positions`."""
        parts, rotate = self._blocks[layer], self._rotations[layer]
        q, k, v = parts.heads(parts.ln1(resid))
        return Projections(q=rotate(q, positions), k=rotate(k, positions), v=v)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key kv_head d_head"],
        v: Float[Tensor, "batch key kv_head d_head"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch query d_attn"]:
        """What the heads read, before the output projection: the last query stands at the last key unless a boolean
        `mask` [.. query key] says which keys each sees, the layer's window left aside."""
        parts = self._blocks[layer]
        plain = mask is None and parts.window is None and parts.softcap is None
        square = plain and q.shape[1] == k.shape[1] > self.short  # which the fused kernels know without a mask
        if mask is None and not square:
            if parts.window is not None:  # the first query sees the farthest back
                k, v = (x[:, -(parts.window + q.shape[1] - 1) :] for x in (k, v))
            mask = self._causal(q.shape[1], k.shape[1], parts.window, q.device)
        if parts.softcap is not None or k.shape[1] <= self.short:
            return attend_short(q, k, v, mask, parts.scale, parts.softcap)
        return attend_fused(q, k, v, mask, parts.scale, causal=square, cudnn=self.cudnn)

    @staticmethod
    def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which of the last keys each of the last queries sees; None for all."""
        if queries == 1:
            return None
        last = keys - queries
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(last)
        return seen if window is None else seen.triu(last - window + 1)

    def attn_out(self, layer: int, heads: Float[Tensor, "... d_attn"]) -> Float[Tensor, "... d_model"]:
        """What attention adds to the residual stream."""
        return self._blocks[layer].attn_contribution(linear(self._blocks[layer].o, heads))

    def mlp_pre(
        self, layer: int, resid: Float[Tensor, "... d_model"], attn_out: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_mlp"]:
        """What the nonlinearity is applied to, from what enters the layer and the attention's output."""
        return self._blocks[layer].pre(self._mlp_in(layer, resid, attn_out))

    def mlp_key(
        self,
        layer: int,
        resid: Float[Tensor, "... d_model"],
        attn_out: Float[Tensor, "... d_model"],
        *,
        pre: Float[Tensor, "row d_mlp"] | None = None,
        change: Change | None = None,
    ) -> Float[Tensor, "... d_mlp"]:
        """What W_out multiplies, from the residual stream that enters the layer and the attention's output.

        `pre` stands in place of what the nonlinearity would be applied to, or `change` is called with the outputs of
        the matrices before it.
        """
        return self._blocks[layer].key(self._mlp_in(layer, resid, attn_out), pre=pre, change=change)

    def _mlp_in(self, layer: int, resid: Tensor, attn_out: Tensor) -> Float[Tensor, "... d_model"]:
        return self._blocks[layer].ln2(resid if self.parallel else resid + attn_out)

    def written(self, layer: int, key: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... d_model"]:
        """Output of W_out for a key."""
        return linear(self._blocks[layer].out, key)

    def mlp_write(
        self,
        layer: int,
        resid: Float[Tensor, "... d_model"],
        attn_out: Float[Tensor, "... d_model"],
        change: Change | None = None,
    ) -> Float[Tensor, "... d_model"]:
        """Output of W_out; `change` is called with that of every matrix of the MLP."""
        key = self.mlp_key(layer, resid, attn_out, change=change)
        output = self.written(layer, key)
        return output if change is None else change("W_out", key, output)

    def mlp_contribution(self, layer: int) -> Contribution:
        """How the output of W_out becomes what the MLP adds to the residual stream."""
        return self._blocks[layer].mlp_contribution

    def mlp_out(
        self,
        layer: int,
        resid: Float[Tensor, "... d_model"],
        attn_out: Float[Tensor, "... d_model"],
        change: Change | None = None,
    ) -> Float[Tensor, "... d_model"]:
        """What the MLP adds to the residual stream; `change` as in `mlp_write`."""
        return self.mlp_contribution(layer)(self.mlp_write(layer, resid, attn_out, change))

    def leaving(
        self,
        layer: int,
        resid: Float[Tensor, "batch pos d_model"],
        positions: Int[Tensor, " pos"],
        change: Change | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that leaves a layer, from that which enters it, of whole prompts; `change` as in
        `mlp_write`."""
        p = self.project(layer, resid, positions)
        attn = self.attn_out(layer, self.attend(layer, p.q, p.k, p.v))
        return resid + attn + self.mlp_out(layer, resid, attn, change)

    # ---- everything, for the check and as an example

    def logits(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits of unpadded prompts."""
        resid = self.resid_pre(self.embed_tokens(ids))
        positions = torch.arange(ids.shape[1], device=ids.device)
        for layer in range(self.n_layers):
            resid = self.leaving(layer, resid, positions)
        return self.unembed(resid)
