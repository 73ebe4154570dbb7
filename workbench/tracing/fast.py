"""The fast tracing engine: the plain engine's numbers from the work that differs between cells.

A patch at layer l and position t changes nothing below l and nothing before t. So a cell starts from the corrupted
run's residual stream at l, only its positions from t on are computed, and attention takes the keys and values of
earlier positions from the corrupted run; in the first layer that it climbs, those of later positions too. All cells
climb the layers together, each joining where its first patch is, so that every layer's weights are read once (a
wavefront); cells that make the same patches share their rows until they part. Of the last layer only the last
position is computed. On a CPU so many tokens at once climb a layer as keep their activations near the processor.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model
from workbench.models.tokens import Tokens
from workbench.tracing.cells import Cell, Patch
from workbench.tracing.corruption import Corruption
from workbench.tracing.fronts import Front, Patched, changed_positions, part, patches_of
from workbench.tracing.measure import Measure

_ROWS_UNEMBEDDED = 256
"""Logits are made for this many rows at once."""
_TOKENS_AT_ONCE = 2048
"""On a CPU a layer runs on about this many tokens at once, so that activations stay near the processor."""


class FastRuns:
    """The runs of one prompt, computed where they differ."""

    def __init__(
        self,
        model: Model,
        tokens: Tokens,
        corruption: Corruption,
        *,
        memory: float = 1.0,
        tokens_at_once: float | None = None,
    ) -> None:
        """What all runs start from.

        Args:
            memory: GiB that the activations of cells advanced together may take; more cells are split.
            tokens_at_once: about how many tokens take a layer together; by default few on a CPU, else all.
        """
        if not memory > 0:
            raise ValueError(f"memory must be a positive number of GiB, got {memory}")
        few = model.device.type == "cpu"
        self._tokens_at_once = tokens_at_once or (_TOKENS_AT_ONCE if few else math.inf)
        self.blocks = blocks_of(model)
        self.samples, self.n_pos, self.n_layers = corruption.samples, tokens.ids.shape[1], model.n_layers
        # Residual stream, projections and their copies; the MLP's inner activations are bounded by themselves.
        self._tokens = memory * 2**30 / (12 * model.d_model * torch.finfo(model.dtype).bits / 8)
        with torch.no_grad():
            self._run_sources(tokens, corruption)

    def _run_sources(self, tokens: Tokens, corruption: Corruption) -> None:
        """The clean run (row 0), the corrupted runs and those that severed modules are frozen to; all states kept."""
        blocks = self.blocks
        embeddings = blocks.embed_tokens(tokens.ids)
        copies = repeat(embeddings, "1 pos d -> sample pos d", sample=self.samples)
        self._corrupted, own = slice(1, self.samples + 1), corruption.frozen is not corruption
        self._rows = {"clean": slice(0, 1), "corrupted": slice(self.samples + 1, None) if own else self._corrupted}
        noisy = [corruption(copies), corruption.frozen(copies)] if own else [corruption(copies)]
        resid = blocks.resid_pre(torch.cat([embeddings, *noisy]))
        self._positions = torch.arange(self.n_pos, device=resid.device)
        self._resid_pre, self._queries, self._keys, self._values = [], [], [], []
        self._states: dict[str, list[Tensor]] = {"resid_post": [], "mlp_out": [], "attn_out": []}
        for layer in range(self.n_layers):
            self._resid_pre.append(resid)
            p = blocks.project(layer, resid, self._positions)
            attn = blocks.attn_out(layer, blocks.attend(layer, p.q, p.k, p.v))
            mlp = blocks.mlp_out(layer, resid, attn)
            resid = resid + attn + mlp
            self._queries.append(p.q[self._corrupted])
            self._keys.append(p.k[self._corrupted])
            self._values.append(p.v[self._corrupted])
            for site, state in (("resid_post", resid), ("mlp_out", mlp), ("attn_out", attn)):
                self._states[site].append(state)
        logits = blocks.unembed(resid[:, -1])
        self.clean_logits: Float[Tensor, " vocab"] = logits[0]
        self._corrupted_logits: Float[Tensor, "sample vocab"] = logits[self._corrupted]

    def _state(self, patch: Patch, positions: slice) -> Float[Tensor, "sample pos d_model"]:
        """What a patch puts in place, one sample from the clean run, as many as there are from the corrupted."""
        return self._states[patch.site][patch.layer][self._rows[patch.source], positions]

    @torch.no_grad()
    def values(self, cells: Sequence[Cell], measure: Measure) -> Float[Tensor, " cell"]:
        """What is measured of every cell, averaged over the samples, on the CPU."""
        untouched = measure(self._corrupted_logits).mean().cpu()
        values = untouched.repeat(len(cells))
        todo = [i for i, cell in enumerate(cells) if not self._without_effect(cell)]
        for chunk in self._chunks(todo, cells):
            for indices, resid in self._advance([cells[i] for i in chunk]):
                flat = rearrange(resid, "cell sample d -> (cell sample) d")
                measured = torch.cat([measure(self.blocks.unembed(rows)) for rows in flat.split(_ROWS_UNEMBEDDED)])
                means = rearrange(measured, "(cell sample) -> cell sample", sample=self.samples).mean(dim=1)
                values[[chunk[i] for i in indices]] = means.cpu()
        return values

    def _without_effect(self, cell: Cell) -> bool:
        """No patches, or none that the last position's output could see."""
        return not cell.patches or (cell.patches[0].layer == self.n_layers - 1 and cell.positions[1] < self.n_pos)

    def _chunks(self, todo: Sequence[int], cells: Sequence[Cell]) -> list[list[int]]:
        """Cells in batches that fit into the memory, those of like positions together."""
        chunks: list[list[int]] = [[]]
        room = self._tokens
        for index in sorted(todo, key=lambda i: cells[i].positions):
            size = self.samples * (self.n_pos - cells[index].positions[0])
            if chunks[-1] and size > room:
                chunks.append([])
                room = self._tokens
            chunks[-1].append(index)
            room -= size
        return chunks

    # ---- the wavefront

    def _advance(self, cells: Sequence[Cell]) -> list[tuple[list[int], Float[Tensor, "cell sample d_model"]]]:
        """The last position's residual stream that leaves the last layer, for cells given by their indices."""
        fronts: list[Front] = []
        for layer in range(self.n_layers):
            for front in fronts:
                part(front, cells, layer)
            for group in self._groups(fronts):
                self._step(group, cells, layer)
            fronts = self._merged([*fronts, *self._started(cells, layer)], layer)
        found = []
        for front in fronts:
            owners = [branch for branch, cells_here in enumerate(front.branches) for _ in cells_here]
            indices = [cell for cells_here in front.branches for cell in cells_here]
            found.append((indices, front.resid[owners, :, -1]))
        return found

    def _groups(self, fronts: Sequence[Front]) -> list[list[Front]]:
        """Fronts that take a layer together."""
        groups, room = [], 0.0
        for front in fronts:
            if room <= 0:
                groups.append([])
                room = self._tokens_at_once
            groups[-1].append(front)
            room -= front.resid.shape[:3].numel()
        return groups

    def _step(self, fronts: Sequence[Front], cells: Sequence[Cell], layer: int) -> None:
        """Take all branches of some fronts through one layer."""
        blocks, last = self.blocks, layer == self.n_layers - 1
        patches = [patches_of(front, cells, layer) for front in fronts]
        changed = [front.resid[:, :, : front.end - front.first] for front in fronts]
        at = [
            repeat(self._positions[front.first : front.end], "pos -> (row pos)", row=some.shape[:2].numel())
            for front, some in zip(fronts, changed, strict=True)
        ]
        resid = _joined([rearrange(some, "b s pos d -> (b s pos) d") for some in changed])
        p = blocks.project(layer, resid, _joined(at))
        parts = [x.split([len(positions) for positions in at]) for x in (p.q, p.k, p.v)]
        heads = [self._attend(layer, front, q, k, v) for front, q, k, v in zip(fronts, *parts, strict=True)]
        leaving = slice(-1, None) if last else slice(None)  # of the last layer one position
        left = [front.resid[:, :, leaving] for front in fronts]
        sizes = [some.shape[:3] for some in left]
        if last or any(front.end < self.n_pos for front in fronts):
            resid = _joined([rearrange(some, "b s pos d -> (b s pos) d") for some in left])
        attn = blocks.attn_out(layer, _joined(heads))
        self._put("attn_out", attn, sizes, patches)
        # The inner activations of an MLP are several times as large.
        pieces = zip(resid.split(_TOKENS_AT_ONCE), attn.split(_TOKENS_AT_ONCE), strict=True)
        mlp = _joined([blocks.mlp_out(layer, *piece) for piece in pieces])
        self._put("mlp_out", mlp, sizes, patches)
        resid = attn.add_(resid).add_(mlp)
        self._put("resid_post", resid, sizes, patches)
        for front, some, (branch, sample, _) in zip(fronts, _split(resid, sizes), sizes, strict=True):
            front.end = self.n_pos
            front.resid = rearrange(some, "(b s pos) d -> b s pos d", b=branch, s=sample)

    def _attend(self, layer: int, front: Front, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "token d_attn"]:
        """What the heads of one front's tokens read; what did not change is the corrupted run's."""
        q = self._completed(front, q, self._queries[layer], front.first)
        k, v = (self._completed(front, x, corrupted[layer], 0) for x, corrupted in ((k, self._keys), (v, self._values)))
        if layer == self.n_layers - 1:
            q = q[:, -1:]
        return rearrange(self.blocks.attend(layer, q, k, v), "row pos d -> (row pos) d")

    def _completed(self, front: Front, changed: Tensor, corrupted: Tensor, start: int) -> Float[Tensor, "row pos h d"]:
        """Queries, keys or values of the positions from `start` on, laid out by head, as attention reads them."""
        branch, sample = front.resid.shape[:2]
        changed = rearrange(changed, "(b s pos) h d -> b s h pos d", b=branch, s=sample)
        corrupted = rearrange(corrupted, "s pos h d -> s h pos d").expand(branch, -1, -1, -1, -1)
        around = corrupted[..., start : front.first, :], corrupted[..., front.end :, :]
        parts = [x for x in (around[0], changed, around[1]) if x.shape[3]]
        return rearrange(torch.cat(parts, dim=3) if parts[1:] else changed, "b s h pos d -> (b s) pos h d")

    def _put(
        self,
        site: str,
        output: Float[Tensor, "token d_model"],
        sizes: Sequence[torch.Size],
        patches: Sequence[Patched],
    ) -> None:
        """Overwrite a module's output where the branches of some fronts patch it."""
        for (branch, sample, pos), some, in_front in zip(sizes, _split(output, sizes), patches, strict=True):
            start = self.n_pos - pos  # the last layer holds only the last position
            for (patch, (first, end)), branches in in_front.items():
                if patch.site == site and end > start:
                    here = slice(max(first, start), end)
                    shaped = some.view(branch, sample, pos, -1)
                    shaped[branches, :, here.start - start : end - start] = self._state(patch, here)

    def _started(self, cells: Sequence[Cell], layer: int) -> list[Front]:
        """The cells whose first patch is in this layer, as they leave it."""
        starting = [i for i, cell in enumerate(cells) if cell.patches[0].layer == layer]
        starting.sort(key=lambda i: (cells[i].positions, cells[i].patches[0].site))
        fronts = []
        for ((first, end), patch), group in groupby(starting, key=lambda i: (cells[i].positions, cells[i].patches[0])):
            resid = self._states["resid_post"][layer][self._corrupted, first:].clone()
            here, inside = slice(first, end), slice(0, end - first)
            state = self._state(patch, here)
            if patch.site == "resid_post":
                resid[:, inside] = state
            elif patch.site == "mlp_out":
                resid[:, inside] += state - self._states["mlp_out"][layer][self._corrupted, here]
            else:
                below = self._resid_pre[layer][self._corrupted, here]
                attn = state.expand_as(below)
                resid[:, inside] = below + attn + self.blocks.mlp_out(layer, below, attn)
            fronts.append(Front(first=first, end=end, branches=[list(group)], resid=resid[None]))
        return fronts

    def _merged(self, fronts: Sequence[Front], layer: int) -> list[Front]:
        """One front of all that changed at the same positions; of the last layer only the last position."""
        merged = []
        for (first, end), same in groupby(sorted(fronts, key=changed_positions), key=changed_positions):
            same = list(same)
            leaving = [front.resid[:, :, -1:] if layer == self.n_layers - 1 else front.resid for front in same]
            branches = [branch for front in same for branch in front.branches]
            merged.append(Front(first=first, end=end, branches=branches, resid=_joined(leaving)))
        return merged


def _split(output: Float[Tensor, "token d"], sizes: Sequence[torch.Size]) -> Sequence[Tensor]:
    """The tokens of each front, as many as its size holds."""
    return output.split([size.numel() for size in sizes])


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """All one after another; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
