"""One change of a state, spread over the MLPs of several layers: what MEMIT, EMMET, PMET and AlphaEdit share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.search.fast_values import optimise_values
from workbench.editors.search.targets import Targets
from workbench.editors.search.values import OptimisedValue, final_loss
from workbench.editors.shared.keys import check_hooks, check_moment, describe_moment, mean_keys
from workbench.editors.shared.moment import SecondMoment, factorise
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.subject import check_contexts, in_contexts
from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model
from workbench.records.facts import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class SpreadEditor(Editor):
    """Writes all requests at once into the W_out of several layers (Meng et al. 2023, algorithm 1).

    A target z for the state at the subject's last token, after the last edited layer, is optimised for each
    request. Then, in each layer from the first to the last, with the layers before it edited already,

        dW = L (z - h)^T / share

    where h is that state as it now is on the bare prompts, `share` spreads what is missing over this layer and
    those that remain, and the methods differ in L, [d_mlp, request], which answers to the requests' keys.

    In some families W_out's output is not what is added to the state. Where a multiplier stands between (Granite),
    right sides are divided by it. Where a norm does (Gemma 2 and 3, OLMo 2), not every change of the state can be
    had, so W_out's output in the last edited layer is optimised in the state's stead. The layers before it add their
    share in the state's direction as far as their norms let them, and the last layer's target is then optimised once
    more, with those layers edited: it is met exactly.
    """

    batches: ClassVar[bool] = True
    needs_moments: ClassVar[bool] = True
    site: ClassVar[str] = "resid_post"
    """The state that is given a target, in the last edited layer; see `_site`."""

    layers: Sequence[int]
    """Layers edited, ascending."""
    second_moments: Mapping[int, SecondMoment]
    """C of the keys of each of these layers."""
    contexts: tuple[str, ...] = ("{}",)
    """Texts with a {} for the prompt, the bare {} first; z is optimised over all of them, and a request's key is
    half the bare prompt's and half the mean of the others."""
    steps: int = 20
    """How many losses are evaluated for each z; one fewer Adam steps are made."""
    learning_rate: float = 0.5
    """Of Adam."""
    weight_decay: float = 0.5
    """Multiplies ||delta|| / ||initial||^2."""
    clamp: float = 0.75
    """Largest ||delta|| / ||initial||."""
    kl_weight: float = 0.0625
    """Multiplies the divergence on `kl_template`."""
    loss_layer: int | None = None
    """Layer whose residual stream the target is read from; None for the last."""
    kl_template: str = "{} is a"
    """Prompt on which the model should go on saying what it says, at the subject's last token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError(f"{self.method} needs at least one layer, got none")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must be ascending and distinct, got {list(self.layers)}")
        check_contexts(self.contexts)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.kl_template.count("{}") != 1:
            raise ValueError(f"kl_template needs exactly one {{}}, got {self.kl_template!r}")

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "SpreadEditor":
        """At the preset's layers or those around the located one, with contexts and second moments of their keys."""
        given = {"layers": setting.layers(), **fields}
        if "contexts" not in given:
            given["contexts"] = setting.contexts()
        if "second_moments" not in given:
            given["second_moments"] = setting.moments(given["layers"])
        return cls(**given)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit that makes all requests true; the model is left bit for bit as it was.

        IndexError for a layer out of range; ValueError if there is no request, if two contradict each other, if a
        layer's second moment is missing, singular, not finite or of another size than the keys, or if a target
        diverges. Requests that are there twice count once.
        """
        requests = check_requests(requests, model)
        return self._written(model, requests, self._begun(model, requests))

    def each(self, model: Model, requests: Sequence[EditRequest]) -> list[WeightEdit]:
        """One edit a request, each made for itself on the model as it is; their targets are searched together."""
        for request in requests:
            check_requests([request], model)
        values = self._begun(model, requests)
        return [self._written(model, (one,), [value]) for one, value in zip(requests, values, strict=True)]

    def _begun(self, model: Model, requests: Sequence[EditRequest]) -> list[OptimisedValue]:
        """The targets, in a model that can be edited."""
        self._check(model)
        _ = self._prepared  # before the optimisation, so that a singular matrix is told at once
        return self._values(model, requests)

    def _written(self, model: Model, requests: tuple[EditRequest, ...], values: Sequence[OptimisedValue]) -> WeightEdit:
        """The edit that reaches these targets."""
        made = provenance(model, self._hyperparameters())
        targets = self._targets(model, requests, values)
        dtype = torch.promote_types(model.dtype, torch.float32)
        updates: list[WeightUpdate] = []
        with ExitStack() as before:
            for index, layer in enumerate(self.layers):
                keys = mean_keys(model, layer, requests, self.contexts)
                left = self._answer(model, layer, self._prepared[layer], keys)
                if layer == self.layers[-1] and index and self._site(model) != self.site:
                    values = self._values(model, requests)
                    targets = self._targets(model, requests, values)
                right = targets.missing(layer, self._share(len(self.layers) - index))
                updates.append(WeightUpdate(layer=layer, left=left.to(dtype), right=right.to(dtype)))
                part = WeightEdit(updates=(updates[-1],), method=self.method, requests=requests, provenance={})
                before.enter_context(part.applied(model))
            carried = self._carried(model, requests)
        return WeightEdit(
            updates=tuple(updates),
            method=self.method,
            requests=requests,
            provenance=made | {"optimisation": [final_loss(value) for value in values]},
            carried=carried,
        )

    @abstractmethod
    def _answer(
        self, model: Model, layer: int, prepared: Tensor, keys: Float[Tensor, "d_mlp request"]
    ) -> Float[Tensor, "d_mlp request"]:
        """L of a layer, in float64, from what `_prepare` made of its C."""

    def _share(self, remaining: int) -> float:
        """What the missing change is divided by, with this many layers still to be edited."""
        return float(remaining)

    def _prepare(self, moment: SecondMoment) -> Tensor:
        """What the method needs of a layer's C: a lower Cholesky factor, unless it says otherwise."""
        return factorise(moment.matrix, moment.layer)

    def _carried(self, model: Model, requests: Sequence[EditRequest]) -> dict[str, Tensor]:
        """What later edits need to know of this one, asked while it is applied."""
        return {}

    def _site(self, model: Model) -> str:
        """The state that is given a target in this model: W_out's output where a norm stands behind it."""
        return self.site if model.mlp_contribution(self.layers[-1]).norm is None else "mlp_write"

    def _targets(self, model: Model, requests: Sequence[EditRequest], values: Sequence[OptimisedValue]) -> Targets:
        resid = self.site == "resid_post"
        return Targets(model, requests, values, site=self._site(model), layer=self.layers[-1], as_resid=resid)

    def _values(self, model: Model, requests: Sequence[EditRequest]) -> list[OptimisedValue]:
        """The optimised target of each request."""
        templates = [in_contexts(request.template, self.contexts) for request in requests]
        options = self._optimisation()
        site = self._site(model)
        return optimise_values(model, requests, templates, site=site, layer=self.layers[-1], **options)

    def _optimisation(self) -> dict[str, Any]:
        names = ("steps", "learning_rate", "weight_decay", "clamp", "kl_weight", "kl_template", "loss_layer")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def _prepared(self) -> dict[int, Tensor]:
        # Made once for all the edits of this editor: it is cubic in d_mlp.
        return {layer: self._prepare(self.second_moments[layer]) for layer in self.layers}

    def _check(self, model: Model) -> None:
        for layer in self.layers:
            model.weight(layer)
        check_hooks(model, self.method, "mlp_write", "resid_post")
        for layer in self.layers:
            if layer not in self.second_moments or self.second_moments[layer].layer != layer:
                known = sorted(moment.layer for moment in self.second_moments.values())
                raise ValueError(f"layer {layer} has no second moment; there are some of layers {known}")
            check_moment(self.second_moments[layer], model)

    def _hyperparameters(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"second_moments": self._described_moments}

    @cached_property
    def _described_moments(self) -> dict[str, Any]:
        moments = (self.second_moments[layer] for layer in self.layers)
        return {str(moment.layer): describe_moment(moment.matrix, moment.count) for moment in moments}
