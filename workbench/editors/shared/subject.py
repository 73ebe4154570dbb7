"""Where a model looks a fact up: prompts in context, and activations at the subject's last token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.model import Model
from workbench.models.tokens import Tokens
from workbench.records.facts import fill, subject_characters, token_span


def check_contexts(contexts: Sequence[str]) -> None:
    """ValueError unless there are contexts, each has exactly one {}, and the first is the bare {}."""
    for context in contexts:
        if context.count("{}") != 1:
            raise ValueError(f"context needs exactly one {{}}, got {context!r}")
    if not contexts or contexts[0] != "{}":
        raise ValueError(f"the first context must be the bare '{{}}', got {contexts[0] if contexts else None!r}")


def in_contexts(template: str, contexts: Sequence[str]) -> tuple[str, ...]:
    """The template, its {} still open, put into each context."""
    return tuple(context.replace("{}", template) for context in contexts)


def subject_ends(tokens: Tokens, templates: Sequence[str], subject: str) -> Int[Tensor, " batch"]:
    """Padded index of the subject's last token in each row, whose text begins with its filled template."""
    ends = [
        token_span(offsets, subject_characters(template, subject))[1] - 1
        for offsets, template in zip(tokens.offsets, templates, strict=True)
    ]
    return tokens.starts + torch.tensor(ends, device=tokens.starts.device)


def at_subject(
    model: Model, names: Sequence[str], templates: Sequence[str], subject: str
) -> dict[str, Float[Tensor, "template d"]]:
    """Activations at the hooks named, at the subject's last token of each filled template."""
    tokens = model.tokenize([fill(template, subject) for template in templates])
    rows = torch.arange(len(templates), device=model.device)
    ends = subject_ends(tokens, templates, subject)
    return {name: tensor[rows, ends] for name, tensor in model.activations(tokens, names).items()}
