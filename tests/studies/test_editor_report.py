"""Editors side by side: what is told of a bar whose edits were not all made."""

from pathlib import Path

from known_evaluations import evaluation

from workbench.runs.run import Run
from workbench.studies.editor_report import bars, stacked_summaries


def test_a_bar_of_more_edits_than_were_made_is_told_as_not_measured(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    made = [evaluation(case).to_dict() for case in range(79)]
    run.append("stacked", {"method": "memit", "name": "MEMIT", "edits": 79, "left_out": [79], "evaluations": made})
    found = bars({}, stacked_summaries(run, seed=0))
    assert [str(bar) for bar in found] == [
        f"MEMIT {score} at 80 stacked edits >= {least}: not measured: 79 of 80 edits were made"
        for score, least in (("ES", 95), ("PS", 80), ("NS", 70))
    ]
    assert not any(bar.met for bar in found)
    whole = [*made, evaluation(79).to_dict()]
    run.append("stacked", {"method": "memit", "name": "MEMIT", "edits": 80, "left_out": [], "evaluations": whole})
    assert all("(80 records)" in str(bar) for bar in bars({}, stacked_summaries(run, seed=0)))
