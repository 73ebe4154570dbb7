"""One editor on records, one edit at a time: made on the unedited model, scored and taken back."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from workbench.edits.edit import Edit
from workbench.machine.allocator import peak_memory
from workbench.machine.failures import FAILURES
from workbench.machine.processes import Workers, several
from workbench.measuring.evaluate import evaluate
from workbench.measuring.scores import FLUENCY_TOKENS, RecordScores
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.alone import each_alone
from workbench.studies.before import Before
from workbench.studies.edit import make_editor
from workbench.studies.going_on import sound

MEMORY_RECORDS = 3
"""Records whose edits' memory is measured: it hardly differs between them."""


def unedited(run: Run, model: Model, records: Sequence[Record]) -> Before:
    """The scores of records before their edits; the first few have texts sampled."""
    sampled = {record.case_id for record in records[: run.settings["fluency"]]}

    def options(record: Record) -> dict[str, Any]:
        length = FLUENCY_TOKENS if record.case_id in sampled else None
        return {"generate": False, "fluency_tokens": length, "seed": run.settings["seed"]}

    return Before(model=model, records=records, options=options)


def edit_alone(
    run: Run,
    model: Model,
    method: str,
    records: Sequence[Record],
    before: Before,
    making: dict[str, Any],
    together: int,
    workers: Workers[Model] | None = None,
) -> None:
    """Edit and score each record that is not done yet, one at a time; `before` gives the unedited scores."""
    finished = {row["case_id"] for row in run.rows("evaluations") if row["method"] == method}
    left = [record for record in sound(run, records, method) if record.case_id not in finished]
    if not left:
        return
    editor = make_editor(model, method, run=run, **making)
    with suppress(*FAILURES):  # the record is kept as failed below
        editor(model, [left[0].request])  # what an editor prepares once, for all its edits, is no part of an edit
    measured = {row["case_id"] for row in run.rows("memory") if row["method"] == method}
    for record in records:
        if len(measured) < MEMORY_RECORDS and record.case_id not in measured:
            with suppress(*FAILURES):
                _, size = peak_memory(lambda each=record: editor(model, [each.request]), model.device)
                run.append("memory", {"method": method, "case_id": record.case_id, "bytes": size})
                measured.add(record.case_id)
    options: Mapping[int, dict[str, Any]] = {record.case_id: before.options(record) for record in left}
    scored = each_alone(
        run,
        model,
        editor,
        left,
        partial(_scored, before.kept(left) if several(workers) else before, options),
        title=f"Editing with {method}",
        of=len(records),
        method=method,
        together=together,
        workers=workers,
    )
    for record, seconds, found in scored:
        row = {"method": method, "edit_seconds": seconds, "together": together, "request": asdict(record.request)}
        run.append("evaluations", found | row)


def _scored(
    before: Before | Mapping[int, RecordScores],
    options: Mapping[int, dict[str, Any]],
    model: Model,
    edit: Edit,
    record: Record,
) -> dict[str, Any]:
    pre = before(record) if isinstance(before, Before) else before.get(record.case_id)
    scored = evaluate(model, edit, record, pre=pre, **options[record.case_id])
    return scored.to_dict() | {"name": edit.method}
