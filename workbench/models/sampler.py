"""How the next token of a text is chosen: the likeliest, or one that is drawn."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
