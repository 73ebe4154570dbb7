"""Edits of different records searched together, before each is asked for: every one is as if made alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from workbench.editors.editor import Editor
from workbench.edits.edit import Edit
from workbench.machine.failures import FAILURES
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record


@dataclass(kw_only=True)
class Ahead:
    """The edits of records, made for so many at once (`Editor.each`) when the first of them is asked for."""

    model: Model
    """As it is when an edit is asked for: unedited."""
    editor: Editor | Callable[[Model, Sequence[EditRequest]], Edit]
    """With 1 record together, whatever makes an edit will do."""
    records: Sequence[Record]
    """In the order in which they are asked for."""
    together: int = 1
    """Records whose edits are made at once."""
    _made: dict[int, tuple[Edit, float]] = field(default_factory=dict)
    _alone: set[int] = field(default_factory=set)

    def __call__(self, record: Record) -> tuple[Edit, float]:
        """A record's edit, and the seconds that it took: of several made at once an even share. The editor's errors;
        where one of several fails, each is made alone, and those of the others do not tell of it."""
        at = self._places.get(record.case_id)
        if at is not None and record.case_id not in self._made and record.case_id not in self._alone:
            self._make(self.records[at : at + self.together])
        if record.case_id in self._made:
            return self._made.pop(record.case_id)
        began = time.perf_counter()
        edit = self.editor(self.model, [record.request])
        return edit, time.perf_counter() - began

    @cached_property
    def _places(self) -> dict[int, int]:
        return {record.case_id: index for index, record in enumerate(self.records)}

    def _make(self, some: Sequence[Record]) -> None:
        began, cases = time.perf_counter(), [record.case_id for record in some]
        searches = isinstance(self.editor, Editor) and type(self.editor).each is not Editor.each
        if len(some) > 1 and searches:  # others would gain nothing, and a stopped run lose more
            try:
                edits = self.editor.each(self.model, [record.request for record in some])
            except FAILURES:
                pass  # which of them it is shows when each is made alone
            else:
                seconds = (time.perf_counter() - began) / len(some)
                self._made = {case: (edit, seconds) for case, edit in zip(cases, edits, strict=True)}
                return
        self._alone.update(cases)


def shared(together: int) -> str:
    """What a caption says of seconds that are shares."""
    return f" (an even share where {together} are searched at once)" if together > 1 else ""
