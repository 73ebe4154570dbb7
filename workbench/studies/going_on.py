"""Edits kept together, one of which may fail: the record is kept as failed, and the others are made without it."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import Steps
from workbench.machine.failures import FAILURES, reason
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.run import Run


class Refused(Exception):
    """Records could not be taken together; its cause says why."""

    def __init__(self, records: Sequence[Record], alone: Callable[[Record], object]) -> None:
        super().__init__(f"{len(records)} records could not be taken together")
        self.records = records
        """Those among which the fault lies."""
        self.alone = alone
        """Does the same with one record, to see whether it is at fault."""


def failing(method: str, edits: int) -> str:
    """With what a record fails among so many edits, as it may not with fewer beside it."""
    return f"{method} at {edits:,} edits"


def sound(run: Run, records: Sequence[Record], method: str = "") -> list[Record]:
    """The records that have not failed, neither for all methods nor for this one."""
    failed = run.failed() | run.failed(method=method)
    return [record for record in records if record.case_id not in failed]


def complete(run: Run, row: Mapping[str, Any], method: str = "") -> bool:
    """Whether the records of `row["left_out"]` count as failed still: after `Run.retry` it is to be made again."""
    return set(row["left_out"]) <= run.failed() | run.failed(method=method)


def left_out(records: Sequence[Record], some: Sequence[Record]) -> list[int]:
    """The cases of the records that are not among some of them, for a row's "left_out"."""
    there = {record.case_id for record in some}
    return [record.case_id for record in records if record.case_id not in there]


def made(steps: Steps, records: Sequence[Record]) -> Iterator[tuple[Edit, Sequence[Record]]]:
    """The edits of a sequence of the records' requests, each with its records, as it is made; `Refused` for a chunk
    that the editor cannot take."""
    while (begin := steps.done) < len(records):
        saved = steps.folder is not None and any(steps.folder.glob(f"{begin:05d}-*"))
        try:
            edit = next(steps)
        except FAILURES as error:
            if saved:  # what is wrong is the file, not the record
                raise
            part = records[begin : begin + steps.chunk]
            raise Refused(part, lambda record: steps.editor(steps.model, [record.request])) from error
        yield edit, records[begin : steps.done]


@contextmanager
def refusing(records: Sequence[Record], alone: Callable[[Record], object]) -> Iterator[None]:
    """`Refused` where the block, which does with all the records what `alone` does with one, cannot take them."""
    try:
        yield
    except FAILURES as error:
        raise Refused(records, alone) from error


def going_on(
    run: Run,
    model: Model,
    records: Sequence[Record],
    attempt: Callable[[Sequence[Record]], Iterator[Any]],
    *,
    method: str,
    of: int | None = None,
    folder: Path | None = None,
) -> Iterator[Any]:
    """What `attempt` yields of the records that can be edited together; nothing if none is left.

    Where it raises `Refused`, those at fault are kept as failed with `method` (`Run.fail`), as of so many, and it is
    tried without them. `folder`, if there is one, holds the edits of its sequence, which is another one from then on.
    """
    untouched = state_fingerprint(model)
    while left := sound(run, records, method):
        try:
            yield from attempt(left)
            return
        except Refused as refused:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            _keep(run, refused, method=method, of=of or len(records))
            check_restored(model, untouched, after=f"edits{f' with {method}' if method else ''}, one of which failed")


def _keep(run: Run, refused: Refused, *, method: str, of: int) -> None:
    """Keep as failed the records that fail alone too; all of them if none does."""
    before = run.failed(method=method)
    if len(refused.records) > 1:
        for record in refused.records:
            with run.keeping(record.case_id, of=of, method=method):
                refused.alone(record)
    if run.failed(method=method) == before:
        for record in refused.records:
            run.fail(record.case_id, reason(refused.__cause__ or refused), of=of, method=method)
