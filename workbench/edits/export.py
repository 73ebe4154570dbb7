"""Edits for other software: edited Hugging Face checkpoints, and LoRA adapters that `peft` loads."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.machine.jsonl import dumps
from workbench.models.model import Model
from workbench.models.places import of_model

_MARKS = ("config.json", "adapter_config.json")
"""One of these is in every folder that is written here."""


def save_checkpoint(model: Model, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write the model, with the edits that are applied to it now, as a Hugging Face folder.

    It is `Model.save_pretrained`, whole or not at all. ValueError for a folder that is not empty; with `overwrite`
    one that holds an earlier export is replaced, but never the one that the model was loaded from.
    """
    with _whole_folder(Path(folder), model, overwrite) as place:
        model.save_pretrained(place)


def save_lora(
    model: Model, edits: Sequence[Edit], folder: str | Path, *, force: bool = False, overwrite: bool = False
) -> None:
    """Write the sum of the edits as a LoRA adapter for the model's checkpoint (Hu et al. 2022, arXiv:2106.09685).

    In the format of PEFT: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)` is the
    checkpoint with these edits, whether or not they are applied to the model now. The updates of one matrix become
    one adapter module of the sum of their ranks, with scaling 1, so that B A is their sum exactly. `model.edits`
    is what is applied.

    ValueError if there is nothing to write, for an edit that is not one of weights, if an update does not fit the model
    or is of what LoRA cannot adapt (a bias, a part of a fused matrix), or if a matrix's rank is full, as with
    fine-tuning: the adapter would be larger than the matrix, and a checkpoint is what is wanted. With `force` it is
    written all the same, with that rank. For `overwrite` see `save_checkpoint`.
    """
    updates: dict[tuple[int, str], list[WeightUpdate]] = {}
    for edit in edits:
        if not isinstance(edit, WeightEdit):
            raise ValueError(
                f"a LoRA adapter holds changes of weights alone, and a {edit.method} edit is of another kind"
            )
        for update in edit.updates:
            updates.setdefault((update.layer, update.matrix), []).append(update)
    if not updates:
        raise ValueError("there is no update to write as a LoRA adapter")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    stored_as_used: list[bool] = []
    for (layer, matrix), parts in sorted(updates.items()):
        module, as_used = _module(model, layer, matrix)
        left, right = _sum(model, parts, force)
        tensors[f"base_model.model.{module}.lora_A.weight"] = left.T.clone(memory_format=torch.contiguous_format)
        tensors[f"base_model.model.{module}.lora_B.weight"] = right.T.clone(memory_format=torch.contiguous_format)
        ranks[module] = left.shape[1]
        stored_as_used.append(as_used)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(_source(model) or model.name),
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,  # alpha / r is what B A is multiplied by
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(stored_as_used),
    }
    with _whole_folder(Path(folder), model, overwrite) as place:
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        (place / "adapter_config.json").write_text(dumps(config) + "\n", encoding="utf-8")


def _module(model: Model, layer: int, matrix: str) -> tuple[str, bool]:
    """The module whose weight a matrix is, and whether it stores it as [d_in, d_out], as GPT-2 does."""
    weight, place = model.weight(layer, matrix), model.once(of_model).get((layer, matrix))
    if place is not None and place.parameter.endswith(".weight"):
        parameter = model.parameters[place.parameter]
        if parameter.numel() == weight.numel():
            return place.parameter.removesuffix(".weight"), parameter.stride() == weight.stride()
    raise ValueError(
        f"{matrix} of layer {layer} of {model.name} is not the weight of a module, so LoRA cannot adapt it: "
        "export a checkpoint"
    )


def _sum(
    model: Model, parts: Sequence[WeightUpdate], force: bool
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]:
    """Factors of the sum of one matrix's updates."""
    layer, matrix = parts[0].layer, parts[0].matrix
    shape = tuple(model.weight(layer, matrix).shape)
    for part in parts:
        if (len(part.left), part.right.shape[1]) != shape:
            raise ValueError(
                f"an update of {matrix} in layer {layer} is {len(part.left)} x {part.right.shape[1]}, but that matrix "
                f"of {model.name} is {' x '.join(map(str, shape))}; was the edit made for another model?"
            )
    left = torch.cat([part.left.detach().cpu() for part in parts], dim=1)
    right = torch.cat([part.right.detach().cpu() for part in parts], dim=0)
    full = min(shape)
    if left.shape[1] < full:
        return left, right
    if not force:
        raise ValueError(
            f"the updates of {matrix} in layer {layer} have rank {left.shape[1]} together, and {full} is full: the "
            "adapter would be larger than the matrix; export a checkpoint, or use force"
        )
    dense, identity = (left.double() @ right.double()).to(left.dtype), torch.eye(full, dtype=left.dtype)
    return (dense, identity) if shape[1] == full else (identity, dense)


def _source(model: Model) -> Path | None:
    """The folder that the model was loaded from; None for one from the hub."""
    hf: Any = model.hf
    folder = Path(hf.name_or_path)
    return folder.resolve() if folder.is_dir() else None


@contextmanager
def _whole_folder(folder: Path, model: Model, overwrite: bool) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` if the block does not raise."""
    folder = folder.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file: choose another folder")
    if folder == _source(model):
        raise ValueError(f"'{folder}' is what {model.name} was loaded from: choose another folder")
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise ValueError(f"'{folder}' is not empty: choose another folder, or overwrite it")
        marked = any((folder / mark).is_file() for mark in _MARKS)
        if not marked or any(path.is_dir() for path in folder.iterdir()):
            raise ValueError(f"'{folder}' holds something else than an exported model: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
