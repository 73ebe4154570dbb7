"""Groups of edits that are kept together, and the analysis that compares them."""

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ANALYSES, TINY, Analyse
from known_records import RECORDS

from workbench.editors.memit import MEMIT
from workbench.editors.rome import ROME
from workbench.editors.shared.keys import mean_keys
from workbench.editors.shared.moment import SecondMoment
from workbench.machine.intervals import Estimate, wilson
from workbench.measuring.prefix_match import Answer, Question, answer, questions
from workbench.models.model import Model
from workbench.records.course import write_requests
from workbench.runs.run import Run
from workbench.studies.edit_groups import change, edit_group, grouped, summarise, unedited


def given(case_id: int, generated: str) -> dict[str, Any]:
    question = Question(case_id=case_id, score="efficacy", prompt="?", new=("new",), old=("old",))
    return Answer(question=question, generated=generated).to_dict()


def test_groups_are_cut_in_order() -> None:
    groups = grouped(RECORDS, [3, 1], 2)
    assert list(groups) == [(1, 0), (1, 1), (3, 0)]
    assert groups[1, 1] == RECORDS[1:2] and groups[3, 0] == RECORDS
    for numbers, most, message in [([4], 1, "cannot keep 4 edits"), ([0], 1, "cannot keep 0"), ([1], 0, "at least 1")]:
        with pytest.raises(ValueError, match=message):
            grouped(RECORDS, numbers, most)


@pytest.fixture
def rome() -> ROME:
    return ROME(layer=2, second_moment=None, steps=3, weight_decay=0.05)


def rows(folder: Path, model: Model, editor: Any) -> list[dict[str, Any]]:
    run = Run.create(folder, {})
    assert len(list(edit_group(run, model, "it", editor, (3, 0), {(3, 0): RECORDS}))) == 3
    return run.rows("groups")


@pytest.mark.slow
def test_edits_of_a_group_are_stacked_and_then_taken_back(tiny_gpt2: Model, rome: ROME, tmp_path: Path) -> None:
    before = tiny_gpt2.fingerprint()
    (row,) = rows(tmp_path / "run", tiny_gpt2, rome)
    assert tiny_gpt2.fingerprint() == before and not tiny_gpt2.edits
    assert (row["method"], row["batch"], len(row["at_once"])) == ("ROME", False, 3)
    assert not (tmp_path / "run" / "edits" / "it-3-0").exists()
    # By hand: each edit on what those before it leave.
    edits = []
    for record in RECORDS:
        edits.append(rome(tiny_gpt2, [record.request]))
        edits[-1].apply_(tiny_gpt2)
    try:
        assert [one.to_dict() for one in answer(tiny_gpt2, questions(RECORDS))] == row["answers"]
        delta = sum((edit.updates[0].dense() for edit in edits), torch.zeros(()))
        weight = tiny_gpt2.originals[2, "W_out"]
        assert row["change"] == pytest.approx((delta.norm() / weight.norm()).item(), rel=1e-4)
        assert change(tiny_gpt2) == row["change"]
        key = mean_keys(tiny_gpt2, 2, [RECORDS[0].request], ("{}",))[:, 0].float()
        first, *others = (key @ edit.updates[0].dense() for edit in edits)
        assert len(row["drift"]) == 2  # nothing comes after the last
        assert row["drift"][0] == pytest.approx(((others[0] + others[1]).norm() / first.norm()).item(), rel=1e-4)
    finally:
        for edit in edits:
            edit.revert_(tiny_gpt2)


@pytest.mark.slow
def test_a_stopped_group_goes_on_and_ends_the_same(tiny_gpt2: Model, rome: ROME, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "stopped", {})
    begun = edit_group(run, tiny_gpt2, "it", rome, (3, 0), {(3, 0): RECORDS})
    assert [next(begun), next(begun)] == RECORDS[:2]
    begun.close()
    assert not tiny_gpt2.edits and not run.rows("groups")
    saved = {path.name: path.stat().st_mtime_ns for path in (run.folder / "edits" / "it-3-0").glob("*.safetensors")}
    assert len(saved) == 2
    going_on = edit_group(run, tiny_gpt2, "it", rome, (3, 0), {(3, 0): RECORDS})
    assert [next(going_on), next(going_on)] == RECORDS[:2]
    now = {path.name: path.stat().st_mtime_ns for path in (run.folder / "edits" / "it-3-0").glob("*.safetensors")}
    assert now == saved  # read, not made again
    list(going_on)
    assert run.rows("groups") == rows(tmp_path / "whole", tiny_gpt2, rome)


def test_a_batch_is_one_edit(tiny_gpt2: Model, tmp_path: Path) -> None:
    eye = torch.eye(tiny_gpt2.d_mlp, dtype=torch.float64)
    moments = {layer: SecondMoment(layer=layer, matrix=eye, count=1) for layer in (1, 2)}
    memit = MEMIT(layers=(1, 2), second_moments=moments, steps=6, weight_decay=0.01, moment_weight=0.01)
    (row,) = rows(tmp_path / "run", tiny_gpt2, memit)
    efficacy = [one["right"] for one in row["answers"] if one["score"] == "efficacy"]
    assert row["batch"] and row["at_once"] == efficacy and row["drift"] == []


