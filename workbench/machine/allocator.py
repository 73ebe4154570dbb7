"""How the processor's memory is kept, and how much of it a piece of work needs at its peak."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_FULL = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What errors say where memory ran out."""


def keep_freed_memory() -> None:
    """Have the C library keep up to 64 MiB that tensors give back, instead of returning them to the system.

    Otherwise every activation of some MiB is mapped and cleared again, which costs about as much time as the matrix
    product that fills it. glibc raises its threshold to twice the largest block below 32 MiB that it was ever given
    back (`man mallopt`, M_MMAP_THRESHOLD); other C libraries lose nothing by this.
    """
    torch.empty(32 * 2**20 - 8192, dtype=torch.uint8)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on the processor, and where CUDA or cuBLAS ask for it themselves, torch says so in a
    plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(said in str(error) for said in _FULL)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that tensors could take: what is free, and what torch holds there for later."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_memory(work: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """What `work` returns, and the most bytes of tensors that it held at one time beyond those there before.

    On a GPU this is `torch.cuda.max_memory_allocated`. On the processor it is the highest sum of what torch's allocator
    gave and took back, as the profiler records it: what libraries allocate themselves (work space of matrix
    factorisations, NumPy's arrays) is not in it. The profiler slows the work down, so time it in another run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    return profiled(work, peak_allocated)


def profiled(work: Callable[[], T], read: Callable[[Any], R], *, gpu: bool = False) -> tuple[T, R]:
    """What `work` returns, and what `read` makes of torch's profiler of it, which on a GPU sees that too.

    The profiler's records, a GB of some seconds of work, refer to each other: they are given back here, at once.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells the terminal when it starts and stops
    activities = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * gpu]
    with torch.profiler.profile(activities=activities, profile_memory=not gpu) as profiler:
        result = work()
    found = read(profiler)
    del profiler
    give_back()
    return result, found


def give_back() -> None:
    """Return to the system what nothing refers to, also what the C library would keep of it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's
    if trim is not None:
        trim(0)


def peak_allocated(profiler: Any) -> int:
    """The highest sum of bytes that tensors on the processor took in a block of `profiled`, beyond those before it."""
    events = profiler.profiler.kineto_results.experimental_event_tree()
    changes = sorted(_allocations(events), key=lambda change: change[0])
    return max(accumulate((size for _, size in changes), initial=0))


def _allocations(events: list[Any]) -> list[tuple[int, int]]:
    """(nanosecond, bytes) of each allocation on the processor, below zero where memory is given back."""
    found: list[tuple[int, int]] = []
    waiting = list(reversed(events))
    while waiting:
        event = waiting.pop()
        if event.name == "[memory]" and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
        waiting.extend(reversed(event.children))
    return found
