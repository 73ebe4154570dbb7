"""Interchange interventions: one prompt's states at its subject in place of another's (Geiger et al. 2022)."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GPT2LMHeadModel

from workbench.atlas.world import World
from workbench.records.facts import fill, subject_characters


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt about a fact, ready to be tokenised."""

    text: str
    subject: str
    relation: str
    end: int
    """Character after the subject."""


def ask(world: World, subject: str, relation: str, rng: random.Random, *, held_out: bool = False) -> Question:
    """A question in a random template, with a context in front of it every second time."""
    template = rng.choice(world.templates(subject, relation, held_out=held_out))
    template = (rng.choice(world.contexts) if rng.random() < 0.5 else "") + template
    _, end = subject_characters(template, subject)
    return Question(text=fill(template, subject), subject=subject, relation=relation, end=end)


def tokenise(
    questions: Sequence[Question], tokenizer: Any, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Right-padded ids, position of the last subject token, position of the last token."""
    encodings = tokenizer.backend_tokenizer.encode_batch([q.text for q in questions])
    width = max(len(e.ids) for e in encodings)
    ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in encodings])
    subject = torch.tensor([e.char_to_token(q.end - 1) for e, q in zip(encodings, questions, strict=True)])
    last = torch.tensor([len(e.ids) - 1 for e in encodings])
    return ids.to(device), subject.to(device), last.to(device)


def pairs(
    world: World, subjects: Sequence[str], count: int, rng: random.Random
) -> tuple[list[Question], list[Question]]:
    """Source and base questions; the source subject has the relation that the base question asks for."""
    holders: dict[str, list[str]] = {}
    for subject in subjects:
        for relation in world.facts[subject]:
            holders.setdefault(relation, []).append(subject)
    sources, bases = [], []
    for _ in range(count):
        subject = rng.choice(subjects)
        relation = rng.choice(sorted(world.facts[subject]))
        sources.append(ask(world, subject, rng.choice(sorted(world.facts[subject])), rng))
        bases.append(ask(world, rng.choice(holders[relation]), relation, rng))
    return sources, bases


def last_logits(model: GPT2LMHeadModel, ids: Tensor, last: Tensor) -> Float[Tensor, "batch vocab"]:
    """Logits at one position of each row; padding stands to the right, so causality masks it."""
    hidden = model.transformer(ids).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(ids)), last])


def interchange(
    model: GPT2LMHeadModel,
    swapped: Mapping[str, Bool[Tensor, "batch layer"]],
    sources: tuple[Tensor, Tensor, Tensor],
    bases: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, "batch vocab"]:
    """Logits of the base prompts with outputs of the source prompts' modules at the last subject token.

    `swapped` says in which rows and layers the outputs of "mlp" and "attn" are taken from the source.
    """
    kept: dict[tuple[str, int], Tensor] = {}
    rows = torch.arange(len(bases[0]))

    def keep(module: str, layer: int) -> Callable:
        return lambda _, inputs, output: kept.update({(module, layer): _states(output)[rows, sources[1]]})

    def put(module: str, layer: int) -> Callable:
        def hook(_, inputs, output):
            states = _states(output)
            here = F.one_hot(bases[1], states.shape[1]).bool() & swapped[module][:, layer, None]
            states = torch.where(here[..., None], kept[module, layer][:, None].to(states.dtype), states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    def run(hook: Callable, ids: Tensor, last: Tensor) -> Tensor:
        handles = [
            model.get_submodule(f"transformer.h.{layer}.{module}").register_forward_hook(hook(module, layer))
            for module, where in swapped.items()
            for layer in where.any(dim=0).nonzero().flatten().tolist()
        ]
        try:
            return last_logits(model, ids, last)
        finally:
            for handle in handles:
                handle.remove()

    run(keep, sources[0], sources[2])
    return run(put, bases[0], bases[2])


def _states(output: Tensor | tuple[Any, ...]) -> Float[Tensor, "batch pos d_model"]:
    """What a module adds to the residual stream; attention returns it first of several things."""
    return output[0] if isinstance(output, tuple) else output


def answers(
    world: World, tokenizer: Any, about: Sequence[Question], asked: Sequence[Question], device
) -> Int[Tensor, " batch"]:
    """First token of what is asked for, of the subjects that it is asked about."""
    texts = [f" {world.facts[s.subject][q.relation]}" for s, q in zip(about, asked, strict=True)]
    return torch.tensor([e.ids[0] for e in tokenizer.backend_tokenizer.encode_batch(texts)], device=device)
