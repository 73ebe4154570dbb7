"""Edits of a model's weights: low-rank updates that can be tried, kept, undone exactly, saved and loaded."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformer_lens import FactoredMatrix

from workbench.facts import EditRequest
from workbench.files import write_whole
from workbench.models import Model

_FORMAT = "workbench-edit-1"
_PACKAGES = ("torch", "transformers", "transformer-lens")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightUpdate:
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
        if not (self.left.isfinite().all() and self.right.isfinite().all()):
            raise ValueError(f"the update of {self.matrix} in layer {self.layer} is not finite")

    @property
    def factored(self) -> FactoredMatrix:
        """dW as TransformerLens's factored matrix."""
        return FactoredMatrix(self.left, self.right)

    def dense(self) -> Float[Tensor, "d_in d_out"]:
        """dW itself."""
        return self.left @ self.right


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A change of a model's weights, with what it was made for and how.

    Applying keeps a copy of every matrix it changes in the model's ledger (`Model.originals`, `Model.edits`),
    so that reverting is exact in any order: the copies come back, and the edits that remain are added again
    in their order. What else is done to these matrices while an edit is applied is lost when it is reverted.
    """

    updates: tuple[WeightUpdate, ...]
    """The updates, in the order in which they are added; one matrix may have several."""
    method: str
    """The editor's name."""
    requests: tuple[EditRequest, ...]
    """What was asked for."""
    provenance: Mapping[str, Any]
    """Model, hyperparameters and versions it was made with: JSON values only."""

    def __post_init__(self) -> None:
        try:
            # Normalised (tuples become lists), so that it is the same after saving and loading.
            plain = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance must be JSON values: {error}") from None
        object.__setattr__(self, "provenance", plain)

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model, edited within the block; after it, also if it raises, its exact weights are back."""
        self.apply_(model)
        try:
            yield model
        finally:
            if any(edit is self for edit in model.edits):
                self.revert_(model)

    def apply_(self, model: Model) -> None:
        """Add the updates to the weights; ValueError or IndexError, and no change, if they do not fit."""
        for update in self.updates:
            shape = (update.left.shape[0], update.right.shape[1])
            weight = model.weight(update.layer, update.matrix)
            if tuple(weight.shape) != shape:
                raise ValueError(
                    f"the update of {update.matrix} in layer {update.layer} is {shape[0]} x {shape[1]}, "
                    f"but that matrix of {model.name} is {' x '.join(map(str, weight.shape))}; was the edit "
                    f"made for another model?"
                )
        for layer, matrix in self._places():
            if (layer, matrix) not in model.originals:
                model.originals[layer, matrix] = model.weight(layer, matrix).detach().clone()
        model.edits.append(self)
        try:
            self._add_(model, self._places())
        except BaseException:
            self.revert_(model)
            raise

    def revert_(self, model: Model) -> None:
        """Take the edit back, also from below others; ValueError if it is not applied to the model."""
        index = next((i for i in reversed(range(len(model.edits))) if model.edits[i] is self), None)
        if index is None:
            raise ValueError(f"this {self.method} edit is not applied to {model.name}, so it cannot be reverted")
        del model.edits[index]
        places = self._places()
        with torch.no_grad():
            for layer, matrix in places:
                model.weight(layer, matrix).copy_(model.originals[layer, matrix])
        for edit in model.edits:
            edit._add_(model, places)
        needed = {place for edit in model.edits for place in edit._places()}
        for place in places - needed:
            del model.originals[place]

    def _places(self) -> set[tuple[int, str]]:
        return {(update.layer, update.matrix) for update in self.updates}

    def _add_(self, model: Model, places: set[tuple[int, str]]) -> None:
        with torch.no_grad():
            for update in self.updates:
                if (update.layer, update.matrix) in places:
                    weight = model.weight(update.layer, update.matrix)
                    weight.add_(update.dense().to(device=weight.device, dtype=weight.dtype))

    def relative_norms(self, model: Model) -> dict[int, float]:
        """||dW|| / ||W|| (Frobenius) by layer, over the matrices changed there; W is without any edit."""
        changed: dict[int, float] = {}
        weights: dict[int, float] = {}
        for layer, matrix in sorted(self._places()):
            here = [update for update in self.updates if (update.layer, update.matrix) == (layer, matrix)]
            left = torch.cat([update.left for update in here], dim=1).double()
            right = torch.cat([update.right for update in here], dim=0).double()
            # ||LR||^2 = <L^T L, R R^T>, without the dense matrix.
            square = (einsum(left, left, "i r, i s -> r s") * einsum(right, right, "r j, s j -> r s")).sum().item()
            weight = model.originals.get((layer, matrix), model.weight(layer, matrix)).detach()
            changed[layer] = changed.get(layer, 0.0) + max(square, 0.0)
            weights[layer] = weights.get(layer, 0.0) + weight.double().square().sum().item()
        return {layer: math.sqrt(changed[layer] / weights[layer]) for layer in changed}

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file, whole or not at all."""
        tensors, places = {}, []
        for index, update in enumerate(self.updates):
            tensors[f"{index}.left"] = update.left.detach().cpu().contiguous()
            tensors[f"{index}.right"] = update.right.detach().cpu().contiguous()
            places.append({"layer": update.layer, "matrix": update.matrix})
        content = {
            "method": self.method,
            "requests": [asdict(request) for request in self.requests],
            "provenance": self.provenance,
            "updates": places,
        }
        encoded = save(tensors, metadata={"format": _FORMAT, "edit": json.dumps(content, ensure_ascii=False)})
        write_whole(Path(path), encoded)

    @classmethod
    def load(cls, path: str | Path) -> "Edit":
        """Read an edit that `save` wrote; FileNotFoundError, or ValueError if the file is something else."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no edit at '{path}'")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
                content = json.loads(metadata["edit"])
                updates = tuple(
                    WeightUpdate(left=file.get_tensor(f"{i}.left"), right=file.get_tensor(f"{i}.right"), **place)
                    for i, place in enumerate(content["updates"])
                )
            return cls(
                updates=updates,
                method=content["method"],
                requests=tuple(EditRequest(**request) for request in content["requests"]),
                provenance=content["provenance"],
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is not an edit that can be read: {error}") from None


def provenance(model: Model, hyperparameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What an editor notes down: the model as it finds it, its hyperparameters, versions, and `more`."""
    return {
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "hyperparameters": dict(hyperparameters),
        "versions": {package: version(package) for package in _PACKAGES},
        **more,
    }
