"""EMMET: equality-constrained mass model editing (Gupta et al. 2024, arXiv:2403.14236)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.keys import regularised_solve
from workbench.editors.spread import SpreadEditor
from workbench.models.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class EMMET(SpreadEditor):
    """Writes many requests at once so that each key is mapped to its value exactly, changing what C holds least:

        dW = C^-1 K (K^T C^-1 K)^-1 R^T

    which for one request and the bare context alone is ROME's update; with more contexts, keys are MEMIT's means. As
    published, a batch of more than one adds `ridge` to the diagonal of K^T (moment_weight C)^-1 K, for keys that are
    nearly parallel; that makes it the least-squares update of MEMIT with lambda = ridge * moment_weight. Like the
    published code it takes several layers too, with MEMIT's spread; the paper edits one.

    Defaults are the published hyperparameters for GPT2-XL.
    """

    method: ClassVar[str] = "EMMET"

    moment_weight: float = 1000.0
    """Multiplies C (the published mom2_update_weight); it acts only together with `ridge`."""
    ridge: float = 0.1
    """Added to the diagonal where there is more than one request (the published emmet_lambda); 0 for equality."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.moment_weight > 0 and self.ridge >= 0):
            raise ValueError(
                f"moment_weight must be positive and ridge not negative, got {self.moment_weight} and {self.ridge}"
            )

    def _answer(
        self, model: Model, layer: int, prepared: Tensor, keys: Float[Tensor, "d_mlp request"]
    ) -> Float[Tensor, "d_mlp request"]:
        weight = self.ridge * self.moment_weight if keys.shape[1] > 1 else 0.0
        return regularised_solve(prepared, keys, weight, layer)
