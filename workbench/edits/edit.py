"""Edits of a model's weights: low-rank updates that can be tried, kept, undone exactly, saved and loaded."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformer_lens import FactoredMatrix

from workbench.edits.ledger import state_fingerprint, take_back_
from workbench.machine.files import write_whole
from workbench.models.model import Model
from workbench.records.facts import EditRequest

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
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that later edits of the same method need, by name: AlphaEdit's keys so far, "keys.<layer>" [d_mlp n]."""

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
        for layer, matrix in self.places:
            if (layer, matrix) not in model.originals:
                model.originals[layer, matrix] = model.weight(layer, matrix).detach().clone()
        model.edits.append(self)
        try:
            self.add_(model, self.places)
        except BaseException:
            self.revert_(model)
            raise

    def revert_(self, model: Model) -> None:
        """Take the edit back, also from below others; ValueError if it is not applied to the model."""
        index = next((i for i in reversed(range(len(model.edits))) if model.edits[i] is self), None)
        if index is None:
            raise ValueError(f"this {self.method} edit is not applied to {model.name}, so it cannot be reverted")
        take_back_(model, {index})

    def check_made_for(self, model: Model, *, force: bool = False) -> None:
        """ValueError unless it was made for the model's present state (`state_fingerprint`); a warning under `force`.

        One made in another dtype is refused with both named; under `force` it is rounded to the model's when applied.
        An edit of a sequence was made for the weights that those before it leave: apply these first.
        """
        name = f"this {self.method} edit{f' of {self.requests[0].subject!r}' if self.requests else ''}"
        dtype = self.provenance.get("dtype", _name(model.dtype))
        if dtype != _name(model.dtype):
            differs = f"{name} was made in {dtype}, but {model.name!r} is loaded in {_name(model.dtype)}"
            if not force:
                raise ValueError(f"{differs}: load the model in {dtype}, or use force to convert the edit")
            warnings.warn(f"{differs}: it is converted", stacklevel=2)
            return
        made, present = str(self.provenance.get("fingerprint", "unknown")), state_fingerprint(model)
        if made == present:
            return
        on_top = f" with {len(model.edits)} edits applied" if model.edits else ""
        differs = (
            f"{name} was made for {self.provenance.get('model', 'a model')!r} with the "
            f"fingerprint {made[:12]}, but that of {model.name!r} as it is now{on_top} is {present[:12]}"
        )
        if not force:
            raise ValueError(f"{differs}: load that model, apply the edits that it was made on top of, or use force")
        warnings.warn(differs, stacklevel=2)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the tensors of its updates and of its memory; the same after saving and loading."""
        found = hashlib.sha256(json.dumps(self._layout()).encode())
        for name, tensor in sorted(self._tensors().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(rearrange(tensor, "... -> (...)").view(torch.uint8).numpy().data)
        return found.hexdigest()

    @property
    def places(self) -> set[tuple[int, str]]:
        """Layer and name of the matrices that it changes."""
        return {(update.layer, update.matrix) for update in self.updates}

    def add_(self, model: Model, places: set[tuple[int, str]]) -> None:
        """Add the updates of some matrices to the weights, without the ledger: `apply_` is what you want."""
        with torch.no_grad():
            for update in self.updates:
                if (update.layer, update.matrix) in places:
                    weight = model.weight(update.layer, update.matrix)
                    weight.add_(update.dense().to(device=weight.device, dtype=weight.dtype))

    def relative_norms(self, model: Model) -> dict[int, float]:
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

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file, whole or not at all."""
        content = {
            "method": self.method,
            "requests": [asdict(request) for request in self.requests],
            "provenance": self.provenance,
            "updates": self._layout(),
        }
        # Copies, because the format takes no two names for one tensor, such as keys that are also remembered.
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        encoded = save(tensors, metadata={"format": _FORMAT, "edit": json.dumps(content, ensure_ascii=False)})
        write_whole(Path(path), encoded)

    def _layout(self) -> list[dict[str, Any]]:
        return [{"layer": update.layer, "matrix": update.matrix} for update in self.updates]

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"memory.{name}": tensor for name, tensor in self.memory.items()}
        for index, update in enumerate(self.updates):
            found |= {f"{index}.left": update.left, f"{index}.right": update.right}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    @classmethod
    def load(cls, path: str | Path, *, model: Model | None = None, force: bool = False) -> "Edit":
        """Read an edit that `save` wrote; FileNotFoundError, or ValueError if the file is something else.

        Give the `model` that it is to be applied to, in the state that it is to be applied in, and an edit that was
        made for another is refused with a ValueError, or under `force` read with a warning. It is asked here, where
        an edit comes from outside, and not in `apply_`, because it takes a hash of all the weights.
        """
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
                memory = {
                    name.removeprefix("memory."): file.get_tensor(name)
                    for name in file.keys()  # noqa: SIM118 (an open safetensors file is not a mapping)
                    if name.startswith("memory.")
                }
            edit = cls(
                updates=updates,
                method=content["method"],
                requests=tuple(EditRequest(**request) for request in content["requests"]),
                provenance=content["provenance"],
                memory=memory,
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is not an edit that can be read: {error}") from None
        if model is not None:
            edit.check_made_for(model, force=force)
        return edit


def provenance(model: Model, hyperparameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What an editor notes down: the model and its state as it finds it, its hyperparameters, versions, and `more`."""
    return {
        "model": model.name,
        "fingerprint": state_fingerprint(model),
        "dtype": _name(model.dtype),
        "hyperparameters": dict(hyperparameters),
        "versions": {package: version(package) for package in _PACKAGES},
        **more,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
