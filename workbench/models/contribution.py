"""From a module's output to what it adds to the residual stream: mostly the same, in some families a norm away."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What a block does with the output of its attention or of its MLP before it is added to the residual stream."""

    norm: Callable | None
    """Gemma 2 and 3 and OLMo 2 give it a size of their own."""
    multiplier: float
    """Granite multiplies it."""

    @property
    def direct(self) -> bool:
        """Whether the output itself is added."""
        return self.norm is None and self.multiplier == 1

    def __call__(self, output: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What is added."""
        normed = output if self.norm is None else self.norm(output)
        return normed if self.multiplier == 1 else normed * self.multiplier

    def needed(
        self, output: Float[Tensor, "... d_model"], wanted: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_model"]:
        """The change of the output that changes what is added by `wanted`.

        A root-mean-square norm lets only the direction be chosen: then the output keeps its size, and what is added
        points where it should.
        """
        if self.norm is None:
            return wanted / self.multiplier
        added = self(output) + wanted
        direction = added / self(torch.ones_like(output))  # the norm's gains
        return direction * (output.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)) - output


def of_attention(block: Any) -> Contribution:
    """What a TransformerLens block does with its attention's output."""
    return _contribution(block, "ln1_post")


def of_mlp(block: Any) -> Contribution:
    """What a TransformerLens block does with W_out's output."""
    return _contribution(block, "ln2_post")


def _contribution(block: Any, norm: str) -> Contribution:
    found = getattr(block, norm).original_component if hasattr(block, norm) else None
    return Contribution(norm=found, multiplier=float(getattr(block.original_component, "residual_multiplier", 1.0)))
