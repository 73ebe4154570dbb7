"""Knowledge neurons (Dai et al. 2022, arXiv:2104.08696): the neurons of the MLPs to which an answer is attributed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.models.tokens import TokenRow, answer_start
from workbench.records.facts import EditRequest, opened
from workbench.records.joining import join
from workbench.tracing.integrated import NeuronSite, Points, attribute_neurons
from workbench.tracing.known import top_tokens

AnswerTokens = Literal["first", "mean", "extended"]
"""What of an answer counts, where the paper's have one token each: its first token; the mean of its tokens, all at the
prompt's last position (EasyEdit's code); or the mean of its tokens, each at the last position of the prompt and the
tokens before it (EleutherAI's code, which goes on with the model's own choice: the same where that is the answer)."""

_FEWEST, _MOST = 2, 5
_STEP, _MOVES = 0.05, 6


@dataclass(frozen=True, kw_only=True, eq=False)
class KnowledgeNeurons(Shown):
    """The attributions of one answer after prompts that ask for it, and the neurons that they show."""

    prompts: tuple[str, ...]
    """Ways to ask."""
    answer: str
    """What was attributed."""
    layers: tuple[int, ...]
    """The layers looked at."""
    by_prompt: Float[Tensor, "prompt layer d_mlp"]
    """Attribution of each neuron of these layers; over a layer they sum to what its neurons add to the probability."""
    threshold: float
    """Share of a prompt's largest attribution above which a neuron counts."""
    share: float
    """Share of the prompts above which a neuron that counts for them is kept."""

    @property
    def attributions(self) -> Float[Tensor, "layer d_mlp"]:
        """The mean over prompts."""
        return self.by_prompt.mean(dim=0)

    @cached_property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        """Layer and index of the neurons kept, in order."""
        counted = self.by_prompt > self.threshold * self.by_prompt.amax(dim=(1, 2), keepdim=True)
        kept = (counted.sum(dim=0) > self.share * len(self.prompts)).nonzero().tolist()
        return tuple((self.layers[place], neuron) for place, neuron in kept)


def knowledge_neurons(
    model: Model,
    request: EditRequest,
    *,
    templates: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    steps: int = 20,
    threshold: float = 0.2,
    share: float = 0.7,
    site: NeuronSite = "mlp_key",
    points: Points = "right",
    tokens: AnswerTokens = "first",
) -> KnowledgeNeurons:
    """Attribute a request's true answer, or what the model answers where that is not known, to neurons (section 3).

    Args:
        templates: ways to ask, each with a {} for the subject; None for the request's own.
        layers: None for all.
        steps: m, the number of points at which the gradient is taken.

    IndexError for a layer out of range; ValueError for hyperparameters or templates out of bounds, and if
    attributions are not finite.
    """
    check_attribution(steps=steps, threshold=threshold, share=share, site=site, points=points, tokens=tokens)
    layers = tuple(range(model.n_layers) if layers is None else layers)
    prompts = tuple(replace(request, template=each).prompt for each in templates or (request.template,))
    (choice,) = top_tokens(model, [opened(request.prompt)])
    found = []
    for prompt in prompts:
        asked = _asked(model, prompt, request, choice, tokens)
        begun = len(asked[0][0].ids)
        parts = [
            attribute_neurons(
                model, row, answers, layers=layers, steps=steps, site=site, points=points, prompt_tokens=begun
            )
            for row, answers in asked
        ]
        found.append(torch.stack(parts).mean(dim=0))
    return KnowledgeNeurons(
        prompts=prompts,
        answer=request.target_true or model.token_strings(torch.tensor([choice]))[0],
        layers=layers,
        by_prompt=torch.stack(found),
        threshold=threshold,
        share=share,
    )


def refined(found: Sequence[KnowledgeNeurons]) -> list[KnowledgeNeurons]:
    """The same with the share moved by 0.05, at most 6 times, until 2 to 5 neurons are kept on average (section 4.1).

    The paper averages over the facts of a relation. A share stays below 1, above which no neuron could be kept.
    """
    found = list(found)
    for _ in range(_MOVES):
        average = sum(len(each.neurons) for each in found) / len(found)
        if _FEWEST <= average <= _MOST:
            break
        share = round(found[0].share + (_STEP if average > _MOST else -_STEP), 4)
        if not 0 <= share < 1:
            break
        found = [replace(each, share=share) for each in found]
    return found


def answered(model: Model, prompt: str, answer: str, separator: str | None) -> tuple[TokenRow, int]:
    """A prompt with its answer as tokens, and the index of the answer's first; ValueError if either has none."""
    (row,) = model.encode([join(prompt, answer, separator)])
    return row, answer_start(row.offsets, prompt)


def check_attribution(*, steps: int, threshold: float, share: float, site: str, points: str, tokens: str) -> None:
    """ValueError for hyperparameters out of bounds."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for name, value in (("threshold", threshold), ("share", share)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share from 0 to below 1, got {value}")
    for name, value, known in (
        ("site", site, NeuronSite),
        ("points", points, Points),
        ("tokens", tokens, AnswerTokens),
    ):
        if value not in get_args(known):
            raise ValueError(f"{name} is one of {', '.join(map(repr, get_args(known)))}, got {value!r}")


def _asked(
    model: Model, prompt: str, request: EditRequest, choice: int, tokens: AnswerTokens
) -> list[tuple[TokenRow, tuple[int, ...]]]:
    """What is run, and the tokens whose probability is attributed there: `choice` where no true answer is known."""
    if request.target_true is None:
        return [(model.encode([opened(prompt)])[0], (choice,))]
    row, first = answered(model, prompt, request.target_true, request.separator)
    ends = range(first, len(row.ids)) if tokens == "extended" else [first]
    return [
        (
            TokenRow(text=row.text, ids=row.ids[:end], offsets=row.offsets[:end]),
            row.ids[first:] if tokens == "mean" else row.ids[end : end + 1],
        )
        for end in ends
    ]
