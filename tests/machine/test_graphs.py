"""Capturing leaves the process as it was, and is of the sample's device; what torch does on GPUs is played."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from workbench.machine import graphs


class Gpus:
    """Two devices as torch.cuda has them: the current one, and the current stream of each."""

    def __init__(self) -> None:
        self.device, self.streams = 0, {0: (0, 0), 1: (1, 0)}
        self.made: list[tuple[int, int]] = []
        self.collecting: list[bool] = []
        self.error: Exception | None = None
        self.free = 4
        self.emptied = 0

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def stream(self) -> tuple[int, int]:
        self.made.append((self.device, 1 + len(self.made)))
        return self.made[-1]

    def set_stream(self, stream: tuple[int, int]) -> None:
        self.device, self.streams[stream[0]] = stream[0], stream

    def make(self, function: Any, samples: tuple[Tensor], *, num_warmup_iters: int) -> Any:
        """As torch does it, on its own stream, and stays there if it fails."""
        graph: Any = torch.cuda.graph
        before = self.streams[self.device]
        assert graph.default_capture_stream[0] == self.device
        assert samples[0].requires_grad
        self.collecting.append(gc.isenabled())
        self.set_stream(graph.default_capture_stream)
        if self.error is not None:
            raise self.error
        self.set_stream(before)
        return lambda x: function(x)


class Sample(Tensor):
    """A tensor that says it is on the second GPU."""

    device = torch.device("cuda", 1)  # pyright: ignore[reportAssignmentType,reportIncompatibleMethodOverride]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    made = Gpus()
    for name, value in {
        "device": made.on,
        "current_stream": lambda: made.streams[made.device],
        "Stream": made.stream,
        "set_stream": made.set_stream,
        "make_graphed_callables": made.make,
        "mem_get_info": lambda device: (made.free, 10),
        "empty_cache": lambda: setattr(made, "emptied", made.emptied + 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", (0, 9))  # an earlier capture's
    monkeypatch.setattr(graphs, "_failed", False)
    return made


def sample() -> Tensor:
    return torch.ones(3).as_subclass(Sample)


def assert_as_before(gpus: Gpus) -> None:
    graph: Any = torch.cuda.graph
    assert gpus.device == 0 and gpus.streams == {0: (0, 0), 1: (1, 0)}
    assert graph.default_capture_stream == (0, 9) and gc.isenabled()


def test_it_is_captured_on_the_samples_device_by_a_stream_of_it(gpus: Gpus) -> None:
    found = graphs.captured(torch.sin, sample())
    assert found is not torch.sin and gpus.made == [(1, 1)] and gpus.collecting == [False]
    assert_as_before(gpus)


def test_a_failure_leaves_the_stream_and_is_the_last_try(gpus: Gpus) -> None:
    gpus.error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.warns(UserWarning, match="one kernel at a time from here on.*in this process.*not permitted"):
        assert graphs.captured(torch.sin, sample()) is torch.sin
    assert_as_before(gpus)
    assert graphs.captured(torch.cos, sample()) is torch.cos and len(gpus.collecting) == 1


def test_another_error_is_raised_and_leaves_the_stream(gpus: Gpus) -> None:
    gpus.error = ValueError("diverged")
    with pytest.raises(ValueError, match="diverged"):
        graphs.captured(torch.sin, sample())
    assert_as_before(gpus)


@pytest.mark.parametrize("free", [4, 6])
def test_earlier_graphs_are_gone_when_the_next_is_captured_where_memory_is_short(
    gpus: Gpus, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    class Graph:
        """In a circle of references, as torch's are."""

        def __init__(self) -> None:
            self.itself = self

    gpus.free, earlier = free, ref(Graph())
    left: list[Any] = []
    make = gpus.make

    def looking(*arguments: Any, **options: Any) -> Any:
        left.append(earlier())
        return make(*arguments, **options)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", looking)
    graphs.captured(torch.sin, sample())
    assert (left == [None], gpus.emptied) == ((True, 1) if free == 4 else (False, 0))
