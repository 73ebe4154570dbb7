"""Edits that are neurons of their own beside the MLP of one layer: what T-Patcher and CaliNet add to a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.activations import ACT2FN

from workbench.edits.hooked import HookEdit
from workbench.machine.shown import Shown
from workbench.models.hooks import EditHook, ForwardPass
from workbench.models.model import Model

_CARRIED = "carried."


@dataclass(frozen=True, kw_only=True, eq=False)
class Neurons(Shown):
    """Neurons that read what an MLP reads (x) and add to W_out's output: act(K x + b) V, gated act(K x + b) * (G x) V.

    They are more columns of W_in and rows of W_out; where a norm stands behind W_out, it is taken of the sum.
    """

    keys: Float[Tensor, "neuron d_model"]
    """K."""
    values: Float[Tensor, "neuron d_model"]
    """V."""
    biases: Float[Tensor, " neuron"] | None = None
    """b; None for 0."""
    gates: Float[Tensor, "neuron d_model"] | None = None
    """G; None for neurons that are not gated."""
    activation: str | None = None
    """Name of act in `transformers` ("relu", "gelu_new"); None for the MLP's own nonlinearity."""

    def __post_init__(self) -> None:
        check_activation(self.activation)
        shapes = {tuple(matrix.shape) for matrix in (self.keys, self.values, self.gates) if matrix is not None}
        if len(shapes) > 1 or (self.biases is not None and len(self.biases) != len(self.keys)):
            raise ValueError(f"keys, values and gates of neurons are of different sizes: {sorted(shapes)}")

    def __len__(self) -> int:
        return len(self.keys)

    def inputs(self, read: Float[Tensor, "... d_model"]) -> Float[Tensor, "... neuron"]:
        """K x + b, of what the MLP reads."""
        found = read.to(self.keys.dtype) @ self.keys.T
        return found if self.biases is None else found + self.biases

    def adding(self, model: Model, layer: int) -> Callable[[Tensor], Tensor]:
        """From what a layer's MLP reads [... d_model] to what the neurons add to W_out's output."""
        act = model.nonlinearity(layer) if self.activation is None else ACT2FN[self.activation]

        def added(read: Tensor) -> Tensor:
            active = act(self.inputs(read))
            active = active if self.gates is None else active * (read.to(self.gates.dtype) @ self.gates.T)
            return active @ self.values

        return added


def check_activation(name: str | None) -> None:
    """ValueError for a nonlinearity that is not known by this name."""
    if name is not None and name not in ACT2FN:
        raise ValueError(f"no activation {name!r}; give one of {', '.join(sorted(ACT2FN))}, or None for the MLP's own")


def beside(layer: int, added: Callable[[Tensor], Tensor]) -> list[EditHook]:
    """Hooks that add, to what W_out gives in a layer, what is made of the MLP's input; for one forward pass."""
    found: list[Tensor] = []

    def read(states: Tensor, which: ForwardPass) -> None:
        found.append(added(states))

    def write(states: Tensor, which: ForwardPass) -> Tensor:
        return states + found.pop().to(states.dtype)

    return [("mlp_in", layer, read), ("mlp_write", layer, write)]


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronEdit(HookEdit):
    """Adds neurons beside the MLP of a layer, at every token; without neurons it changes nothing."""

    layer: int
    """The layer."""
    neurons: Neurons
    """What stands beside its MLP."""
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that later edits of the same method need, by name: T-Patcher's "queries", what the MLP read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(tensor.isfinite().all() for tensor in self.tensors().values()):
            raise ValueError(f"the neurons beside the MLP of layer {self.layer} are not finite")

    def check_fits(self, model: Model) -> None:
        """IndexError for a layer out of range, ValueError for neurons of another size."""
        super().check_fits(model)
        if self.neurons.keys.shape[1] != model.d_model:
            raise ValueError(
                f"the neurons are of size {self.neurons.keys.shape[1]}, but the states of {model.name} of "
                f"{model.d_model}; was the edit made for another model?"
            )

    def hooks(self, model: Model) -> Sequence[EditHook]:
        """Reads what the MLP reads, and adds to what W_out gives; none without neurons."""
        if not len(self.neurons):
            model.hook_name("mlp_in", self.layer)
            return ()
        return beside(self.layer, self._on(model.device).adding(model, self.layer))

    def _on(self, device: torch.device) -> Neurons:
        """The neurons on a device, moved there once, since hooks are made each pass."""
        if device not in self._made:
            there = {name: tensor.to(device) for name, tensor in _parts(self.neurons).items()}
            self._made[device] = Neurons(**there, activation=self.neurons.activation)
        return self._made[device]

    @cached_property
    def _made(self) -> dict[torch.device, Neurons]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The neurons, and what is carried on."""
        return _parts(self.neurons) | {f"{_CARRIED}{name}": tensor for name, tensor in self.carried.items()}

    def settings(self) -> dict[str, Any]:
        """The layer and the nonlinearity."""
        return {"layer": self.layer, "activation": self.neurons.activation}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "NeuronEdit":
        """The inverse of `tensors` and `settings`."""
        parts = {name: tensor for name, tensor in tensors.items() if not name.startswith(_CARRIED)}
        return cls(
            layer=settings["layer"],
            neurons=Neurons(**parts, activation=settings["activation"]),
            carried={name.removeprefix(_CARRIED): tensors[name] for name in tensors if name not in parts},
            **common,
        )


def _parts(neurons: Neurons) -> dict[str, Tensor]:
    parts = {"keys": neurons.keys, "values": neurons.values, "biases": neurons.biases, "gates": neurons.gates}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}
