"""One function over many items on the actors of a Ray cluster; what a lost one had in hand is done again.

Ray comes with the extra `cluster`. No usage is reported, and no dashboard is started.
"""

import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any, TypeVar

import torch

from workbench.machine.failures import reason
from workbench.machine.processes import AHEAD, Workers
from workbench.machine.running_cluster import running

_State = TypeVar("_State")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

NEEDS_RAY = "a cluster needs the package ray, which is not installed: pip install ray"

_DEPTH = 2
"""Items that an actor has at a time, so that it need not wait for this process."""
_LOSSES = 3
"""Actors lost with one item, or in a row while they were loading, after which it is given up."""
_PATIENCE = 900.0
"""Seconds in which at least one actor must have loaded its state."""
_FUNCTIONS = 8
"""Functions that an actor keeps, with what they have found out."""


class Actor:
    """What runs on the cluster: a state, and the functions that are called with it."""

    def __init__(self) -> None:
        self._state: Any = None
        self._functions: dict[int, Callable[[Any, Any], Any]] = {}

    def load(self, make: Callable[[str], Any], device: str) -> Exception | None:
        """Make the state; what went wrong, if anything."""
        if device == "cpu":
            torch.set_num_threads(1)
        try:
            self._state = make(device)
        except Exception as error:  # to be told in one line where the command was given
            return ValueError(reason(error))
        return None

    def work(self, key: int, shared: list[Any], item: Any) -> tuple[Any, Exception | None, list[tuple[str, type]]]:
        """What the function gives for an item, or what it raised, and what it warned of."""
        import ray

        if key not in self._functions:
            if len(self._functions) == _FUNCTIONS:
                del self._functions[next(iter(self._functions))]
            self._functions[key] = ray.get(shared[0])
        with warnings.catch_warnings(record=True) as told:
            try:
                found, error = self._functions[key](self._state, item), None
            except Exception as raised:  # any kind is raised again where the command was given
                found, error = None, raised
        return found, error, [(str(each.message), each.category) for each in told]


@dataclass(kw_only=True, eq=False)
class _Worker:
    """An actor as this process knows it."""

    actor: Any
    loading: Any
    """The reference of its `load`; None once that is done."""
    lost: bool = False


