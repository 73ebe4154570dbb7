"""What an edit was made for, as its provenance notes it, and whether a model is that."""

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from workbench.edits.ledger import state_fingerprint
from workbench.models.model import Model

_PACKAGES = ("torch", "transformers", "transformer-lens")


def made_for(name: str, fingerprint: str, dtype: torch.dtype, hyperparameters: Mapping[str, Any], **more: Any) -> Any:
    """`provenance` of an edit of the model of that name, fingerprint and dtype."""
    return {
        "model": name,
        "fingerprint": fingerprint,
        "dtype": _name(dtype),
        "hyperparameters": dict(hyperparameters),
        "versions": {package: version(package) for package in _PACKAGES},
        **more,
    }


def check_made_for(edit: Any, model: Model, *, force: bool) -> None:
    """`Edit.check_made_for`, where it is described."""
    name = f"this {edit.method} edit{f' of {edit.requests[0].subject!r}' if edit.requests else ''}"
    dtype = edit.provenance.get("dtype", _name(model.dtype))
    if dtype != _name(model.dtype):
        differs = f"{name} was made in {dtype}, but {model.name!r} is loaded in {_name(model.dtype)}"
        if not force:
            raise ValueError(f"{differs}: load the model in {dtype}, or use force to convert the edit")
        of = edit.provenance.get("model", "a model")
        warnings.warn(
            f"{differs}: it is converted, and whether those are the weights that it was made for, of {of!r}, cannot be "
            "told",
            stacklevel=3,
        )
        return
    made, present = str(edit.provenance.get("fingerprint", "unknown")), state_fingerprint(model)
    if made == present:
        return
    on_top = f" with {len(model.edits)} edits applied" if model.edits else ""
    differs = (
        f"{name} was made for {edit.provenance.get('model', 'a model')!r} with the "
        f"fingerprint {made[:12]}, but that of {model.name!r} as it is now{on_top} is {present[:12]}"
    )
    if not force:
        raise ValueError(f"{differs}: load that model, apply the edits that it was made on top of, or use force")
    warnings.warn(differs, stacklevel=3)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
