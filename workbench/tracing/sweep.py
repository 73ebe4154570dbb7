"""Tracing many facts, of which those that a model does not know are skipped, so that it can be stopped and resumed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from workbench.machine.failures import FAILURES, reason
from workbench.machine.processes import Processes, Workers, can_fork, check_workers
from workbench.machine.shown import Shown, html_table
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.tracing.fact import trace_fact
from workbench.tracing.known_traces import KnownFacts, alike, in_parts
from workbench.tracing.noise import Noise, NoiseRule
from workbench.tracing.positions import Positions, parse_positions
from workbench.tracing.trace import CausalTrace, trace_view
from workbench.tracing.until_sure import AUTO, Samples, check_samples

_FAILED = "failed with "
_PUBLISHED = NoiseRule()
_TOGETHER = 16
"""Facts of like shape that a GPU traces in one wavefront."""
_AHEAD = 8
"""Times as many facts are looked through for such."""
_SMALL = 1024
"""Width of a model up to which processes of one thread are sooner done than threads."""


@dataclass(frozen=True, kw_only=True)
class TracedFact:
    """What became of one fact: its trace, or why there is none."""

    index: int
    """The fact's place in the sequence that was given."""
    fact: Fact
    """The fact."""
    trace: CausalTrace | None
    """Its trace; None for a fact that was skipped."""
    reason: str = ""
    """Why a fact without a trace was skipped; empty for a traced one."""

    @property
    def failed(self) -> bool:
        """Whether tracing it raised an error, which `reason` names."""
        return self.trace is None and self.reason.startswith(_FAILED)


@dataclass(frozen=True, kw_only=True)
class TraceSet(Shown):
    """The traces of the facts that were traced, and the facts that were skipped."""

    traces: tuple[CausalTrace, ...]
    """In the facts' order."""
    skipped: tuple[Fact, ...]
    """Facts whose object the model does not predict, or that have no partner to be corrupted with, in the
    facts' order; `len(skipped)` counts them."""
    reasons: tuple[str, ...] = ()
    """Why, one a skipped fact."""

    def __repr__(self) -> str:
        return f"TraceSet({len(self.traces):,} traces, {len(self.skipped):,} facts skipped)"

    def _repr_html_(self) -> str:
        """The traces as heat maps to choose from, for notebooks."""
        return trace_view(self.traces) if self.traces else html_table(repr(self), [])

    @classmethod
    def collect(cls, results: Iterable[TracedFact]) -> "TraceSet":
        """Run through results of `trace_facts`, in any order, and part traced facts from skipped ones."""
        ordered = sorted(results, key=lambda result: result.index)
        skipped = [result for result in ordered if result.trace is None]
        return cls(
            traces=tuple(result.trace for result in ordered if result.trace is not None),
            skipped=tuple(result.fact for result in skipped),
            reasons=tuple(result.reason for result in skipped),
        )


def trace_facts(
    model: Model,
    facts: Sequence[Fact],
    *,
    seed: int,
    noise_rule: NoiseRule | Noise = _PUBLISHED,
    samples: Samples = 10,
    positions: Positions = "all",
    foils: Sequence[int] | None = None,
    done: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
    method: Callable[..., CausalTrace] = trace_fact,
    workers: int | Workers[Model] = 1,
    together: int | None = None,
    keep_failures: bool = False,
    **options: Any,
) -> Iterator[TracedFact]:
    """Trace facts; those that the model does not know come back with `trace=None`.

    A fact's noise depends on `seed` and its index alone, so a run that leaves out the indices `done` gives
    what the uninterrupted run gives for the others. `TraceSet.collect` gathers the results and the skipped
    facts.

    Args:
        noise_rule: how subjects are corrupted. A rule is fitted to all the facts, also to those that are done or
            not known; noise that was fitted already is taken as it is.
        samples: how many corrupted runs are averaged; "auto": as many as each fact needs (`trace_sampled`), of which
            the first n are those of n samples.
        positions: tokens of each prompt that are traced (`traced_positions`).
        foils: one token id a fact, for the metric "logit_difference".
        done: indices of facts to leave out, since their results are kept from an earlier run.
        progress: called with (facts finished, all facts) after every fact, `done` counted as finished.
        method: what traces one fact: `trace_fact`, or `attribute_fact` for its first-order estimate.
        workers: facts traced at once, each in a process of one thread (Linux, models on the CPU); of small models
            n workers trace more than n threads do (`default_workers`). Each takes the method's `memory` for itself. Or
            who traces them: the replicas of this model in a cluster.
        together: at most so many facts of one `shape_of` are traced in one wavefront (`trace_alike`); by default on a
            GPU, which waits for launches, 16, and elsewhere 1. One by one go other methods than `trace_fact`, the plain
            engine, samples "auto", and facts that fail together.
        keep_failures: a fact that raises one of `FAILURES` comes back with the error as its reason (`failed`).
        options: further arguments of the method: sites, window, span, severed, metric, engine, ...

    Raises ValueError at the call, before the first fact, for an empty set of facts, positions that
    mean nothing, other than one foil a fact, and several workers on a GPU or another system than Linux.
    """
    if isinstance(workers, int):
        check_workers(workers, model.device)
        workers = Processes(state=model, count=workers)
    if together is None:
        together = _TOGETHER if model.device.type == "cuda" else 1
    if together < 1:
        raise ValueError(f"together must be at least 1 fact, got {together}")
    check_samples(samples)
    positions = parse_positions(positions)
    if foils is not None and len(foils) != len(facts):
        raise ValueError(f"tracing needs one foil a fact, got {len(foils)} for {len(facts)} facts")
    check_facts(facts)
    noise = noise_rule.fit(model, facts) if isinstance(noise_rule, NoiseRule) else noise_rule
    trace = KnownFacts(
        facts=facts, noise=noise, seed=seed, samples=samples, foils=foils, done=done, method=method,
        options={"positions": positions, **options},
    )  # fmt: skip
    fast = method is trace_fact and options.get("engine") != "plain" and options.get("severed_noise") is None
    if together == 1 or samples == AUTO or not fast:
        return sweep(facts, trace, done=done, progress=progress, workers=workers, keep_failures=keep_failures)
    todo = [index for index in range(len(facts)) if index not in done]
    parts = [alike(model, facts, part, positions, together) for part in in_parts(todo, _AHEAD * together)]
    return _sweep_groups(facts, trace, parts, workers=workers, progress=progress, keep_failures=keep_failures)


