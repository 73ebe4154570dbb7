"""Contexts in which an editor sees its prompts: short texts that the model itself made up."""

import unicodedata
from collections.abc import Iterator, Sequence

import torch

from workbench.models.generation import generate, generate_unprompted
from workbench.models.model import Model


def sample_contexts(
    model: Model,
    *,
    lengths: Sequence[tuple[int, int]] = ((5, 10), (10, 10)),
    beginnings: Sequence[str] = (),
    generator: torch.Generator,
) -> tuple[str, ...]:
    """The bare "{}", then "TEXT. {}" for texts sampled from the model (top 5), as in ROME's published code.

    Texts that come out empty are left out.

    Args:
        generator: on the model's device.
        lengths: (tokens, how many) of the texts; the token that begins the text counts as one.
        beginnings: what the texts begin with, in turn, as in MEMIT's published code; without any, nothing.
    """
    contexts = ["{}"]
    for length, count in lengths:
        for text in _begun(model, count, length, beginnings, generator):
            text = unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("{", " ").replace("}", " ")
            if text.strip():
                contexts.append(text + ". {}")
    return tuple(contexts)


def _begun(
    model: Model, count: int, length: int, beginnings: Sequence[str], generator: torch.Generator
) -> Iterator[str]:
    rows = model.encode(beginnings) if beginnings else [model.text.beginning()]
    longest = max(len(row.ids) for row in rows)
    if length <= longest:
        raise ValueError(
            f"a context needs at least {longest + 1} tokens, of which {longest} begin the text; got {length}"
        )
    if not beginnings:
        yield from generate_unprompted(model, count, max_new_tokens=length - 1, top_k=5, generator=generator)
        return
    for place in range(count):
        start, row = beginnings[place % len(beginnings)], rows[place % len(beginnings)]
        new = length - len(row.ids)
        (more,) = generate(model, [start], max_new_tokens=new, temperature=1.0, top_k=5, generator=generator)
        yield start + more
