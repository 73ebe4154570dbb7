"""Continue tokens with a key-value cache, greedily or by sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.hooks import ForwardPass
from workbench.models.model import Model
from workbench.models.tokens import TokenRow, Tokens


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Number of most likely tokens to sample from; all if None."""
    generator: torch.Generator | None = None
    """Source of chance, on the model's device; needed above temperature 0."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                f"expected temperature >= 0 and top_k >= 1 or None, got {self.temperature} and {self.top_k}"
            )
        if self.temperature > 0 and self.generator is None:
            raise ValueError(f"sampling at temperature {self.temperature} needs generator=torch.Generator(...)")

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        """One token a row."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        if self.top_k is None or self.top_k >= logits.shape[-1]:  # without the sort that topk() would make of them all
            chances = (logits.float() / self.temperature).softmax(dim=-1)
            return torch.multinomial(chances, 1, generator=self.generator)[:, 0]
        values, ids = logits.float().topk(self.top_k, dim=-1)
        picks = torch.multinomial((values / self.temperature).softmax(dim=-1), 1, generator=self.generator)
        return ids.gather(-1, picks)[:, 0]


@torch.no_grad()
def continue_tokens(model: Model, tokens: Tokens, *, steps: int, sampler: Sampler) -> list[list[int]]:
    """Up to `steps` new tokens a row, each row's cut before the first that ends a text; `tokens` are padded left."""
    ids, mask, cache, ends = tokens.ids, tokens.mask, None, model.ends
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    end_ids = torch.tensor(ends, dtype=torch.long, device=ids.device)
    new: list[Tensor] = []
    for _ in range(steps):
        which = ForwardPass(mask=mask, offset=mask.shape[1] - ids.shape[1], prompt_ends=tokens.prompt_ends)
        logits, cache = model.step(ids, which, cache)
        chosen = sampler(logits[:, -1])
        new.append(chosen)
        finished = finished | torch.isin(chosen, end_ids)
        if finished.all():
            break
        ids, mask = chosen[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    rows = torch.stack(new, dim=1).tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), None)] for row in rows]


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> list[str]:
    """Continue each prompt; returns the continuations alone, cut at the end-of-text token.

    Greedy at temperature 0; sampled from `generator` (on the model's device) otherwise. Edits that are applied are
    asked whom to ask, and what (`Model.asked`).
    ValueError if a prompt, as it is put, and its continuation together do not fit into the context.
    """
    sampler = Sampler(temperature=temperature, top_k=top_k, generator=generator)
    found: dict[int, str] = {}
    for answering, places, asked in by_answerer(model, prompts):
        with answering.answering():
            texts = _continue(answering, answering.encode(asked), max_new_tokens, sampler, batch_size)
        found |= dict(zip(places, texts, strict=True))
    return [found[place] for place in range(len(prompts))]


def generate_unprompted(
    model: Model, count: int, *, max_new_tokens: int, top_k: int | None = None, generator: torch.Generator
) -> list[str]:
    """Texts that the model makes up, sampled at temperature 1 after nothing but the token that begins a text."""
    sampler = Sampler(temperature=1.0, top_k=top_k, generator=generator)
    return _continue(model, [model.text.beginning()] * count, max_new_tokens, sampler, count)


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
    for answering, places, asked in by_answerer(model, prompts):
        left = [answering.n_ctx - len(row.ids) for row in answering.encode(asked)]
        found |= dict(zip(places, left, strict=True))
    return [found[place] for place in range(len(prompts))]


def by_answerer(model: Model, prompts: Sequence[str]) -> list[tuple[Model, list[int], list[str]]]:
    """Who answers which of the prompts, by their places, and what is put to them; see `Model.asked`."""
    routed = [model.asked(prompt) for prompt in prompts]
    answerers = {id(answering): answering for answering, _ in routed}
    parts = []
    for answering in answerers.values():
        places = [place for place, (who, _) in enumerate(routed) if who is answering]
        parts.append((answering, places, [routed[place][1] for place in places]))
    return parts


def _continue(
    model: Model, rows: Sequence[TokenRow], max_new_tokens: int, sampler: Sampler, batch_size: int
) -> list[str]:
    if max_new_tokens < 1:
        raise ValueError(f"expected max_new_tokens >= 1, got {max_new_tokens}")
    found: dict[int, str] = {}
    for batch in model.batches(rows, batch_size, keep=1, new=max_new_tokens):
        tokens = model.pad([rows[index] for index in batch], padding_side="left")
        if tokens.ids.shape[1] + max_new_tokens > model.n_ctx:
            raise ValueError(
                f"a prompt of {tokens.ids.shape[1]} tokens and {max_new_tokens} new ones do not fit into "
                f"the context of {model.n_ctx} of {model.name}; lower max_new_tokens or shorten the prompt"
            )
        new = continue_tokens(model, tokens, steps=max_new_tokens, sampler=sampler)
        for row, index in enumerate(batch):
            prompt = tokens.ids[row, int(tokens.starts[row]) :].tolist()
            found[index] = model.text.continuation(prompt, new[row])
    return [found[index] for index in range(len(rows))]
