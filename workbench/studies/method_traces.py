"""Facts traced in several ways into a run folder, by `case_id`: what is done is read, what fails is kept as failed."""

import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.atlas.card import held_out_facts
from workbench.atlas.world import World
from workbench.machine.progress import track
from workbench.models.model import Model
from workbench.records.facts import Fact, ends_with_subject
from workbench.records.reading import read_cases
from workbench.runs.run import Run
from workbench.studies.defaults import records_path
from workbench.studies.tracing_methods import MethodResult, TracingMethod, draw_partners, method_result
from workbench.tracing.trace import CausalTrace

PARTNERS = 4
"""Further facts whose subjects may take the place of a fact's own."""
Traces = dict[int, CausalTrace]
"""By `case_id` of the fact."""


def choose_facts(model: Model, records: str, limit: int, seed: int) -> tuple[dict[int, Fact], list[Fact]]:
    """The facts to trace by `case_id`, and further ones in the same templates whose subjects may take their subjects'
    places.

    Held-out facts of the atlas, which have no `case_id`, are numbered by their place among them. A fact whose prompt
    ends with its subject is left out, with a warning: recall and read-out cannot be told apart there.
    """
    if records == "atlas":
        world = World.load()
        facts = dict(enumerate(held_out_facts(world, limit)))
        asked = dict.fromkeys((fact.relation, fact.template) for fact in facts.values())
        others: Iterable[Fact] = (
            Fact(subject=subject, template=template, object=world.facts[subject][relation], relation=relation)
            for relation, template in asked
            for subject in world.subjects
            if relation in world.facts[subject]
        )
    else:
        every = read_cases(records_path(records))
        if ending := [case for case, fact in every.items() if ends_with_subject(fact.template)]:
            every = {case: fact for case, fact in every.items() if case not in set(ending)}
            warnings.warn(f"{len(ending)} prompts end with their subject and are left out", stacklevel=2)
        facts, others = dict(islice(every.items(), limit)), every.values()
    return facts, draw_partners(model, list(facts.values()), others, most=PARTNERS, seed=seed)


def trace(
    run: Run,
    model: Model,
    method: TracingMethod,
    facts: Mapping[int, Fact],
    partners: Sequence[Fact] = (),
    *,
    only: Collection[int] | None = None,
) -> None:
    """Trace what is not done yet of the facts of the cases `only` (all unless given).

    A fact that cannot be traced is kept as failed, and is not tried in other ways: all are compared on the same facts.
    """
    cases = list(facts)
    finished = {row["case_id"] for row in _rows(run, method)} | run.failed(what="fact")
    wanted = set(cases if only is None else only)
    left = [index for index, case in enumerate(cases) if case in wanted - finished]
    if not left:
        return
    done = set(range(len(cases))) - set(left)
    results = method.trace(model, list(facts.values()), partners=partners, seed=run.settings["seed"], done=done)
    began = time.perf_counter()
    for traced in track(results, method.name, len(left)):
        case, seconds = cases[traced.index], time.perf_counter() - began
        if traced.failed:
            run.fail(case, traced.reason, of=len(cases), what="fact")
        else:
            if traced.trace is not None:
                traced.trace.save(_path(run, method, case))
            known = traced.trace is not None
            row = {"method": method.key, "case_id": case, "known": known, "reason": traced.reason}
            run.append("traced", row | {"seconds": seconds})
        began = time.perf_counter()


def traces(run: Run, method: TracingMethod, facts: Iterable[int]) -> Traces:
    """What a method has found of facts, in their order: of those that it could trace and that never failed."""
    known = _seconds(run, method)
    return {case: CausalTrace.load(_path(run, method, case)) for case in facts if case in known}


def results(
    run: Run, methods: Iterable[TracingMethod], facts: Mapping[int, Fact], *, planted: range | None
) -> dict[str, MethodResult]:
    """By the name of each method that could trace any of the facts, what it says about them."""
    found = {}
    for method in methods:
        if some := traces(run, method, facts):
            seconds = _seconds(run, method)
            times = [seconds[case] for case in some]
            found[method.name] = method_result(list(some.values()), planted=planted, seconds=times)
    return found


def _rows(run: Run, method: TracingMethod) -> list[dict[str, Any]]:
    return [row for row in run.rows("traced") if row["method"] == method.key]


def _seconds(run: Run, method: TracingMethod) -> dict[int, float]:
    """By case, of the facts that the method has traced and that failed in no way, how long each took."""
    failed = run.failed(what="fact")
    return {r["case_id"]: r["seconds"] for r in _rows(run, method) if r["known"] and r["case_id"] not in failed}


def _path(run: Run, method: TracingMethod, case: int) -> Path:
    return run.folder / "traces" / method.key / f"{case:05d}.safetensors"
