"""The fast tracing engine: the plain engine's numbers from the work that differs between cells.

A patch at layer l and position t changes nothing below l and nothing before t. So a cell starts from the corrupted
run's residual stream at l, only its positions from t on are computed, and attention takes the keys and values of
earlier positions from the corrupted run. All cells climb the layers together, each joining where its first patch is, so
that every layer's weights are read once (a wavefront); cells that make the same patches share their rows until they
part. Of the last layer only the last position is computed.

On a CPU so many tokens at once climb a layer as keep their activations near the processor. On a GPU the host must stay
ahead: all cells attend together, and what is patched in a layer is put there by one launch a site.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine.allocator import free_memory
from workbench.models.blocks import Projections
from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model
from workbench.models.tokens import Tokens
from workbench.tracing.cells import Cell
from workbench.tracing.corruption import Corruption
from workbench.tracing.fronts import Front, begun, joined, moved, part, started_in
from workbench.tracing.measure import Measure
from workbench.tracing.sources import Sources

_ROWS_UNEMBEDDED = 256
"""Logits are made for this many rows at once."""
_TOKENS_AT_ONCE = 2048
"""On a CPU a layer runs on about this many tokens at once, so that activations stay near the processor."""
_MLP_TOKENS = 16_384
"""Where all take a layer together, an MLP runs on this many: its inner activations are several times as large."""


def usual_memory(device: torch.device) -> float:
    """GiB for the activations of cells advanced together: an eighth of a GPU's memory or half of its free, else 1."""
    if device.type != "cuda":
        return 1.0
    return min(torch.cuda.mem_get_info(device)[1] / 8, free_memory(device) / 2) / 2**30


