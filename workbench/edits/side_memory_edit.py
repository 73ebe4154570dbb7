"""Edits that are requests written into a side memory; those of one memory that are applied act as one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.edits.codebook import READ
from workbench.edits.edit import Edit
from workbench.edits.hooked import HookEdit
from workbench.edits.side_memory import Memory, Rules, Shard, memories_of
from workbench.models.hooks import EditHook, ForwardPass
from workbench.models.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class SideMemoryEdit(HookEdit):
    """Requests written into the side memory of a matrix, as changes of its shards.

    The edits of the same `Rules` that are applied to a model are one memory: the changes of a shard add up, in the
    order in which the edits were applied, and full groups of shards are merged. One that is taken back leaves the
    memory that the others make without it.

    A prompt is asked about once: of the memories the one that moves its tokens furthest, in their mean, answers if that
    is far enough, for the prompt and all that follows it; else nothing is changed. (The published code includes what
    follows in the mean, and where it generates asks anew at each token.)
    """

    rules: Rules
    """Of the memory that the requests are written into."""
    shards: tuple[Shard, ...]
    """What they wrote."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for shard in self.shards:
            if not shard.change.isfinite().all():
                raise ValueError(f"the side memory of layer {self.rules.layer} is not finite")

    def check_fits(self, model: Model) -> None:
        """IndexError for a layer out of range, ValueError for changes of another shape, and while it is applied: a
        memory that holds it twice would move what it gives by more than was learned."""
        if any(edit is self for edit in model.edits):
            raise ValueError(f"this {self.method} edit is applied already, and a side memory holds each once")
        self.rules.sites(model)
        shape = tuple(self.rules.weight(model).shape)
        for shard in self.shards:
            if tuple(shard.change.shape) != shape:
                raise ValueError(
                    f"the side memory is {' x '.join(map(str, shard.change.shape))}, but the matrix of layer "
                    f"{self.rules.layer} of {model.name} is {' x '.join(map(str, shape))}; was the edit made for "
                    "another model?"
                )

    def hooks(self, model: Model) -> Sequence[EditHook]:
        """Of the first edit of a memory, for all of them."""
        edits = edits_of(model.edits, self.rules)
        if not edits or edits[0] is not self:
            return ()
        memories, rules = self._memories(edits, model.device), self.rules
        if not memories:
            return ()
        read: list[Tensor] = []

        def keep(states: Tensor, which: ForwardPass) -> None:
            read.append(states)

        def add(output: Tensor, which: ForwardPass) -> Tensor:
            states = read.pop().to(memories[0].change.dtype)
            chosen = self._chosen(model, memories, states, output, which)
            for index, memory in enumerate(memories):
                rows = chosen == index
                if rows.any():
                    added = output + (states @ memory.change).to(output.dtype)
                    output = torch.where(rows[:, None, None], added, output)
            return output

        return [(READ[rules.site], rules.layer, keep), (rules.site, rules.layer, add)]

    def _chosen(
        self, model: Model, memories: Sequence[Memory], states: Tensor, output: Tensor, which: ForwardPass
    ) -> Int[Tensor, " batch"]:
        """The memory that answers each row, -1 for none: found in the pass that holds the prompts, and remembered.

        The passes of one generation share the tensor of where prompts end, and with it what was found.
        """
        if which.offset > 0:
            asked, chosen = self._made.get("chosen", (lambda: None, None))
            if asked() is not which.prompt_ends:
                raise RuntimeError("a side memory needs each prompt whole, in one forward pass")
            return chosen
        places = torch.arange(states.shape[1], device=states.device)
        counted = (places <= which.prompt_ends[:, None]) & (which.mask[:, : states.shape[1]] > 0)
        far = torch.stack(
            [
                self.rules.mean(self.rules.distances(model, output, states @ memory.change), counted)
                for memory in memories
            ]
        )
        thresholds = torch.tensor([memory.threshold for memory in memories], device=far.device, dtype=far.dtype)
        chosen = self.rules.chosen(far, thresholds)
        self._made["chosen"] = ref(which.prompt_ends), chosen
        return chosen

    def _memories(self, edits: tuple["SideMemoryEdit", ...], device: torch.device) -> list[Memory]:
        """Those of edits of which this is the first; goes on from the last made, since hooks are made each pass."""
        made, shards = self._made.get("edits", ()), self._made.get("shards", {})
        if made != edits:
            if made != edits[: len(made)]:
                made, shards = (), {}
            shards = _joined(shards, edits[len(made) :])
            self._made.clear()
            self._made.update({"edits": edits, "shards": shards})
        if device not in self._made:
            self._made[device] = [
                Memory(change=memory.change.to(device), threshold=memory.threshold)
                for memory in memories_of(shards, self.rules)
            ]
        return self._made[device]

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The changes of the shards."""
        return {f"{place}.change": shard.change for place, shard in enumerate(self.shards)}

    def settings(self) -> dict[str, Any]:
        """Rules, and what else there is of the shards."""
        shards = [
            {"index": shard.index, "requests": shard.requests, "distance": shard.distance} for shard in self.shards
        ]
        return {"rules": asdict(self.rules), "shards": shards}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "SideMemoryEdit":
        """The inverse of `tensors` and `settings`."""
        shards = tuple(
            Shard(change=tensors[f"{place}.change"], **shard) for place, shard in enumerate(settings["shards"])
        )
        return cls(rules=Rules(**settings["rules"]), shards=shards, **common)


def edits_of(edits: Sequence[Edit], rules: Rules) -> tuple[SideMemoryEdit, ...]:
    """The edits that are of one memory."""
    return tuple(edit for edit in edits if isinstance(edit, SideMemoryEdit) and edit.rules == rules)


def shards_of(model: Model, rules: Rules) -> dict[int, Shard]:
    """The shards of these rules that the edits applied to a model have written, on the CPU."""
    return _joined({}, edits_of(model.edits, rules))


def _joined(shards: Mapping[int, Shard], edits: Sequence[SideMemoryEdit]) -> dict[int, Shard]:
    """The shards with what the edits wrote."""
    joined = dict(shards)
    for edit in edits:
        for shard in edit.shards:
            joined[shard.index] = joined[shard.index].with_more(shard) if shard.index in joined else shard
    return joined
