"""The analyses as a user runs them, on the tiny golden model."""

import runpy
import sys
from pathlib import Path

import pytest

from workbench.runs import Run

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "tiny-gpt2"

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


def test_single_edit_shows_its_prompts(analyse, text: Path) -> None:
    printed = analyse("single_edit.py", "--preset", "gpt2-xl", "--layer", 2, "--text", text, "--case", 1)
    assert "The capital of Japan is … Tokyo → Rome  (ROME, layer 2)" in printed
    for kind in ("original", "paraphrase", "neighborhood", "reversion"):
        assert kind in printed
    assert "of 4 right after the edit" in printed
    with pytest.raises(ValueError, match="no record has case_id 77"):
        analyse("single_edit.py", "--case", 77)


def test_compare_layers_says_what_locating_bought(analyse, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    analyse("compare_layers.py", "--preset", "gpt2-xl", "--text", text, "--layers", 1, 2, 4, "--limit", 2,
            "--traces", 2, "--window", 3, "--out", out)  # fmt: skip
    run = Run.open(out)
    assert len(run.rows("by_layer")) == 6
    found = run.read_json("results.json")
    assert -1 <= found["pearson"] <= 1 or found["pearson"] != found["pearson"]
    assert found["best_layer"] in (1, 2, 4)
    assert "a random one" in (out / "report.html").read_text(encoding="utf-8")
