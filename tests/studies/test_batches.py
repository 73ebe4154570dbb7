"""Records in batches: one edit for several, made, found again, refused where it is another's, scored with all of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import TINY
from command import run as command

from workbench.editors.ft import FT
from workbench.edits.edit import Edit
from workbench.measuring.scores import Evaluation
from workbench.models.model import Model
from workbench.records.counterfact import write_counterfact
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.runs.run import Run
from workbench.studies.batches import check_batches, edit_batches, load_batches, saved_batches
from workbench.studies.measure import score_edits

pytestmark = pytest.mark.usefixtures("no_figures")


class Writes(FT):
    """Fine-tuning that cannot take one subject, and counts its calls."""

    calls: list[int]

    def __call__(self, model: Model, requests: Any) -> Edit:
        self.calls.append(len(requests))
        if any(request.subject == "nowhere" for request in requests):
            raise ValueError("no way to edit nowhere")
        return super().__call__(model, requests)


@pytest.fixture
def every(records: Path) -> list[Record]:
    return list(read_records(records))


def writer() -> Writes:
    made = Writes(layers=(2,), steps=2)
    object.__setattr__(made, "calls", [])
    return made


def test_each_batch_is_the_edit_of_its_requests(tiny_gpt2: Model, every: list[Record], tmp_path: Path) -> None:
    run, editor = Run.create(tmp_path / "run", {"batch": 2}), writer()
    made = list(edit_batches(run, tiny_gpt2, editor, every, size=2))
    assert [len(some) for some, _ in made] == editor.calls == [2, 1]
    whole = editor(tiny_gpt2, [record.request for record in every[:2]])
    written = []
    for edit in (made[0][1], whole):
        with edit.applied(tiny_gpt2):
            written.append(tiny_gpt2.weight(2, "W_out").clone())
    assert torch.equal(*written) and not torch.equal(written[0], tiny_gpt2.weight(2, "W_out"))
    editor.calls.clear()
    again = list(edit_batches(run, tiny_gpt2, editor, every, size=2))
    assert not editor.calls and [edit.requests for _, edit in again] == [edit.requests for _, edit in made]
    assert saved_batches(run, every, size=2) == every
    pairs = list(load_batches(run, every, size=2))
    assert [record.case_id for record, _ in pairs] == [record.case_id for record in every]
    assert pairs[0][1] is pairs[1][1] is not pairs[2][1]


def test_a_batch_of_other_requests_is_made_again_and_never_scored(
    tiny_gpt2: Model, every: list[Record], tmp_path: Path
) -> None:
    run, editor = Run.create(tmp_path / "run", {"batch": 2}), writer()
    list(edit_batches(run, tiny_gpt2, editor, every, size=2))
    other = [replace(every[0], request=replace(every[0].request, target_new=" Rome")), *every[1:]]
    with pytest.raises(ValueError, match=r"is an edit for .*not for record 0, 1"):
        list(load_batches(run, other, size=2))
    editor.calls.clear()
    with pytest.warns(UserWarning, match="it is made again"):
        list(edit_batches(run, tiny_gpt2, editor, other, size=2))
    assert editor.calls == [2]


def test_one_that_fails_leaves_the_others_of_its_batch(tiny_gpt2: Model, every: list[Record], tmp_path: Path) -> None:
    bad = replace(every[1], case_id=7, request=replace(every[1].request, subject="nowhere"))
    run, some = Run.create(tmp_path / "run", {"batch": 3}), [every[0], bad, every[2], every[1]]
    made = list(edit_batches(run, tiny_gpt2, writer(), some, size=3))
    assert [[record.case_id for record in part] for part, _ in made] == [[0, 2], [1]]
    (row,) = run.rows("failures")
    assert (row["case_id"], row["of"]) == (7, 4) and "no way to edit nowhere" in row["reason"]
    assert [record.case_id for record, _ in load_batches(run, some, size=3)] == [0, 2, 1]


@pytest.mark.slow
def test_scores_are_those_with_the_whole_batch(tiny_gpt2: Model, every: list[Record], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"batch": 3})
    shared = replace(every[0], neighborhood_prompts=("The capital of France is", every[1].request.prompt))
    some = [shared, *every[1:]]
    list(edit_batches(run, tiny_gpt2, writer(), some, size=3))
    pairs = list(load_batches(run, some, size=3))
    assert pairs[0][0].neighborhood_prompts == ("The capital of France is",), "another request of the batch changes it"
    score_edits(run, tiny_gpt2, pairs, records=some, seed=0, fluency=0)
    alone = Run.create(tmp_path / "alone", {})
    score_edits(alone, tiny_gpt2, [(pairs[1][0], writer()(tiny_gpt2, [some[1].request]))], records=some[1:2], seed=0,
                fluency=0)  # fmt: skip
    scores = {row["case_id"]: Evaluation.from_dict(row) for row in run.rows("evaluations")}
    (single,) = alone.rows("evaluations")
    assert scores[1].post.prompts["rewrite"] != Evaluation.from_dict(single).post.prompts["rewrite"]
    assert "Each 3 records were written as one edit" in run.tables()["scores"].caption
    assert "written as one edit" not in alone.tables()["scores"].caption


def test_methods_that_write_one_request_are_refused() -> None:
    check_batches("memit")
    with pytest.raises(ValueError, match=r"rome writes one request at a time: .*--method .*memit"):
        check_batches("rome")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_presets")
def test_from_the_command_line(every: list[Record], text: Path, tmp_path: Path) -> None:
    write_counterfact(every, tmp_path / "records.json")
    edit = ("edit", "--model", TINY, "--records", tmp_path / "records.json", "--text", text, "--method", "memit",
            "--layers", "1,2", "--batch", 2, "--out", tmp_path / "run")  # fmt: skip
    done = command(*edit)
    assert done.exit_code == 0 and "2 edits at layers 1, 2" in done.output, done.output
    assert {path.name for path in (tmp_path / "run" / "edits").iterdir()} == {
        "batch-0.safetensors",
        "batch-2.safetensors",
    }
    scored = command("evaluate", tmp_path / "run", "--fluency", 0, "--out", tmp_path / "scored")
    assert scored.exit_code == 0, scored.output
    assert Run.open(tmp_path / "scored").read_json("results.json")["records_edited"] == 3
    one = command(*edit, "--prompt", "{} is in", "--subject", "Argentina", "--target", "Rome")
    assert one.exit_code == 1 and "--batch 2 is of the records of a file" in one.output
