"""Whether TransformerLens says what the model said by itself: a configuration may hold what no adapter knows of."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.machine.precision import float32_products
from workbench.models.ordinary import LENGTH, ordinary_ids, relative_error, tolerance


def ordinary_prompt(hf: Any, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "1 pos"]:
    """A few tokens of ordinary text that the model has embeddings and room for; none where its tokenizer knows none."""
    rows = hf.get_input_embeddings().num_embeddings
    known = [each for each in ordinary_ids(tokenizer, LENGTH) if each < rows]
    room = getattr(hf.config, "max_position_embeddings", None) or LENGTH
    return torch.tensor([known[:room]], device=hf.device)


@torch.no_grad()
def own_logits(hf: Any, ids: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos vocab"]:
    """What a model says that is not bridged yet."""
    with float32_products():
        return hf(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def unlike(bridge: Any, ids: Int[Tensor, "1 pos"], expected: Float[Tensor, "1 pos vocab"]) -> str | None:
    """What is wrong with a bridged model, in words; None if it says what is expected, but for rounding."""
    with float32_products():
        error = relative_error(bridge(ids, use_cache=False), expected)
    if error <= tolerance(expected.dtype):
        return None
    return f"its logits are off by {error:.2g} of their size from those of transformers"
