"""One thread at a time: who holds a model while edits are applied to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Hold:
    """A lock that the same thread may take again; another one is refused, not kept waiting."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: threading.Thread | None = None
        self._times = 0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Hold the model of that name within the block; RuntimeError, see `check`."""
        taken = False
        try:
            taken = self._lock.acquire(blocking=False)
            if not taken:
                raise self._refusal(name)
            self._holder, self._times = threading.current_thread(), self._times + 1
            yield
        finally:
            if taken:
                self._times -= 1
                self._holder = self._holder if self._times else None
                self._lock.release()

    def check(self, name: str) -> None:
        """RuntimeError while another thread holds the model."""
        if self._holder not in (None, threading.current_thread()):
            raise self._refusal(name)

    def _refusal(self, name: str) -> RuntimeError:
        holder = self._holder.name if self._holder else "another"
        return RuntimeError(
            f"thread {threading.current_thread().name!r} was kept from {name}, to which thread {holder!r} has edits "
            "applied: wait until it leaves its block, or load the model a second time"
        )
