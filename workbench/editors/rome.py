"""ROME: rank-one model editing (Meng et al. 2022, section 3), with r-ROME's corrected key as an option."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.search.fast_values import optimise_values
from workbench.editors.search.values import OptimisedValue, final_loss
from workbench.editors.shared.keys import check_hooks, describe_moment
from workbench.editors.shared.moment import SecondMoment, factorise
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.subject import at_subject, check_contexts, in_contexts
from workbench.edits.edit import provenance
from workbench.edits.ledger import undone
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model
from workbench.records.facts import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class ROME(Editor):
    """Writes one key-value pair a request into one layer's W_out (equation 2):

        dW = u (v* - W k)^T / <k, u>,    u = C^-1 k / ||C^-1 k||

    with C the second moment of keys, k the key at the subject's last token, averaged over contexts, and v*
    the value that makes the model say the new target. As published, k in the denominator (and in W k) is the
    key of the bare prompt; Gupta et al. 2024 (arXiv:2403.07175) show that this mismatch makes some edits
    disable the model.

    Defaults are the published hyperparameters for GPT2-XL. Where a model's MLP outputs are small, the
    published decay, weight_decay * ||delta|| / ||W k||^2, outweighs the likelihood: lower `weight_decay` until
    it does not. An edit's provenance tells the terms of the final loss, and both norms.
    """

    method: ClassVar[str] = "ROME"
    needs_moments: ClassVar[bool] = True

    layer: int
    """The layer edited; usually the one that tracing located."""
    second_moment: SecondMoment | Float[Tensor, "d_mlp d_mlp"] | None
    """C of the layer's keys; None for the identity, u = k / ||k||."""
    contexts: tuple[str, ...] = ("{}",)
    """Texts with a {} for the prompt, the bare {} first; key and value are averaged over them."""
    steps: int = 20
    """How many losses are evaluated; one fewer Adam steps are made."""
    learning_rate: float = 0.5
    """Of Adam."""
    weight_decay: float = 0.5
    """Multiplies ||delta|| / ||initial||^2."""
    clamp: float = 4.0
    """Largest ||delta|| / ||initial||."""
    kl_weight: float = 0.0625
    """Multiplies the divergence on `kl_template`."""
    loss_layer: int | None = None
    """Layer whose residual stream the target is read from; None for the last."""
    kl_template: str = "{} is a"
    """Prompt on which the model should go on saying what it says, at the subject's last token."""
    key_denominator: Literal["prompt", "mean"] = "prompt"
    """Key and output in the closed form: the bare prompt's (as published) or their means (r-ROME)."""

    def __post_init__(self) -> None:
        check_contexts(self.contexts)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.kl_template.count("{}") != 1:
            raise ValueError(f"kl_template needs exactly one {{}}, got {self.kl_template!r}")
        if self.key_denominator not in ("prompt", "mean"):
            raise ValueError(f"key_denominator is 'prompt' or 'mean', got {self.key_denominator!r}")
        if isinstance(self.second_moment, SecondMoment) and self.second_moment.layer != self.layer:
            raise ValueError(f"second moment is of layer {self.second_moment.layer}, but layer {self.layer} is edited")

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer that is edited."""
        return (self.layer,)

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "ROME":
        """At the located layer, with contexts and the second moment of the layer's keys."""
        given = {**fields, "layer": setting.layer}
        if "contexts" not in given:
            given["contexts"] = setting.contexts()
        if "second_moment" not in given:
            given["second_moment"] = setting.moments([setting.layer])[setting.layer]
        return cls(**given)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit that makes each request true, computed on the weights that those before it leave behind.

        The model is left bit for bit as it was. IndexError for a layer out of range; ValueError if there is
        no request, if two contradict each other, if C is singular, not finite or of another size than the keys,
        or if the value diverges.
        """
        requests = check_requests(requests, model)
        self._check(model)
        made = provenance(model, self._hyperparameters())
        single: list[WeightEdit] = []
        final: list[dict[str, float | int]] = []
        with undone(model):
            for request in requests:
                if single:
                    single[-1].apply_(model)
                (value,) = self._values(model, [request])
                update = self._rewrite(model, request, value)
                single.append(WeightEdit(updates=(update,), method=self.method, requests=(request,), provenance={}))
                final.append(final_loss(value))
        return WeightEdit(
            updates=tuple(edit.updates[0] for edit in single),
            method=self.method,
            requests=requests,
            provenance=made | {"optimisation": final},
        )

    def each(self, model: Model, requests: Sequence[EditRequest]) -> list[WeightEdit]:
        """One edit a request, each made for itself on the model as it is; their values are searched together."""
        for request in requests:
            check_requests([request], model)
        self._check(model)
        made = provenance(model, self._hyperparameters())
        return [
            WeightEdit(
                updates=(self._rewrite(model, request, value),),
                method=self.method,
                requests=(request,),
                provenance=made | {"optimisation": [final_loss(value)]},
            )
            for request, value in zip(requests, self._values(model, requests), strict=True)
        ]

    def _check(self, model: Model) -> None:
        check_hooks(model, self.method, "mlp_write")
        weight = model.weight(self.layer)
        if self._matrix is not None and len(self._matrix) != len(weight):
            raise ValueError(
                f"second moment is {' x '.join(map(str, self._matrix.shape))}, but the keys of layer "
                f"{self.layer} of {model.name} have {len(weight)} dimensions; is it another model's?"
            )

    def _rewrite(self, model: Model, request: EditRequest, value: OptimisedValue) -> WeightUpdate:
        templates = in_contexts(request.template, self.contexts)
        key_name, out_name = model.hook_name("mlp_key", self.layer), model.hook_name("mlp_write", self.layer)
        states = at_subject(model, [key_name, out_name], templates, request.subject)
        keys, outputs = states[key_name].double().cpu(), states[out_name].double().cpu()
        u = self._direction(keys.mean(dim=0))
        if self.key_denominator == "prompt":
            key, output = keys[0], outputs[0]
        else:
            key, output = keys.mean(dim=0), outputs.mean(dim=0)
        wanted = (value.initial + value.delta).double().cpu()
        right = (wanted - output) / (key @ u)
        dtype = torch.promote_types(model.dtype, torch.float32)
        return WeightUpdate(
            layer=self.layer,
            left=rearrange(u.to(dtype), "i -> i 1"),
            right=rearrange(right.to(dtype), "j -> 1 j"),
        )

    def _values(self, model: Model, requests: Sequence[EditRequest]) -> list[OptimisedValue]:
        """The optimised value of each request, of the model as it is."""
        return optimise_values(
            model,
            requests,
            [in_contexts(request.template, self.contexts) for request in requests],
            site="mlp_write",
            layer=self.layer,
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clamp=self.clamp,
            kl_weight=self.kl_weight,
            kl_template=self.kl_template,
            loss_layer=self.loss_layer,
        )

    def _direction(self, key: Float[Tensor, " d_mlp"]) -> Float[Tensor, " d_mlp"]:
        u = key if self._factor is None else torch.cholesky_solve(key[:, None], self._factor)[:, 0]
        return u / u.norm()

    @cached_property
    def _matrix(self) -> Tensor | None:
        return self.second_moment.matrix if isinstance(self.second_moment, SecondMoment) else self.second_moment

    @cached_property
    def _factor(self) -> Tensor | None:
        # Made once for all the edits of this editor: it is cubic in d_mlp.
        return None if self._matrix is None else factorise(self._matrix, self.layer)

    def _hyperparameters(self) -> dict[str, Any]:
        values = {known.name: getattr(self, known.name) for known in fields(self)}
        if self._matrix is not None:
            counted = self.second_moment.count if isinstance(self.second_moment, SecondMoment) else None
            values["second_moment"] = describe_moment(self._matrix, counted)
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class RROME(ROME):
    """r-ROME (Gupta et al. 2024, arXiv:2403.07175): ROME with the mean key and output throughout."""

    method: ClassVar[str] = "r-ROME"

    key_denominator: Literal["prompt", "mean"] = field(default="mean", init=False)
    """Always the means over contexts."""
