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
        with profiled() as profiler:
            work()
        operators = _count(profiler, lambda name: name.startswith("aten::"))
        return Cost(launches=operators, bytes=peak_allocated(profiler))
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        _, size = peak_memory(work, device)
    return Cost(launches=_count(profiler, lambda name: name.startswith(_LAUNCHES)), bytes=size)


def _count(profiler: Any, counts: Callable[[str], bool]) -> int:
    return sum(counts(event.name()) for event in profiler.profiler.kineto_results.events())
