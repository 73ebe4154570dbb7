"""Where a block keeps its matrices: the module that multiplies by each, and the matrices of attention as live views."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
"""The matrices of attention, heads side by side."""
_MODULES = {
    "W_in": ("mlp", "in"),
    "W_gate": ("mlp", "gate"),
    "W_out": ("mlp", "out"),
    **{matrix: ("attn", matrix[-1].lower()) for matrix in ATTENTION},
}


def module_of(block: Any, matrix: str) -> Any:
    """The hooked module whose original component multiplies by a matrix; None where a block has none."""
    part, name = _MODULES[matrix]
    return getattr(getattr(block, part), name, None)


def attention_matrix(block: Any, matrix: str, parameters: dict[str, Tensor]) -> Float[Tensor, "d_in d_out"] | None:
    """Live view of a matrix of attention; None where it is part of a fused one, of which the block runs a copy."""
    module = module_of(block, matrix)
    original = None if module is None else module.original_component
    weight = getattr(original, "weight", None)
    if weight is None or not any(parameter is weight for parameter in parameters.values()):
        return None
    return weight.detach() if isinstance(original, Conv1D) else weight.detach().T
