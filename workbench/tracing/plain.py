"""The plain tracing engine: for every cell a forward pass with a noisy subject and other runs' states patched in.

It saves nothing that would need an argument why it is right, and so is the oracle for the fast engine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.models.tokens import Tokens
from workbench.tracing.cells import Cell
from workbench.tracing.corruption import Corruption
from workbench.tracing.measure import Measure


class PlainRuns:
    """The runs of one prompt, each a whole forward pass."""

    def __init__(self, model: Model, tokens: Tokens, corruption: Corruption, *, batch_size: int = 256) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")
        self.model, self.tokens = model, tokens
        fitting = int(model.budget * 2**30 / model.footprint.size(1, tokens.ids.shape[1], keep=1))
        rows = max(1, min(batch_size, fitting))
        self.parts = corruption.parts(rows)  # of a long prompt not all samples fit into one pass
        self.cells_at_once = max(1, rows // self.parts[0].samples)
        with torch.no_grad():
            self.clean_logits: Float[Tensor, " vocab"] = model.logits(tokens, keep_last=1)[0, -1]

    @property
    def clean(self) -> Float[Tensor, "prompt vocab"]:
        """Logits of the clean run, as the fast engine has them of several."""
        return self.clean_logits[None]

    def every(self, cells: Sequence[Cell], measures: Sequence[Measure]) -> Float[Tensor, "prompt cell"]:
        """The values of the only prompt, as the fast engine gives them of several."""
        (measure,) = measures
        return self.values(cells, measure)[None]

    def values(self, cells: Sequence[Cell], measure: Measure) -> Float[Tensor, " cell"]:
        """What is measured of every cell, averaged over the samples, on the CPU."""
        total = torch.stack([self._part(part, cells, measure) * part.samples for part in self.parts]).sum(dim=0)
        return total / sum(part.samples for part in self.parts)

    def _part(self, corruption: Corruption, cells: Sequence[Cell], measure: Measure) -> Float[Tensor, " cell"]:
        """The same, averaged over some of the samples."""
        sources = self._sources(corruption, cells)
        return torch.cat(
            [
                self._run(corruption, cells[start : start + self.cells_at_once], sources, measure)
                for start in range(0, len(cells), self.cells_at_once)
            ]
        )

    def _sources(self, corruption: Corruption, cells: Sequence[Cell]) -> dict[tuple[str, str], Tensor]:
        """(run, hook) -> states [sample pos d_model] that the cells' patches take; one sample for the clean run."""
        found: dict[tuple[str, str], Tensor] = {}
        for source in ("clean", "corrupted"):
            names = dict.fromkeys(
                self.model.hook_name(patch.site, patch.layer)
                for cell in cells
                for patch in cell.patches
                if patch.source == source
            )
            if names and source == "clean":
                found |= {(source, k): v for k, v in self.model.activations(self.tokens, list(names)).items()}
            elif names:
                hooks = [(name, _keeper(found, (source, name))) for name in names]
                with torch.no_grad():
                    rows = repeat_tokens(self.tokens, corruption.samples)
                    self.model.logits(rows, hooks=[self._corrupt(1, corruption.frozen), *hooks], keep_last=1)
        return found

    def _corrupt(self, n_cells: int, corruption: Corruption) -> Hook:
        def corrupt(embeddings: Tensor, hook: Any) -> Tensor:
            by_cell = rearrange(embeddings, "(cell sample) pos d -> cell sample pos d", cell=n_cells)
            return rearrange(corruption(by_cell), "cell sample pos d -> (cell sample) pos d")

        return self.model.hook_name("embed"), corrupt

    def _run(
        self,
        corruption: Corruption,
        cells: Sequence[Cell],
        sources: Mapping[tuple[str, str], Tensor],
        measure: Measure,
    ) -> Float[Tensor, " cell"]:
        """All cells in one forward pass."""
        samples = corruption.samples

        targets: dict[str, list[tuple[slice, slice, str]]] = {}  # by hook: rows, positions, run that is taken from
        for index, cell in enumerate(cells):
            here = slice(index * samples, (index + 1) * samples), slice(*cell.positions)
            for patch in cell.patches:
                targets.setdefault(self.model.hook_name(patch.site, patch.layer), []).append((*here, patch.source))

        def patcher(name: str) -> Callable[..., Tensor]:
            def put(states: Tensor, hook: Any) -> Tensor:
                states = states.clone()
                for own, positions, source in targets[name]:
                    states[own, positions] = sources[source, name][:, positions]
                return states

            return put

        hooks = [self._corrupt(len(cells), corruption), *((name, patcher(name)) for name in targets)]
        rows = repeat_tokens(self.tokens, len(cells) * samples)
        with torch.no_grad():
            measured = measure(self.model.logits(rows, hooks=hooks, keep_last=1)[:, -1])
        return reduce(measured.cpu(), "(cell sample) -> cell", "mean", cell=len(cells))


def _keeper(found: dict[tuple[str, str], Tensor], key: tuple[str, str]) -> Callable[..., None]:
    def keep(states: Tensor, hook: Any) -> None:
        found[key] = states

    return keep


def repeat_tokens(tokens: Tokens, rows: int) -> Tokens:
    """One prompt as a batch of `rows` equal rows."""
    return Tokens(
        ids=repeat(tokens.ids, "1 pos -> rows pos", rows=rows),
        mask=repeat(tokens.mask, "1 pos -> rows pos", rows=rows),
        offsets=tokens.offsets * rows,
        starts=repeat(tokens.starts, "1 -> rows", rows=rows),
        lasts=repeat(tokens.lasts, "1 -> rows", rows=rows),
        prompt_ends=repeat(tokens.prompt_ends, "1 -> rows", rows=rows),
    )
