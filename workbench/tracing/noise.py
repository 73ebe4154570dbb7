"""Noise on the subject: where its tokens are, how loud the noise is, and the noise itself."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts import Fact, subject_characters, token_span
from workbench.models import Model


def subject_span(model: Model, fact: Fact) -> tuple[int, int]:
    """The subject's tokens in the fact's prompt, [first, end); a BOS in front counts as token 0."""
    tokens = model.tokenize([fact.prompt])
    return token_span(tokens.offsets[0], subject_characters(fact.template, fact.subject))


def embedding_noise_std(model: Model, facts: Sequence[Fact]) -> float:
    """Standard deviation of the subjects' token embeddings over a set of facts (Meng et al. 2022, section 2).

    As published: every subject is tokenised alone (no word in front, so without a leading space), a subject
    of several facts counts once a fact, all entries of all tokens are pooled, and the deviation is the
    unbiased one. Tokens that the tokenizer adds by itself do not count. ValueError for an empty set and for
    embeddings that are not finite.
    """
    if not facts:
        raise ValueError("the standard deviation of subject embeddings needs at least one fact, got none")
    embed = model.hook_name("embed")
    parts = []
    for fact in facts:
        tokens = model.tokenize([fact.subject])
        first, end = token_span(tokens.offsets[0], (0, len(fact.subject)))
        parts.append(model.activations(tokens, [embed])[embed][0, first:end].float().cpu())
    std = torch.cat(parts).std().item()
    if not math.isfinite(std):
        raise ValueError(f"model {model.name!r} has token embeddings that are NaN or infinite; load it again")
    return std


def gaussian_noise(
    std: float, samples: int, subject_tokens: int, d_model: int, *, generator: torch.Generator
) -> Float[Tensor, "sample subject_pos d_model"]:
    """Normal noise of deviation `std` for the subject's token embeddings, float32 on the CPU.

    Drawn on the CPU, so that a seed gives the same noise on every device. ValueError for a negative or
    infinite `std` and for fewer than one sample or token.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"noise needs a finite standard deviation of at least 0, got {std}")
    if samples < 1 or subject_tokens < 1:
        raise ValueError(f"noise needs at least 1 sample and 1 subject token, got {samples} and {subject_tokens}")
    return std * torch.randn(samples, subject_tokens, d_model, generator=generator)
