"""The clean and the corrupted runs of prompts, and how their states are put into the runs of cells."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.blocks import Blocks
from workbench.models.tokens import Tokens
from workbench.tracing.cells import Cell
from workbench.tracing.corruption import Corruption
from workbench.tracing.fronts import Front, moved

Indices = dict[str, tuple[Tensor, Tensor, Tensor]]
"""By site, what is patched: tokens, the states put there, and the corrupted runs' own, as indices."""


class Sources(Shown):
    """Runs of prompts of one length with all their states: clean, corrupted, and those that severed modules are frozen
    to, each a row; as many corrupted ones of every prompt."""

    @torch.no_grad()
    def __init__(self, blocks: Blocks, tokens: Tokens, corruptions: Sequence[Corruption]) -> None:
        self.samples, self.n_pos = corruptions[0].samples, tokens.ids.shape[1]
        prompts = len(corruptions)
        self.rows = prompts * self.samples
        """Corrupted runs of all prompts."""
        embeddings = blocks.embed_tokens(tokens.ids)
        copies = repeat(embeddings, "prompt pos d -> prompt sample pos d", sample=self.samples)
        noisy = [corruption(some) for corruption, some in zip(corruptions, copies, strict=True)]
        self.corrupted = slice(prompts, prompts + self.rows)
        self._first_row = {"clean": 0, "corrupted": prompts}
        if corruptions[0].frozen is not corruptions[0]:
            self._first_row["corrupted"] += self.rows
            noisy += [corruption.frozen(some) for corruption, some in zip(corruptions, copies, strict=True)]
        resid = blocks.resid_pre(torch.cat([embeddings, *noisy]))
        positions = torch.arange(self.n_pos, device=resid.device)
        self.queries, self.keys, self.values = [], [], []
        self.states: dict[str, list[Tensor]] = {"resid_pre": [], "resid_post": [], "mlp_out": [], "attn_out": []}
        for layer in range(blocks.n_layers):
            entering = resid
            p = blocks.project(layer, resid, positions)
            attn = blocks.attn_out(layer, blocks.attend(layer, p.q, p.k, p.v))
            mlp = blocks.mlp_out(layer, resid, attn)
            resid = resid + attn + mlp
            self.queries.append(p.q[self.corrupted])
            self.keys.append(p.k[self.corrupted])
            self.values.append(p.v[self.corrupted])
            for site, state in (("resid_pre", entering), ("resid_post", resid), ("mlp_out", mlp), ("attn_out", attn)):
                self.states[site].append(state)
        logits = blocks.unembed(resid[:, -1])
        self.clean: Float[Tensor, "prompt vocab"] = logits[:prompts]
        self.corrupted_logits: Float[Tensor, "row vocab"] = logits[self.corrupted]

    def patched(self, fronts: Sequence[Front], cells: Sequence[Cell], layer: int) -> Indices:
        """By site, the tokens of some fronts that are patched, and the states that are put there."""
        found: dict[str, list[tuple[int, ...]]] = {}
        offset = 0
        for front in fronts:
            size = front.size
            start = self.n_pos - size  # the last layer leaves only the last position
            for branch in front.branches:
                cell = cells[branch[0]]
                for patch in cell.patches_in(layer):
                    row, samples = self._first_row[patch.source], self.samples if patch.source == "clean" else 1
                    found.setdefault(patch.site, []).extend(
                        (offset + pos - start, size, row, samples, pos)
                        for pos in range(max(cell.positions[0], start), cell.positions[1])
                    )
                offset += self.rows * size
        return {site: self._indices(places) for site, places in found.items() if places}

    def _indices(self, places: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of patched positions in every sample: their tokens, the states put there, and the corrupted run's own."""
        token, size, row, samples, pos = np.array(places).T[:, :, None]
        each = np.arange(self.rows)
        sources = (row + each // samples) * self.n_pos + pos  # all samples take the clean states of their prompt
        own = (self.corrupted.start + each) * self.n_pos + pos
        tokens, sources, own = moved(np.stack([token + size * each, sources, own]).reshape(3, -1), self.clean.device)
        return tokens, sources, own

    def state(self, site: str, layer: int, rows: Tensor) -> Float[Tensor, "row d_model"]:
        """What a site of all runs held, by run and position."""
        return self.states[site][layer].flatten(0, 1).index_select(0, rows)

    def put(self, site: str, layer: int, output: Float[Tensor, "token d_model"], patched: Indices) -> Tensor:
        """A site's output, overwritten where it is patched."""
        if site in patched:
            tokens, sources, _ = patched[site]
            output.index_copy_(0, tokens, self.state(site, layer, sources))
        return output
