"""One function over many items, side by side in forked processes of one thread each.

Small matrices keep two threads waiting for each other; two processes do not wait. A fork shares the model's memory
with this process and sees hooks and edits as they are now.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, workers: int
) -> Generator[_Result, None, None]:
    """What the function gives for each item, in their order; one worker is this process, with all its threads.

    What it raises is raised here. RuntimeError where a worker is killed, as by the system when memory runs out.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(function,))
    try:
        with _quiet_fork():
            futures = [pool.submit(_work, item) for item in items]
        for future in futures:
            yield pickle.loads(future.result())
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
