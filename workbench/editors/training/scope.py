"""Scope classifier: how likely a prompt lies in the scope of an edit, by how near their embeddings are."""

from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Distance = Literal["squared", "plain", "cosine"]
"""What `similarities` are made of: the squared Euclidean distance, the distance itself, or the cosine's."""


class ScopeEncoder(nn.Module):
    """A small transformer over a prompt's token embeddings, seen in both directions; the mean is its embedding."""

    def __init__(self, *, d_in: int, width: int, layers: int, heads: int) -> None:
        """`d_in` is the size of the token embeddings."""
        super().__init__()
        self.inward = nn.Linear(d_in, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.outward = nn.Linear(width, width)

    def forward(
        self, embedded: Float[Tensor, "prompt pos d_in"], mask: Int[Tensor, "prompt pos"]
    ) -> Float[Tensor, "prompt width"]:
        """One embedding a prompt; `mask` is 1 where a token is real."""
        states = self.inward(embedded)
        states = self.blocks(
            states + _waves(states.shape[1], states.shape[2]).to(states), src_key_padding_mask=mask < 1
        )
        real = rearrange(mask, "prompt pos -> prompt pos 1").to(states)
        return self.outward(reduce(states * real, "prompt pos width -> prompt width", "sum") / real.sum(dim=1))


def _waves(length: int, width: int) -> Float[Tensor, "pos width"]:
    """Places as sines and cosines (Vaswani et al. 2017, section 3.5)."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return rearrange(torch.stack([angles.sin(), angles.cos()]), "two pos rate -> pos (rate two)")[:, :width]


def similarities(
    queries: Float[Tensor, "query d"],
    keys: Float[Tensor, "key d"],
    *,
    scale: float = 1.0,
    distance: Distance = "squared",
) -> Float[Tensor, "query key"]:
    """exp(-scale d) with d = |query - key|^2, with "plain" |query - key|, with "cosine" 1 - cos(query, key).

    The first is published; SERAC's code has all three.
    """
    if distance == "cosine":
        away = 1 - nn.functional.cosine_similarity(queries[:, None], keys[None], dim=-1)
    else:  # by differences: by products, what is left of a small distance is rounding
        squares = (queries[:, None] - keys[None]).square().sum(dim=-1)
        away = squares if distance == "squared" else squares.sqrt()
    return (-scale * away).exp()


def balanced_loss(log_probs: Float[Tensor, " pair"], inside: Bool[Tensor, " pair"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of pairs in and out of scope: the mean over those inside plus the mean over the others."""
    outside = torch.log(-torch.expm1(log_probs.clamp(max=-1e-6)))
    return -log_probs[inside].mean() - outside[~inside].mean()
