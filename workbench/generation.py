"""Continue tokens with a key-value cache, greedily or by sampling."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Number of most likely tokens to sample from; all if None."""
    generator: torch.Generator | None = None
    """Source of chance, on the model's device; needed above temperature 0."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                f"expected temperature >= 0 and top_k >= 1 or None, got {self.temperature} and {self.top_k}"
            )
        if self.temperature > 0 and self.generator is None:
            raise ValueError(f"sampling at temperature {self.temperature} needs generator=torch.Generator(...)")

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        """One token a row."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        if self.top_k is None or self.top_k >= logits.shape[-1]:  # without the sort that topk() would make of them all
            chances = (logits.float() / self.temperature).softmax(dim=-1)
            return torch.multinomial(chances, 1, generator=self.generator)[:, 0]
        values, ids = logits.float().topk(self.top_k, dim=-1)
        picks = torch.multinomial((values / self.temperature).softmax(dim=-1), 1, generator=self.generator)
        return ids.gather(-1, picks)[:, 0]


@torch.no_grad()
def continue_tokens(
    forward: Callable[..., Any], tokens: Tokens, *, steps: int, sampler: Sampler, ends: list[int]
) -> list[list[int]]:
    """Up to `steps` new tokens a row, each row's cut before the first of `ends`.

    `tokens` are padded on the left; `forward(ids, mask, cache)` returns (logits of the last position [batch 1
    vocab], cache), and its mask covers the cached positions too.
    """
    ids, mask, cache = tokens.ids, tokens.mask, None
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    end_ids = torch.tensor(ends, dtype=torch.long, device=ids.device)
    new: list[Tensor] = []
    for _ in range(steps):
        logits, cache = forward(ids, mask, cache)
        chosen = sampler(logits[:, -1])
        new.append(chosen)
        finished = finished | torch.isin(chosen, end_ids)
        if finished.all():
            break
        ids, mask = chosen[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    rows = torch.stack(new, dim=1).tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), None)] for row in rows]
