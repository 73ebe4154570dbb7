"""From a residual stream to logits: the final norm, the unembedding, and what some families do to logits."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.models.kernels import fused_norm, linear
from workbench.models.model import Model


class Unembedding:
    """Logits of a residual stream, as if it left the last layer."""

    def __init__(self, model: Model) -> None:
        bridge: Any = model.bridge
        hf: Any = model.hf
        self._norm: Callable = fused_norm(bridge.ln_final.original_component)
        self._head: Any = hf.get_output_embeddings()
        while hasattr(self._head, "original_component"):
            self._head = self._head.original_component
        scale, divisor = (getattr(hf.config, name, 1.0) for name in ("logit_scale", "logits_scaling"))
        self.scale: float = (scale or 1.0) / divisor
        """By which Granite and Cohere multiply logits."""
        self.cap: float | None = getattr(hf.config, "final_logit_softcapping", None)
        """To which Gemma 2 bends them."""

    def __call__(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        logits = linear(self._head, self._norm(resid))
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()
