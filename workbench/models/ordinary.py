"""Ordinary text, on which a model is looked at before anything is made of it."""

from typing import Any

import torch
from torch import Tensor

_TEXT = (
    "The old harbour of Lisbon was rebuilt after the earthquake of 1755, and its broad new squares soon filled with "
    "merchants from Brazil, Genoa and London. Most of them traded in sugar, gold or cloth; a few sold books. "
)
_LONGEST = 100_000
"""Characters of the text, however often it is repeated."""
LENGTH = 16
"""Tokens of it that are enough to see whether states are what they should be."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference of a state from what it should be, relative to its size; wider for half precision."""
    return _TOLERANCE.get(dtype, 0.1)


def ordinary_ids(tokenizer: Any, length: int) -> list[int]:
    """Ids of the text's first tokens, as many as asked for; fewer of a tokenizer that makes next to none of it."""
    text = _TEXT
    while len(ids := tokenizer(text)["input_ids"]) < length + 2 and len(text) < _LONGEST:  # one or two may be special
        text += _TEXT
    return ids[:length]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Over all elements; 0 where they are not finite, which is told where their numbers are used."""
    found, expected = found.double(), expected.double()
    error = ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    return error if error == error else 0.0
