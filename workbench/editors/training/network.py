"""A trained network of an editor: its tensors, what it was trained with, and where it is kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.edits.ledger import unedited_fingerprint
from workbench.machine import hashing, paths
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.records.facts import Record

TRAINED = paths.DATA / "trained"
"""What comes with the workbench: one safetensors file a method and model."""
_FORMAT = "workbench-network-2"
ABOUT = ("method", "model", "made_for", "settings", "provenance")
"""All that a network is made of besides its tensors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork(Shown):
    """What an editor has learned from others' edits of one model."""

    method: str
    """The editor, by its name in the registry."""
    model: str
    """The model that it edits."""
    made_for: Mapping[str, Any]
    """That model's size, dtype and fingerprint, see `description`."""
    settings: Mapping[str, Any]
    """What the network is built with, besides its tensors."""
    tensors: Mapping[str, Tensor]
    """Parameters and buffers by name."""
    provenance: Mapping[str, Any]
    """Recipe, digest of the records, seconds, and the curve: [step, training loss, validation] of each validation."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that edits depend on; the same after saving and loading."""
        parts: list[Tensor | str] = [json.dumps([self.method, self.settings], sort_keys=True)]
        for name, tensor in sorted(self.tensors.items()):
            parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}\n", tensor]
        return hashing.digest(*parts)

    def check_made_for(self, model: Model) -> None:
        """ValueError for a model of another size or, in the dtype that it was trained in, of other weights.

        Edits that are applied do not count: an edit on top of others is made by the same network.
        """
        own = description(model)
        kinds = ("size", "dtype", "fingerprint") if own["dtype"] == self.made_for["dtype"] else ("size",)
        for kind in kinds:
            if own[kind] != self.made_for[kind]:
                raise ValueError(
                    f"this {self.method} network was trained for {self.model!r} with {kind} {self.made_for[kind]}, but "
                    f"{model.name!r} has {own[kind]}: train one with `{command(self.method, model.name)}`"
                )

    def save(self, path: Path) -> None:
        """Write it as one safetensors file with a checksum, whole or not at all."""
        save_sealed(path, self.tensors, {name: getattr(self, name) for name in ABOUT}, format=_FORMAT)

    @classmethod
    def load(cls, path: Path) -> "TrainedNetwork":
        """Read what `save` wrote; FileNotFoundError, or ValueError if the file is damaged or something else."""
        if not path.is_file():
            raise FileNotFoundError(f"no network at '{path}'")
        try:
            tensors, content = load_sealed(path, format=_FORMAT)
            return cls(tensors=tensors, **content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is not a network that can be read: {error}") from None


def description(model: Model) -> dict[str, Any]:
    """Size, dtype and fingerprint of a model without the edits that are applied to it."""
    size = f"{model.n_layers} layers x {model.d_model} (MLPs {model.d_mlp})"
    dtype = str(model.dtype).removeprefix("torch.")
    return {"size": size, "dtype": dtype, "fingerprint": unedited_fingerprint(model)}


def command(method: str, model: str) -> str:
    """The command that trains a network."""
    return f"workbench train {method} --model {model}"


def own_path(method: str, model: str) -> Path:
    """Where `workbench train` keeps the network of a method for a model; models are known by the last part of their
    name."""
    return paths.CACHE / "trained" / f"{method}_{model.rstrip('/').rsplit('/', 1)[-1].lower()}.safetensors"


def network_path(method: str, model: str) -> Path:
    """The file of the network that is kept: that of `own_path`, else the one that comes with the workbench."""
    own = own_path(method, model)
    return own if own.is_file() else TRAINED / own.name


def check_kept(method: str, model: str) -> None:
    """FileNotFoundError, which names the command that trains one, unless a network is kept."""
    if not network_path(method, model).is_file():
        raise FileNotFoundError(f"{method} must be trained before it edits {model!r}: `{command(method, model)}`")


def trained_network(method: str, model: Model) -> TrainedNetwork:
    """The network that is kept for a model, see `check_kept` and `TrainedNetwork.check_made_for`."""
    check_kept(method, model.name)
    found = TrainedNetwork.load(network_path(method, model.name))
    found.check_made_for(model)
    return found


def records_digest(records: Sequence[Record]) -> str:
    """By which records are known again."""
    return hashing.digest(*(f"{record!r}\n" for record in records))