class Cluster(Workers[_State]):
    """Actors, one a replica of a state. To be closed after use; Ray that was started for it ends with it."""

    def __init__(
        self,
        make: Callable[[str], _State],
        *,
        address: str = "auto",
        workers: int | None = None,
        gpus: float | None = None,
    ) -> None:
        """Connect, and have the actors load.

        Args:
            make: makes an actor's state where the actor is, on the device "cuda" or "cpu".
            address: of a Ray cluster; "auto": the one that RAY_ADDRESS names or that runs on this machine, or one that
                is started here.
            workers: how many actors. Unless given, as many as there are GPUs for; without GPUs one a CPU.
            gpus: how many GPUs an actor has, or which part of one; 0 for one CPU and one thread. Unless given, one
                GPU if the cluster has any.

        ValueError where Ray is not installed, and for an address or resources that are not there.
        """
        if find_spec("ray") is None:
            raise ValueError(NEEDS_RAY)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray, self._keys, self._losses = ray, count(), 0
        quiet: Any = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        self._own = not ray.is_initialized()
        if self._own:
            where = running() if address == "auto" else address
            own: Any = {"include_dashboard": False} if where == "local" else {}
            try:
                ray.init(address=where, **quiet, **own)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"no Ray cluster answers at {where!r} ({reason(error)}): start one with `ray start --head`, or "
                    "give auto; one that asks for a token is joined with RAY_AUTH_MODE=token and its token in "
                    "RAY_AUTH_TOKEN or ~/.ray/auth_token"
                ) from None
        there = ray.cluster_resources()
        gpus = float("GPU" in there) if gpus is None else gpus
        what, each = ("GPU", gpus) if gpus else ("CPU", 1)
        self.count = int(there.get(what, 0) / each) if workers is None else workers
        if self.count < 1 or there.get(what, 0) < each:
            self.close()
            raise ValueError(f"a worker needs {each:g} {what}, and the cluster has {there.get(what, 0):g}")
        resources: Any = {"num_cpus": 1, "num_gpus": gpus}
        self._remote = ray.remote(**resources)(Actor)
        self._make, self._device = ray.put(make), "cuda" if gpus else "cpu"
        self._workers = [self._begin() for _ in range(self.count)]

    def _begin(self) -> _Worker:
        actor = self._remote.remote()
        return _Worker(actor=actor, loading=actor.load.remote(self._make, self._device))

    def wait(self) -> None:
        """Until all have loaded, to tell the time that this takes from the time of work."""
        while any(worker.loading is not None for worker in self._workers):
            self._wait({}, deque(), {})

    def close(self) -> None:
        """End the actors, and Ray if it was started or connected to by this."""
        for worker in getattr(self, "_workers", ()):
            self._ray.kill(worker.actor)
        if self._own:
            self._ray.shutdown()

    def map(
        self, function: Callable[[_State, _Item], _Result], items: Iterable[_Item], *, ahead: int = AHEAD
    ) -> Generator[_Result, None, None]:
        """As `Workers.map` says. What a lost actor had in hand is done by others, and another is started in its place.
        What an item raises or warns of comes when its turn has come, so that all before it are kept.

        RuntimeError where the same item has taken several actors with it, and where none is left.
        """
        key, shared = next(self._keys), [self._ray.put(function)]
        left, again = enumerate(items), deque[tuple[int, Any, int]]()
        running: dict[Any, tuple[_Worker, int, Any, int]] = {}
        done: dict[int, tuple[Any, Exception | None, list[tuple[str, type]]]] = {}
        at, more = 0, True
        try:
            while True:
                while (worker := self._free(running)) is not None:
                    if again:
                        index, item, lost = again.popleft()
                    elif more and len(done) + len(running) + len(again) < ahead * self.count:
                        index, item = next(left, (-1, None))
                        if index < 0:
                            more = False
                            break
                        lost = 0
                    else:
                        break
                    reference = worker.actor.work.remote(key, shared, item)
                    running[reference] = (worker, index, item, lost)
                if at in done:
                    found, error, told = done.pop(at)
                    for message, category in told:
                        warnings.warn(message, category, stacklevel=2)
                    if error is not None:
                        raise error
                    yield found
                    at += 1
                elif not running and not again and not more:
                    return
                else:
                    self._wait(running, again, done)
        finally:
            for reference in running:
                self._ray.cancel(reference)

    def _free(self, running: dict[Any, tuple[_Worker, int, Any, int]]) -> _Worker | None:
        """The loaded actor with the least in hand of a map, if it can take more."""
        busy = Counter(worker for worker, *_ in running.values())
        ready = [worker for worker in self._workers if worker.loading is None and busy[worker] < _DEPTH]
        return min(ready, key=lambda worker: busy[worker], default=None)

    def _wait(self, running: dict[Any, Any], again: deque[tuple[int, Any, int]], done: dict[int, Any]) -> None:
        """Until something is done or loaded, or an actor is lost."""
        ray = self._ray
        loading = {worker.loading: worker for worker in self._workers if worker.loading is not None}
        ready, _ = ray.wait([*running, *loading], timeout=_PATIENCE)
        if not ready and len(loading) == self.count:
            raise RuntimeError(f"none of {self.count} workers has loaded within {_PATIENCE:.0f} s: {_GOING_ON}")
        for reference in ready:
            if reference in loading:
                self._loaded(loading[reference])
                continue
            worker, index, item, lost = running.pop(reference)
            try:
                done[index] = ray.get(reference)
            except ray.exceptions.RayTaskError:  # what cannot be sent, or is raised by Ray
                raise
            except ray.exceptions.RayError:
                if lost + 1 == _LOSSES:
                    raise RuntimeError(
                        f"{_LOSSES} workers were lost with the same work, perhaps since memory ran out: {_GOING_ON}"
                    ) from None
                again.append((index, item, lost + 1))
                self._replace(worker)

    def _loaded(self, worker: _Worker) -> None:
        try:
            error = self._ray.get(worker.loading)
        except self._ray.exceptions.RayError:
            self._losses += 1
            if self._losses == _LOSSES:
                raise RuntimeError(
                    f"{_LOSSES} workers were lost while they loaded, perhaps since memory ran out: {_GOING_ON}"
                ) from None
            self._replace(worker)
            return
        if error is not None:
            raise ValueError(f"a worker of the cluster cannot start: {error}")
        worker.loading, self._losses = None, 0

    def _replace(self, worker: _Worker) -> None:
        if worker.lost:
            return
        worker.lost = True
        self._workers[self._workers.index(worker)] = self._begin()
        warnings.warn("a worker of the cluster was lost; what it was doing is done again", stacklevel=4)


_GOING_ON = "use fewer workers, or more memory; the same command goes on"
