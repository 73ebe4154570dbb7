"""Records edited alone and scored: by one process or several the same, and one that fails is kept as failed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_records import capital
from safetensors.torch import load_file

from workbench.editors.editor import Editor
from workbench.editors.ft import FT
from workbench.editors.rome import ROME
from workbench.editors.shared.moment import SecondMoment
from workbench.edits.edit import Edit
from workbench.machine.processes import Processes, Workers, several
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record
from workbench.runs.run import Run
from workbench.studies.alone import each_alone, each_unedited

RECORDS = [
    capital(1, "Portugal", "Lisbon", "Moscow"),
    capital(2, "Japan", "Tokyo", "Rome"),
    capital(3, "Argentina", "Buenos Aires", "Polish"),
]


class _Picky(ROME):
    """Takes none about Japan."""

    def _values(self, model: Model, requests: Sequence[EditRequest]) -> Any:
        if any(request.subject == "Japan" for request in requests):
            raise ValueError("not Japan")
        return super()._values(model, requests)


def rome() -> Editor:
    matrix = load_file(GOLDEN / "rome.safetensors")["second_moment.2"]
    moment = SecondMoment(layer=2, matrix=matrix, count=37_512)
    return _Picky(layer=2, second_moment=moment, contexts=("{}",), steps=3)


def size(model: Model, edit: Edit, record: Record) -> tuple[int, float]:
    with edit.applied(model):
        (change,) = edit.norms(model).values()
    return record.case_id, change


def scored(run: Run, model: Model, editor: Editor, workers: Workers[Model] | None) -> list[tuple[int, float]]:
    before = model.snapshot()
    some = each_alone(run, model, editor, RECORDS, size, title="Editing", of=3, method="x", together=2, workers=workers)
    found = [score for record, seconds, score in some if seconds > 0 and record.case_id == score[0]]
    assert same(before, model.snapshot())
    return found


@pytest.mark.parametrize("editor", [rome(), FT(layers=(1,), steps=2)], ids=["rome", "ft"])
def test_several_give_what_one_gives(tiny_gpt2: Model, tmp_path: Path, editor: Editor) -> None:
    runs = [Run.create(tmp_path / name, {}) for name in ("one", "two")]
    crews = (None, Processes(state=tiny_gpt2, count=2))
    assert [several(crew) for crew in (*crews, Processes(state=tiny_gpt2))] == [False, True, False]
    one, two = (scored(run, tiny_gpt2, editor, crew) for run, crew in zip(runs, crews, strict=True))
    assert [case for case, _ in one] == [case for case, _ in two] == ([1, 3] if isinstance(editor, ROME) else [1, 2, 3])
    torch.testing.assert_close([change for _, change in one], [change for _, change in two], rtol=1e-5, atol=0)
    failures = [run.rows("failures") for run in runs]
    assert failures[0] == failures[1] and [row["case_id"] for row in failures[0]] == [2] * isinstance(editor, ROME)
    assert all((row["of"], row["method"]) == (3, "x") and "not Japan" in row["reason"] for row in failures[0])


def test_several_ask_the_unedited_model_as_one_does(tiny_gpt2: Model, tmp_path: Path) -> None:
    def ask(model: Model, record: Record) -> float:
        if record.request.subject == "Japan":
            raise ValueError("not Japan")
        return model.logits(model.tokenize([record.request.prompt]))[0, -1].sum().item()

    given = []
    for crew in (None, Processes(state=tiny_gpt2, count=2)):
        run = Run.create(tmp_path / str(len(given)), {})
        some = each_unedited(run, tiny_gpt2, RECORDS, ask, title="Asking", of=3, method="x", workers=crew)
        given.append({record.case_id: value for record, value in some})
        (row,) = run.rows("failures")
        assert (row["case_id"], row["of"], row["method"]) == (2, 3, "x") and "not Japan" in row["reason"]
    assert given[0].keys() == {1, 3} and given[0] == pytest.approx(given[1], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_what_does_not_come_back_ends_the_run(tiny_gpt2: Model, tmp_path: Path, count: int) -> None:
    def harm(model: Model, edit: Edit, record: Record) -> None:
        with torch.no_grad():
            model.weight(1)[0, 0] += 1

    before = tiny_gpt2.weight(1)[0, 0].item()
    form: dict[str, Any] = {"title": "Editing", "of": 3, "method": "x"}
    some = each_alone(
        Run.create(tmp_path / "run", {}),
        tiny_gpt2,
        FT(layers=(1,), steps=1),
        [replace(RECORDS[0], case_id=9)] * 2,
        harm,
        workers=Processes(state=tiny_gpt2, count=count),
        **form,
    )
    try:
        with pytest.raises(RuntimeError, match="record 9 with x"):
            list(some)
    finally:
        with torch.no_grad():
            tiny_gpt2.weight(1)[0, 0] = before
