"""Hugging Face encoders by name: texts as the state of their first token."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, AutoTokenizer


@torch.no_grad()
def first_token(name: str, text: str, device: torch.device) -> Float[Tensor, " d_model"]:
    """The last state of a text's first token, which is [CLS] in BERT, in float32.

    ValueError for an encoder that cannot be had.
    """
    tokenizer, model = _encoder(name, str(device))
    tokens = tokenizer(text, truncation=True, return_tensors="pt").to(device)
    return model(**tokens).last_hidden_state[0, 0]


@lru_cache(maxsize=2)
def _encoder(name: str, device: str) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"cannot load encoder {name!r}: {first}; give a local Hugging Face folder or a hub name such as "
            "distilbert-base-cased"
        ) from error
    return tokenizer, model.to(device).eval()
