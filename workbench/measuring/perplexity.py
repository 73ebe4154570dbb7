"""Perplexity of text: how surprised a model is by what it should know."""

import math
from collections.abc import Sequence

import torch

from workbench.models.model import Model


@torch.no_grad()
def perplexity(model: Model, texts: Sequence[str], *, batch_size: int = 64) -> float:
    """exp of the mean negative log-likelihood of every token but each text's first, over all texts together.

    A text longer than the context is cut into pieces, see `Model.pieces`. ValueError for no texts, and for texts of
    one token each, where nothing is predicted.
    """
    total, count = 0.0, 0
    rows = model.pieces(texts, keep=None)
    for batch in model.batches(rows, batch_size, keep=None):
        tokens = model.pad([rows[index] for index in batch])
        log_probs = model.logits(tokens)[:, :-1].float().log_softmax(dim=-1)
        said = log_probs.gather(-1, tokens.ids[:, 1:, None])[..., 0]
        real = tokens.mask[:, 1:].bool()  # padded on the right: a real token's predecessor is real
        total -= said[real].double().sum().item()
        count += int(real.sum())
    if count == 0:
        raise ValueError(f"nothing to predict in {len(texts)} texts: give one or more of at least two tokens")
    return math.exp(min(total / count, 700.0))  # a broken model's would not fit into a float
