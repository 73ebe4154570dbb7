"""What a piece of work costs beside time: memory, and how often the device is told to do something."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workbench.machine.allocator import peak_allocated, peak_memory, profiled

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
"""How the calls are named that have a GPU do something; a graph is one, whatever it holds."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What `cost` counts."""

    launches: int
    """On a GPU the kernels and graphs launched; on the processor the operators of torch that were called."""
    bytes: int
    """The most that tensors took at one time beyond what was there, see `peak_memory`."""


def cost(work: Callable[[], object], device: torch.device) -> Cost:
    """Do the work once, as torch's profiler records it; it takes longer than it would."""
    if device.type != "cuda":
        _, found = profiled(work, lambda profiler: Cost(launches=_operators(profiler), bytes=peak_allocated(profiler)))
        return found
    (_, size), launches = profiled(lambda: peak_memory(work, device), _launched, gpu=True)
    return Cost(launches=launches, bytes=size)


def _operators(profiler: Any) -> int:
    return _count(profiler, lambda name: name.startswith("aten::"))


def _launched(profiler: Any) -> int:
    return _count(profiler, lambda name: name.startswith(_LAUNCHES))


def _count(profiler: Any, counts: Callable[[str], bool]) -> int:
    return sum(counts(event.name()) for event in profiler.profiler.kineto_results.events())
