"""How long the tracing of a fact takes: by the fast engine, and cell by cell by the plain one and as published."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from workbench.machine.cost import cost
from workbench.machine.precision import float32_products
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.studies.benchmarking import floating_point_operations, seconds
from workbench.studies.published_protocol import PublishedRuns
from workbench.tracing.cells import Cell, grid
from workbench.tracing.corruption import Corruption
from workbench.tracing.fact import trace_fact
from workbench.tracing.measure import make_measure
from workbench.tracing.noise import gaussian_noise, subject_span
from workbench.tracing.plain import PlainRuns
from workbench.tracing.trace import CausalTrace

TOGETHER = "all three"
"""The sites traced in one wavefront."""
GROUPS: dict[str, Sequence[str]] = {**{site: (site,) for site in SITES}, TOGETHER: SITES}
NOISE = 0.1
"""Standard deviation of the noise; the time does not depend on it."""


@dataclass(kw_only=True)
class Traced:
    """A fact with its noise, traced in whatever way is asked for."""

    model: Model
    fact: Fact
    window: int
    samples: int
    seed: int
    positions: str = "all"
    """Of the fast engine's cells, and of those that the others are sampled from."""

    def __post_init__(self) -> None:
        first, end = subject_span(self.model, self.fact)
        generator = torch.Generator().manual_seed(self.seed)
        self.noise = gaussian_noise(NOISE, self.samples, end - first, self.model.d_model, generator=generator)
        self.tokens = self.model.tokenize([self.fact.prompt])
        self.n_pos = self.tokens.ids.shape[1]
        self.places = {"all": range(self.n_pos), "last_subject": range(end - 1, end)}[self.positions]
        self.corruption = Corruption(first=first, noise=self.noise)

    def fast(self, sites: Sequence[str]) -> CausalTrace:
        """By the fast engine."""
        return trace_fact(
            self.model, self.fact, noise=self.noise, window=self.window, sites=sites, engine="fast",
            positions=self.positions,
        )  # fmt: skip

    def cells(self, site: str) -> list[Cell]:
        """All cells of a site, as `fast` has them."""
        shape = {"n_layers": self.model.n_layers, "n_pos": self.n_pos, "positions": self.places}
        return list(grid(site, window=self.window, **shape))

    def runs(self, protocol: str) -> PlainRuns | PublishedRuns:
        """What makes a forward pass a cell ("plain"), 256 rows a pass ("plain batched"), or as the papers' code does
        ("published")."""
        if protocol == "published":
            return PublishedRuns(self.model, self.tokens, self.corruption)
        rows = self.samples if protocol == "plain" else 256
        return PlainRuns(self.model, self.tokens, self.corruption, batch_size=rows)

    def by_cell(self, protocol: str, site: str, most: int) -> tuple[float, torch.Tensor, list[int]]:
        """Seconds that all cells of a site would take, judged by so many of them that lie evenly spread, the values of
        these, and which they are."""
        cells, some, found = self.cells(site), spread(len(self.cells(site)), most), []
        work = self.cell_work(protocol, [cells[index] for index in some])
        taken = seconds(lambda: found.append(work()), self.model.device)
        return taken * self.passes(protocol, len(cells)) / self.passes(protocol, len(some)), found[0], some

    def cell_work(self, protocol: str, cells: Sequence[Cell]) -> Callable[[], torch.Tensor]:
        """What finds the values of some cells; what is the same for all facts' cells is made before."""
        runs, measure = self.runs(protocol), make_measure("probability", clean=self.clean, answer=self.answer)
        return lambda: runs.values(cells, measure)

    @staticmethod
    def passes(protocol: str, cells: int) -> int:
        """How many forward passes so many cells take one by one; the plain engine has one in front for all of them."""
        return cells if protocol == "published" else cells + 1

    @property
    def answer(self) -> int:
        """The clean run's top token."""
        return int(self.clean.argmax())

    @cached_property
    def clean(self) -> torch.Tensor:
        """Logits of the clean run."""
        with torch.no_grad():
            return self.model.logits(self.tokens, keep_last=1)[0, -1]


