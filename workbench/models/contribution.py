"""From a module's output to what it adds to the residual stream: mostly the same, in some families a norm away."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_HALVINGS = 60
"""Of an interval, after which no type of numbers holds more of it."""


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

        A root-mean-square norm takes the output's size away: then the output keeps it, and what is added comes as near
        to what it should be as it can.
        """
        if self.norm is None:
            return wanted / self.multiplier
        nearest = _nearest(self(torch.ones_like(output)), self(output) + wanted)
        return output.square().mean(dim=-1, keepdim=True).sqrt() * nearest - output


def _nearest(gains: Float[Tensor, "... d"], wanted: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """The v of root mean square 1 for which gains * v is nearest to what is wanted.

    That is gains * wanted / (gains^2 + m) with the m, found by bisection, which gives it this size.
    """
    squares, products = gains.square(), gains * wanted
    low = -squares.amin(dim=-1, keepdim=True)
    high = products.square().mean(dim=-1, keepdim=True).sqrt()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        long = (products / (squares + middle)).square().mean(dim=-1, keepdim=True) > 1
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    found = products / (squares + high)
    return found / found.square().mean(dim=-1, keepdim=True).sqrt()


def of_attention(block: Any) -> Contribution:
    """What a TransformerLens block does with its attention's output."""
    return _contribution(block, "ln1_post")


def of_mlp(block: Any) -> Contribution:
    """What a TransformerLens block does with W_out's output."""
    return _contribution(block, "ln2_post")


def _contribution(block: Any, norm: str) -> Contribution:
    found = getattr(block, norm).original_component if hasattr(block, norm) else None
    return Contribution(norm=found, multiplier=float(getattr(block.original_component, "residual_multiplier", 1.0)))
