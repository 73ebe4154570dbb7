"""AlphaEdit: null-space constrained editing (Fang et al. 2025, arXiv:2410.02355)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.keys import mean_keys
from workbench.editors.shared.moment import SecondMoment
from workbench.editors.spread import SpreadEditor
from workbench.models.model import Model
from workbench.records.facts import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class AlphaEdit(SpreadEditor):
    """MEMIT whose update is projected onto the directions in which a layer's keys do not lie (equation 14):

        dW = (P (K K^T + K_p K_p^T) + ridge I)^-1 P K R^T,    R = (z - h) / (layers left, this one included)

    with P the projector onto the eigenvectors of C whose eigenvalues lie below `null_threshold`, and K_p the keys
    of the AlphaEdit edits that are applied to the model now: what they wrote is kept too. Those keys are read from
    what these edits carry on, and an edit's own are put there, as they are once it is applied.

    It is solved as P A (A^T P A + ridge I)^-1 with A = [K, K_p], a matrix of the size of the requests so far.
    Defaults are the published hyperparameters for GPT2-XL. C may be singular.
    """

    method: ClassVar[str] = "AlphaEdit"

    null_threshold: float = 0.02
    """Eigenvalues of C below this span what may be written to; in units of squared keys."""
    ridge: float = 10.0
    """Weight of ||dW||^2 (the published L2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.null_threshold > 0 and self.ridge > 0):
            raise ValueError(f"null_threshold and ridge must be positive, got {self.null_threshold} and {self.ridge}")

    def _answer(
        self, model: Model, layer: int, prepared: Tensor, keys: Float[Tensor, "d_mlp request"]
    ) -> Float[Tensor, "d_mlp request"]:
        name = f"keys.{layer}"
        earlier = [edit.carried[name] for edit in model.edits if edit.method == self.method and name in edit.carried]
        inside = prepared.T @ torch.cat([keys, *(former.cpu().double() for former in earlier)], dim=1)
        identity = torch.eye(inside.shape[1], dtype=inside.dtype)
        factor = torch.linalg.cholesky(inside.T @ inside + self.ridge * identity)
        return prepared @ inside @ torch.cholesky_solve(identity[:, : keys.shape[1]], factor)

    def _prepare(self, moment: SecondMoment) -> Float[Tensor, "d_mlp null"]:
        """Orthonormal basis of the null space: P = basis @ basis.T."""
        matrix = moment.matrix.detach().cpu().double()
        if not matrix.isfinite().all():
            raise ValueError(f"the second moment of layer {moment.layer} is not finite")
        eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        below = eigenvalues < self.null_threshold
        if not below.any():
            raise ValueError(
                f"the second moment of layer {moment.layer} has no eigenvalue below null_threshold "
                f"{self.null_threshold}, so nothing may be written; its smallest is {eigenvalues[0].item():.3g} "
                f"and its median {eigenvalues.median().item():.3g}: raise null_threshold"
            )
        return vectors[:, below]

    def _carried(self, model: Model, requests: Sequence[EditRequest]) -> dict[str, Tensor]:
        return {f"keys.{layer}": mean_keys(model, layer, requests, self.contexts).float() for layer in self.layers}
