"""How a command ends before its time: by a signal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises: batch systems and containers send it where a person presses Ctrl-C."""

    def __str__(self) -> str:
        return "SIGTERM"


@contextmanager
def terminating() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C within the block."""

    def stop(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