def sweep(
    facts: Sequence[Fact],
    trace: Callable[[Model, int], CausalTrace | str],
    *,
    workers: Workers[Model],
    done: Collection[int],
    progress: Callable[[int, int], None] | None,
    keep_failures: bool = False,
) -> Iterator[TracedFact]:
    """What `trace` makes of each fact that is not done, by index: a trace, or the reason why there is none."""
    alone = [[[index]] for index in range(len(facts)) if index not in done]
    return _sweep_groups(facts, trace, alone, workers=workers, progress=progress, keep_failures=keep_failures)


def _sweep_groups(
    facts: Sequence[Fact],
    trace: Callable[[Model, int], CausalTrace | str],
    parts: Sequence[Sequence[Sequence[int]]],
    *,
    workers: Workers[Model],
    progress: Callable[[int, int], None] | None,
    keep_failures: bool,
) -> Iterator[TracedFact]:
    """As `sweep`, of groups of facts that `KnownFacts` traces together; each part's facts come in order."""
    groups = [group for part in parts for group in part]
    results = workers.map(partial(_attempt_group, trace, keep_failures), groups)
    finished = len(facts) - sum(map(len, groups))
    for part in parts:
        found: dict[int, CausalTrace | str] = {}
        for group in part:
            found |= zip(group, next(results), strict=True)
        for index in sorted(found):
            finished += 1
            if progress is not None:
                progress(finished, len(facts))
            each = found[index]
            traced, why = (None, each) if isinstance(each, str) else (each, "")
            yield TracedFact(index=index, fact=facts[index], trace=traced, reason=why)


def _attempt_group(
    trace: Callable[[Model, int], CausalTrace | str], keep_failures: bool, model: Model, group: Sequence[int]
) -> list[CausalTrace | str]:
    if len(group) > 1 and isinstance(trace, KnownFacts):
        try:
            return trace.together(model, group)
        except FAILURES:
            pass  # which of them it is shows when they go one by one
    return [_attempt(trace, keep_failures, model, index) for index in group]


def _attempt(
    trace: Callable[[Model, int], CausalTrace | str], keep_failures: bool, model: Model, index: int
) -> CausalTrace | str:
    try:
        return trace(model, index)
    except FAILURES as error:
        if not keep_failures:
            raise
        return failure(error)


def failure(error: BaseException) -> str:
    """The reason of a `TracedFact` whose tracing raised the error."""
    return f"{_FAILED}{reason(error)}"


def default_workers(model: Model) -> int:
    """As many as there are threads for a small model on a CPU (Linux); 1 where matrices keep all threads busy."""
    small = model.d_model <= _SMALL and can_fork(model.device)
    return torch.get_num_threads() if small else 1


def check_facts(facts: Sequence[Fact]) -> None:
    """ValueError for an empty set of facts."""
    if not facts:
        raise ValueError("tracing needs at least one fact, got none")
