"""How a command ends before its time: by a signal, or by an error that is told in one line."""

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


def told_in_a_line(error: Exception) -> str:
    """What went wrong, and the way out, on one line."""
    from workbench.machine.allocator import out_of_memory
    from workbench.machine.failures import reason

    if out_of_memory(error):
        return f"not enough memory ({reason(error)}): try --dtype bfloat16, fewer --samples, or a smaller model"
    if isinstance(error, ValueError | OSError | IndexError) and str(error).strip():
        return " ".join(str(error).split())
    return f"{reason(error)} (unexpected: set WORKBENCH_TRACEBACK=1 to see where)"
