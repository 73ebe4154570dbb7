"""WISE's hinges on distances (Wang et al. 2024, arXiv:2405.14768, equation 5)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.editors.shared.tuning import TuningBatch
from workbench.edits.side_memory import Rules
from workbench.models.model import Model
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far what the changed matrix gives is to be from what the matrix gives."""

    alpha: float
    """At most, of an unrelated text."""
    beta: float
    """At least, of the request's prompts."""
    gamma: float
    """More of these than of the text."""
    published: bool
    """Count padding too, and average over the hinges above 0 alone, as the published code does."""


class Margins:
    """The hinges of one request: what the matrix reads does not change, and is read once."""

    def __init__(self, bounds: Bounds, rules: Rules, model: Model, batch: TuningBatch, text: str) -> None:
        self.bounds, self.model, self.rules = bounds, model, rules
        texts = [join(each.prompt, each.target_new, each.separator) for each in batch.requests]
        prompts = [*(len(each.prompt) for each in batch.requests), len(text)]
        tokens = model.tokenize([*texts, text], padding_side="left").with_prompts(prompts)
        names = rules.sites(model)
        found = model.activations(tokens, names)
        self.states, self.output = (found[name] for name in names)
        places = torch.arange(tokens.ids.shape[1], device=model.device)
        self.asked = (tokens.mask > 0) & (places <= tokens.prompt_ends[:, None])
        self.counted = torch.ones_like(self.asked) if bounds.published else self.asked

    def __call__(self, change: Float[Tensor, "d_in d_out"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The mean distance of the request's prompts, and the sum of the hinges."""
        means = self._means(change, self.counted)
        near, far = means[:-1], means[-1:]
        hinges = [self._hinge(far - near + self.bounds.gamma), self._hinge(far - self.bounds.alpha)]
        return near.mean(), sum(hinges, self._hinge(self.bounds.beta - near))

    def distance(self, change: Float[Tensor, "d_in d_out"]) -> float:
        """The mean distance of the request's prompts by the tokens that a memory is asked by."""
        return self._means(change, self.asked)[:-1].mean().item()

    def _means(self, change: Float[Tensor, "d_in d_out"], counted: Bool[Tensor, "text pos"]) -> Float[Tensor, " text"]:
        more = self.states.to(change.dtype) @ change
        distances = self.rules.distances(self.model, self.output, more)
        return (distances * counted).sum(dim=1) / counted.sum(dim=1)

    def _hinge(self, values: Float[Tensor, " some"]) -> Float[Tensor, ""]:
        above = values.clamp(min=0)
        return above.sum() / (values > 0).sum().clamp(min=1) if self.bounds.published else above.mean()
