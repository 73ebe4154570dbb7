"""The rank-one factors of MLP matrices' gradients.

Of the weight of a linear map y = x W the gradient over a text is the sum over positions of x^T dL/dy, so a matrix of
the model's size is never made: what hypernetworks transform are the rows x and dL/dy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.editors.shared.passes import Passes, Place, Scored, WholePasses, scored, wide
from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.records.facts import EditRequest
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors(Shown):
    """Rows x and dL/dy of one matrix, by edit: their products' sum, x^T dL/dy, is the gradient of its weight."""

    u: Float[Tensor, "edit row d_in"]
    """Inputs."""
    delta: Float[Tensor, "edit row d_out"]
    """Gradients at the outputs."""

    @property
    def nonzero(self) -> Bool[Tensor, "edit row"]:
        """Which rows add anything: not padding, nor what comes after the last prediction."""
        return (self.u != 0).any(dim=-1) & (self.delta != 0).any(dim=-1)

    def pooled(self) -> "Factors":
        """All edits' rows that add anything as those of one."""
        kept = self.nonzero
        return Factors(u=self.u[kept][None], delta=self.delta[kept][None])

    def dense(self) -> Float[Tensor, "edit d_in d_out"]:
        """The gradients themselves."""
        return self.u.transpose(-1, -2) @ self.delta


def gradient_factors(passes: Passes, scored: Scored, *, pooled: bool = False) -> tuple[Tensor, dict[Place, Factors]]:
    """Each edit's mean negative log-likelihood, and by matrix the factors of its gradient; a text is an edit.

    `pooled` takes the gradient of the mean over all targets' tokens, of all texts together.
    """
    inputs: dict[Place, Tensor] = {}
    moved: dict[Place, Tensor] = {}

    def watch(place: Place, x: Tensor, output: Tensor) -> Tensor:
        inputs[place] = x.detach()
        moved[place] = torch.zeros_like(output, requires_grad=True)
        return output + moved[place]

    with torch.enable_grad():
        losses = negative_log_likelihoods(passes.logits(scored, watch), scored)
        means = scored.means(losses)
        found = torch.autograd.grad(losses.mean() if pooled else means.sum(), list(moved.values()))
    return means.detach(), {
        place: Factors(u=wide(inputs[place]), delta=wide(gradient))
        for place, gradient in zip(moved, found, strict=True)
    }


def pooled_factors(model: Model, places: Sequence[Place], requests: Sequence[EditRequest]) -> dict[Place, Factors]:
    """The factors of the gradient of the mean loss over all tokens of the requests' targets.

    They are computed in parts that fit into memory.
    """
    asked = [(request.prompt, request.target_new, request.separator) for request in requests]
    passes = WholePasses(model=model, places=places)
    rows = model.encode([join(*each) for each in asked])
    parts = [
        scored(model, [asked[index] for index in part])
        for part in model.batches(rows, len(rows), keep=None, gradients=True)
    ]
    count = sum(len(part.positions) for part in parts)
    found: list[dict[Place, Factors]] = []
    for part in parts:
        _, factors = gradient_factors(passes, part, pooled=True)
        share = len(part.positions) / count
        found.append({place: Factors(u=each.u, delta=each.delta * share).pooled() for place, each in factors.items()})
    return {
        place: Factors(
            u=torch.cat([each[place].u for each in found], dim=1),
            delta=torch.cat([each[place].delta for each in found], dim=1),
        )
        for place in places
    }


def negative_log_likelihoods(logits: Float[Tensor, "prediction vocab"], scored: Scored) -> Float[Tensor, " prediction"]:
    """-log p of each target token."""
    assert scored.targets is not None
    return torch.nn.functional.cross_entropy(logits, scored.targets, reduction="none")


def divergence(before: Float[Tensor, "... vocab"], after: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """KL(before || after) of every prediction, from logits."""
    p, q = before.log_softmax(dim=-1), after.log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)
