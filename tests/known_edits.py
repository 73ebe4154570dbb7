"""Edits to try things on, and whether weights are the same bit for bit."""

from typing import Any

import torch

from workbench.editors.training.network import TrainedNetwork
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model


def random_edit(model: Model, seed: int, *places: tuple[int, str], rank: int = 2) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for layer, matrix in places:
        d_in, d_out = model.weight(layer, matrix).shape
        left = torch.randn(d_in, rank, generator=generator) / d_in**0.5
        updates.append(
            WeightUpdate(layer=layer, matrix=matrix, left=left, right=torch.randn(rank, d_out, generator=generator))
        )
    return WeightEdit(updates=tuple(updates), method="random", requests=(), provenance={})


def untrained(editor: Any, model: Model) -> TrainedNetwork:
    """A small network that has learned nothing, of an editor that must be trained."""
    sizes = {"rank": 4, "hidden": 4, "width": 4, "heads": 1, "d_head": 8, "edited": (2, 3)}
    given = {name: size for name, size in sizes.items() if name in editor.recipes.__dataclass_fields__}
    return editor.untrained(model, editor.recipes(**given))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
