"""Next tokens after others, with a key-value cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.direct import direct
from workbench.models.hooks import ForwardPass
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.models.tokens import Tokens
from workbench.models.voices import mixture


@dataclass(frozen=True, kw_only=True)
class Manner(Shown):
    """How texts are gone on with."""

    steps: int
    """New tokens, at most."""
    sampler: Callable[[Tensor], Tensor]
    """Next tokens (batch,) by logits (batch, vocab)."""
    past_ends: bool = False
    """Whether a text goes on past a token that ends one."""


def continue_tokens(model: Model, tokens: Tokens, *, steps: int, sampler: Sampler) -> list[list[int]]:
    """Up to `steps` new tokens a row, each row's cut before the first that ends a text; `tokens` are padded left."""
    return continue_together([model], [tokens], None, Manner(steps=steps, sampler=sampler))


@torch.no_grad()
def continue_together(
    models: Sequence[Model],
    tokens: Sequence[Tokens],
    weights: Float[Tensor, "row model"] | None,
    manner: Manner,
) -> list[list[int]]:
    """As `continue_tokens`, by the mixture of several models that each read tokens of their own and then the same.

    ValueError for a model that gives NaN.
    """
    runs = [_Run(model, some, manner.steps) for model, some in zip(models, tokens, strict=True)]
    ends = [] if manner.past_ends else models[0].ends
    finished = torch.zeros(len(tokens[0].ids), dtype=torch.bool, device=models[0].device)
    end_ids = torch.tensor(ends, dtype=torch.long, device=models[0].device)
    new: list[Tensor] = []
    for _ in range(manner.steps):
        logits = [run.logits() for run in runs]
        mixed = logits[0] if weights is None else mixture([_log_probs(each) for each in logits], weights)
        if mixed.isnan().any():
            raise ValueError(f"{models[0].name} gives NaN for the next token: look at its weights and dtype")
        chosen = manner.sampler(mixed)
        new.append(chosen)
        finished = finished | torch.isin(chosen, end_ids)
        if finished.all():
            break
        for run in runs:
            run.append_(chosen)
    rows = torch.stack(new, dim=1).tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), None)] for row in rows]


class _Run:
    """One model in the midst of a text, with its key-value cache."""

    def __init__(self, model: Model, tokens: Tokens, steps: int) -> None:
        self._model, self.ids, self.mask, self._ends = model, tokens.ids, tokens.mask, tokens.prompt_ends
        self._direct = direct(model, tokens, new=steps)
        self._cache: Any = None

    def logits(self) -> Float[Tensor, "batch vocab"]:
        """Of the next token; asked for once before each that is appended."""
        if self._direct is not None:
            return self._direct.logits(keep_last=1, goes_on=True)[:, 0]
        offset = self.mask.shape[1] - self.ids.shape[1]
        which = ForwardPass(mask=self.mask, offset=offset, prompt_ends=self._ends)
        logits, self._cache = self._model.step(self.ids, which, self._cache)
        return logits[:, -1]

    def append_(self, chosen: Int[Tensor, " batch"]) -> None:
        run = self if self._direct is None else self._direct
        run.ids, run.mask = chosen[:, None], torch.cat([run.mask, torch.ones_like(run.mask[:, :1])], dim=1)


def _log_probs(logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    return logits.float().log_softmax(dim=-1)