class FastRuns:
    """The runs of prompts of one length, computed where they differ; each has a corruption, and all the same cells."""

    def __init__(
        self,
        model: Model,
        tokens: Tokens,
        *corruptions: Corruption,
        memory: float | None = None,
        tokens_at_once: float | None = None,
    ) -> None:
        """What all runs start from.

        Args:
            memory: GiB that the activations of cells advanced together may take, by default `usual_memory`; more cells
                are split.
            tokens_at_once: about how many tokens take a layer together; by default few on a CPU, else all.
        """
        memory = usual_memory(model.device) if memory is None else memory
        if not memory > 0:
            raise ValueError(f"memory must be a positive number of GiB, got {memory}")
        self._device = model.device
        self._tokens_at_once = tokens_at_once or (_TOKENS_AT_ONCE if self._device.type == "cpu" else math.inf)
        self._together = self._tokens_at_once == math.inf
        self._mlp_tokens = _MLP_TOKENS if self._together else _TOKENS_AT_ONCE
        self.blocks = blocks_of(model)
        self._sources = of = Sources(self.blocks, tokens, corruptions)
        self.n_pos, self.n_layers = self._sources.n_pos, model.n_layers
        # Residual stream, projections and their copies; the MLP's inner activations are bounded by themselves.
        self._tokens = memory * 2**30 / (12 * model.d_model * torch.finfo(model.dtype).bits / 8)
        whole = (of.queries, of.keys, of.values, of.queries) if self._together else ()  # the last for what is read
        self._row = sum(states[0][0].numel() for states in whole) / (12 * model.d_model)  # in tokens

    @property
    def clean(self) -> Float[Tensor, "prompt vocab"]:
        """Logits of the clean runs."""
        return self._sources.clean

    @property
    def clean_logits(self) -> Float[Tensor, " vocab"]:
        """Of the only prompt."""
        (only,) = self.clean
        return only

    def values(self, cells: Sequence[Cell], measure: Measure) -> Float[Tensor, " cell"]:
        """What is measured of every cell of the only prompt, averaged over the samples, on the CPU."""
        (only,) = self.every(cells, [measure])
        return only

    @torch.no_grad()
    def every(self, cells: Sequence[Cell], measures: Sequence[Measure]) -> Float[Tensor, "prompt cell"]:
        """What each prompt's measure says of every cell, averaged over the samples, on the CPU."""
        samples = self._sources.samples
        untouched = zip(self._sources.corrupted_logits.split(samples), measures, strict=True)
        values = torch.stack([measure(logits).mean() for logits, measure in untouched])[:, None].repeat(1, len(cells))
        todo = [i for i, cell in enumerate(cells) if not self._without_effect(cell)]
        for chunk in self._chunks(todo, cells):
            for indices, resid in self._advance([cells[i] for i in chunk]):
                here = moved([chunk[i] for i in indices], self._device)
                for row, some, measure in zip(values, resid.split(samples, dim=1), measures, strict=True):
                    flat = rearrange(some, "cell sample d -> (cell sample) d")
                    measured = torch.cat([measure(self.blocks.unembed(rows)) for rows in flat.split(_ROWS_UNEMBEDDED)])
                    row[here] = rearrange(measured, "(cell sample) -> cell sample", sample=samples).mean(dim=1)
        return values.cpu()

    def _without_effect(self, cell: Cell) -> bool:
        """No patches, or none that the last position's output could see."""
        return not cell.patches or (cell.patches[0].layer == self.n_layers - 1 and cell.positions[1] < self.n_pos)

    def _chunks(self, todo: Sequence[int], cells: Sequence[Cell]) -> list[list[int]]:
        """Cells in batches that fit into the memory, those of like positions together."""
        chunks: list[list[int]] = [[]]
        room = self._tokens
        for index in sorted(todo, key=lambda i: cells[i].positions):
            size = self._sources.rows * (self.n_pos - cells[index].positions[0] + self._row)
            if chunks[-1] and size > room:
                chunks.append([])
                room = self._tokens
            chunks[-1].append(index)
            room -= size
        return chunks

    # ---- the wavefront

    def _advance(self, cells: Sequence[Cell]) -> list[tuple[list[int], Float[Tensor, "cell row d_model"]]]:
        """The last position's residual stream that leaves the last layer, for cells given by their indices."""
        fronts: list[Front] = []
        starting = started_in(cells)
        for layer in range(self.n_layers):
            for front in fronts:
                part(front, cells, layer)
            for group in self._groups(fronts):
                self._step(group, cells, layer)
            if layer in starting:
                fronts = self._merged([*fronts, *self._started(starting[layer], cells, layer)], layer)
        found = []
        for front in fronts:
            owners = [branch for branch, cells_here in enumerate(front.branches) for _ in cells_here]
            indices = [cell for cells_here in front.branches for cell in cells_here]
            found.append((indices, joined(front.parts)[:, :, -1].index_select(0, moved(owners, self._device))))
        return found

    def _groups(self, fronts: Sequence[Front]) -> list[list[Front]]:
        """Fronts that take a layer together."""
        groups, room = [], 0.0
        for front in fronts:
            if room <= 0:
                groups.append([])
                room = self._tokens_at_once
            groups[-1].append(front)
            room -= front.tokens
        return groups

    def _step(self, fronts: Sequence[Front], cells: Sequence[Cell], layer: int) -> None:
        """Take all branches of some fronts through one layer."""
        blocks, places = self.blocks, self._places(fronts)
        resid = joined([part.flatten(0, 2) for front in fronts for part in front.parts])
        projected = blocks.project(layer, resid, places % self.n_pos)
        attend = self._attend_together if self._together else self._attend_one_by_one
        heads = attend(layer, fronts, projected, places)
        if layer == self.n_layers - 1:  # one position leaves it
            for front in fronts:
                front.parts = [part[:, :, -1:] for part in front.parts]
            resid = joined([part.flatten(0, 2) for front in fronts for part in front.parts])
        patched = self._sources.patched(fronts, cells, layer)
        attn = self._sources.put("attn_out", layer, blocks.attn_out(layer, heads), patched)
        # The inner activations of an MLP are several times as large.
        pieces = zip(resid.split(self._mlp_tokens), attn.split(self._mlp_tokens), strict=True)
        mlp = self._sources.put("mlp_out", layer, joined([blocks.mlp_out(layer, *piece) for piece in pieces]), patched)
        self._hand_out(self._sources.put("resid_post", layer, attn.add_(resid).add_(mlp), patched), fronts)

    def _places(self, fronts: Sequence[Front]) -> Int[Tensor, " token"]:
        """Where the fronts' tokens stand among all positions of all rows; a branch has one a sample of each prompt."""
        counts = [(front.first, len(front.branches) * self._sources.rows) for front in fronts]
        firsts, rows = moved(counts, self._device).T
        every, tokens = sum(count for _, count in counts), sum(front.tokens for front in fronts)
        left = self.n_pos - torch.repeat_interleave(firsts, rows, output_size=every)
        row = torch.repeat_interleave(left, output_size=tokens)
        return (row + 1) * self.n_pos + torch.arange(tokens, device=self._device) - left.cumsum(0)[row]

    def _hand_out(self, resid: Float[Tensor, "token d_model"], fronts: Sequence[Front]) -> None:
        """Give each front its tokens."""
        for front, some in zip(fronts, resid.split([front.tokens for front in fronts]), strict=True):
            front.parts = [some.view(len(front.branches), self._sources.rows, front.size, -1)]

    def _attend_together(
        self, layer: int, fronts: Sequence[Front], p: Projections, places: Tensor
    ) -> Float[Tensor, "token d_attn"]:
        """What the heads of the fronts' tokens read, all by one kernel; what did not change is the corrupted run's."""
        branches = sum(len(front.branches) for front in fronts)
        whole = []
        for changed, corrupted in (
            (p.q, self._sources.queries),
            (p.k, self._sources.keys),
            (p.v, self._sources.values),
        ):
            rows = corrupted[layer].repeat(branches, 1, 1, 1)
            rows.view(-1, *rows.shape[2:]).index_copy_(0, places, changed)
            whole.append(rows)
        if layer == self.n_layers - 1:
            return self.blocks.attend(layer, whole[0][:, -1:], *whole[1:]).flatten(0, 1)
        return self.blocks.attend(layer, *whole).flatten(0, 1).index_select(0, places)

    def _attend_one_by_one(
        self, layer: int, fronts: Sequence[Front], p: Projections, places: Tensor
    ) -> Float[Tensor, "token d_attn"]:
        """The same front by front, from its first position on."""
        sizes, of = [front.tokens for front in fronts], self._sources
        heads = []
        for front, q, k, v in zip(fronts, *(x.split(sizes) for x in (p.q, p.k, p.v)), strict=True):
            q = self._completed(front, q, of.queries[layer], front.first)
            k = self._completed(front, k, of.keys[layer], 0)
            v = self._completed(front, v, of.values[layer], 0)
            if layer == self.n_layers - 1:
                q = q[:, -1:]
            heads.append(self.blocks.attend(layer, q, k, v).flatten(0, 1))
        return joined(heads)

    def _completed(self, front: Front, changed: Tensor, corrupted: Tensor, start: int) -> Float[Tensor, "row pos h d"]:
        """Queries, keys or values of the positions from `start` on, laid out by head, as attention reads them."""
        branches = len(front.branches)
        changed = rearrange(changed, "(b s pos) h d -> b s h pos d", b=branches, s=self._sources.rows)
        if start < front.first:
            before = rearrange(corrupted[:, start : front.first], "s pos h d -> s h pos d")
            changed = torch.cat([before.expand(branches, -1, -1, -1, -1), changed], dim=3)
        return rearrange(changed, "b s h pos d -> (b s) pos h d")

    def _started(self, starting: Sequence[int], cells: Sequence[Cell], layer: int) -> list[Front]:
        """The cells whose first patch is in this layer, as they leave it."""
        fronts, of = begun(starting, cells), self._sources
        corrupted = of.states["resid_post"][layer][of.corrupted]
        for front in fronts:
            front.parts = [corrupted[:, front.first :].expand(len(front.branches), -1, -1, -1)]
        patched = of.patched(fronts, cells, layer)
        resid = torch.cat([part.flatten(0, 2) for front in fronts for part in front.parts])
        if "attn_out" in patched:
            tokens, taken, own = patched["attn_out"]
            below, attn = of.state("resid_pre", layer, own), of.state("attn_out", layer, taken)
            resid.index_copy_(0, tokens, below + attn + self.blocks.mlp_out(layer, below, attn))
        if "mlp_out" in patched:
            tokens, taken, own = patched["mlp_out"]
            resid.index_add_(0, tokens, of.state("mlp_out", layer, taken) - of.state("mlp_out", layer, own))
        self._hand_out(of.put("resid_post", layer, resid, patched), fronts)
        return fronts

    def _merged(self, fronts: Sequence[Front], layer: int) -> list[Front]:
        """One front of all that begin at the same position; of the last layer only the last position."""
        last = slice(-1 if layer == self.n_layers - 1 else None, None)
        merged: dict[int, Front] = {}
        for front in sorted(fronts, key=lambda front: front.first):
            whole = merged.setdefault(front.first, Front(first=front.first))
            whole.branches += front.branches
            whole.parts += [part[:, :, last] for part in front.parts]
        return list(merged.values())
