"""Edits searched together are those made alone, each on the unedited model, and one that fails does not take others."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_records import capital
from safetensors.torch import load_file

from workbench.editors.alphaedit import AlphaEdit
from workbench.editors.editor import Editor
from workbench.editors.emmet import EMMET
from workbench.editors.ft import FT
from workbench.editors.memit import MEMIT
from workbench.editors.pmet import PMET
from workbench.editors.registry import EDITORS
from workbench.editors.rome import ROME, RROME
from workbench.editors.shared.moment import SecondMoment
from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.facts import EditRequest
from workbench.studies.ahead import Ahead, lot_size

RECORDS = [
    capital(1, "Portugal", "Lisbon", "Moscow"),
    capital(2, "Japan", "Tokyo", "Rome"),
    capital(3, "Argentina", "Buenos Aires", "Polish"),
]
SHARED: dict[str, Any] = {"contexts": ("{}", "In the book, {}"), "steps": 4, "weight_decay": 0.01}


def make(kind: type[Any]) -> Editor:
    found = load_file(GOLDEN / "rome.safetensors")
    moments = {n: SecondMoment(layer=n, matrix=found[f"second_moment.{n}"], count=37_512) for n in (1, 2)}
    if issubclass(kind, ROME):
        return kind(layer=2, second_moment=moments[2], **SHARED)
    return kind(
        layers=(1, 2), second_moments=moments, **SHARED, **({"null_threshold": 1e9} if kind is AlphaEdit else {})
    )


SEARCHING = (ROME, RROME, MEMIT, EMMET, PMET, AlphaEdit)


def test_these_are_all_that_search_together() -> None:
    assert {kind for kind in EDITORS.values() if kind.each is not Editor.each} == set(SEARCHING)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in (ROME, MEMIT))) for kind in SEARCHING]
)
def test_each_is_as_if_alone(tiny_gpt2: Model, kind: type[Editor]) -> None:
    editor, requests, before = make(kind), [record.request for record in RECORDS], tiny_gpt2.snapshot()
    together = editor.each(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot())
    for request, edit in zip(requests, together, strict=True):
        alone = editor(tiny_gpt2, [request])
        assert isinstance(edit, WeightEdit) and isinstance(alone, WeightEdit)
        assert edit.requests == alone.requests == (request,)
        assert edit.provenance["fingerprint"] == alone.provenance["fingerprint"]
        for ours, theirs in zip(edit.updates, alone.updates, strict=True):
            change = theirs.dense()
            assert (ours.dense() - change).norm() < 1e-4 * change.norm()


class Counting(ROME):
    """Notes how many requests it is given at a time, and takes none about Japan."""

    def each(self, model: Model, requests: Sequence[EditRequest]) -> Any:
        ASKED.append(len(requests))
        return super().each(model, requests)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> Any:
        ASKED.append(0)
        return super().__call__(model, requests)

    def _values(self, model: Model, requests: Sequence[EditRequest]) -> Any:
        if any(request.subject == "Japan" for request in requests):
            raise ValueError("not Japan")
        return super()._values(model, requests)


ASKED: list[int] = []


def test_a_failing_record_fails_alone(tiny_gpt2: Model) -> None:
    ASKED.clear()
    ahead = Ahead(
        model=tiny_gpt2, editor=make(Counting), records=[*RECORDS, replace(RECORDS[0], case_id=9)], together=3
    )
    first, seconds = ahead(RECORDS[0])
    assert first.requests == (RECORDS[0].request,) and seconds > 0
    with pytest.raises(ValueError, match="not Japan"):
        ahead(RECORDS[1])
    ahead(RECORDS[2])
    assert ASKED == [3, 0, 0, 0]  # tried at once, then each for itself
    ASKED.clear()
    ahead(replace(RECORDS[0], case_id=9))
    assert ASKED == [0]  # one is not several


def test_so_many_are_made_when_the_first_is_asked_for(tiny_gpt2: Model) -> None:
    ASKED.clear()
    records = [RECORDS[0], RECORDS[2], replace(RECORDS[0], case_id=9)]
    ahead = Ahead(model=tiny_gpt2, editor=make(Counting), records=records, together=2)
    edits = [ahead(record)[0] for record in records]
    assert ASKED == [2, 0] and [edit.requests[0].subject for edit in edits] == ["Portugal", "Argentina", "Portugal"]


@pytest.mark.parametrize(
    ("number", "together", "workers", "size"),
    [(20, 16, 2, 10), (60, 20, 2, 15), (60, 20, 1, 20), (41, 20, 2, 11), (3, 16, 2, 2), (1, 16, 4, 1), (0, 16, 2, 1)],
)
def test_workers_have_as_much_to_do(number: int, together: int, workers: int, size: int) -> None:
    assert lot_size(number, together, workers) == size


def test_a_method_without_a_search_makes_one_at_a_time(tiny_gpt2: Model) -> None:
    made: list[int] = []

    class Noting(FT):
        def __call__(self, model: Model, requests: Sequence[EditRequest]) -> Any:
            made.append(len(requests))
            return super().__call__(model, requests)

    editor = Noting(layers=(1,), steps=1)
    ahead = Ahead(model=tiny_gpt2, editor=editor, records=RECORDS, together=3)
    edit: Edit = ahead(RECORDS[0])[0]
    assert made == [1] and torch.isfinite(torch.tensor(list(edit.norms(tiny_gpt2).values()))).all()
