"""Locate: trace facts into a run folder, and find the layer whose MLPs mediate them."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.edits.edit import Edit
from workbench.machine.processes import Workers
from workbench.machine.progress import track
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact, Record
from workbench.runs.run import Run
from workbench.studies.defaults import default_window
from workbench.studies.edit import edit_path
from workbench.studies.located import HEAT_MAPS, Located, show_location
from workbench.tracing.asked import ENGINES
from workbench.tracing.averages import average_effects, mediating_layer
from workbench.tracing.fact import trace_fact
from workbench.tracing.known import NOT_KNOWN
from workbench.tracing.noise import Noise, NoiseRule, fact_generator, subject_span
from workbench.tracing.positions import POSITIONS, Positions, parse_positions
from workbench.tracing.sweep import TraceSet, default_workers, trace_facts
from workbench.tracing.trace import CausalTrace
from workbench.tracing.until_sure import Samples


def check_tracing(positions: Positions, engine: str, *, layer_needed: bool = False) -> None:
    """ValueError for positions or an engine that mean nothing; with `layer_needed` also for single positions."""
    if engine not in ENGINES:
        raise ValueError(f"--engine is one of {', '.join(ENGINES)}, got {engine!r}")
    if not isinstance(parse_positions(positions), str) and layer_needed:
        raise ValueError(
            f"--positions {positions} need not hold the last subject tokens, which say the layer: give --layer, or "
            f"--positions {', '.join(POSITIONS[:-1])} or {POSITIONS[-1]}"
        )


def locate(
    run: Run,
    model: Model,
    facts: Mapping[int, Fact],
    *,
    limit: int,
    seed: int,
    window: int,
    samples: Samples = 10,
    noise: str = "s3",
    workers: int | Workers[Model] | None = None,
    **form: Any,
) -> Located:
    """Trace the first `limit` facts, find the mediating layer, and save traces, figures and tables.

    `facts` are by `case_id` (`true_facts`, `read_cases`), which links a trace to its record whatever their order. Those
    traced in an earlier, interrupted run are read. `noise` is the short form of a rule (`NoiseRule.parse`), fitted to
    the subjects of all facts. `workers` are facts traced at once (`default_workers` unless given), or who traces them.
    `form` goes on to `trace_fact`: positions, span, severed, metric, engine, ... A fact that cannot be traced is kept
    as failed. ValueError if the model knows none of the facts.
    """
    cases = list(facts)[:limit]
    rows = {row["case_id"]: row for row in run.rows("traces") if row["case_id"] in facts}
    kept = {case: _kept(trace_path(run, case), facts[case]) for case, row in rows.items() if row["known"]}
    rows = {case: row for case, row in rows.items() if not row["known"] or kept[case] is not None}
    form = {"window": window, **form}
    drawn_from = fitted(model, list(facts.values()), noise)
    finished = rows.keys() | run.failed(what="fact")
    left = [index for index, case in enumerate(cases) if case not in finished]
    results = trace_facts(
        model,
        [facts[case] for case in cases],
        seed=seed,
        noise_rule=drawn_from,
        samples=samples,
        done=set(range(len(cases))) - set(left),
        workers=default_workers(model) if workers is None else workers,
        keep_failures=True,
        **form,
    )
    began = time.perf_counter()
    for traced in track(results, "Tracing facts", len(left)):
        case = cases[traced.index]
        if traced.failed:
            run.fail(case, traced.reason, of=len(cases), what="fact")
            continue
        # The noise was drawn by the index, so who traces the fact again needs it.
        row = {"case_id": case, "index": traced.index, "known": traced.trace is not None, "prompt": traced.fact.prompt}
        row["seconds"], began = time.perf_counter() - began, time.perf_counter()
        if traced.trace is not None:
            traced.trace.save(trace_path(run, case))
        run.append("traces", row)
        rows[case] = row
    known = [case for case in facts if rows.get(case, {}).get("known")]
    traces = {case: kept.get(case) or CausalTrace.load(trace_path(run, case)) for case in known}
    skipped = tuple(facts[case] for case in facts if case in rows and case not in traces)
    found = TraceSet(traces=tuple(traces.values()), skipped=skipped, reasons=(NOT_KNOWN,) * len(skipped))
    if not found.traces:
        failed = [row["reason"] for row in run.rows("failures") if row["what"] == "fact"]
        raise unknown(model, len(cases), "trace more of them (--limit, or --traces in a study)", failed)
    averages = tuple(average_effects(found.traces, site) for site in SITES)
    seen = averages[0].counts["last_subject"]
    located = Located(
        found=found,
        traces=traces,
        averages=averages,
        layer=mediating_layer(found.traces) if seen else None,
        facts=facts,
        noise=drawn_from,
        samples=samples,
        seed=seed,
        form=form,
    )
    show_location(run, model, located)
    run.note(seconds_tracing=sum(row.get("seconds", 0.0) for row in run.rows("traces")), samples=samples)
    return located


def trace_path(run: Run, case_id: int, *, after: bool = False) -> Path:
    """Where the trace of a record's fact is kept, or that of the edited model."""
    return run.folder / ("traces_after" if after else "traces") / f"{case_id:05d}.safetensors"


