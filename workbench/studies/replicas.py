"""Who works for a command: this process, forked ones, or replicas of its model in a cluster."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from workbench.editors.plugins import load_plugin
from workbench.edits.ledger import state_fingerprint
from workbench.machine.cluster import Cluster
from workbench.machine.processes import AHEAD, Processes, Workers, check_workers
from workbench.models.loading import load_model
from workbench.models.model import Model

Item = TypeVar("Item")
Result = TypeVar("Result")


class Replicas(Cluster[Model]):
    """Models in a cluster that are what one of this process is: weights, dtype and precision of products."""

    def __init__(
        self,
        model: Model,
        *,
        address: str = "auto",
        workers: int | None = None,
        gpus: float | None = None,
        plugins: Sequence[Path] = (),
    ) -> None:
        """Each worker loads the model by its name, and reads the files of plugins; see `Cluster`."""
        self._model, self._is = model, state_fingerprint(model)
        precision = torch.get_float32_matmul_precision()
        make = partial(_replica, model.name, model.dtype, model.device_map, self._is, precision, [*plugins])
        super().__init__(make, address=address, workers=workers, gpus=gpus)

    def map(
        self, function: Callable[[Model, Item], Result], items: Iterable[Item], *, ahead: int = AHEAD
    ) -> Generator[Result, None, None]:
        """See `Cluster.map`; ValueError where the model here is no longer what the replicas are."""
        if state_fingerprint(self._model) != self._is:
            raise ValueError(
                f"{self._model.name} was edited after the workers of the cluster had loaded it: take its edits back"
            )
        return super().map(function, items, ahead=ahead)


def _replica(
    name: str,
    dtype: torch.dtype,
    device_map: str | None,
    fingerprint: str,
    precision: str,
    plugins: Sequence[Path],
    device: str,
) -> Model:
    """A worker's model; ValueError for other weights than the one has that asks for it."""
    for file in plugins:
        load_plugin(file)
    torch.set_float32_matmul_precision(precision)
    model = load_model(name, device="auto" if device_map else device, dtype=dtype, device_map=device_map)
    if model.fingerprint() != fingerprint:
        raise ValueError(
            f"{name} has other weights there ({model.fingerprint()[:12]}) than here ({fingerprint[:12]}): put the same "
            "files on every machine"
        )
    return model


@contextmanager
def chosen_workers(
    model: Model,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    gpus: float | None = None,
    plugins: Sequence[Path] | None = None,
) -> Iterator[Workers[Model] | None]:
    """Who works within the block: `workers` forked processes, or with a `cluster` as many replicas; None for whatever
    each step of a study does by itself.

    ValueError for what is not there, and for GPUs a worker without a cluster.
    """
    if cluster is None:
        if gpus is not None:
            raise ValueError(f"--gpus-per-worker {gpus:g} is of the workers of a cluster: give --cluster too")
        if workers is not None:
            check_workers(workers, model.device)
        yield None if workers is None else Processes(state=model, count=workers)
        return
    there = Replicas(model, address=cluster, workers=workers, gpus=gpus, plugins=plugins or ())
    try:
        yield there
    finally:
        there.close()
