"""A model's weights: its matrices as live views, snapshots, and a fingerprint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.hashing import digest
from workbench.models.contribution import Contribution, of_mlp
from workbench.models.matrices import matrix_view
from workbench.models.parts import nonlinearity
from workbench.models.reader import Reader


@dataclass(kw_only=True, eq=False, repr=False)
class Weights(Reader):
    """A reader whose matrices can be looked at and written."""

    _digests: dict = field(default_factory=dict)
    """Parameter -> (state of its memory, hash of its content), for `fingerprint`."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Live parameters under the checkpoint's names, tied ones once.

        GPT-NeoX runs its attention from split copies, so a write to its fused `query_key_value` here changes
        what is saved but not the logits.
        """
        return self.checkpoint.parameters

    @property
    def spread(self) -> bool:
        """Whether weights lie on several devices."""
        return any(parameter.device != self.device for parameter in self.parameters.values())

    def _layer(self, layer: int | None) -> int:
        if layer is None or not 0 <= layer < self.n_layers:
            raise IndexError(f"layer {layer} is out of range; {self.name} has layers 0 to {self.n_layers - 1}")
        return layer

    def mlp_contribution(self, layer: int) -> Contribution:
        """How W_out's output (`mlp_write`) becomes what a layer's MLP adds to the residual stream (`mlp_out`)."""
        return of_mlp(self.bridge.blocks[self._layer(layer)])

    def nonlinearity(self, layer: int) -> Callable[[Tensor], Tensor]:
        """What a layer's MLP makes of `mlp_pre`; ValueError where its modules do not say."""
        found = nonlinearity(self.bridge.blocks[self._layer(layer)].mlp.original_component)
        if found is None:
            raise ValueError(f"the MLPs of {self.name} have no nonlinearity that is known here")
        return found

    def matrix_at(self, site: str, layer: int) -> str:
        """The matrix whose output is seen at `mlp_write`, or at `mlp_pre`: W_gate where MLPs are gated, else W_in."""
        if site == "mlp_write":
            return "W_out"
        return "W_gate" if hasattr(self.bridge.blocks[self._layer(layer)].mlp, "gate") else "W_in"

    def weight(self, layer: int, matrix: str = "W_out") -> Float[Tensor, "d_in d_out"]:
        """Live view of an MLP matrix: W_out is [d_mlp, d_model]; W_in and W_gate are [d_model, d_mlp].

        `b_out` is the bias as the row that a key of 1 multiplies, [1, d_model]. Of attention W_Q, W_K and W_V are
        [d_model, head x d_head] and W_O the other way round; ValueError where a checkpoint keeps them fused.
        Write to it in place: `.add_(...)`, `.copy_(...)` or `[...] =`.
        """
        return matrix_view(self.bridge.blocks[self._layer(layer)], matrix, self.parameters, name=self.name)

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of every parameter, for `restore_`."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore_(self, snapshot: dict[str, Tensor]) -> None:
        """Write a snapshot back, bit for bit; ValueError if it is of another model."""
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        if {name: value.shape for name, value in snapshot.items()} != shapes:
            raise ValueError(f"the snapshot is not of {self.name}: its parameters have other names or shapes")
        for name, parameter in self.parameters.items():
            parameter.copy_(snapshot[name])

    def fingerprint(self) -> str:
        """SHA-256 over the name, type, shape and bytes of every parameter.

        What was not written since the last call is not read again; writes past torch (`.data`, numpy) go unseen.
        """
        for name, parameter in self.parameters.items():
            # Torch counts writes, also those through views, so only what was written since is read again.
            written = (parameter.data_ptr(), parameter._version)
            if self._digests.get(name, (None,))[0] != written:
                self._digests[name] = (written, digest(parameter))
        return fingerprint(self.parameters, {name: found for name, (_, found) in self._digests.items()})


def fingerprint(parameters: Mapping[str, Tensor], digests: Mapping[str, str]) -> str:
    """SHA-256 over the name, type, shape and digest of every parameter."""
    lines = []
    for name, parameter in sorted(parameters.items()):
        lines.append(f"{name} {parameter.dtype} {tuple(parameter.shape)} {digests[name]}\n")
    return digest(*lines)
