"""Edits of different records searched together, before each is asked for: every one is as if made alone."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

from workbench.editors.editor import Editor
from workbench.edits.edit import Edit
from workbench.machine.failures import FAILURES
from workbench.machine.processes import Processes, Workers
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record

Made = tuple[Edit, float]
"""An edit, and the seconds that it took: of several made at once an even share."""


@dataclass(kw_only=True)
class Ahead:
    """The edits of records, made for so many at once (`Editor.each`) when the first of them is asked for.

    Several workers make those of further records meanwhile.
    """

    model: Model
    """As it is when an edit is asked for: unedited."""
    editor: Editor | Callable[[Model, Sequence[EditRequest]], Edit]
    """With 1 record together, whatever makes an edit will do."""
    records: Sequence[Record]
    """In the order in which they are asked for."""
    together: int = 1
    """Records whose edits are made at once."""
    workers: Workers[Model] | None = None
    """Who makes them, of the same model; None for this process."""
    _made: dict[int, Made | Exception] = field(default_factory=dict)
    _begin: int = 0
    """The first record that has not been given to a worker."""
    _end: int = 0
    """Behind the last one that has come back."""

    def __call__(self, record: Record) -> Made:
        """A record's edit, or the editor's errors; where one of several fails, each is made alone, and those of the
        others do not tell of it."""
        at = self._places.get(record.case_id, -1)
        self._begin = max(self._begin, at)  # those before it were not asked for
        while self._end <= at:
            self._made.update(next(self._stream))
        made = self._made.pop(record.case_id, None) or _each(self.editor, self.model, [record])[record.case_id]
        if isinstance(made, Exception):
            raise made
        return made

    @cached_property
    def _places(self) -> dict[int, int]:
        return {record.case_id: index for index, record in enumerate(self.records)}

    @cached_property
    def _stream(self) -> Iterator[dict[int, Made | Exception]]:
        workers = self.workers or Processes(state=self.model)
        for made in workers.map(partial(_each, self.editor), self._lots()):
            self._end = 1 + max(self._places[case] for case in made)
            yield made

    def _lots(self) -> Iterator[Sequence[Record]]:
        # Methods that do not search for many at once would gain nothing, and a stopped run lose more.
        left, count = len(self.records) - self._begin, self.workers.count if self.workers else 1
        size = lot_size(left, self.together, count) if searches(self.editor) else 1
        while self._begin < len(self.records):
            some = self.records[self._begin : self._begin + size]
            self._begin += len(some)
            yield some


def lot_size(number: int, together: int, workers: int) -> int:
    """Records of a lot, at most so many together, such that all workers have as much to do."""
    if workers == 1:
        return together
    rounds = math.ceil(number / (together * workers)) or 1
    return math.ceil(number / (rounds * workers)) or 1


def searches(editor: Any) -> bool:
    """Whether it searches for several at once."""
    return isinstance(editor, Editor) and type(editor).each is not Editor.each


def _each(
    editor: Editor | Callable[[Model, Sequence[EditRequest]], Edit], model: Model, records: Sequence[Record]
) -> dict[int, Made | Exception]:
    """By case the records' edits, or why there is none."""
    began, cases = time.perf_counter(), [record.case_id for record in records]
    if len(records) > 1:
        try:
            edits = cast(Editor, editor).each(model, [record.request for record in records])
            seconds = (time.perf_counter() - began) / len(records)
            return {case: (edit, seconds) for case, edit in zip(cases, edits, strict=True)}
        except FAILURES:
            pass  # which of them it is shows when each is made alone
    found: dict[int, Made | Exception] = {}
    for record in records:
        began = time.perf_counter()
        try:
            edit = editor(model, [record.request])
            found[record.case_id] = edit, time.perf_counter() - began
        except FAILURES as error:
            found[record.case_id] = error
    return found


def shared(together: int) -> str:
    """What a caption says of seconds that are shares."""
    return f" (an even share where {together} are searched at once)" if together > 1 else ""
