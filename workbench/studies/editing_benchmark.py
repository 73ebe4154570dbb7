"""The search for an edit's values, plain and fast: which one editors use, what it takes, and what of an edit it is."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.editors import rome, spread
from workbench.editors.search.fast_values import optimise_values
from workbench.editors.search.values import OptimisedValue, optimise_value
from workbench.models.model import Model
from workbench.records.facts import EditRequest
from workbench.studies.benchmarking import seconds


@dataclass(kw_only=True)
class Watch:
    """What the searches for values took and found."""

    seconds: float = 0.0
    values: list[OptimisedValue] = field(default_factory=list)


@contextmanager
def searching(search: Callable[..., list[OptimisedValue]], device: torch.device) -> Iterator[Watch]:
    """Editors find their values by `search` within the block; its seconds and what it finds are kept."""
    watch = Watch()

    def watched(*arguments: Any, **options: Any) -> list[OptimisedValue]:
        found: list[OptimisedValue] = []
        watch.seconds += seconds(lambda: found.extend(search(*arguments, **options)), device)
        watch.values += found
        return found

    modules: Sequence[Any] = (rome, spread)
    before = [module.optimise_values for module in modules]
    try:
        for module in modules:
            module.optimise_values = watched
        yield watch
    finally:
        for module, original in zip(modules, before, strict=True):
            module.optimise_values = original


def one_by_one(
    model: Model, requests: Sequence[EditRequest], templates: Sequence[Sequence[str]], **options: Any
) -> list[OptimisedValue]:
    """The plain search, request after request."""
    return [optimise_value(model, request, each, **options) for request, each in zip(requests, templates, strict=True)]


SEARCHES = {"fast": optimise_values, "plain": one_by_one}
"""The searches by name."""


def seconds_a_request(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over repeats of the seconds a request with each search, and of the part that is the search.

    The rest of an edit is that of the fast one for both, a request. Ratios are medians of the ratios of each repeat,
    in which both searches have the same requests.
    """
    found: dict[str, float] = {}
    for search in SEARCHES:
        found[f"{search}_values"] = statistics.median(row[search]["values"] / row[search]["requests"] for row in rows)
    rests = [(row["fast"]["whole"] - row["fast"]["values"]) / row["fast"]["requests"] for row in rows]
    found["rest"] = statistics.median(rests)
    for search in SEARCHES:
        found[search] = found[f"{search}_values"] + found["rest"]
    values = [[row[search]["values"] / row[search]["requests"] for search in ("plain", "fast")] for row in rows]
    found["values_ratio"] = statistics.median(plain / fast for plain, fast in values)
    edits = [(plain + rest, fast + rest) for (plain, fast), rest in zip(values, rests, strict=True)]
    found["ratio"] = statistics.median(plain / fast for plain, fast in edits)
    return found
