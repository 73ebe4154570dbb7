"""Cells of a trace on their way up through the layers: those that begin at one position, as far as they have parted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.tracing.cells import Cell, Patch


@dataclass(eq=False)
class Front(Shown):
    """The cells whose first patched position is `first`, as far as they have started; they branch as they part."""

    first: int
    branches: list[list[int]] = field(default_factory=list)
    """The cells that share each branch."""
    parts: list[Float[Tensor, "branch sample pos d_model"]] = field(default_factory=list)
    """Their residual stream from `first` on, one after another."""

    @property
    def size(self) -> int:
        """Positions that are held."""
        return self.parts[0].shape[2]

    @property
    def tokens(self) -> int:
        """Of all branches and samples."""
        return sum(part.shape[:3].numel() for part in self.parts)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """All one after another; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def moved(indices: Any, device: torch.device) -> Int[Tensor, "..."]:
    """Indices on a device, without waiting for it: from ordinary memory they are copied before the call returns."""
    return torch.as_tensor(indices).to(device, non_blocking=True)


def started_in(cells: Sequence[Cell]) -> Mapping[int, list[int]]:
    """The cells, by index, whose first patch is in a layer."""
    found: dict[int, list[int]] = {}
    for index, cell in enumerate(cells):
        found.setdefault(cell.patches[0].layer, []).append(index)
    return found


def begun(starting: Sequence[int], cells: Sequence[Cell]) -> list[Front]:
    """Cells that start in one layer, a branch for those of the same positions and first patch; without their rows."""
    by_first: dict[int, dict[tuple[int, Patch], list[int]]] = {}
    for index in starting:
        (first, end), patch = cells[index].positions, cells[index].patches[0]
        by_first.setdefault(first, {}).setdefault((end, patch), []).append(index)
    return [Front(first=first, branches=list(by_first[first].values())) for first in sorted(by_first)]


def part(front: Front, cells: Sequence[Cell], layer: int) -> None:
    """Split the branches whose cells do not all make the same patches in this layer."""
    owners, branches = [], []
    for branch, here in enumerate(front.branches):
        if len(here) == 1:
            parted = [here]
        else:
            by_patches: dict[tuple[Patch, ...], list[int]] = {}
            for cell in here:
                by_patches.setdefault(cells[cell].patches_in(layer), []).append(cell)
            parted = by_patches.values()
        owners += [branch] * len(parted)
        branches += parted
    if len(branches) > len(front.branches):
        whole = joined(front.parts)
        front.parts, front.branches = [whole.index_select(0, moved(owners, whole.device))], branches
