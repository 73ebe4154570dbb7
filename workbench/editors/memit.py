"""MEMIT: mass-editing memory in a transformer (Meng et al. 2023, arXiv:2210.07229)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.keys import regularised_solve
from workbench.editors.spread import SpreadEditor
from workbench.models.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class MEMIT(SpreadEditor):
    """Writes many requests at once into several layers' W_out by least squares (equations 14 and 20 to 22):

        dW = (lambda C + K K^T)^-1 K R^T,    R = (z - h) / (layers left, this one included)

    with K the requests' keys at that layer, C the second moment of its keys, z the optimised residual streams
    after the last edited layer, and h what they are once the layers before have been edited. This is W_out as
    [d_mlp, d_model], the transpose of the paper's.

    Defaults are the published hyperparameters for GPT2-XL. `moment_weight` weighs keeping what the model says of
    everything else against saying what is asked for: a tenth of it and small batches are written more firmly.
    """

    method: ClassVar[str] = "MEMIT"

    moment_weight: float = 20_000.0
    """lambda, of C (the published mom2_update_weight)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.moment_weight > 0:
            raise ValueError(f"moment_weight must be positive, got {self.moment_weight}; EMMET is the limit at zero")

    def _answer(
        self, model: Model, layer: int, prepared: Tensor, keys: Float[Tensor, "d_mlp request"]
    ) -> Float[Tensor, "d_mlp request"]:
        return regularised_solve(prepared, keys, self.moment_weight, layer)
