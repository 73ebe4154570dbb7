"""Edits of weights in half precision: they are added up in float32, and the sum is rounded once."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.matrices import HasMatrices

Places = dict[tuple[int, str], Tensor]
"""Matrices by layer and name."""
_LOST = 0.1
"""Part of a change, by its norm, beyond which it is told that rounding takes so much."""


def sums_of(originals: Mapping[tuple[int, str], Tensor]) -> Places:
    """In float32, those of half precision: what edits are added to, for one at a time they would be rounded away."""
    return {place: weight.float() for place, weight in originals.items() if weight.itemsize < torch.float32.itemsize}


@dataclass(frozen=True, kw_only=True, eq=False)
class Unrounded(Shown):
    """A model's matrices to add edits to: sums in place of those of half precision."""

    model: HasMatrices
    sums: Places

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def weight(self, layer: int, matrix: str = "W_out") -> Float[Tensor, "d_in d_out"]:
        """The sum, or the live view."""
        found = self.sums.get((layer, matrix))
        return self.model.weight(layer, matrix) if found is None else found

    @torch.no_grad()
    def write_(self, places: Iterable[tuple[int, str]]) -> None:
        """Round the sums of these places into the model."""
        for place in places:
            if place in self.sums:
                self.model.weight(*place).copy_(self.sums[place])

    @torch.no_grad()
    def tell(self, originals: Mapping[tuple[int, str], Tensor], places: Iterable[tuple[int, str]]) -> None:
        """A warning of each of these places where rounding takes much of what edits add to the originals."""
        for layer, matrix in sorted(set(places) & self.sums.keys()):
            original, total = originals[layer, matrix], self.sums[layer, matrix]
            lost = (self.model.weight(layer, matrix) - total).norm()
            if lost > _LOST * (total - original).norm():
                warnings.warn(
                    f"{str(original.dtype).removeprefix('torch.')} rounds away or adds more than {_LOST:.0%} of what "
                    f"edits change {matrix} of layer {layer} by: load {self.name} in float32",
                    stacklevel=2,
                )