def test_groups_are_summed_up_by_method_and_number(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    for method, edits, case, text in (("B", 2, 1, "new"), ("A", 1, 1, "new"), ("B", 2, 2, "old")):
        drift = [0.1, 0.2, 0.6] if edits > 1 else []
        answers = [given(case, text)]
        row = {"answers": answers, "at_once": [True], "change": 0.1 * case, "drift": drift}
        run.append("groups", row | {"key": method, "group": case, "method": method, "edits": edits})
    run.append("unedited", {"answers": [given(case, "old") for case in (1, 2, 3)]})
    summary = summarise(run)
    assert list(summary) == [("A", 1), ("B", 2)]
    assert summary["B", 2]["efficacy"].value == 0.5 and summary["B", 2]["at_once"].value == 1.0
    assert summary["B", 2]["change"].value == pytest.approx(0.15) and summary["B", 2]["drift"].value == 0.2
    assert math.isnan(summary["A", 1]["drift"].value)
    covered = unedited(run, {(1, 0): RECORDS[:1], (1, 1): RECORDS[2:], (2, 0): RECORDS}, 1)
    assert [one.question.case_id for one in covered] == [1, 3]


# The analysis ------------------------------------------------------------------------------------------


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ANALYSES / "multiple_edits.py"))


def summary_of(**overall: float) -> dict[tuple[str, int], dict[str, Estimate]]:
    """Summaries by `rome_10` and so on, with these overall scores."""
    found = {}
    for key, value in overall.items():
        name, number = key.split("_")
        estimate = Estimate(value=value, n=80)
        names = ("efficacy", "paraphrase", "neighborhood", "portability", "overall", "change")
        found[name.upper(), int(number)] = dict.fromkeys(names, estimate) | {
            "at_once": wilson([1.0] * 80),
            "drift": replace(estimate, value=math.nan if name == "memit" else 0.4),
        }
    return found


def test_what_is_said_follows_from_the_numbers(script: dict[str, Any]) -> None:
    verdict, reasons = script["verdict"], script["reasons"]
    taught = verdict(summary_of(rome_10=0.9, memit_10=0.95, rome_80=0.2, memit_80=0.8))
    assert "show what the course teaches" in taught and "ROME at 80 edits 20.0 % (failing; as taught)" in taught
    other = verdict(summary_of(rome_10=0.9, memit_10=0.95, rome_80=0.85, memit_80=0.6))
    assert "do not show all" in other
    assert "ROME at 80 edits 85.0 % (good; taught: failing)" in other
    assert "MEMIT at 80 edits 60.0 % (in between; taught: good)" in other
    assert "this run has not all of these" in verdict(summary_of(rome_10=0.9, memit_10=0.9))
    several = {"ft_1": 0.9, "ft_10": 0.9, "rome_10": 0.9, "rome_80": 0.2, "memit_10": 0.9}
    assert "this run has not all of these" in verdict(summary_of(**several))  # stopped during MEMIT
    assert "show what the course teaches" in verdict(summary_of(**several, memit_80=0.8))  # FT's numbers say nothing
    lost, kept = reasons(summary_of(rome_10=0.9, rome_80=0.2, memit_80=0.95), summary_of(x_1=1.0)["X", 1])
    assert "ROME, 80 edits: 100.0 % work when they are made and 20.0 % at the end, so later edits undo" in lost
    assert "by 40.0 % of its size" in lost
    assert "MEMIT, 80 edits: 100.0 % work, all written at once." in kept


@pytest.mark.slow
def test_the_analysis_compares_resumes_and_reports(
    quick_presets: None, no_figures: None, analyse: Analyse, text: Path, tmp_path: Path
) -> None:
    write_requests(RECORDS, tmp_path / "requests.json")
    arguments = ["multiple_edits.py", "--model", TINY, "--requests", tmp_path / "requests.json",
                 "--methods", "rome,memit", "--groups", 1, "--layer", 2,
                 "--text", text, "--out", tmp_path / "run", "--edits"]  # fmt: skip
    fewer = analyse(*arguments, 1).printed
    assert "each on the unedited model: 1 of 1." in fewer
    first = analyse(*arguments, "1,3").printed  # goes on with more numbers
    assert "each on the unedited model: 1 of 1, 1 of 3" in first
    run = Run.open(tmp_path / "run")
    assert run.status == "complete" and len(run.rows("groups")) == 4
    labels = [line[0] for line in run.tables()["scores"].rows]
    assert labels == [
        "Unedited",
        "ROME, 1",
        "MEMIT, 1",
        "Unedited (before 3 edits)",
        "ROME, 3",
        "MEMIT, 3",
    ]
    assert "| ROME, 3 |" in first and "the course teaches" in first
    assert (run.folder / "tables" / "scores.tex").exists() and (run.folder / "report.html").exists()
    assert set(run.tables()["examples"].columns) >= {"Unedited", "ROME, 3", "MEMIT, 3"}
    for some in ("1,3", 1):  # and with fewer shows all that it holds
        assert analyse(*arguments, some).printed == first and len(run.rows("groups")) == 4
    refused = analyse(*arguments, 4, code=1)
    assert refused.errors == "error: cannot keep 4 edits together: the file has 3 requests: ask for fewer (--edits)\n"
