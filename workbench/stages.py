"""The steps of a study - locate, edit and measure - each into a run folder, so that each can be stopped and resumed."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import track

from workbench import tables
from workbench.atlas.world import TRACE_WINDOW, World, sample_texts
from workbench.editors import making
from workbench.editors.making import check_editor as check_editor
from workbench.edits import Edit
from workbench.evaluation import Evaluation, Summary, evaluate, summarise
from workbench.facts import Fact, Record
from workbench.figures.lens import lens_figure
from workbench.figures.plotting import ROLE_LABELS
from workbench.figures.study import average_effect_figure, score_figure, trace_heatmap
from workbench.files import CACHE as CACHE
from workbench.ledger import check_restored
from workbench.models import ATLAS, SITES, Model
from workbench.runs import Run
from workbench.scores import FLUENCY_TOKENS
from workbench.studies.published import published_effects
from workbench.texts import read_texts, self_texts
from workbench.tracing import (
    ENGINES,
    NOT_KNOWN,
    POSITIONS,
    ROLES,
    AverageEffect,
    CausalTrace,
    Noise,
    NoiseRule,
    TracedFact,
    TraceSet,
    answer_token,
    average_effects,
    average_lens,
    default_workers,
    fact_generator,
    logit_lens,
    mediating_layer,
    parse_positions,
    subject_span,
    trace_fact,
    trace_facts,
)
from workbench.tracing.positions import Positions

PUBLISHED_WINDOW = 10
"""Layers restored together for MLPs and attention (Meng et al. 2022)."""
RECORDS = {"atlas": ATLAS, "smollm2": ATLAS.with_name("smollm2")}
"""Folders of the records that come with the workbench, by the model that knows their facts."""
SHOWN_TOKENS = 12
"""Tokens generated to show a single edit."""
HEAT_MAPS = 3
"""Single facts whose heat maps a run shows."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """What tracing a set of facts shows."""

    found: TraceSet
    averages: tuple[AverageEffect, ...]
    """By site, in the order of `SITES`."""
    layer: int | None
    """The layer whose MLPs mediate recall at the last subject token: handed to the editors. None where no fact was
    traced there."""
    facts: tuple[Fact, ...]
    """All facts, also those beyond the limit; a trace's index counts these."""
    noise: Noise
    """What subjects were corrupted with, fitted once: `trace_edited` takes it from here."""
    samples: int
    """Noise samples a fact."""
    seed: int
    """Of the noise."""
    form: Mapping[str, Any]
    """What else `trace_fact` was given."""


def records_path(name: str) -> Path:
    """The file of records that a name stands for: "atlas" or "smollm2" for its evaluation records, else a path."""
    return RECORDS[name] / "records_evaluation.json" if name in RECORDS else Path(name)


def default_records(model: str) -> str:
    """The records used unless told: the embedded model's own for it, else those worded as pretrained models speak."""
    return "atlas" if model == "atlas" else "smollm2"


def statistics_texts(model: Model, name: str, *, seed: int) -> list[str]:
    """Texts over which an MLP's keys are averaged: "atlas" for what the embedded model was trained on, "self" for what
    the model itself says (`self_texts`), else see `read_texts`."""
    if name == "self":
        return self_texts(model, seed=seed, cache=CACHE)
    return sample_texts(World.load()) if name == "atlas" else read_texts(name)


def planted_layers(model: Model) -> range | None:
    """The layers that the embedded model was trained to recall in; None for any other model."""
    if model.name != "atlas":
        return None
    planted = json.loads((ATLAS / "model" / "training.json").read_text(encoding="utf-8"))["recipe"]["planted"]
    return range(planted[0], planted[-1] + 1)


