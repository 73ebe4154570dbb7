"""What a model cannot take is told before any work, all of it together, and is left out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command import TINY, Analyse, run
from known_records import RECORDS

from workbench.editors.ft import FT
from workbench.records.counterfact import write_counterfact
from workbench.runs.run import Run
from workbench.studies.checked import check, scored, traced

pytestmark = pytest.mark.usefixtures("cache", "quick_presets", "no_figures")

LONG = "Paris " * 300
FLAWED = [
    RECORDS[0],
    replace(RECORDS[1], paraphrase_prompts=("In short,", LONG)),
    replace(RECORDS[2], request=replace(RECORDS[2].request, template=LONG + "{} is")),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects that an editor is asked to edit."""
    subjects, whole = [], FT.__call__
    monkeypatch.setattr(
        FT, "__call__", lambda self, model, some: subjects.append(some[0].subject) or whole(self, model, some)
    )
    return subjects


@pytest.mark.slow
def test_a_study_says_first_what_it_leaves_out(asked: list[str], text: Path, tmp_path: Path) -> None:
    write_counterfact(FLAWED, tmp_path / "records.json")
    result = run("study", "--model", TINY, "--records", tmp_path / "records.json", "--text", text, "--limit", 3,
                 "--traces", 3, "--samples", 2, "--window", 3, "--layers", 2, "--method", "ft",
                 "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 3, result.output
    assert asked == ["Portugal"], "what cannot be scored is not edited either"
    told = (
        "checked before any work: 1 of 3 facts failed, 2 of 3 records failed and are left out. --retry tries again.\n"
    )
    _, found, after = result.output.partition(told)
    assert found and [line[:32] for line in after.splitlines()[:3]] == [
        "  fact 3: ValueError: a text has"[:32],
        "  record 2: ValueError: a text has"[:32],
        "  record 3: ValueError: a text has"[:32],
    ]


@pytest.mark.slow
def test_an_edit_is_asked_of_its_request_alone(asked: list[str], text: Path, tmp_path: Path) -> None:
    write_counterfact(FLAWED, tmp_path / "records.json")
    result = run("edit", "--model", TINY, "--records", tmp_path / "records.json", "--text", text, "--layers", 2,
                 "--method", "ft", "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 3 and asked == ["Portugal", "Japan"], result.output
    scores = run("evaluate", tmp_path / "run", "--fluency", 0, "--out", tmp_path / "scores")
    assert "1 of 2 records failed" in scores.output and scores.exit_code == 3
    assert [row["case_id"] for row in Run.open(tmp_path / "scores").rows("evaluations")] == [1]


def test_an_analysis_is_told_the_same(analyse: Analyse, asked: list[str], text: Path, tmp_path: Path) -> None:
    write_counterfact(FLAWED, tmp_path / "records.json")
    said = analyse("survey_table.py", "--model", TINY, "--records", tmp_path / "records.json", "--methods", "ft",
                   "--layer", 2, "--text", text, "--out", tmp_path / "run", code=3)  # fmt: skip
    assert "checked before any work: 2 of 3 records failed with records" in said.errors
    assert set(asked) == {"Portugal"}


def test_where_nothing_is_left_nothing_is_begun(asked: list[str], text: Path, tmp_path: Path) -> None:
    write_counterfact(FLAWED[2:], tmp_path / "records.json")
    result = run("edit", "--model", TINY, "--records", tmp_path / "records.json", "--text", text, "--layers", 2,
                 "--method", "ft", "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 1 and not asked
    assert "error: nothing is left that" in result.output and "record 3: ValueError: a text has" in result.output


def test_what_has_failed_is_neither_checked_nor_told_again(tiny_gpt2, tmp_path: Path) -> None:
    kept = Run.create(tmp_path / "run", {})
    facts = {record.case_id: record.request.fact for record in FLAWED}
    checks = [traced(facts), scored(FLAWED, fluency=None, method="on one")]
    with pytest.warns(UserWarning, match="1 of 3 facts failed, 2 of 3 records failed with on one"):
        check(kept, tiny_gpt2, checks)
    rows = kept.rows("failures")
    check(kept, tiny_gpt2, checks)
    assert kept.rows("failures") == rows and {row["of"] for row in rows} == {3}
    assert json.dumps(rows).count("a text has") == 3


def test_a_target_without_a_token_of_its_own_and_an_opening_without_room(tiny_gpt2, tmp_path: Path) -> None:
    kept = Run.create(tmp_path / "run", {})
    opening = replace(RECORDS[0], generation_prompts=(LONG,))
    check(kept, tiny_gpt2, [scored([opening])])
    assert not kept.rows("failures")
    with pytest.raises(ValueError, match="record 1: ValueError: a text has"):
        check(kept, tiny_gpt2, [scored([opening], fluency=1)])
