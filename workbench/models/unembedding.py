"""From a residual stream to logits: the final norm, the unembedding, and what some families do to logits.

OPT-350m has no final norm, and projects to narrower embeddings.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Identity

from workbench.models.kernels import fused_norm, linear
from workbench.models.model import Model


class Unembedding:
    """Logits of a residual stream, as if it left the last layer."""

    def __init__(self, model: Model) -> None:
        self._device = model.device
        bridge: Any = model.bridge
        hf: Any = model.hf
        self._norm: Callable = (
            fused_norm(bridge.ln_final.original_component) if hasattr(bridge, "ln_final") else Identity()
        )
        self._project: Any = bridge.project_out.original_component if hasattr(bridge, "project_out") else None
        self._head: Any = hf.get_output_embeddings()
        while hasattr(self._head, "original_component"):
            self._head = self._head.original_component
        scale, divisor = (getattr(hf.config, name, 1.0) for name in ("logit_scale", "logits_scaling"))
        self.scale: float = (scale or 1.0) / divisor
        """By which Granite and Cohere multiply logits."""
        self.cap: float | None = getattr(hf.config, "final_logit_softcapping", None)
        """To which Gemma 2 bends them."""

    def __call__(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        normed = self._norm(resid)
        logits = linear(self._head, normed if self._project is None else linear(self._project, normed))
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()

    def rows(self, ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
        """What the normed stream is multiplied with for the logits of some tokens, in float32 at least."""
        table = self._head.weight.detach()
        rows = table[torch.tensor(ids, device=table.device, dtype=torch.long)]
        rows = rows if self._project is None else rows @ self._project.weight.detach().to(rows)
        return rows.to(self._device, torch.promote_types(rows.dtype, torch.float32))
