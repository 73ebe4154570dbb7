"""What is missing of the states that requests want at their subjects' last tokens, as changes of W_out's output."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.search.values import OptimisedValue
from workbench.editors.shared.keys import contributed, output_change, subject_states
from workbench.models.model import Model
from workbench.records.facts import EditRequest


class Targets:
    """Targets of a state in the last of the layers that are edited, one for each request, on the bare prompts."""

    def __init__(
        self,
        model: Model,
        requests: Sequence[EditRequest],
        values: Sequence[OptimisedValue],
        *,
        site: str,
        layer: int,
        as_resid: bool,
    ) -> None:
        """`site` is the one that `values` were found at; `as_resid`: although it is W_out's output, what the layers
        before add together is to be the change of the residual stream that follows from it."""
        self.model, self.site, self.layer = model, site, layer
        self.prompts = [request.template for request in requests], [request.subject for request in requests]
        self.values = torch.stack([(value.initial + value.delta).cpu().double() for value in values])
        self.resid: Float[Tensor, "request d_model"] | None = None
        if site == "resid_post":
            self.resid = self.values
        elif as_resid:
            change = contributed(model, layer, self.values) - contributed(model, layer, self._now("mlp_write"))
            self.resid = self._now("resid_post") + change

    def missing(self, layer: int, share: float) -> Float[Tensor, "request d_model"]:
        """The change of W_out's output in `layer` that makes up for a share of what is missing now."""
        if layer == self.layer and self.site == "mlp_write":
            return (self.values - self._now("mlp_write")) / share
        if self.resid is not None:
            wanted = (self.resid - self._now("resid_post")) / share
        else:
            now = contributed(self.model, self.layer, self._now("mlp_write"))
            wanted = (contributed(self.model, self.layer, self.values) - now) / share
        return output_change(self.model, layer, wanted, *self.prompts)

    def _now(self, site: str) -> Float[Tensor, "request d_model"]:
        return subject_states(self.model, self.model.hook_name(site, self.layer), *self.prompts)
