"""Records edited one at a time: each edit is made on the unedited model, scored and taken back, here or by workers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from workbench.editors.editor import Editor
from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.machine.failures import FAILURES, reason
from workbench.machine.processes import Processes, Workers, several
from workbench.machine.progress import track
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.ahead import Ahead, lot_size, searches

Scored = TypeVar("Scored")
Score = Callable[[Model, Edit, Record], Scored]
"""What is made of a record's edit, which is not applied yet; where several work, it travels to them."""


def each_alone(
    run: Run,
    model: Model,
    editor: Editor,
    records: Sequence[Record],
    score: Score[Scored],
    *,
    title: str,
    of: int,
    method: str,
    together: int = 1,
    workers: Workers[Model] | None = None,
) -> Iterator[tuple[Record, float, Scored]]:
    """Each record with the seconds of its edit and what `score` made of it, in order, as it is asked for.

    A record whose edit or score fails is kept as failed, of so many, with that method. RuntimeError if the weights did
    not come back bit for bit.

    Args:
        together: records whose edits are searched at once.
        workers: who edits and scores, of the same model; each takes so many records at a time.
    """
    others = workers if several(workers) else None
    ahead = None if others else Ahead(model=model, editor=editor, records=records, together=together)
    size = lot_size(len(records), together, others.count) if others and searches(editor) else 1
    lots = [records[begin : begin + size] for begin in range(0, len(records), size)]
    work = partial(_lot, state_fingerprint(model), editor, score, ahead, method)
    found = chain.from_iterable((others or Processes(state=model)).map(work, lots))
    for record, one in zip(track(records, title, len(records)), found, strict=True):
        if isinstance(one, str):
            run.fail(record.case_id, one, of=of, method=method)
        else:
            yield record, *one


def _lot(
    untouched: str,
    editor: Editor,
    score: Score[Scored],
    ahead: Ahead | None,
    method: str,
    model: Model,
    records: Sequence[Record],
) -> list[tuple[float, Scored] | str]:
    """Of each record the seconds and the score, or why there is none."""
    make = ahead or Ahead(model=model, editor=editor, records=records, together=len(records))
    found: list[tuple[float, Scored] | str] = []
    for record in records:
        try:
            edit, seconds = make(record)
            found.append((seconds, score(model, edit, record)))
        except FAILURES as error:
            found.append(reason(error))
        check_restored(model, untouched, after=f"the edit of record {record.case_id} with {method}")
    return found
