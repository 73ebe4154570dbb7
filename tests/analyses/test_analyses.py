"""The analyses as a user runs them, on the tiny golden model."""

import runpy
import sys
from pathlib import Path

import pytest

from workbench.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "tiny-gpt2"

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def analyse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path):
    """Runs a script with arguments; what it printed."""

    def run(script: str, *arguments: object) -> str:
        common = ["--model", GOLDEN, "--records", records]
        monkeypatch.setattr(sys, "argv", [script, *map(str, [*common, *arguments])])
        runpy.run_path(str(ROOT / "analyses" / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_locate_facts_draws_them(analyse, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = analyse("locate_facts.py", "--limit", 2, "--samples", 2, "--window", 3, "--out", out)
    assert "mediating layer: " in printed
    assert {"average_effects", "trace_1", "trace_2"} <= Run.open(out).figures().keys()
    assert str(tmp_path) not in (out / "settings.json").read_text().replace(str(GOLDEN), "").split("records")[0]


def test_a_single_fact_of_ones_own_can_be_located(analyse, tmp_path: Path) -> None:
    own = ("--prompt", "{}'s capital city is", "--subject", "Norway", "--object", "Oslo")
    printed = analyse("locate_facts.py", *own, "--samples", 2, "--window", 3, "--out", tmp_path / "run")
    assert "1 facts traced" in printed
    assert Run.open(tmp_path / "run").rows("traces")[0]["prompt"] == "Norway's capital city is"


def test_single_edit_shows_a_file_of_prompts(analyse, text: Path, tmp_path: Path) -> None:
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
    printed = analyse("single_edit.py", file, "--preset", "gpt2-xl", "--layer", 2, "--text", text, "--tokens", 5)
    assert printed.lstrip().startswith("The capital of Portugal is: Moscow  (ROME, layer 2)")
    blocks = printed.strip().split("\n\n")
    assert [block.count("\n") for block in blocks] == [0, 3, 3, 3, 2, 0]
    for block, prompt in zip(blocks[1:5], ("Portugal", "France", "Egypt", "People in Portugal"), strict=True):
        assert "[Prompt]" in block.splitlines()[0] and prompt in block.splitlines()[0]
        assert "[Pre-Edit]" in block.splitlines()[1] and "[Post-Edit]" in block.splitlines()[2]
    succeeded = [str(number) for number, block in enumerate(blocks[1:5], start=1) if "[Succeeded]  yes" in block]
    assert "3" not in succeeded
    assert blocks[5] == f"{len(succeeded)} of 3 succeeded: {', '.join(succeeded)}"


def test_single_edit_takes_a_record_too(analyse, text: Path) -> None:
    printed = analyse("single_edit.py", "--preset", "gpt2-xl", "--layer", 2, "--text", text, "--case", 1)
    assert "The capital of Japan is: Tokyo -> Rome  (ROME, layer 2)" in printed
    assert "[Succeeded]  no: begins with 'Japan' was asked for" in printed  # ROME does not edit the reverse
    assert "of 4 succeeded" in printed
    with pytest.raises(ValueError, match="no record has case_id 77"):
        analyse("single_edit.py", "--case", 77)


def test_families_are_checked_and_what_is_done_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["check_families.py", "--families", "gpt2", "--out", str(tmp_path / "run")])
        runpy.run_path(str(ROOT / "analyses" / "check_families.py"), run_name="__main__")
    run = Run.open(tmp_path / "run")
    assert run.status == "complete"
    assert [row["family"] for row in run.rows("families")] == ["gpt2"]
    assert run.read_json("results.json") == {"families": 1, "faulty": []}
    assert "1 of 1 families hold in everything" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
