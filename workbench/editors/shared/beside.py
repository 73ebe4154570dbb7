"""What a model says with neurons beside an MLP: from that MLP on alone, or over the whole network, which is the oracle.

Below the MLP nothing depends on its neurons, so one pass keeps what it reads, what it writes and what it is added to;
each step of their training then runs the layers above. Beside the last MLP these are none: there the final norm and
the unembedding, at the positions that predict the targets alone, are all that is run.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.tuning import TuningBatch
from workbench.edits.neurons import beside
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.hooks import ForwardPass, Hook
from workbench.models.model import Model

Added = Callable[[Tensor], Tensor]
"""From what the MLP reads to what is added to W_out's output, both [... d_model]."""


class Beside(ABC):
    """Targets scored with neurons beside the MLP of a layer."""

    read: Float[Tensor, "prediction d_model"]
    """What the MLP reads where the targets are predicted."""

    @abstractmethod
    def log_probs(self, added: Added) -> Float[Tensor, "prediction vocab"]:
        """Log-probabilities of every prediction; gradients flow into what is added."""


def beside_mlp(model: Model, batch: TuningBatch, layer: int) -> Beside:
    """The faster one; a model whose blocks cannot be run part by part is run whole, with a warning.

    The batch must be of one row or padded on the right.
    """
    try:
        return FromTheMLP(blocks_of(model, above=layer), batch, layer)
    except BlocksError as error:
        why = str(error).removesuffix("; use the plain engine")
        warnings.warn(f"{why}; neurons are trained over the whole network", stacklevel=2)
        return WholeNetwork(model, batch, layer)


class WholeNetwork(Beside):
    """Every step runs the model."""

    def __init__(self, model: Model, batch: TuningBatch, layer: int) -> None:
        self._model, self._batch, self._layer = model, batch, layer
        name = model.hook_name("mlp_in", layer)
        self.read = model.activations(batch.tokens, [name])[name][batch.rows, batch.positions]

    def log_probs(self, added: Added) -> Float[Tensor, "prediction vocab"]:
        """By hooks, as an edit adds them."""
        tokens = self._batch.tokens
        whole = ForwardPass(mask=tokens.mask, offset=0, prompt_ends=tokens.prompt_ends)

        def hook(function: Callable) -> Callable:
            return lambda tensor, hook: function(tensor, whole)

        hooks: list[Hook] = [
            (self._model.hook_name(site, layer), hook(function)) for site, layer, function in beside(self._layer, added)
        ]
        return self._batch.log_probs(self._model, hooks)


class FromTheMLP(Beside):
    """What stands below W_out is kept, and every step runs what stands above."""

    def __init__(self, blocks: Blocks, batch: TuningBatch, layer: int) -> None:
        self._blocks, self._batch, self._layer = blocks, batch, layer
        sites = ("resid_pre", "attn_out", "mlp_in", "mlp_write")
        names = [blocks.model.hook_name(site, layer) for site in sites]
        found = blocks.model.activations(batch.tokens, names)
        self._last = layer == blocks.n_layers - 1
        if not self._last:
            blocks.check_reach(batch.tokens.ids.shape[1])
        predictions = (batch.rows, batch.positions)
        self.read = found[names[2]][predictions]
        # Above the last MLP nothing passes from one position to another.
        below, attn, self._states, self._write = (
            found[name][predictions] if self._last else found[name][:, : 1 + int(batch.positions.max())]
            for name in names
        )
        self._below = below + attn

    def log_probs(self, added: Added) -> Float[Tensor, "prediction vocab"]:
        """By the blocks above."""
        blocks = self._blocks
        write = self._write + added(self._states).to(self._write.dtype)
        resid = self._below + blocks.mlp_contribution(self._layer)(write)
        if not self._last:
            places = torch.arange(resid.shape[1], device=resid.device)
            for layer in range(self._layer + 1, blocks.n_layers):
                resid = blocks.leaving(layer, resid, places)
            resid = resid[self._batch.rows, self._batch.positions]
        logits = blocks.unembed(resid)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
