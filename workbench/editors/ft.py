"""Fine-tuning of MLP output matrices on the requests: FT, FT-M and FT-L (Zhu et al. 2020, arXiv:2012.00363)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.tuning import TuningBatch, in_parts
from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.records.facts import EditRequest

_LOSS_REACHED = 1e-2
"""A batch below this loss makes no step, and the optimisation ends when the mean over all requests is below it."""

_ByPlace = dict[tuple[int, str], Tensor]
"""Matrices by layer and name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FT(Editor):
    """Adam on the W_out of some layers, for the new targets' negative log-likelihood, with an early stop.

    `objective` says where a target's tokens are scored:

    - "target": each after the prompt and the target's tokens before it, the prompt masked, the mean over tokens
      (FT-M of Zhang et al. 2024, arXiv:2401.01286);
    - "prompt_last": every token at the last position of the prompt, as the published code of Meng et al. 2022 does.
      For a target of one token the two are the same.

    With `norm_constraint` each element of the change stays within +-norm_constraint: FT-L, see `FTL`. The published
    code also tunes b_out: `bias=True`. Defaults are the published hyperparameters for GPT2-XL.
    """

    method: ClassVar[str] = "FT"

    layers: Sequence[int]
    """The layers tuned, together; (3,) for one."""
    steps: int = 25
    """Passes over the requests, at most."""
    learning_rate: float = 5e-4
    """Of Adam."""
    weight_decay: float = 0.0
    """Of Adam: this times the weights (not their change) is added to their gradient."""
    norm_constraint: float | None = None
    """Largest absolute change of an element, enforced after each step; None for no constraint."""
    objective: Literal["target", "prompt_last"] = "target"
    """Where the target's tokens are scored."""
    bias: bool = False
    """Tune b_out as well; ValueError for a model without one."""
    kl_weight: float = 0.0
    """Multiplies the divergence on `kl_template` (the published setting is 0)."""
    kl_template: str = "{} is a"
    """Prompt on which the model should go on saying what it says, at the subject's last token."""
    batch_size: int = 64
    """Requests a step, in their order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers needs one or more different layers, got {self.layers}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.norm_constraint is not None and not self.norm_constraint > 0:
            raise ValueError(f"norm_constraint must be positive, or None for none, got {self.norm_constraint}")
        if self.objective not in ("target", "prompt_last"):
            raise ValueError(f"objective is 'target' or 'prompt_last', got {self.objective!r}")
        if self.kl_template.count("{}") != 1:
            raise ValueError(f"kl_template needs exactly one {{}}, got {self.kl_template!r}")

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "FT":
        """At the preset's layers or those around the located one."""
        return cls(**{"layers": setting.layers(), **fields})

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit that makes all the requests true together, computed on the weights as they are.

        The model is left bit for bit as it was: the change is added to the MLPs' outputs by hooks. Exact
        duplicates count once; where the model already gives the targets, the change is zero. Its provenance lists
        the mean loss at each pass. IndexError for a layer out of range; ValueError for no requests or
        contradictory ones, for a model without b_out under `bias`, and if the loss is not finite.
        """
        requests = check_requests(requests, model)
        check_hooks(model, "FT", "mlp_write")
        dtype = torch.promote_types(model.dtype, torch.float32)
        matrices = ("W_out", "b_out") if self.bias else ("W_out",)
        weights = {(layer, matrix): model.weight(layer, matrix) for layer in self.layers for matrix in matrices}
        changes = {
            place: torch.zeros(weight.shape, dtype=dtype, device=model.device, requires_grad=True)
            for place, weight in weights.items()
        }
        losses = self._optimise(model, requests, weights, changes)
        return WeightEdit(
            updates=tuple(_update(layer, matrix, change) for (layer, matrix), change in changes.items()),
            method=FT.method if self.norm_constraint is None else FTL.method,
            requests=requests,
            provenance=provenance(
                model,
                {field.name: getattr(self, field.name) for field in fields(self)},
                optimisation={"losses": losses},
            ),
        )

    def _optimise(
        self, model: Model, requests: tuple[EditRequest, ...], weights: _ByPlace, changes: _ByPlace
    ) -> list[float]:
        """Tune the changes in place; returns the mean loss of each pass, measured before each batch's step."""
        size = self.batch_size
        essence = self.kl_template if self.kl_weight else None
        parted = partial(in_parts, model, objective=self.objective, kl_template=essence)
        batches = [parted(requests[first : first + size]) for first in range(0, len(requests), size)]
        hooks = _added(model, changes)
        leaves = list(changes.values())
        optimiser = torch.optim.Adam(leaves, lr=self.learning_rate)
        means: list[float] = []
        while len(means) < self.steps and (not means or means[-1] >= _LOSS_REACHED):
            total = 0.0
            for parts in batches:
                loss, gradients = self._gradients(model, parts, hooks, leaves)
                count = sum(len(part.requests) for part in parts)
                total += loss * count
                if loss < _LOSS_REACHED:
                    continue
                for place, gradient in zip(changes, gradients, strict=True):
                    change = changes[place]
                    weight = weights[place].to(change.device)
                    change.grad = gradient + self.weight_decay * (weight + change.detach())
                optimiser.step()
                if self.norm_constraint is not None:
                    for leaf in leaves:
                        leaf.detach().clamp_(-self.norm_constraint, self.norm_constraint)
            means.append(total / len(requests))
        return means

    def _gradients(
        self, model: Model, parts: Sequence[TuningBatch], hooks: Sequence[Hook], leaves: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """The mean loss of a batch's requests and its gradient, summed over the parts that fit into memory."""
        count, mean = sum(len(part.requests) for part in parts), 0.0
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        for part in parts:
            with torch.enable_grad():
                loss = self._losses(model, part, hooks).sum() / count
            mean += loss.item()
            if len(parts) > 1 or mean >= _LOSS_REACHED:
                # Not `backward`: it would also leave gradients on a model whose parameters take them.
                found = torch.autograd.grad(loss, leaves)
                gradients = [total + more for total, more in zip(gradients, found, strict=True)]
        return mean, gradients

    def _losses(self, model: Model, batch: TuningBatch, hooks: Sequence[Hook]) -> Float[Tensor, " request"]:
        """Each request's negative log-likelihood and weighted divergence."""
        log_probs = batch.log_probs(model, hooks)
        losses = batch.target_losses(log_probs, learning_rate=self.learning_rate)
        if batch.essence is not None:
            now = log_probs[len(batch.targets) :]
            divergence = torch.nn.functional.kl_div(batch.essence, now, log_target=True, reduction="none").sum(dim=-1)
            losses = losses + self.kl_weight * divergence
            batch.check_finite(losses, learning_rate=self.learning_rate)
        return losses


@dataclass(frozen=True, kw_only=True, eq=False)
class FTL(FT):
    """FT-L: `FT` under an L-infinity constraint on the change (Zhu et al. 2020, arXiv:2012.00363).

    The published code clamps after each step of Adam; its default for GPT2-XL is given here, those for others are
    in the presets.
    """

    method: ClassVar[str] = "FT-L"

    norm_constraint: float = 5e-4
    """Largest absolute change of an element."""


def _added(model: Model, changes: _ByPlace) -> list[Hook]:
    """Hooks that make the MLPs' outputs what they are with the changes added to the weights: k dW more, and db."""
    keys: dict[int, Tensor] = {}

    def hooks_of(layer: int) -> list[Hook]:
        def keep(key: Tensor, hook: object) -> None:
            keys[layer] = key

        def add(output: Tensor, hook: object) -> Tensor:
            change = changes[layer, "W_out"]
            more = keys.pop(layer).to(change.dtype) @ change
            if (layer, "b_out") in changes:
                more = more + changes[layer, "b_out"]
            return output + more.to(output.dtype)

        return [(model.hook_name("mlp_key", layer), keep), (model.hook_name("mlp_write", layer), add)]

    return [hook for layer in sorted({layer for layer, _ in changes}) for hook in hooks_of(layer)]


def _update(layer: int, matrix: str, change: Float[Tensor, "d_in d_out"]) -> WeightUpdate:
    """The change, of full rank, exactly: times the identity of its smaller side."""
    dense = change.detach().cpu()
    identity = torch.eye(min(dense.shape), dtype=dense.dtype)
    left, right = (dense, identity) if dense.shape[1] <= dense.shape[0] else (identity, dense)
    return WeightUpdate(layer=layer, matrix=matrix, left=left, right=right)
