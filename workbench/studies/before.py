"""Scores of records before their edits, many of them in one batch: they are all of the same model."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from workbench.machine.failures import FAILURES
from workbench.machine.progress import track
from workbench.measuring.evaluate import score_state, score_states
from workbench.measuring.scores import RecordScores
from workbench.models.model import Model
from workbench.records.facts import Record

AT_ONCE = 16
"""Records scored together; a stopped run loses no more."""


@dataclass(kw_only=True)
class Before:
    """What records score on the unedited model, found for so many at once when the first of them is asked for."""

    model: Model
    """As it is when scores are asked for: unedited."""
    records: Sequence[Record]
    """In the order in which they are asked for."""
    options: Callable[[Record], dict[str, Any]]
    """What `score_state` is given for a record."""
    _found: dict[int, RecordScores] = field(default_factory=dict)
    _alone: set[int] = field(default_factory=set)

    def __call__(self, record: Record) -> RecordScores:
        """A record's scores, which are kept; where several cannot be scored together, each is scored alone, so that
        those of the others do not tell of it."""
        if record.case_id not in self._found:
            self._find(record)
        if record.case_id not in self._found:
            self._found[record.case_id] = score_state(self.model, record, **self.options(record))
        return self._found[record.case_id]

    def kept(self, records: Sequence[Record]) -> dict[int, RecordScores]:
        """By case those of records that can be scored: other processes do not find them anew for each edit."""
        found: dict[int, RecordScores] = {}
        for record in track(records, "Scoring the unedited model", len(records)):
            with suppress(*FAILURES):  # it fails there too
                found[record.case_id] = self(record)
        return found

    def drop(self, record: Record) -> None:
        """Forget a record's scores, which nobody will ask for again."""
        self._found.pop(record.case_id, None)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {record.case_id: index for index, record in enumerate(self.records)}

    def _find(self, record: Record) -> None:
        at = self._places.get(record.case_id)
        if at is None or self.records[at] != record or record.case_id in self._alone:  # it may lack prompts by now
            return
        options = self.options(record)
        some = [one for one in self.records[at : at + AT_ONCE] if self.options(one) == options]
        some = [one for one in some if one.case_id not in self._found]
        try:
            found = score_states(self.model, some, **options)
        except FAILURES:
            self._alone.update(one.case_id for one in some)
            return
        self._found |= {one.case_id: scores for one, scores in zip(some, found, strict=True)}
