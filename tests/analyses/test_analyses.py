"""The analyses as a user runs them, on the tiny golden model."""

from pathlib import Path

import pytest
from command import TINY, Analyse

from workbench.runs.run import Run


@pytest.fixture
def given(records: Path) -> list[object]:
    return ["--model", TINY, "--records", records]


@pytest.mark.slow
def test_locate_facts_draws_them(analyse: Analyse, given: list[object], tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = analyse(
        "locate_facts.py",
        *given,
        "--limit",
        1,
        "--samples",
        2,
        "--window",
        3,
        "--out",
        out,
    )
    layer = Run.open(out).read_json("results.json")["layer"]
    assert f"mediating layer: {layer}" in printed.printed and 0 <= layer < 6
    assert {"average_effects", "trace_1"} <= Run.open(out).figures().keys()
    settings = Run.open(out).settings
    assert settings["command"] == "locate_facts" and (settings["limit"], settings["samples"], settings["window"]) == (
        1,
        2,
        3,
    )
    assert not settings.keys() & {"out", "device", "retry", "workers"}, "a run may go on with others"
    assert str(out) not in (out / "report.html").read_text(encoding="utf-8"), "a report can be handed on"


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_single_fact_of_ones_own_can_be_located(analyse: Analyse, given: list[object], tmp_path: Path) -> None:
    own = ("--prompt", "{}'s capital city is", "--subject", "Norway", "--object", "Oslo")
    printed = analyse(
        "locate_facts.py",
        *given,
        *own,
        "--samples",
        2,
        "--window",
        3,
        "--out",
        tmp_path / "run",
    )
    assert printed.printed.startswith("1 facts traced, 0 not known")
    assert Run.open(tmp_path / "run").rows("traces")[0]["prompt"] == "Norway's capital city is"


@pytest.mark.slow
def test_single_edit_shows_a_file_of_prompts(analyse: Analyse, given: list[object], text: Path, tmp_path: Path) -> None:
    file = tmp_path / "edit.yaml"
    file.write_text(
        """
        prompt: "The capital of {} is"
        subject: Portugal
        target_new: Moscow
        generation_prompts:
          - {prompt: The capital of Portugal is, begins_with: Moscow}
          - {prompt: The capital of France is, contains: [Paris, Moscow]}
          - {prompt: The capital of Egypt is, begins_with: nothing like it}
          - People in Portugal speak
        """
    )
    said = analyse(
        "single_edit.py",
        file,
        *given,
        "--out",
        tmp_path / "run",
        "--preset",
        "gpt2-xl",
        "--layer",
        2,
        "--text",
        text,
        "--tokens",
        5,
    )
    assert said.printed.startswith("The capital of Portugal is: Moscow  (ROME, layer 2)")
    blocks = said.printed.split("\n\n")
    assert [block.count("\n") for block in blocks] == [0, 3, 3, 3, 2, 0]
    for block, prompt in zip(blocks[1:5], ("Portugal", "France", "Egypt", "People in Portugal"), strict=True):
        assert "[Prompt]" in block.splitlines()[0] and prompt in block.splitlines()[0]
        assert "[Pre-Edit]" in block.splitlines()[1] and "[Post-Edit]" in block.splitlines()[2]
    succeeded = [str(number) for number, block in enumerate(blocks[1:5], start=1) if "[Succeeded]  yes" in block]
    assert "3" not in succeeded
    assert blocks[5] == f"{len(succeeded)} of 3 succeeded: {', '.join(succeeded)}"
    run = Run.open(tmp_path / "run")
    assert run.status == "complete" and (run.folder / "edits" / "edit.safetensors").exists()
    assert run.read_json("results.json") == {"layer": 2, "succeeded": len(succeeded), "judged": 3}
    assert [row[0] for row in run.tables()["prompts"].rows][3] == "People in Portugal speak"


@pytest.mark.slow
def test_single_edit_takes_a_record_too(
    analyse: Analyse, given: list[object], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = analyse(
        "single_edit.py",
        "--preset",
        "gpt2-xl",
        "--layer",
        2,
        "--text",
        text,
        "--case",
        1,
        *given,
    )
    assert [path.name.rpartition("-")[0] for path in (tmp_path / "runs").iterdir()] == ["single_edit-tiny-gpt2"]
    assert "The capital of Japan is: Tokyo -> Rome  (ROME, layer 2)" in said.printed
    assert "[Succeeded]  no: begins with 'Japan' was asked for" in said.printed  # ROME does not edit the reverse
    assert "of 4 succeeded" in said.printed
    refused = analyse("single_edit.py", "--case", 77, *given, code=1)
    assert refused.errors == "error: no record has case_id 77; the file has 3, such as [0, 1, 2]\n"


@pytest.mark.slow
def test_families_are_checked_and_what_is_done_is_not_done_again(analyse: Analyse, tmp_path: Path) -> None:
    for _ in range(2):
        analyse("check_families.py", "--families", "gpt2", "--out", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.status == "complete"
    assert [row["family"] for row in run.rows("families")] == ["gpt2"]
    assert run.read_json("results.json") == {"families": 1, "faulty": []}
    assert "1 of 1 families hold in everything" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    refused = analyse("check_families.py", "--families", "gpt2,t5", "--out", tmp_path / "other", code=1)
    assert refused.errors.startswith("error: --families is one of gpt2, ") and refused.errors.count("\n") == 1
