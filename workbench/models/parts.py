"""Where a block keeps what `Blocks` calls: every family's arithmetic is found by what its modules have."""

from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers.activations import NewGELUActivation

from workbench.models.contribution import of_attention, of_mlp
from workbench.models.kernels import fused_norm, linear

Change = Callable[[str, Tensor, Tensor], Tensor]
"""What is made of the output of an MLP's matrix: its name (`Model.weight`), its input, its output -> another output."""


class Parts:
    """The modules of one block, without their hooks. AttributeError names what a block lacks."""

    def __init__(self, block: Any, *, config: Any, layer: int) -> None:
        attention, mlp = block.attn, block.mlp
        self.q, self.k, self.v, self.o = (getattr(attention, name).original_component for name in ("q", "k", "v", "o"))
        # OLMo 2 norms only what its modules give; a parallel MLP without a norm of its own reads what attention reads.
        self.ln1: Callable = fused_norm(block.ln1.original_component) if hasattr(block, "ln1") else _same
        self.ln2: Callable = fused_norm(block.ln2.original_component) if hasattr(block, "ln2") else self.ln1
        self.attn_contribution, self.mlp_contribution = of_attention(block), of_mlp(block)
        original = attention.original_component
        self.d_head: int = getattr(original, "head_dim", None) or original.head_size
        self.q_norm, self.k_norm = (_norm(attention, name) for name in ("q_norm", "k_norm"))
        self.scale: float = _scale(original)
        self.softcap: float | None = getattr(original, "attn_logit_softcapping", None)
        self.window: int | None = _window(config, layer)
        self.read: Callable = getattr(mlp, "in").original_component
        self.gate: Callable | None = mlp.gate.original_component if hasattr(mlp, "gate") else None
        self.out: Callable = mlp.out.original_component
        found = nonlinearity(mlp.original_component)
        if found is None:
            raise AttributeError(f"{type(mlp.original_component).__name__} has no nonlinearity that is known")
        self.act: Callable = found

    def heads(self, x: Float[Tensor, "... d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [.. head d_head] before they are rotated; Qwen 3 and others norm the first two."""
        found = []
        for module, norm in ((self.q, self.q_norm), (self.k, self.k_norm), (self.v, None)):
            rows = linear(module, x)
            together = norm is not None and norm.weight.shape[-1] != self.d_head  # OLMo 2 norms all heads as one
            if norm is not None and together:
                rows = norm(rows)
            split = rearrange(rows, "... (head d) -> ... head d", d=self.d_head)
            found.append(split if norm is None or together else norm(split))
        return found[0], found[1], found[2]

    def pre(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_mlp"]:
        """What the nonlinearity is applied to."""
        return linear(self.read if self.gate is None else self.gate, x)

    def key(
        self,
        x: Float[Tensor, "... d_model"],
        *,
        pre: Float[Tensor, "... d_mlp"] | None = None,
        change: Change | None = None,
    ) -> Float[Tensor, "... d_mlp"]:
        """What W_out multiplies; `pre` in place of what the nonlinearity would be applied to."""
        if change is not None:
            read = change("W_in", x, linear(self.read, x))
            return self.act(read) if self.gate is None else self.act(change("W_gate", x, linear(self.gate, x))) * read
        if self.gate is not None:
            return self.act(self.pre(x) if pre is None else pre) * linear(self.read, x)
        if pre is not None:
            return self.act(pre)
        if isinstance(self.act, NewGELUActivation):
            return linear(self.read, x, gelu=True)
        return self.act(linear(self.read, x))


def nonlinearity(mlp: Any) -> Callable[[Tensor], Tensor] | None:
    """What the original module of an MLP applies between its matrices; None where it is not found."""
    names = ("act", "act_fn", "activation_fn", "gelu_impl")
    return next((getattr(mlp, name) for name in names if hasattr(mlp, name)), None)


def _same(x: Tensor) -> Tensor:
    return x


def _norm(attention: Any, name: str) -> Any:
    return getattr(attention, name).original_component if hasattr(attention, name) else None


def _scale(attention: Any) -> float:
    """What multiplies the products of queries and keys."""
    if hasattr(attention, "scaling"):
        return float(attention.scaling)
    if hasattr(attention, "scale_attn"):
        return 1 / float(attention.scale_attn)
    return float(getattr(attention, "inv_norm_factor", 1.0))  # GPT-Neo has none


def _window(config: Any, layer: int) -> int | None:
    """How many keys a query sees at most, itself included; None for all before it."""
    if hasattr(config, "layer_types"):
        return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
    if hasattr(config, "attention_layers"):  # GPT-Neo
        return config.window_size if config.attention_layers[layer] == "local" else None
    return getattr(config, "sliding_window", None)