def _kept(path: Path, fact: Fact) -> CausalTrace | None:
    """The trace of a fact from a file; None if there is none or, with a warning, if it is damaged or another's."""
    if not path.exists():
        return None
    try:
        trace = CausalTrace.load(path)
        if trace.fact != fact:
            raise ValueError(f"'{path}' is a trace of {trace.fact.prompt!r}, not of {fact.prompt!r}")
        return trace
    except ValueError as error:
        warnings.warn(f"{error}; it is traced again", stacklevel=3)
        return None


def trace_edited(run: Run, model: Model, records: Sequence[Record], located: Located) -> None:
    """Trace the first few facts that were traced and edited again, on the edited model, exactly as they were traced."""
    edits = {record.case_id: edit_path(run, record) for record in records}
    index = {row["case_id"]: row["index"] for row in run.rows("traces")}
    cases = [case for case in located.traces if case in edits and edits[case].exists()][:HEAT_MAPS]
    for case in track(cases, "Tracing edited facts", len(cases)):
        path, fact, noise = trace_path(run, case, after=True), located.facts[case], located.noise
        if _kept(path, fact) is not None:
            continue
        first, end = subject_span(model, fact)
        samples = located.samples if isinstance(located.samples, int) else located.traces[case].samples
        drawn = noise.draw(samples, end - first, generator=fact_generator(located.seed, index[case]))
        edit = Edit.load(edits[case])
        if edit.redirects:  # it changes nothing of how this model recalls
            continue
        with run.keeping(case, of=len(located.facts), what="fact"), edit.applied(model):
            trace_fact(model, fact, noise=drawn, replace=noise.replace, **located.form).save(path)


def true_facts(records: Sequence[Record]) -> dict[int, Fact]:
    """By `case_id` the facts of those records that state what is true; ValueError if none does."""
    facts = {record.case_id: record.request.fact for record in records if record.request.target_true is not None}
    if not facts:
        raise ValueError("none of the records has a true target, so there is no fact to trace")
    return facts


def find_layer(
    model: Model,
    facts: Sequence[Fact],
    *,
    limit: int = 20,
    seed: int = 0,
    engine: str = "auto",
    workers: Workers[Model] | None = None,
) -> int:
    """The mediating layer of the first `limit` facts, with nothing saved; ValueError if the model knows none.

    Only the cells that say it are computed: those of the MLPs at the last subject token.
    """
    chosen, noise = facts[:limit], fitted(model, facts, str(NoiseRule()))
    traces = trace_facts(
        model, chosen, seed=seed, noise_rule=noise, sites=("mlp_out",), positions="last_subject",
        window=default_window(model), engine=engine, workers=workers or default_workers(model),
        keep_failures=True,
    )  # fmt: skip
    found = TraceSet.collect(track(traces, "Locating", len(chosen)))
    if not found.traces:
        failed = [why for why in found.reasons if why != NOT_KNOWN]
        raise unknown(model, len(chosen), "give the layer to edit (--layer)", failed)
    return mediating_layer(found.traces)


def unknown(model: Model, facts: int, otherwise: str, failed: Sequence[str] = ()) -> ValueError:
    """What to raise where a model knows none of so many facts, some of which may have `failed` for these reasons;
    `otherwise` is what to do unless with other records."""
    if failed:
        others = f", and {model.name} knows none of the others" if len(failed) < facts else ""
        return ValueError(f"{len(failed)} of the {facts} facts could not be traced{others}: {failed[0]}")
    return ValueError(
        f"{model.name} knows none of the {facts} facts traced (its top token is never the answer): choose records that "
        f"it knows, or {otherwise}"
    )


def settled_layer(
    run: Run,
    model: Model,
    records: Sequence[Record],
    *,
    layer: int | None,
    seed: int,
    engine: str = "auto",
    workers: Workers[Model] | None = None,
) -> int:
    """The layer given, the one that an earlier, interrupted run has noted, or one located now; it is noted."""
    if layer is None:
        layer = run.read_json("results.json").get("layer")
    if layer is None:
        facts = [record.request.fact for record in records if record.request.target_true is not None]
        if not facts:
            raise ValueError("none of the records has a true target, so no layer is located: give one with --layer")
        layer = find_layer(model, facts, seed=seed, engine=engine, workers=workers)
    run.note(layer=layer)
    return layer


def fitted(model: Model, facts: Sequence[Fact], noise: str) -> Noise:
    """The noise rule of this short form fitted to all facts but those whose subject the tokenizer cannot take."""
    rule = NoiseRule.parse(noise)
    try:
        return rule.fit(model, facts)
    except ValueError:
        sound = [fact for fact in facts if _tokenises(model, fact.subject)]
        if not sound or len(sound) == len(facts):
            raise
        return rule.fit(model, sound)


def _tokenises(model: Model, text: str) -> bool:
    try:
        model.tokenize([text])
    except ValueError:
        return False
    return True
