"""Hooks: what they are given, and whether each of them fired."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workbench.machine.shown import Shown

Hook = tuple[str, Callable]
"""A hook's name and `fn(tensor, hook) -> tensor | None`."""
EditHook = tuple[str, int, Callable[[Tensor, "ForwardPass"], Tensor | None]]
"""A site of `Model.hook_name`, a layer, and what an edit makes of the states there; None leaves them as they are."""

HOOK_NAMES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_pre": "blocks.{}.mlp.hook_pre",
    "mlp_read": "blocks.{}.mlp.in.hook_out",
    "mlp_gate": "blocks.{}.mlp.gate.hook_out",
    "mlp_key": "blocks.{}.mlp.hook_post",
    "mlp_write": "blocks.{}.mlp.out.hook_out",
}
"""TransformerLens's name of each site; see `Model.hook_name`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardPass(Shown):
    """Which tokens a forward pass runs: what the hooks of edits need to know where they are."""

    mask: Int[Tensor, "batch key"]
    """1 where a token is real, 0 where it is padding; covers the positions in the cache too."""
    offset: int
    """Positions in the key-value cache: the index, in `mask`, of the first position that is run now."""
    prompt_ends: Int[Tensor, " batch"]
    """Index, in `mask`, of the last token of each prompt; what follows is an answer, given or generated."""


class Watch:
    """Hooks that note when they fire."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._names = [name for name, _ in hooks]
        self._fired: set[int] = set()
        self.hooks: list[Hook] = [
            (name, _watched(self._fired, at, function)) for at, (name, function) in enumerate(hooks)
        ]

    def silent(self) -> list[str]:
        """Names of the hooks that have not fired."""
        return sorted({name for index, name in enumerate(self._names) if index not in self._fired})


def _watched(fired: set[int], index: int, function: Callable) -> Callable:
    """Of the set alone, not of the watch: in a circle of references it would hold on to what the hooks have kept."""

    def call(tensor: Tensor, hook: Any) -> Tensor | None:
        fired.add(index)
        return function(tensor, hook=hook)

    return call
