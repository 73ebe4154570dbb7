"""Memories: what an MLP reads in texts that have nothing to do with an edit, and that the edit should not touch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.editors.shared.demonstrations import mention
from workbench.machine.shown import Shown
from workbench.models.model import Model

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Memories(Shown):
    """What the MLP of one layer reads at every token of some texts but their first."""

    source: str
    """What the texts are."""
    texts: tuple[str, ...]
    """The texts."""
    queries: Float[Tensor, "memory d_model"]
    """What the MLP reads, in single precision at least, on the CPU."""
    text: Int[Tensor, " memory"]
    """Index of the text of each."""

    def unrelated(self, subjects: Sequence[str]) -> Float[Tensor, "memory d_model"]:
        """Those of texts that mention none of the subjects."""
        kept = torch.tensor([not mention([text], subjects) for text in self.texts], dtype=torch.bool)
        return self.queries[kept[self.text]]


def remembered(model: Model, layer: int, texts: Sequence[str], *, source: str, at_most: int) -> Memories:
    """Memories of the texts, the first `at_most` of them; each text as far as the context reaches."""
    name = model.hook_name("mlp_in", layer)
    found: dict[int, Tensor] = {}
    for start in range(0, len(texts), _AT_ONCE):
        if sum(map(len, found.values())) >= at_most:
            break
        rows = [model.pieces([text], keep=1)[0] for text in texts[start : start + _AT_ONCE]]
        for batch in model.batches(rows, _AT_ONCE, keep=1):
            tokens = model.pad([rows[index] for index in batch])
            read = model.activations(tokens, [name])[name]
            for row, index in enumerate(batch):
                own = read[row, 1 : 1 + int(tokens.lasts[row])].cpu()
                found[start + index] = own.to(torch.promote_types(own.dtype, torch.float32))
    if not any(map(len, found.values())):
        raise ValueError(f"no memories can be kept of {len(texts)} {source}: give texts of two tokens or more")
    queries = torch.cat([found[index] for index in range(len(found))])
    text = torch.tensor([index for index in range(len(found)) for _ in found[index]])
    return Memories(source=source, texts=tuple(texts[: len(found)]), queries=queries[:at_most], text=text[:at_most])
