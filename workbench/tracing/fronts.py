"""Cells of a trace on their way up through the layers: those that begin at one position, as far as they have parted."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.tracing.cells import Cell, Patch

Patched = dict[tuple[Patch, tuple[int, int]], list[int]]
"""The branches of a front that a patch concerns, by the patch and its positions."""


@dataclass(eq=False)
class Front(Shown):
    """The cells whose first patched position is `first`, as far as they have started; they branch as they part."""

    first: int
    end: int
    """From this position on the residual stream is the corrupted run's: all but a few positions where cells start."""
    branches: list[list[int]]
    """The cells that share each branch."""
    resid: Float[Tensor, "branch sample pos d_model"]
    """Residual stream from `first` on."""


def patches_of(front: Front, cells: Sequence[Cell], layer: int) -> Patched:
    """The branches that each patch of a layer concerns, by the patch and its positions."""
    found: Patched = {}
    for branch, here in enumerate(front.branches):
        cell = cells[here[0]]
        for patch in cell.patches_in(layer):
            found.setdefault((patch, cell.positions), []).append(branch)
    return found


def changed_positions(front: Front) -> tuple[int, int]:
    return front.first, front.end


def part(front: Front, cells: Sequence[Cell], layer: int) -> None:
    """Split the branches whose cells do not all make the same patches in this layer."""
    owners, branches = [], []
    for branch, here in enumerate(front.branches):
        parted: dict[tuple[Patch, ...], list[int]] = {}
        for cell in here:
            parted.setdefault(cells[cell].patches_in(layer), []).append(cell)
        owners += [branch] * len(parted)
        branches += parted.values()
    if len(branches) > len(front.branches):
        front.resid, front.branches = front.resid[owners], branches
