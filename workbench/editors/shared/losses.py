"""What the losses of trained neurons are made of: targets with smoothed labels, and soft maxima."""

from jaxtyping import Float, Int
from torch import Tensor


def smoothed_loss(
    log_probs: Float[Tensor, "target vocab"], targets: Int[Tensor, " target"], smoothing: float
) -> Float[Tensor, ""]:
    """Negative log-likelihood, mean over the targets; smoothed as in fairseq, which spreads over the other tokens
    alone."""
    said = log_probs.gather(1, targets[:, None])[:, 0]
    others = log_probs.sum(dim=-1) - said
    share = smoothing / (log_probs.shape[-1] - 1)
    return -((1 - smoothing) * said + share * others).mean()


def largest(values: Tensor, count: int) -> Float[Tensor, ""]:
    """S(v; k) of T-Patcher: the mean of the exponentials of the largest values."""
    return values.flatten().topk(min(count, values.numel())).values.exp().mean()
