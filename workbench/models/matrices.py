"""Where a block keeps its matrices: the module that multiplies by each, and each as a live view."""

from typing import Any, Protocol, runtime_checkable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
"""The matrices of attention, heads side by side."""
MATRICES = ("W_out", "W_in", "W_gate", "b_out", *ATTENTION)
"""All that can be edited: those of MLPs, `b_out` as a row, and those of attention."""
_MODULES = {
    "W_in": ("mlp", "in"),
    "W_gate": ("mlp", "gate"),
    "W_out": ("mlp", "out"),
    **{matrix: ("attn", matrix[-1].lower()) for matrix in ATTENTION},
}


@runtime_checkable
class HasMatrices(Protocol):
    """What edits of weights write to: a model of the workbench, or a plain one (`places.PlainModel`)."""

    @property
    def name(self) -> str:
        """The model's."""
        ...

    def weight(self, layer: int, matrix: str = "W_out") -> Float[Tensor, "d_in d_out"]:
        """Live view of a matrix, see `Weights.weight`."""
        ...


def matrix_view(block: Any, matrix: str, parameters: dict[str, Tensor], *, name: str) -> Float[Tensor, "d_in d_out"]:
    """Live view of a block's matrix, see `Weights.weight`; ValueError, with the model's name, where it has none."""
    if matrix not in MATRICES:
        raise ValueError(f"unknown matrix {matrix!r}; expected one of {', '.join(MATRICES)}")
    if matrix in ATTENTION:
        view = attention_matrix(block, matrix, parameters)
        if view is None:
            raise ValueError(f"{name} keeps {matrix} fused with others, so that it cannot be edited by itself")
        return view
    found = getattr(block.mlp, matrix, None)
    if found is None:
        raise ValueError(f"the MLPs of {name} have no {matrix}")
    return rearrange(found.detach(), "d -> 1 d") if matrix == "b_out" else found.detach()


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
