"""In half precision many small edits are not rounded away one by one, and what is lost by rounding is told."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from known_edits import random_edit, same

from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def small_edits(model: Model, count: int, part: float) -> list[WeightEdit]:
    """Of W_out of layer 1, each so large a part of its norm."""
    edits = []
    for seed in range(count):
        edit = random_edit(model, seed, (1, "W_out"), rank=1)
        (update,) = edit.updates
        scale = part * model.weight(1).double().norm().item() / update.dense().double().norm().item()
        edits.append(replace(edit, updates=(replace(update, left=scale * update.left),)))
    return edits


@HALF
def test_small_edits_add_up(checkpoints: dict[str, Path], dtype: torch.dtype) -> None:
    model = load_model(str(checkpoints["llama"]), device="cpu", dtype=dtype)
    before, weight = model.snapshot(), model.weight(1).float()
    edits = small_edits(model, 40, 2e-3)
    asked = torch.stack([edit.updates[0].dense() for edit in edits]).sum(dim=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for edit in edits:
            edit.apply_(model)
    once = (weight + asked).to(dtype)
    assert (model.weight(1) - once).float().norm() <= 0.01 * asked.norm(), "but for the last bit here and there"
    for edit in edits[::2]:
        edit.revert_(model)
    left = torch.stack([edit.updates[0].dense() for edit in edits[1::2]]).sum(dim=0)
    assert (model.weight(1) - (weight + left).to(dtype)).float().norm() <= 0.01 * left.norm()
    for edit in edits[1::2]:
        edit.revert_(model)
    assert same(before, model.snapshot()) and model.originals == model.sums == {}


@HALF
def test_one_edit_of_many_updates_is_rounded_once(checkpoints: dict[str, Path], dtype: torch.dtype) -> None:
    model = load_model(str(checkpoints["llama"]), device="cpu", dtype=dtype)
    hf, edits = copy.deepcopy(model.to_hf()), small_edits(model, 40, 2e-3)
    whole = replace(edits[0], updates=tuple(edit.updates[0] for edit in edits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with whole.applied(model), whole.applied_to(hf):
            (mine,) = (model.parameters[name] for name in model.parameters if "layers.1.mlp.down_proj" in name)
            assert torch.equal(mine, hf.model.layers[1].mlp.down_proj.weight)
            one = model.weight(1).clone()
        for edit in edits:
            edit.apply_(model)
    assert torch.equal(model.weight(1), one)


def test_what_rounding_takes_is_told(checkpoints: dict[str, Path]) -> None:
    model = load_model(str(checkpoints["llama"]), device="cpu", dtype=torch.bfloat16)
    tiny, large = (small_edits(model, 1, part)[0] for part in (1e-4, 0.5))
    with pytest.warns(UserWarning, match=r"bfloat16 rounds away or adds more than 10% of .* W_out of layer 1"):
        tiny.apply_(model)
    tiny.revert_(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with large.applied(model):
            pass
