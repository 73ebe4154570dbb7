"""A model's blocks, part by part, on chosen positions only.

`Model.logits` runs whole prompts. Where everything before a layer and before a position is known already, as in
causal tracing and in the optimisation of an edit's value, most of that is repeated work. `Blocks` runs the rest:
norms, projections and MLPs act on any positions, attention takes the keys and values of earlier positions as
given. It calls the modules of the hooked model, so that edits of its weights are seen and gradients flow.

Every family's arithmetic is found by what its modules have, and is compared with the model's own logits once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers.activations import NewGELUActivation

from workbench.blocks_check import difference
from workbench.kernels import SHORT, attend_short, linear
from workbench.models import Model
from workbench.rotary import rotation


class BlocksError(ValueError):
    """A model whose blocks cannot be run part by part; the message says what to use instead."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Projections:
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
    """The parts of a model's blocks (GPT-2, GPT-J, NeoX, Llama and Qwen2 families).

    BlocksError for a model of another shape, or whose logits they do not reproduce.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.n_layers: int = model.n_layers
        self.short: int = SHORT if model.device.type == "cpu" else 0
        """Keys up to which attention is two matrix products, as is faster on a CPU; the fused kernel for more."""
        hf: Any = model.bridge.original_model
        try:
            self._blocks = [_Parts(model.bridge.blocks[layer]) for layer in range(model.n_layers)]
            self._rotation = rotation(model)
        except AttributeError as error:
            raise self._unknown(str(error)) from error
        bridge: Any = model.bridge
        self._embed: Callable = bridge.embed.original_component
        self._positions: Any = bridge.pos_embed.original_component if hasattr(bridge, "pos_embed") else None
        self._norm: Callable = bridge.ln_final.original_component
        self._head: Callable = hf.get_output_embeddings()
        while hasattr(self._head, "original_component"):
            self._head = self._head.original_component  # pyright: ignore[reportFunctionMemberAccess]
        self.parallel: bool = bool(getattr(model.bridge.cfg, "parallel_attn_mlp", False))
        found = difference(self)
        if found is not None:
            raise self._unknown(found)

    def _unknown(self, why: str) -> BlocksError:
        return BlocksError(
            f"the blocks of {self.model.name} ({type(self.model.bridge.original_model).__name__}) cannot be run part "
            f"by part: {why}; use the plain engine"
        )

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees at most, itself included; None for all before it."""
        return None

    # ---- ends

    def embed_tokens(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings, where noise is added."""
        return self._embed(ids)

    def resid_pre(self, embeddings: Float[Tensor, "... pos d_model"], start: int = 0) -> Tensor:
        """The residual stream that enters layer 0, for positions from `start` on."""
        if self._positions is None:
            return embeddings
        at = torch.arange(start, start + embeddings.shape[-2], device=embeddings.device)
        return embeddings + self._positions(at)

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits of a residual stream that leaves the last layer."""
        return linear(self._head, self._norm(resid))

    # ---- parts of a block

    def project(
        self, layer: int, resid: Float[Tensor, "... d_model"], positions: Int[Tensor, " n"] | Int[Tensor, "m n"]
    ) -> Projections:
        """Queries, keys and values from the residual stream that enters a layer, of tokens at `positions`."""
        parts = self._blocks[layer]
        x = parts.ln1(resid)
        q, k, v = (
            rearrange(linear(module, x), "... (head d) -> ... head d", d=parts.d_head)
            for module in (parts.q, parts.k, parts.v)
        )
        return Projections(q=self._rotation(q, positions), k=self._rotation(k, positions), v=v)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key kv_head d_head"],
        v: Float[Tensor, "batch key kv_head d_head"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch query d_attn"]:
        """What the heads read, before the output projection: the last query stands at the last key unless a boolean
        `mask` [.. query key] says which keys each sees."""
        queries, keys = q.shape[1], k.shape[1]
        if mask is None and queries > 1:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        scale = self._blocks[layer].scale
        if keys <= self.short:
            return attend_short(q, k, v, mask, scale)
        heads = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale,
            enable_gqa=k.shape[2] != q.shape[2],
        )  # fmt: skip
        return rearrange(heads, "batch head query d -> batch query (head d)")

    def attn_out(self, layer: int, heads: Float[Tensor, "... d_attn"]) -> Float[Tensor, "... d_model"]:
        """Output projection of attention."""
        return linear(self._blocks[layer].o, heads)

    def mlp_key(
        self, layer: int, resid: Float[Tensor, "... d_model"], attn_out: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_mlp"]:
        """What W_out multiplies, from the residual stream that enters the layer and the attention's output."""
        parts = self._blocks[layer]
        x = parts.ln2(resid if self.parallel else resid + attn_out)
        return parts.key(x)

    def mlp_out(
        self, layer: int, resid: Float[Tensor, "... d_model"], attn_out: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_model"]:
        """Output of the MLP."""
        return linear(self._blocks[layer].out, self.mlp_key(layer, resid, attn_out))

    # ---- everything, for the check and as an example

    def logits(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits of unpadded prompts."""
        resid = self.resid_pre(self.embed_tokens(ids))
        positions = torch.arange(ids.shape[1], device=ids.device)
        for layer in range(self.n_layers):
            p = self.project(layer, resid, positions)
            attn = self.attn_out(layer, self.attend(layer, p.q, p.k, p.v))
            resid = resid + attn + self.mlp_out(layer, resid, attn)
        return self.unembed(resid)


class _Parts:
    """The modules of one block, without their hooks. AttributeError names what a block lacks."""

    def __init__(self, block: Any) -> None:
        attention, mlp = block.attn, block.mlp
        self.q, self.k, self.v, self.o = (getattr(attention, name).original_component for name in ("q", "k", "v", "o"))
        self.ln1: Callable = block.ln1.original_component
        # GPT-J's MLP reads what its attention reads.
        self.ln2: Callable = block.ln2.original_component if hasattr(block, "ln2") else self.ln1
        original = attention.original_component
        self.d_head: int = getattr(original, "head_dim", None) or original.head_size
        self.scale: float = original.scaling if hasattr(original, "scaling") else 1 / float(original.scale_attn)
        self.read: Callable = getattr(mlp, "in").original_component
        self.gate: Callable | None = mlp.gate.original_component if hasattr(mlp, "gate") else None
        self.out: Callable = mlp.out.original_component
        inner = mlp.original_component
        self.act: Callable = inner.act if hasattr(inner, "act") else inner.act_fn

    def key(self, x: Tensor) -> Tensor:
        """What W_out multiplies."""
        if self.gate is not None:
            return self.act(linear(self.gate, x)) * linear(self.read, x)
        if isinstance(self.act, NewGELUActivation):
            return linear(self.read, x, gelu=True)
        return self.act(linear(self.read, x))
