"""Edits of weights: updates of named matrices, kept factored."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from workbench.edits.edit import Edit
from workbench.edits.rounding import Unrounded, sums_of
from workbench.machine.shown import Shown
from workbench.machine.typed import FLOATS
from workbench.models.matrices import HasMatrices
from workbench.models.model import Model
from workbench.models.places import PlainModel

_CARRIED = "carried."


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightUpdate(Shown):
    """One matrix's update dW = left @ right, kept factored."""

    layer: int
    """The layer whose matrix it changes."""
    matrix: str = "W_out"
    """The matrix, by TransformerLens's name."""
    left: Float[Tensor, "d_in rank"]
    """For ROME u = C^-1 k, normalised."""
    right: Float[Tensor, "rank d_out"]
    """For ROME (v - W k) / <k, u>."""

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"left {tuple(self.left.shape)} and right {tuple(self.right.shape)} do not share a rank")
        for factor in (self.left, self.right):
            if factor.dtype not in FLOATS:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
                raise ValueError(f"an update of {self.matrix} is of {known}, got {factor.dtype}")
        if not (self.left.isfinite().all() and self.right.isfinite().all()):
            raise ValueError(f"the update of {self.matrix} in layer {self.layer} is not finite")
        if self.left.dtype != self.right.dtype:
            raise ValueError(f"left and right are of one type, got {self.left.dtype} and {self.right.dtype}")
        if self.exceeds(self.left.dtype):
            raise ValueError(
                f"the update of {self.matrix} in layer {self.layer}, left @ right, is infinite in {self.left.dtype}"
            )

    def exceeds(self, dtype: torch.dtype) -> bool:
        """Whether an entry of dW is beyond the range of a type."""
        bound = self.left.double().norm() * self.right.double().norm()  # no entry of dW is larger
        return bool(bound > torch.finfo(dtype).max) and not self.dense().to(dtype).isfinite().all()

    def dense(self) -> Float[Tensor, "d_in d_out"]:
        """dW itself."""
        return self.left @ self.right


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightEdit(Edit):
    """Adds to matrices of the model.

    Applying keeps a copy of every matrix it changes in the model's ledger (`Model.originals`), so that reverting is
    exact in any order: the copies come back, and the edits that remain are added again in their order. What else is
    done to these matrices while an edit is applied is lost when it is reverted. Matrices of half precision are rounded
    from the sum of all edits, which float32 holds (`Model.sums`); a warning where rounding takes much of it.
    """

    kind = "weights"
    in_weights = True

    updates: tuple[WeightUpdate, ...]
    """The updates, in the order in which they are added; one matrix may have several."""
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that later edits of the same method need, by name: AlphaEdit's keys so far, "keys.<layer>" [d_mlp n]."""

    @property
    def places(self) -> set[tuple[int, str]]:
        """Layer and name of the matrices that it changes."""
        return {(update.layer, update.matrix) for update in self.updates}

    def check_fits(self, model: HasMatrices) -> None:
        """ValueError for a matrix that is not there or of another shape, or a change beyond the range of its type;
        IndexError for a layer out of range."""
        for update in self.updates:
            shape = (update.left.shape[0], update.right.shape[1])
            weight = model.weight(update.layer, update.matrix)
            if tuple(weight.shape) != shape:
                raise ValueError(
                    f"the update of {update.matrix} in layer {update.layer} is {shape[0]} x {shape[1]}, "
                    f"but that matrix of {model.name} is {' x '.join(map(str, weight.shape))}; was the edit "
                    f"made for another model?"
                )
            if update.exceeds(weight.dtype):
                raise ValueError(
                    f"the update of {update.matrix} in layer {update.layer} is beyond the range of {weight.dtype}, "
                    f"the type of {model.name}"
                )

    def add_(self, model: HasMatrices, places: set[tuple[int, str]]) -> None:
        """Add the updates of some matrices to the weights, without the ledger: `apply_` is what you want."""
        with torch.no_grad():
            for update in self.updates:
                if (update.layer, update.matrix) in places:
                    weight = model.weight(update.layer, update.matrix)
                    weight.add_(update.dense().to(device=weight.device, dtype=weight.dtype))

    @contextmanager
    def applied_to(self, hf: Any) -> Iterator[Any]:
        """A plain `transformers` model, edited within the block; after it, also if it raises, it is what it was.

        Blocks may stand within one another. ValueError or IndexError, and no change, if it does not fit the model.
        """
        plain = PlainModel(hf)
        self.check_fits(plain)
        before = {place: plain.weight(*place).clone() for place in self.places}

        def back() -> None:
            with torch.no_grad():
                for place, weight in before.items():
                    plain.weight(*place).copy_(weight)

        try:
            try:
                unrounded = Unrounded(model=plain, sums=sums_of(before))
                self.add_(unrounded, self.places)
                unrounded.write_(self.places)
                yield hf
            finally:
                back()
        except BaseException:  # an interrupt between the two leaves it half written
            back()
            raise

    def norms(self, model: Model) -> dict[int, float]:
        """||dW|| / ||W|| (Frobenius) by layer, over the matrices changed there; W is without any edit."""
        changed: dict[int, float] = {}
        weights: dict[int, float] = {}
        for layer, matrix in sorted(self.places):
            here = [update for update in self.updates if (update.layer, update.matrix) == (layer, matrix)]
            left = torch.cat([update.left for update in here], dim=1).double()
            right = torch.cat([update.right for update in here], dim=0).double()
            # ||LR||^2 = <L^T L, R R^T>, without the dense matrix.
            square = (einsum(left, left, "i r, i s -> r s") * einsum(right, right, "r j, s j -> r s")).sum().item()
            weight = model.originals.get((layer, matrix), model.weight(layer, matrix)).detach()
            changed[layer] = changed.get(layer, 0.0) + max(square, 0.0)
            weights[layer] = weights.get(layer, 0.0) + weight.double().square().sum().item()
        return {layer: math.sqrt(changed[layer] / weights[layer]) for layer in changed}

    def tensors(self) -> dict[str, Tensor]:
        """Both factors of each update, and what is carried on."""
        found = {f"{_CARRIED}{name}": tensor for name, tensor in self.carried.items()}
        for index, update in enumerate(self.updates):
            found |= {f"{index}.left": update.left, f"{index}.right": update.right}
        return found

    def settings(self) -> dict[str, Any]:
        """The matrices, in the order of the updates."""
        return {"updates": [{"layer": update.layer, "matrix": update.matrix} for update in self.updates]}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "WeightEdit":
        """The inverse of `tensors` and `settings`."""
        return cls(
            updates=tuple(
                WeightUpdate(left=tensors[f"{index}.left"], right=tensors[f"{index}.right"], **place)
                for index, place in enumerate(settings["updates"])
            ),
            carried={
                name.removeprefix(_CARRIED): tensor for name, tensor in tensors.items() if name.startswith(_CARRIED)
            },
            **common,
        )
