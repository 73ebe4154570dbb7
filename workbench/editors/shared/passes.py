"""Forward passes in which the outputs of MLP matrices are open to change."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.models.tokens import Tokens, answer_start
from workbench.records.joining import join

Place = tuple[int, str]
"""Layer and name of a matrix."""
Change = Callable[[Place, Tensor, Tensor], Tensor]
"""What is made of the output of a matrix: its place, its input, its output -> another output."""

_SITES = {"W_in": ("mlp_in", "mlp_read"), "W_gate": ("mlp_in", "mlp_gate"), "W_out": ("mlp_key", "mlp_write")}
"""Where a matrix's input and output are seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored(Shown):
    """Texts with the tokens that are read of them."""

    tokens: Tokens
    """The texts, padded on the right."""
    rows: Int[Tensor, " prediction"]
    """Row of each prediction."""
    positions: Int[Tensor, " prediction"]
    """Index from which it is made."""
    targets: Int[Tensor, " prediction"] | None = None
    """The token that should come next; None for texts that are only to stay as they are."""
    edits: Int[Tensor, " batch"]
    """Number of the edit that each text belongs to."""

    def means(self, values: Float[Tensor, " prediction"]) -> Float[Tensor, " edit"]:
        """Each edit's mean of what was found for its predictions."""
        edits = self.edits[self.rows]
        count = int(self.edits.max()) + 1
        sums = values.new_zeros(count).index_add(0, edits, values)
        return sums / torch.bincount(edits, minlength=count)


def scored(model: Model, asked: Sequence[tuple[str, str, str | None]]) -> Scored:
    """An edit each: prompts, the targets that should follow them, and what stands between (`join`).

    ValueError for a prompt or a target without a token of its own.
    """
    texts = [join(prompt, target, separator) for prompt, target, separator in asked]
    tokens = model.tokenize(texts, padding_side="right")
    rows, positions, targets = [], [], []
    for row, (prompt, _, _) in enumerate(asked):
        first, end = answer_start(tokens.offsets[row], prompt), len(tokens.offsets[row])
        rows += [row] * (end - first)
        positions += range(first - 1, end - 1)
        targets += tokens.ids[row, first:end].tolist()
    at = {"rows": rows, "positions": positions, "targets": targets, "edits": range(len(texts))}
    return Scored(tokens=tokens, **{name: torch.tensor(each, device=model.device) for name, each in at.items()})


class Passes(ABC):
    """How logits are computed under a change."""

    @abstractmethod
    def logits(self, scored: Scored, change: Change | None = None) -> Float[Tensor, "prediction vocab"]:
        """Logits of every prediction, in float32 at least; gradients flow to what the change brings in."""

    def read(self, *texts: Scored, stay: bool = False) -> None:  # noqa: B027
        """Say which texts come next, or, with `stay`, again and again: what does not change of them is run once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WholePasses(Passes):
    """Over the whole model by hooks, also under edits: for a single edit, and the oracle for `UpperPasses`."""

    model: Model
    places: Sequence[Place]
    """The matrices that are open to change."""

    def logits(self, scored: Scored, change: Change | None = None) -> Float[Tensor, "prediction vocab"]:
        """See `Passes`."""
        hooks: list[Hook] = []
        for place in self.places if change is not None else ():
            hooks += _open(self.model, place, change)
        return predicted(self.model, scored, hooks)


def predicted(model: Model, scored: Scored, hooks: Sequence[Hook]) -> Float[Tensor, "prediction vocab"]:
    """Logits of every prediction under hooks, in float32 at least; nothing before the first is unembedded."""
    first = int(scored.positions.min())
    logits = model.logits(scored.tokens, hooks=hooks, keep_last=scored.tokens.ids.shape[1] - first)
    return wide(logits[scored.rows, scored.positions - first])


def _open(model: Model, place: Place, change: Any) -> list[Hook]:
    layer, matrix = place
    inputs: list[Tensor] = []

    def keep(tensor: Tensor, hook: object) -> None:
        inputs.append(tensor)

    def replace(output: Tensor, hook: object) -> Tensor:
        return change(place, inputs.pop(), output)

    before, after = _SITES[matrix]
    return [(model.hook_name(before, layer), keep), (model.hook_name(after, layer), replace)]


class UpperPasses(Passes):
    """From the lowest matrix that is open to change on, the states below it kept of the texts that are `read`: for
    training.

    BlocksError for a model whose blocks cannot be run part by part, or that has edits applied.
    """

    def __init__(self, model: Model, places: Sequence[Place]) -> None:
        self.blocks: Blocks = blocks_of(model)
        self.places = frozenset(places)
        self.first = min(layer for layer, _ in places)
        self._next: dict[Scored, Tensor] = {}
        self._stay: dict[Scored, Tensor] = {}

    def logits(self, scored: Scored, change: Change | None = None) -> Float[Tensor, "prediction vocab"]:
        """See `Passes`."""
        blocks, resid = self.blocks, self._below(scored)
        everywhere = torch.arange(resid.shape[1], device=resid.device)
        for layer in range(self.first, blocks.n_layers):
            here = None if change is None else self._at(layer, change)
            resid = blocks.leaving(layer, resid, everywhere, here)
        return wide(blocks.unembed(resid[scored.rows, scored.positions]))

    def _at(self, layer: int, change: Change) -> Callable[[str, Tensor, Tensor], Tensor]:
        def here(matrix: str, x: Tensor, output: Tensor) -> Tensor:
            return change((layer, matrix), x, output) if (layer, matrix) in self.places else output

        return here

    @torch.no_grad()
    def read(self, *texts: Scored, stay: bool = False) -> None:
        """The states that enter the first layer, of each row once; what stands at padding, causality hides."""
        width = max(each.tokens.ids.shape[1] for each in texts)
        rows = [torch.nn.functional.pad(each.tokens.ids, (0, width - each.tokens.ids.shape[1])) for each in texts]
        distinct, where = torch.cat(rows).unique(dim=0, return_inverse=True)
        everywhere = torch.arange(width, device=distinct.device)
        resid = self.blocks.resid_pre(self.blocks.embed_tokens(distinct))
        for layer in range(self.first):
            resid = self.blocks.leaving(layer, resid, everywhere)
        parts = zip(texts, where.split([len(each) for each in rows]), strict=True)
        found = {each: resid[part, : each.tokens.ids.shape[1]] for each, part in parts}
        if stay:
            self._stay |= found
        else:
            self._next = found

    def _below(self, texts: Scored) -> Float[Tensor, "batch pos d_model"]:
        if texts not in self._stay and texts not in self._next:
            self.read(texts)
        return self._stay[texts] if texts in self._stay else self._next[texts]


def passes_of(model: Model, places: Sequence[Place]) -> Passes:
    """The fast passes, or those over the whole model where its blocks cannot be run part by part."""
    try:
        return UpperPasses(model, places)
    except BlocksError:
        return WholePasses(model=model, places=places)


def shape_of(model: Model, place: Place) -> tuple[int, int]:
    """Inputs and outputs of a matrix."""
    d_in, d_out = model.weight(*place).shape
    return d_in, d_out


def added(changes: Mapping[Place, tuple[Tensor, Tensor]], scored: Scored) -> Change:
    """The change that gives matrices W + left right where the texts belong to an edit, [edit d rank] and so on."""

    def add(place: Place, x: Tensor, output: Tensor) -> Tensor:
        left, right = (each[scored.edits] for each in changes[place])
        return output + ((x.to(left.dtype) @ left) @ right).to(output.dtype)

    return add


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
