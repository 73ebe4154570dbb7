"""A side memory of one MLP matrix: changes of it, in force only where they move what it gives far enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.edits.codebook import READ
from workbench.machine.shown import Shown
from workbench.models.model import Model

_LONG = 100
"""Positions beyond which the published code takes the largest of a text's distances instead of their mean."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What edits must share to be one memory: which matrix it stands beside, and how it is divided and asked."""

    layer: int
    """The layer."""
    site: Literal["mlp_write", "mlp_pre"] = "mlp_write"
    """What the matrix writes: W_out's output, or what the nonlinearity is given."""
    act_ratio: float = 0.88
    """A memory answers from this part of the smallest distance that its own requests had."""
    save_every: int = 500
    """Requests of a shard."""
    merge_every: int = 1000
    """Requests whose shards are merged into one memory, a multiple of `save_every`."""
    density: float = 0.53
    """Part of a shard's change that is kept in merging, by magnitude."""
    form: Literal["paper", "published"] = "paper"
    """Whose distances and choice; see `distances` and `chosen`."""

    def __post_init__(self) -> None:
        for name, known in {"site": ("mlp_write", "mlp_pre"), "form": ("paper", "published")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.act_ratio > 0:
            raise ValueError(f"act_ratio must be positive, got {self.act_ratio}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density is above 0 and at most 1, got {self.density}")
        if self.save_every < 1 or self.merge_every < 1 or self.merge_every % self.save_every:
            raise ValueError(
                f"merge_every must be a multiple of save_every, got {self.merge_every} and {self.save_every}"
            )

    def sites(self, model: Model) -> tuple[str, str]:
        """Hook names of what the matrix reads and of what it writes; IndexError for a layer out of range."""
        return model.hook_name(READ[self.site], self.layer), model.hook_name(self.site, self.layer)

    def weight(self, model: Model) -> Float[Tensor, "d_in d_out"]:
        """The matrix: W_out or, before the nonlinearity, W_gate where the MLPs are gated and else W_in."""
        return model.weight(self.layer, model.matrix_at(self.site, self.layer))

    def distances(
        self, model: Model, output: Float[Tensor, "batch pos d_out"], more: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos"]:
        """How far a memory moves what the matrix gives at each token: `output` is without it, `more` what it adds.

        ||A(x) (W' - W)||, equation 4; the published code takes the distance after the model's nonlinearity.
        """
        if self.form == "paper":
            return more.norm(dim=-1)
        act = model.nonlinearity(self.layer)
        output = output.to(more.dtype)
        return (act(output + more) - act(output)).norm(dim=-1)

    def mean(
        self, distances: Float[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, " batch"]:
        """A text's distance: the mean over the tokens that count; published, of long texts the largest."""
        if self.form == "published" and distances.shape[1] > _LONG:
            return distances.masked_fill(~counted, 0).amax(dim=1)
        return (distances * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def chosen(
        self, distances: Float[Tensor, "memory batch"], thresholds: Float[Tensor, " memory"]
    ) -> Int[Tensor, " batch"]:
        """The memory that answers each text, -1 for none: the one that is furthest, if that is far enough.

        The published code passes over those that are not far enough, and over those that are no further than the last,
        which is being written.
        """
        enough = distances >= thresholds[:, None]
        if self.form == "published":
            passed = enough & (distances > distances[-1])
            passed[-1] = enough[-1]
            distances = distances.masked_fill(~passed, -torch.inf)
        chosen = distances.argmax(dim=0)
        return chosen.where(enough.gather(0, chosen[None])[0], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory(Shown):
    """One change of the matrix, and from which distance on it answers."""

    change: Float[Tensor, "d_in d_out"]
    threshold: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard(Shown):
    """What requests that share a mask have written."""

    index: int
    """Its place among the shards of a memory."""
    requests: int
    """How many have written it."""
    change: Float[Tensor, "d_in d_out"]
    """Of the matrix."""
    distance: float
    """The smallest that a request's own prompts had."""

    def with_more(self, other: "Shard") -> "Shard":
        """With what another edit has written into the same shard."""
        return replace(
            self,
            requests=self.requests + other.requests,
            change=self.change + other.change,
            distance=min(self.distance, other.distance),
        )


def memories_of(shards: Mapping[int, Shard], rules: Rules) -> list[Memory]:
    """The memories that shards make: each its own, but for groups of `merge_every` requests, which are one by `ties`.

    A group is merged once it is full or another has begun.
    """
    groups: dict[int, list[Shard]] = {}
    for index in sorted(shards):
        groups.setdefault(index // (rules.merge_every // rules.save_every), []).append(shards[index])
    memories = []
    for group, members in groups.items():
        full = sum(shard.requests for shard in members) >= rules.merge_every or group < max(groups)
        if full and len(members) > 1:
            change = ties([shard.change for shard in members], rules.density)
            least = min(shard.distance for shard in members)
            memories.append(Memory(change=change, threshold=rules.act_ratio * least))
        else:
            memories += [Memory(change=each.change, threshold=rules.act_ratio * each.distance) for each in members]
    return memories


def ties(changes: Sequence[Float[Tensor, "d_in d_out"]], density: float) -> Float[Tensor, "d_in d_out"]:
    """Changes of one matrix merged by TIES (Yadav et al. 2023, arXiv:2306.01708, section 4).

    Of each the largest entries are kept, `density` of them by magnitude; each entry's sign is that of their sum; what
    is left is the mean of those that have this sign.
    """
    trimmed = []
    for change in changes:
        kept = torch.zeros_like(change).flatten()
        largest = change.abs().flatten().topk(max(1, int(density * change.numel()))).indices
        kept[largest] = change.flatten()[largest]
        trimmed.append(kept.reshape(change.shape))
    together = torch.stack(trimmed)
    sign = torch.where(together.sum(dim=0) >= 0, 1.0, -1.0)
    agreeing = together.sign() == sign
    return (together * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
