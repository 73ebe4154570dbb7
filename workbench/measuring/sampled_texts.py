"""The texts that records have a model write, of which fluency and consistency are computed."""

from collections.abc import Sequence

import numpy as np
import torch

from workbench.measuring.scores import FLUENCY_TOKENS, FLUENCY_TOP_K
from workbench.models.generation import generate_apart, rooms
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.records.facts import Record


def sample_texts(
    model: Model, records: Sequence[Record], length: int = FLUENCY_TOKENS, *, seed: int = 0, batch_size: int = 64
) -> list[tuple[str, ...]]:
    """By record, the generation prompts with sampled continuations, `length` tokens together for the longest prompt.

    As published they go on past the token that ends a text, for the entropy of n-grams grows with their number. So a
    record has none where an edit that is applied, such as demonstrations before the prompt, leaves no room for them.
    """
    places = {place: _new_tokens(model, one.generation_prompts, length) for place, one in enumerate(records)}
    places = {place: new for place, new in places.items() if new}
    sampled = generate_apart(
        model,
        [records[place].generation_prompts for place in places],
        max_new_tokens=list(places.values()),
        samplers=[_fluency_sampler(model, records[place], seed) for place in places],
        batch_size=batch_size,
        past_ends=True,
    )
    found: list[tuple[str, ...]] = [()] * len(records)
    for place, texts in zip(places, sampled, strict=True):
        prompts = records[place].generation_prompts
        found[place] = tuple(prompt + text for prompt, text in zip(prompts, texts, strict=True))
    return found


def _new_tokens(model: Model, prompts: Sequence[str], length: int) -> int:
    """How many are sampled after each prompt; 0 without prompts, or where edits that are applied leave no such room."""
    if not prompts:
        return 0
    longest = max(len(row.ids) for row in model.encode(prompts))
    new = min(length, model.n_ctx) - longest
    if new < 1:
        raise ValueError(
            f"generation prompts of {longest} tokens leave nothing to sample of {min(length, model.n_ctx)}: "
            "raise fluency_tokens or shorten the prompts"
        )
    return new if min(rooms(model, prompts)) >= new else 0


def _fluency_sampler(model: Model, record: Record, seed: int) -> Sampler:
    state = np.random.SeedSequence([seed, record.case_id]).generate_state(1).item()
    generator = torch.Generator(device=model.device).manual_seed(state)
    return Sampler(temperature=1.0, top_k=FLUENCY_TOP_K, generator=generator)
