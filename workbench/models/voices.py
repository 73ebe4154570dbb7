"""Who answers which prompts, by the edits that are applied, and the distribution of several who answer together."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.model import Model, Voice
from workbench.records.facts import check_listed


@dataclass(frozen=True, kw_only=True, eq=False)
class Group(Shown):
    """Prompts that the same models answer."""

    places: tuple[int, ...]
    """Where they lie among all prompts."""
    models: tuple[Model, ...]
    """One that answers alone, or several whose distributions are mixed."""
    asked: tuple[tuple[str, ...], ...]
    """By model, what is put to it for each prompt."""
    weights: Float[Tensor, "model prompt"]
    """Each model's part in each answer; those of a prompt sum to 1."""

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block its models may run although edits redirect prompts, see `Model.answering`."""
        with ExitStack() as stack:
            for model in self.models:
                stack.enter_context(model.answering())
            yield


def groups(model: Model, prompts: Sequence[str]) -> list[Group]:
    """The prompts by who answers them, see `Model.voices`; ValueError for one text in place of a list."""
    check_listed("prompts", prompts)
    each = {prompt: model.voices(prompt) for prompt in dict.fromkeys(prompts)}
    voices = [each[prompt] for prompt in prompts]
    by_models: dict[tuple[int, ...], list[int]] = {}
    for place, some in enumerate(voices):
        by_models.setdefault(tuple(id(voice.model) for voice in some), []).append(place)
    return [_group(places, [voices[place] for place in places]) for places in by_models.values()]


def _group(places: Sequence[int], voices: Sequence[Sequence[Voice]]) -> Group:
    by_model = list(zip(*voices, strict=True))
    return Group(
        places=tuple(places),
        models=tuple(voice.model for voice in voices[0]),
        asked=tuple(tuple(voice.prompt for voice in some) for some in by_model),
        weights=torch.tensor([[voice.weight for voice in some] for some in by_model]),
    )


def mixture(
    log_probs: Sequence[Float[Tensor, "row vocab"]], weights: Float[Tensor, "#row model"]
) -> Float[Tensor, "row vocab"]:
    """Log of the weighted mean of several distributions; weights are by row, or the same for all of them."""
    return (torch.stack(tuple(log_probs), dim=1) + weights.log()[..., None]).logsumexp(dim=1)
