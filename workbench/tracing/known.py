"""Which facts a model knows: those whose object begins with the token that it finds most likely."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from workbench.models.model import Model
from workbench.records.facts import EditRequest, Fact, opened
from workbench.records.joining import join
from workbench.tracing.trace import check_probabilities

Asked = TypeVar("Asked", bound=Fact | EditRequest)

NOT_KNOWN = "the model does not know it"
"""Why a fact has no trace: its object is not what the model predicts."""


def answer_token(model: Model, prompt: str, answer: str, separator: str | None = None) -> int | None:
    """Id of the answer's first token as it follows the prompt; None where the answer changes the prompt's tokens.

    That token is the one behind the prompt's own tokens when both are tokenised together. A tokenizer that makes
    the space before the answer a token of its own gives that space, nothing more.
    """
    alone = model.tokenize([prompt]).ids[0]
    whole = model.tokenize([join(prompt, answer, separator)]).ids[0]
    n_pos = len(alone)
    return int(whole[n_pos]) if len(whole) > n_pos and torch.equal(whole[:n_pos], alone) else None


def as_asked(model: Model, fact: Asked, *answers: str) -> Asked:
    """What is read of a fact to find its object, or other answers.

    That is the fact itself, but for spaces at its prompt's end that the tokenizer has in an answer's first token: they
    are left to the answer, which the model could not give after them.
    """
    text = opened(fact.prompt)
    if text == fact.prompt:
        return fact
    answers = answers or (fact.object,) if isinstance(fact, Fact) else answers
    if None not in (answer_token(model, fact.prompt, answer, fact.separator) for answer in answers):
        return fact
    return replace(fact, template=opened(fact.template), separator=" ")


def top_tokens(model: Model, prompts: Sequence[str]) -> list[int]:
    """Id of the most likely token after each prompt; ValueError for a model that gives NaN."""
    if not prompts:
        return []
    rows = model.encode(prompts)
    tops: dict[int, int] = {}
    for batch in model.batches(rows, len(rows), keep=1):
        with torch.no_grad():
            tokens = model.pad([rows[index] for index in batch], padding_side="left")
            last = model.logits(tokens, keep_last=1)[:, -1].float().cpu()
        for index, logits in zip(batch, last, strict=True):
            check_probabilities(logits, model=model.name, prompt=prompts[index])
            tops[index] = int(logits.argmax())
    return [tops[index] for index in range(len(prompts))]


def known_answers(model: Model, facts: Sequence[Fact]) -> list[int | None]:
    """For each fact the id of its object's first token if it is the model's top token after the prompt, else None.

    Where the object changes the prompt's tokens (`answer_token`), the model cannot predict it; of spaces at a prompt's
    end see `as_asked`.
    """
    facts = [as_asked(model, fact) for fact in facts]
    tops = top_tokens(model, [fact.prompt for fact in facts])
    answers = [answer_token(model, fact.prompt, fact.object, fact.separator) for fact in facts]
    return [answer if answer == top else None for answer, top in zip(answers, tops, strict=True)]


def known_answer(model: Model, fact: Fact) -> int | None:
    """`known_answers` of one fact."""
    return known_answers(model, [fact])[0]
