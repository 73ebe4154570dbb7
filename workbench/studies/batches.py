"""Batches: one edit for each so many records, written together, saved, and handed out with the records it is of."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from workbench.editors.editor import Editor
from workbench.editors.registry import EDITORS
from workbench.edits.edit import Edit
from workbench.machine.failures import FAILURES
from workbench.machine.processes import Processes, Workers
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.edit import kept_edit, load_edit
from workbench.studies.going_on import going_on, refusing, sound
from workbench.studies.stacked_edits import untouched


def edit_batches(
    run: Run,
    model: Model,
    editor: Editor,
    records: Sequence[Record],
    *,
    size: int,
    workers: Workers[Model] | None = None,
) -> Iterator[tuple[Sequence[Record], Edit]]:
    """Make and save one edit for each `size` records, on the unedited model, or read those that are there.

    A record that cannot be edited is kept as failed, and its batch is written without it. `workers`, of the same model,
    make several batches at once.
    """
    parts = {batch_path(run, part): part for part in _parts(records, size)}
    left = {path: some for path, part in parts.items() if not path.exists() and (some := sound(run, part))}
    written = (workers or Processes(state=model)).map(partial(_written, editor), left.values())
    for path, part in parts.items():
        ready = next(written) if path in left else None
        attempt = partial(_attempt, path, model, editor, ready)
        yield from going_on(run, model, part, attempt, method="", of=len(records))


def check_batches(method: str) -> None:
    """ValueError for a method that writes one request at a time."""
    if not EDITORS[method].batches:
        some = ", ".join(name for name, editor in EDITORS.items() if editor.batches)
        raise ValueError(f"{method} writes one request at a time: leave --batch out, or take --method {some}")


def saved_batches(run: Run, records: Sequence[Record], *, size: int) -> list[Record]:
    """Of the records that a run was to edit, those whose batch is written."""
    return [record for part in _parts(records, size) if batch_path(run, part).exists() for record in part]


def load_batches(run: Run, records: Sequence[Record], *, size: int) -> Iterator[tuple[Record, Edit]]:
    """Each record that has not failed with the edit of its batch; ValueError for a damaged one.

    Records come without the prompts whose right answers the batch's other requests change (`untouched`).
    """
    for part in _parts(records, size):
        if some := sound(run, part):
            edit = load_edit(batch_path(run, part), some)
            for record in untouched(some, edit.requests):
                yield record, edit


def batch_path(run: Run, records: Sequence[Record]) -> Path:
    """Where the edit of a batch is kept; of its records also those that failed count."""
    return run.folder / "edits" / f"batch-{records[0].case_id}.safetensors"


def _parts(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    return (records[begin : begin + size] for begin in range(0, len(records), size))


def _written(editor: Editor, model: Model, records: Sequence[Record]) -> Edit | None:
    """The edit of a batch; None where it cannot be made, of which `_attempt` finds the reason."""
    try:
        return editor(model, [record.request for record in records])
    except FAILURES:
        return None


def _attempt(
    path: Path, model: Model, editor: Editor, ready: Edit | None, records: Sequence[Record]
) -> Iterator[tuple[Sequence[Record], Edit]]:
    edit = kept_edit(path, records)
    if edit is None:
        wanted = tuple(record.request for record in records)
        edit = ready if ready is not None and ready.requests == wanted else None
        if edit is None:
            with refusing(records, lambda record: editor(model, [record.request])):
                edit = editor(model, wanted)
        edit.save(path)
    yield records, edit
