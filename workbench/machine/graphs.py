"""Devices on which launching many small kernels takes longer than computing, and a function as one launch there."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.machine.failures import reason


def pays(device: torch.device) -> bool:
    """Whether fewer launches pay on this device, which can capture them."""
    return device.type == "cuda"


_failed = False
"""Whether a capture has failed in this process, after which none is tried."""


def captured(function: Callable[[Tensor], Any], sample: Tensor) -> Callable[[Tensor], Any]:
    """The function of one tensor that takes gradients, for tensors of the sample's shape, as two CUDA graphs on the
    sample's device: its forward and its backward pass. What else it reads stands still in memory from now on, and it
    must not wait for the device. Its results are overwritten by the next call. What cannot be captured stays as it is,
    with a warning, and so does all that comes later in this process."""
    global _failed
    if _failed:
        return function
    make: Any = torch.cuda.make_graphed_callables
    try:
        with _capturing(sample.device):
            return make(function, (sample.detach().clone().requires_grad_(),), num_warmup_iters=1)
    except RuntimeError as error:  # it waits for the device somewhere, or memory does not reach
        _failed = True
        warnings.warn(
            "steps are launched one kernel at a time from here on, and none is captured in this process any more: "
            f"{reason(error)}",
            stacklevel=2,
        )
        return function


@contextmanager
def _capturing(device: torch.device) -> Iterator[None]:
    """Inside, captures are of this device, and no garbage is collected; afterwards all is as it was before."""
    graph: Any = torch.cuda.graph
    free, total = torch.cuda.mem_get_info(device)
    if 2 * free < total:  # it takes a third of a second
        gc.collect()  # graphs lie in circles of references, and keep their memory until then
        torch.cuda.empty_cache()
    collecting = gc.isenabled()
    gc.disable()  # an older graph that is taken back now would spoil the new one
    try:
        with torch.cuda.device(device):
            stream, kept = torch.cuda.current_stream(), graph.default_capture_stream
            graph.default_capture_stream = torch.cuda.Stream()  # torch keeps one, of the device captured first
            try:
                yield
            finally:
                graph.default_capture_stream = kept
                torch.cuda.set_stream(stream)  # a failed capture stays on its own
    finally:
        if collecting:
            gc.enable()