def default_window(model: Model) -> int:
    """Ten layers as published for GPT2-XL and GPT-J; fewer on the embedded model, which has ten in all."""
    return TRACE_WINDOW if model.name == "atlas" else PUBLISHED_WINDOW


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
    facts: Sequence[Fact],
    *,
    limit: int,
    seed: int,
    window: int,
    samples: int = 10,
    noise: str = "s3",
    workers: int | None = None,
    **form: Any,
) -> Located:
    """Trace the first `limit` facts, find the mediating layer, and save traces, figures and tables.

    `noise` is the short form of a rule (`NoiseRule.parse`), fitted to the subjects of all `facts`. Facts traced in
    an earlier, interrupted run are read. `workers` are facts traced at once (`default_workers` unless given). `form`
    goes on to `trace_fact`: positions, span, severed, metric, engine, ... A fact that cannot be traced is kept as
    failed.
    ValueError if the model knows none of the facts.
    """

    def path(index: int) -> Path:
        return run.folder / "traces" / f"{index:05d}.safetensors"

    known = {row["index"]: row["known"] for row in run.rows("traces")}
    earlier = [
        TracedFact(index=index, fact=facts[index], trace=CausalTrace.load(path(index)))
        if ok
        else TracedFact(index=index, fact=facts[index], trace=None, reason=NOT_KNOWN)
        for index, ok in known.items()
    ]
    chosen, form = facts[:limit], {"window": window, **form}
    fitted = _fitted(model, facts, noise)
    failed = run.failed(what="fact")
    results = trace_facts(
        model,
        chosen,
        seed=seed,
        noise_rule=fitted,
        samples=samples,
        done=known.keys() | failed,
        workers=default_workers(model) if workers is None else workers,
        keep_failures=True,
        **form,
    )
    new, began = [], time.perf_counter()
    for traced in progress(results, "Tracing facts", len(chosen) - len(known.keys() | failed)):
        if traced.failed:
            run.fail(traced.index, traced.reason, of=len(chosen), what="fact")
            continue
        row = {"index": traced.index, "known": traced.trace is not None, "prompt": traced.fact.prompt}
        row["seconds"], began = time.perf_counter() - began, time.perf_counter()
        if traced.trace is not None:
            traced.trace.save(path(traced.index))
        run.append("traces", row)
        new.append(traced)
    found = TraceSet.collect([*earlier, *new])
    if not found.traces:
        raise ValueError(
            f"{model.name} knows none of the {len(chosen)} facts traced (its top token is never the answer): "
            "choose records that it knows, or raise --limit"
        )
    averages = tuple(average_effects(found.traces, site) for site in SITES)
    seen = averages[0].counts["last_subject"]
    located = Located(
        found=found,
        averages=averages,
        layer=mediating_layer(found.traces) if seen else None,
        facts=tuple(facts),
        noise=fitted,
        samples=samples,
        seed=seed,
        form=form,
    )
    _show_location(run, model, located)
    run.note(seconds_tracing=sum(row.get("seconds", 0.0) for row in run.rows("traces")), samples=samples)
    return located


def trace_edited(run: Run, model: Model, records: Sequence[Record], located: Located) -> None:
    """Trace the first few facts that were traced and edited again, on the edited model, exactly as they were traced."""
    edits = {r.request.fact: edit_path(run, r) for r in reversed(records) if r.request.target_true is not None}
    indices = [
        index
        for index, fact in enumerate(located.facts)
        if fact in edits and edits[fact].exists() and (run.folder / "traces" / f"{index:05d}.safetensors").exists()
    ]
    for index in progress(indices[:HEAT_MAPS], "Tracing edited facts", len(indices[:HEAT_MAPS])):
        path, fact, noise = (
            run.folder / "traces_after" / f"{index:05d}.safetensors",
            located.facts[index],
            located.noise,
        )
        if path.exists():
            continue
        first, end = subject_span(model, fact)
        drawn = noise.draw(located.samples, end - first, generator=fact_generator(located.seed, index))
        with run.keeping(index, of=len(located.facts), what="fact"), Edit.load(edits[fact]).applied(model):
            trace_fact(model, fact, noise=drawn, replace=noise.replace, **located.form).save(path)


def follow_answers(run: Run, model: Model, edits: Iterable[tuple[Record, Edit]]) -> None:
    """The logit lens on every edited prompt before and after its edit: the first one, and the average, as figures.

    Records without a true target are left out, and those whose answers begin with no token of their own.
    """
    befores, afters = [], []
    for record, edit in edits:
        request = record.request
        if request.target_true is None:
            continue
        answers = [request.target_true, request.target_new]
        if None not in (answer_token(model, request.prompt, answer, request.separator) for answer in answers):
            befores.append(logit_lens(model, request, answers))
            with edit.applied(model):
                afters.append(logit_lens(model, request, answers))
    if not befores:
        return
    what = {"prompt": f"Average over {len(befores)} prompts", "targets": ("old answer", "new answer")}
    figures = {
        "lens_average": (average_lens(befores, **what), average_lens(afters, **what)),
        "lens_1": (befores[0], afters[0]),
    }
    for name, (before, after) in figures.items():
        caption = "Mean probability and geometric mean rank." if name == "lens_average" else f"“{before.prompt}”."
        run.save_figure(name, lens_figure(before, after), caption=f"Logit lens before and after the edit. {caption}")