def spread(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count` things, evenly spread."""
    number = min(count, most)
    return [int((index + 0.5) * count / number) for index in range(number)]


def timed(
    model: Model, fact: Fact, number: int, *, window: int, samples: int, repeats: int, cells: int
) -> dict[str, Any]:
    """Seconds by what is restored and engine, a value a repeat; floating-point operations, launches and memory; the
    largest difference of the fast engine's values from those found cell by cell.

    `cells` is the number of cells of a site that are timed cell by cell.
    """
    traced = Traced(model=model, fact=fact, window=window, samples=samples, seed=number)
    times: dict[str, dict[str, list[float]]] = {label: {} for label in GROUPS}
    found: dict[str, CausalTrace] = {}

    def fast(label: str) -> None:
        taken = seconds(lambda: found.update({label: traced.fast(GROUPS[label])}), model.device)
        times[label].setdefault("fast", []).append(taken)

    def by_cell(label: str, protocol: str) -> tuple[torch.Tensor, list[int]]:
        taken, values, some = traced.by_cell(protocol, label, cells)
        times[label].setdefault(protocol, []).append(taken)
        return values, some

    # Counting also warms up. Cell by cell there are as many passes for every site, whatever is restored.
    flop = {label: floating_point_operations(partial(traced.fast, sites)) for label, sites in GROUPS.items()}
    every = len(traced.cells(SITES[0]))
    one_cell = {way: traced.cell_work(way, traced.cells(SITES[0])[-1:]) for way in ("plain", "published")}
    share = {way: traced.passes(way, every) / traced.passes(way, 1) for way in one_cell}
    plain_flop = int(share["plain"] * floating_point_operations(one_cell["plain"]))
    difference = 0.0
    for _ in range(repeats):
        for site in SITES:
            by = [by_cell(site, protocol) for protocol in ("plain", "published")]
            fast(site)
            for values, some in by:
                ours = found[site].restored[site].flatten()[some]
                difference = max(difference, (ours - values).abs().max().item())
        fast(TOGETHER)
        by_cell(SITES[0], "plain batched")
    for protocol in ("plain", "published"):
        pairs = zip(*(times[site][protocol] for site in SITES), strict=True)
        times[TOGETHER][protocol] = [sum(each) for each in pairs]
    one = {
        protocol: cost(partial(traced.by_cell, protocol, SITES[0], 1), model.device)
        for protocol in ("plain", "published")
    }
    whole = cost(partial(traced.fast, SITES), model.device)
    return {
        "times": times,
        "fast_flop": flop,
        "plain_flop": plain_flop,
        "difference": difference,
        "tokens": traced.n_pos,
        "cells": [min(cells, every), every],
        "launches": {
            "fast": whole.launches,
            **{way: int(len(SITES) * share[way] * each.launches) for way, each in one.items()},
        },
        "bytes": {"fast": whole.bytes, **{protocol: each.bytes for protocol, each in one.items()}},
    }


def to_float32(model: Model, reference: Model, fact: Fact, number: int, *, window: int, samples: int) -> dict[str, Any]:
    """What a precision changes of what locates a fact: the largest difference of a probability from those of the
    `reference`, the same model in float32, and whether the layer is the same."""
    form = {"fact": fact, "window": window, "samples": samples, "seed": number, "positions": "last_subject"}
    found = Traced(model=model, **form).fast(("mlp_out",))
    with float32_products():
        exact = Traced(model=reference, **form).fast(("mlp_out",))
    effects = [one.effect_at("mlp_out", one.last_subject).float() for one in (found, exact)]
    values = [torch.cat([one.restored["mlp_out"][0].float(), torch.tensor([one.clean])]) for one in (found, exact)]
    same = bool(effects[0].argmax() == effects[1].argmax())
    return {"difference": (values[0] - values[1]).abs().max().item(), "same_layer": same}
