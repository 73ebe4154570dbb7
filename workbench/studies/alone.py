"""Records one at a time, here or by workers: asked of the unedited model; or edited on it, scored, and taken back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Failed:
    """In place of what a record would have given."""

    reason: str


def each_unedited(
    run: Run,
    model: Model,
    records: Sequence[Record],
    score: Callable[[Model, Record], Scored],
    *,
    title: str,
    of: int,
    method: str = "",
    workers: Workers[Model] | None = None,
) -> Iterator[tuple[Record, Scored]]:
    """Each record with what `score` makes of it and the model as it is, in order, as it is asked for; further as
    `each_alone` says."""
    found = (workers or Processes(state=model)).map(partial(_asked, score), records)
    yield from _kept(run, records, found, title=title, of=of, method=method)


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
    for record, (seconds, scored) in _kept(run, records, found, title=title, of=of, method=method):
        yield record, seconds, scored


def _kept(
    run: Run, records: Sequence[Record], found: Iterable[Scored | _Failed], *, title: str, of: int, method: str
) -> Iterator[tuple[Record, Scored]]:
    """Each record with what was found; those without are kept as failed."""
    for record, one in zip(track(records, title, len(records)), found, strict=True):
        if isinstance(one, _Failed):
            run.fail(record.case_id, one.reason, of=of, method=method)
        else:
            yield record, one


def _asked(score: Callable[[Model, Record], Scored], model: Model, record: Record) -> Scored | _Failed:
    try:
        return score(model, record)
    except FAILURES as error:
        return _Failed(reason(error))


def _lot(
    untouched: str,
    editor: Editor,
    score: Score[Scored],
    ahead: Ahead | None,
    method: str,
    model: Model,
    records: Sequence[Record],
) -> list[tuple[float, Scored] | _Failed]:
    """Of each record the seconds and the score, or why there is none."""
    make = ahead or Ahead(model=model, editor=editor, records=records, together=len(records))
    found: list[tuple[float, Scored] | _Failed] = []
    for record in records:
        try:
            edit, seconds = make(record)
            found.append((seconds, score(model, edit, record)))
        except FAILURES as error:
            found.append(_Failed(reason(error)))
        check_restored(model, untouched, after=f"the edit of record {record.case_id} with {method}")
    return found
