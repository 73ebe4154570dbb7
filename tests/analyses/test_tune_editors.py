"""Which of what was tried is the best, and what of it is written."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from command import ANALYSES
from known_evaluations import evaluation

from workbench.runs.run import Run


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("workbench.editors.setup.presets.PRESETS", tmp_path)
    entries = {"smollm2": {"fields": {"clamp": 9.0}}}
    for method in ("memit", "rome"):
        (tmp_path / f"{method}.json").write_text(json.dumps(entries))
    return runpy.run_path(str(ANALYSES / "tune_editors.py"))


def add(run: Run, method: str, clamp: float, alone: list[bool | None], together: list[bool | None] | None) -> None:
    """What was tried with a clamp: whether each record's edit worked, None where it failed."""
    changes = {"clamp": clamp}
    row = {"key": json.dumps([method, changes], sort_keys=True), "method": method, "changes": changes}
    states = [[(i, worked) for i, worked in enumerate(some) if worked is not None] for some in (alone, together or [])]
    for case, worked in states[0]:
        run.append("evaluations", evaluation(case, worked=worked).to_dict() | row)
    if together is not None:
        found = [evaluation(case, worked=worked).to_dict() for case, worked in states[1]]
        run.append("stacked", row | {"evaluations": found, "left_out": []})


def test_a_setting_without_its_stack_is_last_and_never_written(script: dict[str, Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    add(run, "memit", 4.0, [True, True], None)  # 100 alone, its stack failed
    with pytest.warns(UserWarning, match="no setting of memit has all of its scores: its preset is left as it is"):
        script["write_preset"](run, "memit", "smollm2")
    assert json.loads((tmp_path / "memit.json").read_text()) == {"smollm2": {"fields": {"clamp": 9.0}}}
    add(run, "memit", 2.0, [True, True], [True, False, False])
    best, last = script["tried"](run, "memit")
    assert (best["changes"], last["changes"]) == ({"clamp": 2.0}, {"clamp": 4.0})
    assert (best["n"], best["n together"], last["n together"]) == (2, 3, 0) and "S together" not in last
    script["write_preset"](run, "memit", "smollm2")
    written = json.loads((tmp_path / "memit.json").read_text())["smollm2"]
    assert (
        written["fields"] == {"clamp": 2.0} and written["search"]["records"] == "2 training records alone, 3 together"
    )


def test_settings_are_compared_on_the_records_that_all_have(script: dict[str, Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    add(run, "rome", 4.0, [True, False, False, False], None)
    add(run, "rome", 2.0, [False, None, None, True], None)  # half of two, but no better on those that both have
    add(run, "rome", 1.0, [True, True, False, True], None)
    found = script["tried"](run, "rome")
    assert [one["changes"]["clamp"] for one in found] == [1.0, 4.0, 2.0]
    assert [(one["n"], one["ES"]) for one in found] == [(2, 100.0), (2, 50.0), (2, 50.0)]
    assert "n together" not in found[0]
    script["write_preset"](run, "rome", "smollm2")
    search = json.loads((tmp_path / "rome.json").read_text())["smollm2"]["search"]
    assert search["records"] == "2 training records alone"
    (section,) = script["show"](run)
    assert "over the n records that all settings have" in section.elements[0].caption


def test_all_that_the_search_names_is_tried_and_another_model_is_told() -> None:
    script = runpy.run_path(str(ANALYSES / "tune_editors.py"))
    assert {"rome", "memit"} <= set(script["searched"]("smollm2"))
    with pytest.raises(ValueError, match=r"'.*my-llama.yaml' would say what is tried for my-llama: write it as"):
        script["searched"]("my-llama")
