"""How the time of tracing grows with facts, tokens and layers, by the fast engine and cell by cell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.studies.benchmarking import seconds, shallower
from workbench.studies.tracing_speed import Traced

AXES = ("facts", "tokens", "layers")
"""What grows."""
ENGINES = ("published", "plain", "fast")
SITE = {"facts": "mlp_out", "tokens": "resid_post", "layers": "resid_post"}
"""What is restored: with more facts what locates a layer, the MLPs at the last subject token, else every cell."""
FACTS_BY_CELL = 10
"""Facts whose time cell by cell is measured; that of more is judged by them."""


def grow(
    model: Model, facts: Sequence[Fact], sizes: Mapping[str, Sequence[int]], *, window: int, samples: int, cells: int
) -> Iterator[dict[str, Any]]:
    """A row for each size along each axis: the seconds of each of `ENGINES`."""
    for axis, some in sizes.items():
        for size in some:
            traced = _traced(axis, size, model, facts, window=window, samples=samples)
            site, place = SITE[axis], len(traced) / min(len(traced), FACTS_BY_CELL)
            traced[0].fast((site,))  # warms up
            taken = {"fast": seconds(partial(_all_fast, traced, site), model.device)}
            for protocol in ("plain", "published"):
                by_cell = [each.by_cell(protocol, site, cells)[0] for each in traced[:FACTS_BY_CELL]]
                taken[protocol] = place * sum(by_cell)
            grown = traced[0].n_pos if axis == "tokens" else size
            yield {"axis": axis, "asked": size, "size": grown, "seconds": taken, "samples": samples}


def _all_fast(traced: Sequence[Traced], site: str) -> None:
    for each in traced:
        each.fast((site,))


def _traced(axis: str, size: int, model: Model, facts: Sequence[Fact], *, window: int, samples: int) -> list[Traced]:
    """What is traced for one size; it does not matter whether the model knows it."""
    one = partial(Traced, window=window, samples=samples)
    if axis == "facts":
        return [one(model=model, fact=fact, seed=n, positions="last_subject") for n, fact in enumerate(facts[:size])]
    if axis == "tokens":
        return [one(model=model, fact=of_length(model, facts[0], size), seed=0)]
    return [one(model=shallower(model, size), fact=facts[0], seed=0)]


def of_length(model: Model, fact: Fact, tokens: int) -> Fact:
    """The fact in the shortest prompt of at least so many tokens that begins with its subject."""
    for words in range(tokens):
        found = replace(fact, template="{} is" + " very" * words)
        if model.tokenize([found.prompt]).ids.shape[1] >= tokens:
            break
    return found


def exponent(sizes: Sequence[int], taken: Sequence[float]) -> float:
    """k of the law seconds ~ size^k by least squares over the logarithms; NaN for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(taken), 1)[0])


def growth_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A line an engine and axis: seconds at each size, and the exponent."""
    lines = []
    for axis in AXES:
        some = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["size"])
        sizes = [row["size"] for row in some]
        for engine in ENGINES if some else ():
            taken = [row["seconds"][engine] for row in some]
            told = "; ".join(f"{size}: {each:.2f}" for size, each in zip(sizes, taken, strict=True))
            lines.append(
                {"Over": axis, "How": engine, "Size: seconds": told, "Exponent": f"{exponent(sizes, taken):.2f}"}
            )
    return pd.DataFrame(lines)
