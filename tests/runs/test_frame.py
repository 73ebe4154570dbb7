"""The records of a run as pandas: evaluations as their metrics, other rows as they are, nested values by dots."""

from pathlib import Path

import pytest

from workbench.measuring.scores import KINDS, Evaluation, PromptScores, RecordScores
from workbench.runs.run import Run


def scored(p_new: float) -> RecordScores:
    asked = PromptScores(
        prompt="?", targets_new=("new",), targets_true=("old",), p_new=p_new, p_true=0.4, top_new=True, top_true=False,
        generated=None,
    )  # fmt: skip
    return RecordScores(prompts=dict.fromkeys(KINDS, (asked,)))


def test_evaluations_are_a_row_each_of_metrics(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"command": "study"})
    for case in (4, 9):
        found = Evaluation(
            case_id=case, pre=scored(0.1), post=scored(0.9), kl=0.25, relative_norms={3: 0.5}, seconds=1.0
        )
        run.append("evaluations", found.to_dict() | {"method": "ROME", "request": {"subject": f"It {case}"}})
    frame = Run.open(tmp_path / "run").frame("evaluations")
    assert [*frame["case_id"]] == [4, 9] and [*frame["request.subject"]] == ["It 4", "It 9"]
    assert frame["before.ES"].tolist() == [0, 0] and frame["after.ES"].tolist() == [1, 1]
    assert frame["after.EM"].tolist() == pytest.approx([0.5, 0.5]) and set(frame["method"]) == {"ROME"}
    assert frame["after.kl"].tolist() == [0.25, 0.25] and frame["after.relative_norm.3"].tolist() == [0.5, 0.5]
    assert not {"pre", "post", "kl"} & {*frame.columns}


def test_other_rows_are_what_they_are(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"command": "study"})
    run.append("traces", {"case_id": 1, "known": True, "noise": {"scale": 3}})
    assert run.frame("traces").to_dict("records") == [{"case_id": 1, "known": True, "noise.scale": 3}]
    assert run.frame("nothing").empty
    assert repr(run) == f"Run('{tmp_path / 'run'}': study, running)"