def _fitted(model: Model, facts: Sequence[Fact], noise: str) -> Noise:
    """The noise rule fitted to all facts but those whose subject the tokenizer cannot take."""
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


def _show_location(run: Run, model: Model, located: Located) -> None:
    planted = planted_layers(model)
    traces, mlp = located.found.traces, located.averages[SITES.index("mlp_out")]
    counted = f"{len(traces)} facts that {model.name} knows ({len(located.found.skipped)} skipped: not known)"
    if any(mlp.counts.values()):  # tokens before the subject have no role
        run.save_figure(
            "average_effects",
            average_effect_figure(located.averages, planted=planted),
            caption=f"Average indirect effect of restoring one state (MLP and attention: windows of {mlp.window} "
            f"layers) over {counted}; bands are 95 % intervals over facts. Average total effect {mlp.total:.3f}.",
        )
        run.save_table(
            "average_effects",
            _average_table(located.averages),
            caption=f"Largest average indirect effect by site and token role, over {counted}; ± is half of a 95 % "
            f"interval (Student's t). Average total effect {mlp.total:.3f} ± {mlp.total_half_width:.3f}.",
        )
    for number, trace in enumerate(traces[:HEAT_MAPS], start=1):
        some = f" Traced at {len(trace.positions)} of {len(trace.tokens)} tokens."
        run.save_figure(
            f"trace_{number}",
            trace_heatmap(trace),
            caption=f"Causal trace of “{trace.fact.prompt}”. Subject tokens carry a star."
            + some * (len(trace.positions) < len(trace.tokens)),
        )
    published, source = published_effects()
    run.save_table("published_effects", published, caption=source)
    run.note(
        layer=located.layer,
        window=mlp.window,
        facts_traced=len(traces),
        facts_skipped=len(located.found.skipped),
        total_effect=mlp.total,
        peak_effect=None if located.layer is None else float(mlp.row("last_subject").max()),
        planted=list(planted) if planted else None,
    )


def _average_table(averages: Sequence[AverageEffect]) -> pd.DataFrame:
    """The largest average effect by site and role."""
    lines = [
        {
            "Site": average.site,
            "Role": ROLE_LABELS[role],
            "Facts": average.counts[role],
            "Peak layer": int(average.row(role).argmax()),
            "Average indirect effect": f"{average.row(role).max():.3f}"
            f" ± {average.half_width[index][average.row(role).argmax()]:.3f}",
        }
        for average in averages
        for index, role in enumerate(ROLES)
        if average.counts[role]
    ]
    return pd.DataFrame(lines)


def default_text(model: Model) -> str:
    """What `statistics_texts` reads for a model unless told: without a hub for the models at hand, else wikitext."""
    return {"atlas": "atlas", "smollm2": "self"}.get(model.name, "wikitext")


def true_facts(records: Sequence[Record]) -> list[Fact]:
    """The facts of those records that state what is true; ValueError if none does."""
    facts = [record.request.fact for record in records if record.request.target_true is not None]
    if not facts:
        raise ValueError("none of the records has a true target, so there is no fact to trace")
    return facts


def find_layer(model: Model, facts: Sequence[Fact], *, limit: int = 20, seed: int = 0, engine: str = "auto") -> int:
    """The mediating layer of the first `limit` facts, with nothing saved; ValueError if the model knows none.

    Only the cells that say it are computed: those of the MLPs at the last subject token.
    """
    chosen, noise = facts[:limit], _fitted(model, facts, str(NoiseRule()))
    traces = trace_facts(
        model, chosen, seed=seed, noise_rule=noise, sites=("mlp_out",), positions="last_subject",
        window=default_window(model), engine=engine, workers=default_workers(model),
        keep_failures=True,
    )  # fmt: skip
    return mediating_layer(TraceSet.collect(progress(traces, "Locating", len(chosen))).traces)


def settled_layer(
    run: Run,
    model: Model,
    records: Sequence[Record],
    *,
    layer: int | None,
    seed: int,
    engine: str = "auto",
) -> int:
    """The layer given, the one that an earlier, interrupted run has noted, or one located now; it is noted."""
    if layer is None:
        layer = run.read_json("results.json").get("layer")
    if layer is None:
        layer = find_layer(model, true_facts(records), seed=seed, engine=engine)
    run.note(layer=layer)
    return layer


