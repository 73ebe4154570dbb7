"""PMET's outputs of many requests at once, from the work that they can change (Li et al. 2024, arXiv:2308.08742)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.editors.search.fast_values import Row, Search
from workbench.editors.search.values import DIVERGENCE_REACHED, NLL_WEIGHT_REACHED
from workbench.models.blocks import Blocks
from workbench.records.facts import EditRequest


class OutputSearch(Search):
    """What `optimise_outputs` finds for each request of a batch: deltas of the attention's and the MLP's outputs.

    In sequential blocks the MLP reads the attention's output with its delta, so the edited layer's MLP runs on the
    subjects' last tokens at every step.
    """

    what: ClassVar[str] = "outputs"

    def __init__(
        self, blocks: Blocks, requests: Sequence[EditRequest], rows: Sequence[Sequence[Row]], options: dict[str, Any]
    ) -> None:
        super().__init__(blocks, requests, rows, options)
        self.answered: Bool[Tensor, " request"]
        self.answered = torch.zeros(len(requests), dtype=torch.bool, device=self.initial.device)

    @property
    def sites(self) -> tuple[str, ...]:
        """Both outputs; the MLP's is what is written."""
        return ("attn_out", "mlp_write")

    def _leaving(self, delta: Float[Tensor, "row site d_model"]) -> Float[Tensor, "row d_model"]:
        states = self.suffixes.states
        below, attn = states["resid_pre"], states["attn_out"] + delta[:, 0]
        contribution, write = self.blocks.mlp_contribution(self.layer), self.blocks.mlp_write(self.layer, below, attn)
        if contribution.direct:
            return below + attn + write + delta[:, 1]
        return below + attn + contribution(write + delta[:, 1])

    def _nll(
        self, said: Float[Tensor, "prediction vocab"], active: Int[Tensor, " request"]
    ) -> Float[Tensor, " request"]:
        """Weighed less while a request's target is the model's answer already, as of the step before."""
        nll = super()._nll(said, active)
        return torch.where(self.answered[active], NLL_WEIGHT_REACHED * nll, nll)

    def _reached(
        self,
        total: Float[Tensor, " request"],
        kl: Float[Tensor, " request"],
        said: Float[Tensor, "prediction vocab"],
        active: Int[Tensor, " request"],
    ) -> Bool[Tensor, " request"]:
        """Also those whose target is the answer everywhere, when little else has changed; notes which these are."""
        s = self.suffixes
        missed = s.request[s.row[s.read[said.argmax(dim=-1) != s.target]]]
        answered = torch.ones_like(total, dtype=torch.bool).index_fill(0, missed, False)
        self.answered[active] = answered
        return super()._reached(total, kl, said, active) | (answered & (kl <= DIVERGENCE_REACHED))
