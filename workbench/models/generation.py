"""Texts that a model goes on with, greedily or by sampling, as the edits that are applied have it asked."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models.decoding import Manner, continue_together
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.models.tokens import TokenRow
from workbench.models.voices import groups
from workbench.records.facts import opened


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    past_ends: bool = False,
) -> list[str]:
    """Continue each prompt; returns the continuations alone, cut at the end-of-text token, or gone on `past_ends`.

    A space that ends a prompt is left to the first token of what follows, as where answers are scored. Greedy at
    temperature 0; sampled from `generator` (on the model's device) otherwise. Edits that are applied are
    asked whom to ask, and what (`Model.voices`); models that answer together are mixed token by token.
    ValueError if a prompt, as it is put, and its continuation together do not fit into the context.
    """
    sampler = Sampler(temperature=temperature, top_k=top_k, generator=generator)
    manner = Manner(steps=max_new_tokens, sampler=sampler, past_ends=past_ends)
    return _asked(model, prompts, manner, batch_size)


def _asked(model: Model, prompts: Sequence[str], manner: Manner, batch_size: int) -> list[str]:
    """Continuations by those whom the edits that are applied have answer."""
    found: dict[int, str] = {}
    for group in groups(model, prompts):
        rows = [who.encode([*map(opened, asked)]) for who, asked in zip(group.models, group.asked, strict=True)]
        weights = group.weights.T if len(group.models) > 1 else None
        with group.answering():
            texts = _continue(group.models, rows, weights, manner, batch_size)
        found |= dict(zip(group.places, _after(group.asked[0], texts), strict=True))
    return [found[place] for place in range(len(prompts))]


def _after(prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
    """What was written on the prompts `opened`, as it follows the prompts themselves."""
    pairs = zip(prompts, texts, strict=True)
    return [text if prompt == opened(prompt) else text.removeprefix(" ") for prompt, text in pairs]


def generate_apart(
    model: Model,
    prompts: Sequence[Sequence[str]],
    *,
    max_new_tokens: Sequence[int],
    samplers: Sequence[Sampler],
    batch_size: int = 64,
    past_ends: bool = False,
) -> list[list[str]]:
    """As `generate` for each of several sets of prompts, each with a length and a sampler of its own; those that fit
    share a batch, which changes what a set gives by rounding alone."""
    found: dict[int, list[str]] = {}
    lots: list[list[int]] = [[]]
    rows = {place: model.encode([*map(opened, some)]) for place, some in enumerate(prompts)}
    order: dict[int, list[int]] = {}
    shared = not any(edit.redirects for edit in model.edits)

    def alone(place: int, steps: int) -> list[str]:
        manner = Manner(steps=steps, sampler=samplers[place], past_ends=past_ends)
        return _asked(model, prompts[place], manner, batch_size)

    for place, new in enumerate(max_new_tokens):
        parts = model.batches(rows[place], batch_size, keep=1, new=new)
        if len(parts) > 1 or not shared:
            found[place] = alone(place, new)
            continue
        (order[place],) = parts
        lot = [*lots[-1], place]
        count = sum(len(rows[each]) for each in lot)
        longest = max(len(row.ids) for each in lot for row in rows[each]) + max(max_new_tokens[each] for each in lot)
        size = model.footprint.size(count, longest, keep=1, cached=True)
        if lots[-1] and (count > batch_size or longest > model.n_ctx or size > model.budget * 2**30):
            lots.append([])
        lots[-1].append(place)
    for lot in lots if lots[0] else ():
        some = [rows[place][index] for place in lot for index in order[place]]
        counts, steps = [len(order[place]) for place in lot], max(max_new_tokens[place] for place in lot)
        tokens = model.pad(some, padding_side="left")
        if tokens.ids.shape[1] + steps > model.n_ctx:  # a set alone: its error says so
            (place,) = lot
            found[place] = alone(place, steps)
            continue
        sampler = _each_its_own([samplers[place] for place in lot], counts)
        manner = Manner(steps=steps, sampler=sampler, past_ends=past_ends)
        written = continue_together([model], [tokens], None, manner)
        new = iter(zip(some, written, strict=True))
        for place in lot:
            texts = {}
            for index in order[place]:
                row, ids = next(new)
                texts[index] = model.text.continuation(row.ids, ids[: max_new_tokens[place]])
            found[place] = _after(prompts[place], [texts[index] for index in range(len(texts))])
    return [found[place] for place in range(len(prompts))]


def _each_its_own(samplers: Sequence[Sampler], counts: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Each sampler on so many rows, so that its draws do not depend on the others'."""

    def sample(logits: Tensor) -> Tensor:
        return torch.cat([one(part) for one, part in zip(samplers, logits.split(list(counts)), strict=True)])

    return sample


def generate_unprompted(
    model: Model, count: int, *, max_new_tokens: int, top_k: int | None = None, generator: torch.Generator
) -> list[str]:
    """Texts that the model makes up, sampled at temperature 1 after nothing but the token that begins a text."""
    sampler = Sampler(temperature=1.0, top_k=top_k, generator=generator)
    manner = Manner(steps=max_new_tokens, sampler=sampler)
    return _continue([model], [[model.text.beginning()] * count], None, manner, count)


def continue_within(model: Model, prompts: Sequence[str], *, tokens: int, batch_size: int = 64) -> dict[str, str]:
    """Each prompt's greedy continuation of so many tokens, of fewer where the context leaves room for fewer.

    Those of one length are continued in one go. It ends earlier where the model ends its text.
    """
    prompts = list(dict.fromkeys(prompts))
    by_length: dict[int, list[str]] = {}
    for prompt, room in zip(prompts, rooms(model, prompts), strict=True):
        by_length.setdefault(min(tokens, room), []).append(prompt)
    continuations: dict[str, str] = {}
    for length, some in by_length.items():
        generated = generate(model, some, max_new_tokens=length, batch_size=batch_size)
        continuations |= dict(zip(some, generated, strict=True))
    return continuations


def rooms(model: Model, prompts: Sequence[str]) -> list[int]:
    """How many tokens the context leaves after each prompt, as the edits that are applied have it put."""
    found: dict[int, int] = {}
    for group in groups(model, prompts):
        lefts = [
            [who.n_ctx - len(row.ids) for row in who.encode(asked)]
            for who, asked in zip(group.models, group.asked, strict=True)
        ]
        found |= {place: min(left) for place, *left in zip(group.places, *lefts, strict=True)}
    return [found[place] for place in range(len(prompts))]


def _continue(
    models: Sequence[Model],
    rows: Sequence[Sequence[TokenRow]],
    weights: Float[Tensor, "row model"] | None,
    manner: Manner,
    batch_size: int,
) -> list[str]:
    """Continuations of rows that each of the models has its own form of."""
    if manner.steps < 1:
        raise ValueError(f"expected max_new_tokens >= 1, got {manner.steps}")
    found: dict[int, str] = {}
    for batch in _batches(models, rows, manner.steps, batch_size):
        tokens = []
        for model, own in zip(models, rows, strict=True):
            some = model.pad([own[index] for index in batch], padding_side="left")
            if some.ids.shape[1] + manner.steps > model.n_ctx:
                raise ValueError(
                    f"a prompt of {some.ids.shape[1]} tokens and {manner.steps} new ones do not fit into "
                    f"the context of {model.n_ctx} of {model.name}; lower max_new_tokens or shorten the prompt"
                )
            tokens.append(some)
        parts = None if weights is None else weights[batch].to(models[0].device)
        new = continue_together(models, tokens, parts, manner)
        for row, index in enumerate(batch):
            prompt = tokens[0].ids[row, int(tokens[0].starts[row]) :].tolist()
            found[index] = models[0].text.continuation(prompt, new[row])
    return [found[index] for index in range(len(rows[0]))]


def _batches(models: Sequence[Model], rows: Sequence[Sequence[TokenRow]], new: int, batch_size: int) -> list[list[int]]:
    """Indices of rows in batches that fit the memory of each of the models."""
    batches = [list(range(len(rows[0])))]
    for model, own in zip(models, rows, strict=True):
        batches = [
            [batch[place] for place in part]
            for batch in batches
            for part in model.batches([own[index] for index in batch], batch_size, keep=1, new=new)
        ]
    return batches
