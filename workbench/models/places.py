"""Where a model keeps the matrices that edits change: the names of its parameters, plain or hooked."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module

from workbench.models.architectures import quantisation
from workbench.models.matrices import MATRICES, matrix_view


@dataclass(frozen=True, kw_only=True)
class Place:
    """A matrix as a part of a parameter: as it is stored, transposed, or some rows of a fused one."""

    parameter: str
    """The parameter's name in the checkpoint."""
    shape: tuple[int, ...]
    """[d_in, d_out]."""
    stride: tuple[int, ...]
    offset: int
    """Of its first entry behind the parameter's."""

    def view(self, parameter: Tensor) -> Float[Tensor, "d_in d_out"]:
        """The matrix in this parameter, live."""
        return parameter.detach().as_strided(self.shape, self.stride, parameter.storage_offset() + self.offset)


Places = Mapping[tuple[int, str], Place]
"""By layer and matrix."""


def places(blocks: Iterable[Any], parameters: dict[str, Tensor]) -> Places:
    """Every matrix that can be edited and lies in a parameter, of a model's hooked blocks."""
    owners = {parameter.untyped_storage().data_ptr(): (name, parameter) for name, parameter in parameters.items()}
    found = {}
    for layer, block in enumerate(blocks):
        for matrix in MATRICES:
            try:
                view = matrix_view(block, matrix, parameters, name="")
            except ValueError:  # it has no such matrix
                continue
            name, parameter = owners.get(view.untyped_storage().data_ptr(), (None, view))
            if name is not None:
                offset = int(view.storage_offset() - parameter.storage_offset())
                found[layer, matrix] = Place(
                    parameter=name, shape=tuple(view.shape), stride=view.stride(), offset=offset
                )
    return found


def of_model(model: Any) -> Places:
    """The places of a `Model`, for `Model.once`."""
    return places(model.bridge.blocks, model.parameters)


_KNOWN: "WeakKeyDictionary[torch.nn.Module, Places]" = WeakKeyDictionary()
"""Of the models asked about that are still there; finding the places of a large one takes seconds."""


def places_of(hf: Any) -> Places:
    """The places of a plain model, which is left as it is; ValueError for one that cannot be hooked."""
    if not isinstance(hf, torch.nn.Module):
        raise ValueError(f"a model of `transformers` is needed, got {type(hf).__name__}")
    config: Any = getattr(hf, "config", None)
    how = None if config is None else quantisation(config)
    if how is not None and any(weight.dtype.itemsize == 1 for weight in hf.parameters()):
        raise ValueError(f"this {type(hf).__name__} is quantised ({how}), and only plain weights are edited")
    if hf not in _KNOWN:
        # TransformerLens hooks a second tree of modules, whose parameters are of the same memory.
        shared = {id(each): torch.nn.Parameter(each.detach(), requires_grad=False) for each in hf.parameters()}
        hooked: Any = copy.deepcopy(hf, shared)
        parameters = dict(hooked.named_parameters())
        try:
            bridge = build_bridge_from_module(hooked, type(hf).__name__, hf_config=hooked.config)
            found = places(bridge.blocks, parameters)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{type(hf).__name__} is no causal language model of `transformers` that is known here ({reason})"
            ) from error
        _KNOWN[hf] = found
    return _KNOWN[hf]


class PlainModel:
    """A plain model's matrices, to be written as those of a `Model` are."""

    def __init__(self, hf: Any) -> None:
        self.name: str = getattr(hf, "name_or_path", "") or type(hf).__name__
        self._places, self._parameters = places_of(hf), dict(hf.named_parameters())

    def weight(self, layer: int, matrix: str = "W_out") -> Float[Tensor, "d_in d_out"]:
        """Live view of a matrix, see `Weights.weight`; ValueError, or IndexError for a layer out of range."""
        depth = 1 + max(layer for layer, _ in self._places)
        if not 0 <= layer < depth:
            raise IndexError(f"layer {layer} is out of range; {self.name} has layers 0 to {depth - 1}")
        if (layer, matrix) not in self._places:
            here = ", ".join(name for each, name in self._places if each == layer)
            raise ValueError(f"layer {layer} of {self.name} has no {matrix} of its own; it has {here}")
        place = self._places[layer, matrix]
        if place.parameter not in self._parameters:
            raise ValueError(f"{self.name} has no parameter {place.parameter} any more: apply edits before wrapping it")
        return place.view(self._parameters[place.parameter])
