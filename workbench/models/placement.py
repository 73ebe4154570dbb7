"""Weights on several devices, for models that one does not hold: each matrix is multiplied where it lies.

Accelerate says which block goes where. Its own hooks are not used: weights that it offloads are empty ("meta") but
while their module runs, so that there would be nothing to read, write or fingerprint; and TransformerLens refuses GPUs
with offloaded parts. Here every weight stays where it is, on a GPU or on the CPU, and the states come to it and go
back. So all states, hooks and caches are on the model's main device, and code that asks modules need not know of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from workbench.models.batching import BUDGET

DEVICE_MAPS = ("auto",)
_MATRICES = (nn.Linear, nn.Embedding, Conv1D)
"""Modules whose weights may lie apart; all others are small, and stay on the main device."""

Placement = Mapping[str, torch.device]
"""Where each part is by the name of a module; the longest name that a parameter begins with counts."""


def automatic(hf: Any) -> Placement:
    """The blocks of a model spread over the GPUs that are there, and what does not fit over the CPU.

    Room for a forward pass is left on the first, where all states are. ValueError where the CPU has no room either.
    """
    whole = {"no_split_module_classes": list(getattr(hf, "_no_split_modules", None) or []), "dtype": hf.dtype}
    memory: dict[Any, Any] = dict(get_balanced_memory(hf, **whole) or {})
    if 0 in memory:
        memory[0] = max(0, int(memory[0] - BUDGET * 2**30))
    found = infer_auto_device_map(hf, max_memory=memory, **whole)
    if "disk" in found.values():
        room = ", ".join(f"{size / 2**30:.0f} GiB of {where}" for where, size in memory.items())
        raise ValueError(f"there is no room for all of it in {room}: give --dtype bfloat16, or more GPUs")
    return {name: torch.device(*(["cuda", at] if isinstance(at, int) else [at])) for name, at in found.items()}


def main_device(placement: Placement) -> torch.device:
    """Where states are: the first GPU, if there is any."""
    return min(placement.values(), key=lambda device: (device.type == "cpu", device.index or 0))


def place_(checkpoint: Any, placement: Placement) -> None:
    """Move a bridged model's weights, and have its matrices fetch what they multiply and send back what comes out.

    What TransformerLens has split off a block's matrices goes where the block's W_out is.
    """
    main, bridge = main_device(placement), checkpoint.bridge
    names = {id(parameter): name for name, parameter in checkpoint.parameters.items()}

    def target(parameter: Tensor, otherwise: torch.device) -> torch.device:
        name = names.get(id(parameter), "")
        fitting = [part for part in placement if part == "" or name == part or name.startswith(f"{part}.")]
        return placement[max(fitting, key=len)] if name and fitting else otherwise

    owners = {}
    for block in bridge.blocks:
        out = block.mlp.out.original_component.weight
        owners |= {module: target(out, main) for module in block.modules()}
    for module in (*bridge.modules(), *bridge.original_model.modules()):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            apart = isinstance(module, _MATRICES)
            where = target(module.weight, owners.get(module, main)) if apart else main
            if tensor.device != where:
                _move_(module, name, tensor, where)
    hooked: set[nn.Module] = set()
    for module in (*bridge.modules(), *bridge.original_model.modules()):
        if isinstance(module, _MATRICES) and module not in hooked and module.weight.device != main:
            hooked.add(module)
            module.register_forward_pre_hook(_bring, with_kwargs=True)
            module.register_forward_hook(_taking_back(main))
    bridge.cfg.device = str(main)


def _move_(module: nn.Module, name: str, tensor: Tensor, where: torch.device) -> None:
    """Move a parameter, which stays the same object, or a buffer."""
    if name in module._parameters:
        tensor.data = tensor.data.to(where)
    else:
        module._buffers[name] = tensor.to(where)


def _bring(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    device: Any = module.weight.device
    return _to(device, args), _to(device, kwargs)


def _taking_back(main: torch.device) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, args, output: _to(main, output)


def _to(device: torch.device, values: Any) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)
