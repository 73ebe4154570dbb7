"""Continue tokens with a key-value cache, greedily or by sampling."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.direct import direct
from workbench.models.hooks import ForwardPass
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.models.tokens import TokenRow, Tokens
from workbench.models.voices import groups, mixture


def continue_tokens(model: Model, tokens: Tokens, *, steps: int, sampler: Sampler) -> list[list[int]]:
    """Up to `steps` new tokens a row, each row's cut before the first that ends a text; `tokens` are padded left."""
    return _continue_together([model], [tokens], None, steps=steps, sampler=sampler)


@torch.no_grad()
def _continue_together(
    models: Sequence[Model],
    tokens: Sequence[Tokens],
    weights: Float[Tensor, "row model"] | None,
    *,
    steps: int,
    sampler: Callable[[Tensor], Tensor],
    past_ends: bool = False,
) -> list[list[int]]:
    """As `continue_tokens`, by the mixture of several models that each read tokens of their own and then the same; all
    of the `steps` tokens if it goes on `past_ends`."""
    runs = [_Run(model, some, steps) for model, some in zip(models, tokens, strict=True)]
    ends = [] if past_ends else models[0].ends
    finished = torch.zeros(len(tokens[0].ids), dtype=torch.bool, device=models[0].device)
    end_ids = torch.tensor(ends, dtype=torch.long, device=models[0].device)
    new: list[Tensor] = []
    for _ in range(steps):
        logits = [run.logits() for run in runs]
        chosen = sampler(logits[0] if weights is None else mixture([_log_probs(each) for each in logits], weights))
        new.append(chosen)
        finished = finished | torch.isin(chosen, end_ids)
        if finished.all():
            break
        for run in runs:
            run.append_(chosen)
    rows = torch.stack(new, dim=1).tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), None)] for row in rows]


class _Run:
    """One model in the midst of a text, with its key-value cache."""

    def __init__(self, model: Model, tokens: Tokens, steps: int) -> None:
        self._model, self.ids, self.mask, self._ends = model, tokens.ids, tokens.mask, tokens.prompt_ends
        self._direct = direct(model, tokens, new=steps)
        self._cache: Any = None

    def logits(self) -> Float[Tensor, "batch vocab"]:
        """Of the next token; asked for once before each that is appended."""
        if self._direct is not None:
            return self._direct.logits(keep_last=1, goes_on=True)[:, 0]
        offset = self.mask.shape[1] - self.ids.shape[1]
        which = ForwardPass(mask=self.mask, offset=offset, prompt_ends=self._ends)
        logits, self._cache = self._model.step(self.ids, which, self._cache)
        return logits[:, -1]

    def append_(self, chosen: Int[Tensor, " batch"]) -> None:
        run = self if self._direct is None else self._direct
        run.ids, run.mask = chosen[:, None], torch.cat([run.mask, torch.ones_like(run.mask[:, :1])], dim=1)


def _log_probs(logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    return logits.float().log_softmax(dim=-1)


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
    return _asked(model, prompts, max_new_tokens, sampler, batch_size, past_ends)


def _asked(
    model: Model, prompts: Sequence[str], max_new_tokens: int, sampler: Sampler, batch_size: int, past_ends: bool
) -> list[str]:
    """Continuations by those whom the edits that are applied have answer."""
    found: dict[int, str] = {}
    for group in groups(model, prompts):
        rows = [who.encode(_opened(asked)) for who, asked in zip(group.models, group.asked, strict=True)]
        weights = group.weights.T if len(group.models) > 1 else None
        with group.answering():
            texts = _continue(group.models, rows, weights, max_new_tokens, sampler, batch_size, past_ends)
        found |= dict(zip(group.places, _after(group.asked[0], texts), strict=True))
    return [found[place] for place in range(len(prompts))]


def _opened(prompts: Sequence[str]) -> list[str]:
    """The prompts without a space at the end: with it most tokenizers begin no word."""
    return [prompt[:-1] if prompt.endswith(" ") and prompt.strip() else prompt for prompt in prompts]


def _after(prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
    """What was written on the prompts `_opened`, as it follows the prompts themselves."""
    parts = zip(prompts, _opened(prompts), texts, strict=True)
    return [text if prompt == opened else text.removeprefix(" ") for prompt, opened, text in parts]


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
    rows = {place: model.encode(_opened(some)) for place, some in enumerate(prompts)}
    order: dict[int, list[int]] = {}
    shared = not any(edit.redirects for edit in model.edits)
    for place, new in enumerate(max_new_tokens):
        parts = model.batches(rows[place], batch_size, keep=1, new=new)
        if len(parts) > 1 or not shared:
            found[place] = _asked(model, prompts[place], new, samplers[place], batch_size, past_ends)
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
            found[place] = _asked(model, prompts[place], steps, samplers[place], batch_size, past_ends)
            continue
        sampler = _each_its_own([samplers[place] for place in lot], counts)
        written = _continue_together([model], [tokens], None, steps=steps, sampler=sampler, past_ends=past_ends)
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
    return _continue([model], [[model.text.beginning()] * count], None, max_new_tokens, sampler, count, False)


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
    max_new_tokens: int,
    sampler: Sampler,
    batch_size: int,
    past_ends: bool,
) -> list[str]:
    """Continuations of rows that each of the models has its own form of."""
    if max_new_tokens < 1:
        raise ValueError(f"expected max_new_tokens >= 1, got {max_new_tokens}")
    found: dict[int, str] = {}
    for batch in _batches(models, rows, max_new_tokens, batch_size):
        tokens = []
        for model, own in zip(models, rows, strict=True):
            some = model.pad([own[index] for index in batch], padding_side="left")
            if some.ids.shape[1] + max_new_tokens > model.n_ctx:
                raise ValueError(
                    f"a prompt of {some.ids.shape[1]} tokens and {max_new_tokens} new ones do not fit into "
                    f"the context of {model.n_ctx} of {model.name}; lower max_new_tokens or shorten the prompt"
                )
            tokens.append(some)
        parts = None if weights is None else weights[batch].to(models[0].device)
        new = _continue_together(models, tokens, parts, steps=max_new_tokens, sampler=sampler, past_ends=past_ends)
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
