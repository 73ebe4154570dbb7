"""One function over many items, side by side: in forked processes of one thread each, or wherever `Workers` are.

Small matrices keep two threads waiting for each other; two processes do not wait. A fork shares the model's memory
with this process and sees hooks and edits as they are now.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Thread
from typing import Any, Generic, TypeVar

import torch

_State = TypeVar("_State")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

AHEAD = 4
"""Items that are given out before the first of them is asked for, a worker; fewer where results are large."""


class Workers(ABC, Generic[_State]):
    """Those who do one thing with many items, each with a state of its own, such as a model."""

    count: int
    """How many work at once."""

    @abstractmethod
    def map(
        self, function: Callable[[_State, _Item], _Result], items: Iterable[_Item], *, ahead: int = AHEAD
    ) -> Generator[_Result, None, None]:
        """What the function gives for a worker's state and each item, in the items' order, as it is asked for.

        Items are taken as workers become free, at most `ahead` a worker before the first of them is asked for. What it
        raises is raised here.
        """

    def close(self) -> None:
        """Let them go."""


@dataclass(frozen=True, kw_only=True)
class Processes(Workers[_State]):
    """This process, or forked ones that share the state with it as it is when the work begins."""

    state: _State
    count: int = 1

    def map(
        self, function: Callable[[_State, _Item], _Result], items: Iterable[_Item], *, ahead: int = AHEAD
    ) -> Generator[_Result, None, None]:
        """See `side_by_side`."""
        return side_by_side(partial(function, self.state), items, workers=self.count, ahead=ahead)


def several(workers: Workers[Any] | None) -> bool:
    """Whether others than this process work."""
    return workers is not None and not (isinstance(workers, Processes) and workers.count == 1)


def check_workers(workers: int, device: torch.device) -> None:
    """ValueError for a number below 1, and for several where processes cannot be forked: a GPU, not Linux."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers > 1 and not can_fork(device):
        raise ValueError(f"{workers} workers need a model on the CPU and Linux, got {device} and {sys.platform}; use 1")


def can_fork(device: torch.device) -> bool:
    """Whether processes that use a model on this device can be forked."""
    return sys.platform == "linux" and device.type == "cpu"


def side_by_side(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, workers: int, ahead: int = AHEAD
) -> Generator[_Result, None, None]:
    """What the function gives for each item, in their order; one worker is this process, with all its threads.

    `ahead` as `Workers.map` says. What it raises is raised here. RuntimeError where a worker is killed, as by the
    system when memory runs out.
    """
    left = iter(items)
    first = list(islice(left, workers)) if workers > 1 else []
    workers = min(workers, len(first))
    if workers <= 1:
        yield from map(function, first)
        yield from map(function, left)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(function,))
    try:
        with _quiet_fork():
            futures: deque[Future[bytes]] = deque(pool.submit(_work, item) for item in first)
        for item in left:
            futures.append(pool.submit(_work, item))
            if len(futures) >= ahead * workers:
                yield pickle.loads(futures.popleft().result())
        while futures:
            yield pickle.loads(futures.popleft().result())
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {workers} worker processes was killed, perhaps since memory ran out: use fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]
"""What a worker does."""


def _begin(function: Callable[[Any], Any]) -> None:
    """First in a worker: one thread, Ctrl-C left to the process that waits for it, and no life after that one."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> bytes:
    return pickle.dumps(_function(item))  # as bytes: tensors would be kept open in shared memory, a file each


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Fork without the warnings that other threads of this process, which hold no locks here, bring about."""
    kept = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*fork", DeprecationWarning)
            yield
    finally:
        if kept is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = kept