def make_editor(
    model: Model,
    method: str,
    *,
    layer: int,
    text: str,
    seed: int,
    preset_of: str | None = None,
    **changes: Any,
) -> Any:
    """`editors.making.make_editor` with second moments over what `text` stands for, kept in `.cache/`."""
    texts = statistics_texts(model, text, seed=seed) if making.needs_moments(method) else ()
    return making.make_editor(
        model, method, layer=layer, texts=texts, seed=seed, cache=CACHE, preset_of=preset_of, **changes
    )


def edit_path(run: Run, record: Record) -> Path:
    """Where `edit_records` keeps a record's edit."""
    return run.folder / "edits" / f"{record.case_id}.safetensors"


def edit_records(run: Run, model: Model, editor: Any, records: Sequence[Record]) -> Iterator[tuple[Record, Edit]]:
    """Make and save one edit a record, or read the one that is there; the model is left as it is.

    A record that cannot be edited is kept as failed (`Run.keeping`) and left out.
    """
    failed, untouched = run.failed(), model.fingerprint()
    for record in records:
        if record.case_id in failed:
            continue
        path, edit = edit_path(run, record), None
        with run.keeping(record.case_id, of=len(records)):
            edit = Edit.load(path) if path.exists() else editor(model, [record.request])
        if edit is None:
            check_restored(model, untouched, after=f"the edit of record {record.case_id}, which failed")
            continue
        if not path.exists():
            edit.save(path)
        yield record, edit


def load_edits(run: Run, records: Sequence[Record]) -> Iterator[tuple[Record, Edit]]:
    """The edits that `edit_records` saved, of the records that have not failed."""
    failed = run.failed()
    for record in records:
        if record.case_id not in failed:
            yield record, Edit.load(edit_path(run, record))


def show_edit(console: Console, model: Model, record: Record, edit: Edit) -> None:
    """Print what the model says to the request's prompt before and after the edit (greedy)."""
    prompt = record.request.prompt
    before = model.generate([prompt], max_new_tokens=SHOWN_TOKENS)[0]
    with edit.applied(model):
        after = model.generate([prompt], max_new_tokens=SHOWN_TOKENS)[0]
    console.print(f"Prompt  {prompt}\nBefore {before}\nAfter  {after}", markup=False, highlight=False)


def score_edits(
    run: Run,
    model: Model,
    edits: Iterable[tuple[Record, Edit]],
    *,
    total: int,
    seed: int,
    fluency: int | None = None,
) -> list[Evaluation]:
    """Score every record before and after its edit, one line of `evaluations.jsonl` each, then tables and figures.

    `fluency` is how many of the records have texts sampled for it, which takes most of the time; None for all. A
    record that cannot be scored is kept as failed. The weights are compared bit for bit after every record:
    RuntimeError if they did not come back exactly. ValueError if no record is left.
    """
    untouched, failed = model.fingerprint(), run.failed()
    finished = {row["case_id"]: row for row in run.rows("evaluations")}
    method = ""
    for number, (record, edit) in enumerate(progress(edits, "Editing and scoring", total)):
        method = edit.method
        if record.case_id in finished or record.case_id in failed:
            continue
        evaluation = None
        with run.keeping(record.case_id, of=total):
            sampled = FLUENCY_TOKENS if fluency is None or number < fluency else None
            evaluation = evaluate(model, edit, record, fluency_tokens=sampled, seed=seed)
        check_restored(model, untouched, after=f"the edit of record {record.case_id}")
        if evaluation is None:
            continue
        finished[record.case_id] = evaluation.to_dict() | {"method": method, "request": asdict(record.request)}
        run.append("evaluations", finished[record.case_id])
    evaluations = [Evaluation.from_dict(row) for row in finished.values()]
    if not evaluations:
        whys = {row["reason"] for row in run.rows("failures")}
        raise ValueError(f"none of the {total} records could be edited and scored: {'; '.join(sorted(whys)[:3])}")
    _show_scores(run, {method: summarise(evaluations, seed=seed)})
    return evaluations


def _show_scores(run: Run, summaries: dict[str, Summary]) -> None:
    for label, table in {
        "scores": tables.main_table(summaries),
        "generation": tables.generation_table(summaries),
        "accuracy": tables.accuracy_table(summaries),
        "change": tables.change_table(summaries),
    }.items():
        run.save_table(label, table)
    run.save_figure("scores", score_figure(summaries), caption="Scores before and after the edits.")
    for method, summary in summaries.items():
        run.note(
            method=method,
            records_edited=summary.n,
            scores={metric: summary.post[metric].to_dict() for metric in ("S", "ES", "PS", "NS")},
        )


def progress(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
    """The items with a progress bar that shows the time left."""
    return track(items, label, total=total)
