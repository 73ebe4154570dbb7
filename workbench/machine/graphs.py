"""Devices on which launching many small kernels takes longer than computing, and a function as one launch there."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.machine.failures import reason


def pays(device: torch.device) -> bool:
    """Whether fewer launches pay on this device, which can capture them."""
    return device.type == "cuda"


def captured(function: Callable[[Tensor], Any], sample: Tensor) -> Callable[[Tensor], Any]:
    """The function of one tensor that takes gradients, for tensors of the sample's shape, as two CUDA graphs: its
    forward and its backward pass. What else it reads stands still in memory from now on, and it must not wait for the
    device. Its results are overwritten by the next call. What cannot be captured stays as it is, with a warning."""
    make: Any = torch.cuda.make_graphed_callables
    collecting = gc.isenabled()
    gc.disable()  # an older graph that is taken back now would spoil this one
    try:
        return make(function, (sample.detach().clone().requires_grad_(),), num_warmup_iters=1)
    except RuntimeError as error:  # it waits for the device somewhere, or memory does not reach
        warnings.warn(f"its steps are launched one kernel at a time: {reason(error)}", stacklevel=2)
        return function
    finally:
        if collecting:
            gc.enable()
