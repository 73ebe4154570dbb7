"""Tracing as the papers' code does it: for every cell a forward pass of one clean and all noisy rows."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.models.tokens import Tokens
from workbench.tracing.cells import Cell
from workbench.tracing.corruption import Corruption
from workbench.tracing.measure import Measure
from workbench.tracing.plain import repeat_tokens


class PublishedRuns:
    """The runs of one prompt by `trace_with_patch` of Meng et al. 2022: nothing is kept from one cell to the next.

    Row 0 is the clean run, the others are corrupted and take their restored states from it; logits are made of every
    position. Numbers are those of `PlainRuns`; cells with severed modules, which it did otherwise, it does not do.
    """

    def __init__(self, model: Model, tokens: Tokens, corruption: Corruption) -> None:
        self.model, self.corruption = model, corruption
        self.tokens = repeat_tokens(tokens, corruption.samples + 1)

    @torch.no_grad()
    def values(self, cells: Sequence[Cell], measure: Measure) -> Float[Tensor, " cell"]:
        """What is measured of every cell, averaged over the samples, on the CPU."""
        found = []
        for cell in cells:
            if any(patch.source != "clean" for patch in cell.patches):
                raise ValueError("the published protocol takes restored states from the clean run alone")
            logits = self.model.logits(self.tokens, hooks=self._hooks(cell))
            found.append(measure(logits[1:, -1]).mean().cpu())
        return torch.stack(found)

    def _hooks(self, cell: Cell) -> list[Hook]:
        def corrupt(embeddings: Tensor, hook: Any) -> Tensor:
            return torch.cat([embeddings[:1], self.corruption(embeddings[1:])])

        def restore(states: Tensor, hook: Any) -> Tensor:
            states = states.clone()
            states[1:, slice(*cell.positions)] = states[:1, slice(*cell.positions)]
            return states

        names = dict.fromkeys(self.model.hook_name(patch.site, patch.layer) for patch in cell.patches)
        return [(self.model.hook_name("embed"), corrupt), *((name, restore) for name in names)]
