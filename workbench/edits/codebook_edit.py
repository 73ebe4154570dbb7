"""Edits that are requests written into a codebook; those of one codebook that are applied act as one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.edits.codebook import READ, Codebook, Label, Rules
from workbench.edits.edit import Edit
from workbench.edits.hooked import HookEdit
from workbench.models.hooks import EditHook, ForwardPass
from workbench.models.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookEdit(HookEdit):
    """Requests written into a codebook: their keys, values and labels.

    The edits of the same `Rules` that are applied to a model are one codebook: `codebook` writes their requests one
    after another, in the order in which the edits were applied. One that is taken back leaves the codebook
    that the others make without it, so that also the radii are what they would be had it never been.

    The codebook is asked once for each prompt, at its last token, which with a key-value cache is in the first pass;
    what follows the prompt is neither asked about nor replaced. (The published code does so too where it scores
    answers; where it generates it asks anew at each token.)
    """

    rules: Rules
    """Of the codebook that the requests are written into."""
    keys: Float[Tensor, "request d_in"]
    """What the layer reads at the last token of each request's prompt."""
    values: Float[Tensor, "request d_out"]
    """What it gives instead."""
    labels: tuple[Label, ...]
    """What the requests make the model say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.keys) == len(self.values) == len(self.labels):
            raise ValueError(f"{len(self.keys)} keys, {len(self.values)} values and {len(self.labels)} labels")
        if not (self.keys.isfinite().all() and self.values.isfinite().all()):
            raise ValueError(f"the keys or values of layer {self.rules.layer} are not finite")

    def check_fits(self, model: Model) -> None:
        """IndexError for a layer out of range, ValueError for keys or values of another size."""
        self.rules.sites(model)
        widths, own = self.rules.widths(model), (self.keys.shape[1], self.values.shape[1])
        if own != widths:
            raise ValueError(
                f"the keys and values are of sizes {own}, but those of layer {self.rules.layer} of {model.name} "
                f"of {widths}; was the edit made for another model?"
            )

    def hooks(self, model: Model) -> Sequence[EditHook]:
        """Of the first edit of a codebook, for all of them."""
        edits = _of(model.edits, self.rules)
        if not edits or edits[0] is not self:
            return ()
        book, rules = self._codebook(edits, model.device), self.rules
        if not len(book):
            return ()
        answers: list[tuple[Tensor, Tensor]] = []

        def look_up(states: Tensor, which: ForwardPass) -> None:
            lasts, new = which.prompt_ends - which.offset, states.shape[1]
            if rules.replace == "prompt" and ((lasts >= new) | ((lasts >= 0) & (which.offset > 0))).any():
                raise RuntimeError("a codebook that replaces prompts needs each prompt whole, in one forward pass")
            queries = states[torch.arange(len(states), device=states.device), lasts.clamp(0, new - 1)]
            found, values = book.lookup(queries)
            answers.append((found & (lasts >= 0) & (lasts < new), values))

        def put(states: Tensor, which: ForwardPass) -> Tensor:
            found, values = answers.pop()
            return rules.replaced(states, which.prompt_ends - which.offset, values, found)

        return [(READ[rules.site], rules.layer, look_up), (rules.site, rules.layer, put)]

    def _codebook(self, edits: tuple["CodebookEdit", ...], device: torch.device) -> Codebook:
        """That of edits of which this is the first; goes on from the last one made, since hooks are made each pass."""
        made, book = self._made.get("edits", ()), self._made.get("book")
        if book is None or made != edits:
            if book is None or made != edits[: len(made)]:
                made, book = (), Codebook.empty(self.rules, self.keys.shape[1], self.values.shape[1], self.keys.dtype)
            for edit in edits[len(made) :]:
                keys, values = edit.keys.detach().cpu(), edit.values.detach().cpu()
                for key, value, label in zip(keys, values, edit.labels, strict=True):
                    book = book.written(key, value, label)
            self._made.clear()
            self._made.update({"edits": edits, "book": book})
        return self._made.setdefault(device, book.to(device))

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Keys and values."""
        return {"keys": self.keys, "values": self.values}

    def settings(self) -> dict[str, Any]:
        """Rules and labels."""
        return {"rules": asdict(self.rules), "labels": [[prompt, list(answer)] for prompt, answer in self.labels]}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "CodebookEdit":
        """The inverse of `tensors` and `settings`."""
        labels = tuple((prompt, tuple(answer)) for prompt, answer in settings["labels"])
        return cls(rules=Rules(**settings["rules"]), labels=labels, **tensors, **common)


def codebook(model: Model, rules: Rules) -> Codebook:
    """The codebook of these rules that the edits applied to a model make, on the CPU."""
    dtype = torch.promote_types(model.dtype, torch.float32)
    edits = _of(model.edits, rules)
    if not edits:
        return Codebook.empty(rules, *rules.widths(model), dtype)
    return edits[0]._codebook(edits, torch.device("cpu"))


def _of(edits: Sequence[Edit], rules: Rules) -> tuple[CodebookEdit, ...]:
    return tuple(edit for edit in edits if isinstance(edit, CodebookEdit) and edit.rules == rules)
