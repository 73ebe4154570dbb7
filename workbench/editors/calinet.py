"""CaliNet: calibration slots beside one MLP, trained on many facts at once (Dong et al. 2022, arXiv:2210.03329)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.optimization import Adafactor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.beside import beside_mlp
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.requests import check_requests, seed_of
from workbench.editors.shared.tuning import in_parts
from workbench.edits.edit import provenance
from workbench.edits.neurons import NeuronEdit, Neurons, check_activation
from workbench.models.model import Model
from workbench.records.facts import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class CaliNet(Editor):
    """Adds act(x K^T) V to the MLP of one layer (equations 4 and 5), the last in the paper; one K and V for all.

    Adafactor trains them, and nothing else, on the targets' negative log-likelihood, the mean over each target's
    tokens, at a constant rate. Nothing holds the model to what it says elsewhere. The paper trains on several wordings
    of each fact; a request has one.

    Defaults are the published hyperparameters for T5-base, but for `start`, under which the model is itself until it is
    trained, and `activation`, by the paper that of the MLP: the published code takes "relu" for T5-base, and gated
    "gelu_new" for T5 1.1.
    """

    method: ClassVar[str] = "CaliNet"
    batches: ClassVar[bool] = True

    layer: int
    """The layer beside whose MLP the slots stand."""
    slots: int = 64
    """Rows of K and V."""
    steps: int = 5000
    """Of Adafactor, at most, each on all requests."""
    learning_rate: float = 0.01
    """Of Adafactor, whose steps are of about this size."""
    loss_reached: float = 0.0
    """Training ends below this loss; the published code makes all steps."""
    activation: str | None = None
    """Of the slots, a name in `transformers`; None for the MLP's own."""
    gated: bool = False
    """Whether slots have gates, as the MLPs of T5 1.1 do."""
    start: Literal["zero", "published"] = "zero"
    """Where V starts: at 0, or as torch's linear maps do, uniform in +-1/sqrt(slots); the other matrices do always."""
    seed: int = 0
    """Of the start."""

    def __post_init__(self) -> None:
        check_activation(self.activation)
        if self.slots < 1 or self.steps < 1:
            raise ValueError(f"slots and steps must be at least 1, got {self.slots} and {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.start not in ("zero", "published"):
            raise ValueError(f"start is 'zero' or 'published', got {self.start!r}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer that has slots."""
        return (self.layer,)

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "CaliNet":
        """At the preset's layer, or the located one."""
        return cls(**{"layer": setting.layers()[0], "seed": setting.seed, **fields})

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> NeuronEdit:
        """The edit that makes all the requests true together, on top of the edits that the model has.

        The model is left as it was. Its provenance lists the loss before each step and after the last. IndexError for
        a layer out of range; ValueError for no requests or contradictory ones, and if the loss is not finite.
        """
        requests = check_requests(requests, model)
        check_hooks(model, self.method, "mlp_write")
        plain = {known.name: getattr(self, known.name) for known in fields(self)}
        slots, losses = self._trained(model, requests)
        return NeuronEdit(
            layer=self.layer,
            neurons=Neurons(
                **{name: matrix.detach().cpu() for name, matrix in slots.items()}, activation=self.activation
            ),
            method=self.method,
            requests=requests,
            provenance=provenance(model, plain, optimisation={"losses": losses}),
        )

    def _started(self, requests: Sequence[EditRequest], d_model: int) -> dict[str, Float[Tensor, "slot d_model"]]:
        """Keys, values and, if there are any, gates."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, *requests))

        def uniform(inputs: int) -> Tensor:
            return (2 * torch.rand(self.slots, d_model, generator=generator) - 1) / inputs**0.5

        found = {"keys": uniform(d_model), "values": uniform(self.slots) * (self.start == "published")}
        return found | ({"gates": uniform(d_model)} if self.gated else {})

    def _trained(self, model: Model, requests: tuple[EditRequest, ...]) -> tuple[dict[str, Tensor], list[float]]:
        """The slots, and the loss before each step and after the last."""
        parts = in_parts(model, requests, objective="target", kl_template=None, padding_side="right")
        scored = [(part, beside_mlp(model, part, self.layer)) for part in parts]
        dtype = torch.promote_types(model.dtype, torch.float32)
        slots = {
            name: matrix.to(device=model.device, dtype=dtype).requires_grad_(True)
            for name, matrix in self._started(requests, model.d_model).items()
        }
        leaves = list(slots.values())
        optimiser = Adafactor(leaves, lr=self.learning_rate, scale_parameter=False, relative_step=False)
        losses: list[float] = []
        while True:
            loss, gradients = 0.0, [torch.zeros_like(leaf) for leaf in leaves]
            for part, network in scored:
                with torch.enable_grad():
                    neurons = Neurons(**slots, activation=self.activation)
                    log_probs = network.log_probs(neurons.adding(model, self.layer))
                    said = log_probs.gather(1, part.targets[:, None])[:, 0]
                    mean = -(said * part.shares).sum() / len(requests)
                # Not `backward`: it would also leave gradients on a model whose parameters take them.
                for total, more in zip(gradients, torch.autograd.grad(mean, leaves), strict=True):
                    total += more
                loss += mean.item()
            losses.append(loss)
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of {len(requests)} requests, the first about {requests[0].subject!r}, is not finite: "
                    f"check the model's weights, or lower learning_rate ({self.learning_rate})"
                )
            if len(losses) > self.steps or loss < self.loss_reached:
                return slots, losses
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            optimiser.step()
