"""Contexts in which an editor sees its prompts: short texts that the model itself made up."""

import unicodedata
from collections.abc import Sequence

import torch

from workbench.models.generation import generate_unprompted
from workbench.models.model import Model


def sample_contexts(
    model: Model, *, lengths: Sequence[tuple[int, int]] = ((5, 10), (10, 10)), generator: torch.Generator
) -> tuple[str, ...]:
    """The bare "{}", then "TEXT. {}" for texts sampled from the model (top 5), as in ROME's published code.

    Texts that come out empty are left out.

    Args:
        generator: on the model's device.
        lengths: (tokens, how many) of the texts; the token that begins the text counts as one.
    """
    contexts = ["{}"]
    for length, count in lengths:
        if length < 2:
            raise ValueError(f"a context needs at least 2 tokens, the first of which begins the text; got {length}")
        texts = generate_unprompted(model, count, max_new_tokens=length - 1, top_k=5, generator=generator)
        for text in texts:
            text = unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("{", " ").replace("}", " ")
            if text.strip():
                contexts.append(text + ". {}")
    return tuple(contexts)
