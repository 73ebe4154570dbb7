"""Measure: score the edits of a run, into its evaluations, tables and figures."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.figures.scores import score_figure
from workbench.machine.failures import FAILURES, reason
from workbench.machine.processes import Processes, Workers, several
from workbench.machine.progress import track
from workbench.measuring.evaluate import evaluate
from workbench.measuring.scores import FLUENCY_TOKENS, Evaluation
from workbench.measuring.summaries import Summary, summarise
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.identity import AFRESH
from workbench.runs.run import Run
from workbench.studies.before import Before
from workbench.tables import scores as tables


def score_edits(
    run: Run,
    model: Model,
    edits: Iterable[tuple[Record, Edit]],
    *,
    records: Sequence[Record],
    seed: int,
    fluency: int | None = None,
    workers: Workers[Model] | None = None,
) -> list[Evaluation]:
    """Score every record before and after its edit, one line of `evaluations.jsonl` each, then tables and figures.

    `records` are all that were to be edited; the first `fluency` of them have texts sampled, which takes most of the
    time; None for all. `workers`, of the same model, score several at once. A record that cannot be scored is kept as
    failed. The weights are compared bit for bit after every record: RuntimeError if they did not come back exactly.
    ValueError if no record is left, or where one was scored with another edit.
    """
    untouched, failed = state_fingerprint(model), run.failed()
    sampled = {record.case_id for record in records[:fluency]}
    finished = {row["case_id"]: row for row in run.rows("evaluations")}
    method = ""
    left = [one for one in records if one.case_id not in finished and one.case_id not in failed]
    options: dict[int, dict[str, Any]] = {
        one.case_id: {"seed": seed, "fluency_tokens": FLUENCY_TOKENS if one.case_id in sampled else None}
        for one in left
    }
    given: deque[tuple[Record, str]] = deque()

    def pairs() -> Iterator[tuple[Record, Edit]]:
        nonlocal method
        for record, edit in track(edits, "Editing and scoring", len(records)):
            method = edit.method
            if finished.get(record.case_id, {}).get("edit", edit.digest) != edit.digest:
                raise ValueError(f"'{run.folder}' holds scores of another edit of record {record.case_id}: {AFRESH}")
            if record.case_id in options:
                given.append((record, edit.digest))
                yield record, edit

    crew, before = workers or Processes(state=model), None
    if not several(workers):  # several score each record before its edit themselves
        before = Before(model=model, records=left, options=lambda record: options[record.case_id])
    for evaluation in crew.map(partial(_score, untouched, options, before), pairs()):
        record, made = given.popleft()
        if isinstance(evaluation, str):
            run.fail(record.case_id, evaluation, of=len(records))
            continue
        about = {"method": method, "request": asdict(record.request), "edit": made}
        finished[record.case_id] = evaluation.to_dict() | about
        run.append("evaluations", finished[record.case_id])
    evaluations = [Evaluation.from_dict(row) for row in finished.values()]
    if not evaluations:
        whys = {row["reason"] for row in run.rows("failures")}
        raise ValueError(
            f"none of the {len(records)} records could be edited and scored: {'; '.join(sorted(whys)[:3])}"
        )
    _show_scores(run, {method: summarise(evaluations, seed=seed)})
    return evaluations


def _score(
    untouched: str,
    options: Mapping[int, dict[str, Any]],
    before: Before | None,
    model: Model,
    pair: tuple[Record, Edit],
) -> Evaluation | str:
    """Of a record before and after its edit, or why it cannot be scored; RuntimeError if weights did not come back."""
    record, edit = pair
    try:
        pre = None if before is None else before(record)
        found = evaluate(model, edit, record, pre=pre, **options[record.case_id])
        if before is not None:
            before.drop(record)
    except FAILURES as error:
        found = reason(error)
    check_restored(model, untouched, after=f"the edit of record {record.case_id}")
    return found


def _show_scores(run: Run, summaries: dict[str, Summary]) -> None:
    batch = run.settings.get("batch")
    together = (
        f" Each {batch} records were written as one edit and are scored with all of it; prompts whose right answer "
        "another of its requests changes are left out."
        if batch
        else ""
    )
    for label, table in {
        "scores": tables.main_table(summaries),
        "generation": tables.generation_table(summaries),
        "accuracy": tables.accuracy_table(summaries),
        "change": tables.change_table(summaries),
    }.items():
        run.save_table(label, replace(table, caption=table.caption + together))
    run.save_figure("scores", score_figure(summaries), caption="Scores before and after the edits.")
    for method, summary in summaries.items():
        run.note(
            method=method,
            records_edited=summary.n,
            scores={metric: summary.post[metric].to_dict() for metric in ("S", "ES", "PS", "NS")},
        )
