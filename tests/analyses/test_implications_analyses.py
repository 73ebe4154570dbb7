"""Implications, scope and sequences of edits on the golden model: resumed, and a method that fails keeps its column."""

import json
from pathlib import Path

import pandas as pd
import pytest
from command import TINY, Analyse
from drawn import outside, texts
from matplotlib.figure import Figure

from workbench.figures.methods import asked_figure, course_figure
from workbench.machine.intervals import Estimate
from workbench.runs.run import Run

pytestmark = pytest.mark.usefixtures("quick_presets", "cache")


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_implications_are_asked_resumed_and_told(analyse: Analyse, records: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["implications.py", "--model", TINY, "--records", records, "--layer", "2", "--limit", "2"]
    arguments += ["--text", text, "--out", tmp_path / "run"]
    first = analyse(*arguments, "--methods", "ft")
    assert "no prompts for it: two hops, alias, logic." in first.printed
    run = Run.open(tmp_path / "run")
    assert [(row["method"], row["case_id"]) for row in run.rows("edited")] == [("ft", 0), ("ft", 1)]
    again = analyse(*arguments, "--methods", "ft,emmet", code=3)
    assert len(run.rows("edited")) == 2 and "EMMET failed: ValueError: no preset" in again.printed
    shown = json.loads((tmp_path / "run" / "tables" / "implications.json").read_text())
    assert shown["columns"] == ["Data set", "Score", "How", "Unedited", "FT", "EMMET", "Records"]
    assert all(row[5] == "failed" for row in shown["rows"])
    table = pd.read_csv(tmp_path / "run" / "tables" / "implications.csv")
    local = table[(table["editor"] == "Unedited") & (table["metric"] == "neighbors/generated")]
    assert local["value"].tolist() == [100] and local["n"].tolist() == [2]
    scope = pd.read_csv(tmp_path / "run" / "tables" / "scope.csv")
    assert set(scope["metric"].str.split("/").str[0]) == {"same prompt", "paraphrase", "neighbors"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_sequences_are_kept_resumed_and_told(analyse: Analyse, records: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["survey_sequential.py", "--model", TINY, "--records", records, "--layer", "2", "--edits", "1,2"]
    arguments += ["--sample", "2", "--text", text, "--out", tmp_path / "run"]
    analyse(*arguments, "--methods", "ft")
    run = Run.open(tmp_path / "run")
    assert [(row["edits"], row["group"], len(row["states"])) for row in run.rows("stacks")] == [
        (1, 0, 1),
        (1, 1, 1),
        (2, 0, 2),
    ]
    again = analyse(*arguments, "--methods", "ft,memit,emmet", code=3)
    assert [row["batch"] for row in run.rows("stacks")] == [False] * 3 + [True] * 3
    assert "EMMET failed: ValueError: no preset" in again.printed
    table = pd.read_csv(tmp_path / "run" / "tables" / "sequential.csv")
    kept = table[(table["editor"] == "FT") & table["metric"].str.contains("retention")]
    assert kept["n"].tolist() == [2] * 4
    unedited = table[(table["editor"] == "Unedited") & (table["metric"] == "2/locality, generated")]
    assert unedited["value"].tolist() == [100]


def written(figure: Figure) -> set[str]:
    return {text.get_text() for text in texts(figure)}


@pytest.mark.slow
def test_figures_name_every_method_and_stay_inside() -> None:
    def estimate(value: float) -> dict[str, Estimate]:
        return {how: Estimate(value=value, low=value - 0.1, high=value + 0.1, n=4) for how in ("forced", "generated")}

    names = ("Unedited", "A method with a long name", "Failed", *(f"M{number}" for number in range(5)))
    measures = {name: {} if name == "Failed" else {"a": estimate(0.4), "b": estimate(0.7)} for name in names}
    labels = {"a": "The edit itself", "b": "Another relation", "c": "Nobody has it"}
    figure = asked_figure(measures, labels, heading="4 records")
    assert {"The edit itself", "Another relation", "Failed", "generated"} <= written(figure)
    assert "Nobody has it" not in written(figure) and not outside(figure)
    figure = course_figure(measures, labels, heading="4 records")
    assert set(names) - {"Unedited", "Failed"} <= written(figure) and "Failed" not in written(figure)
    assert "the same, unedited" in written(figure) and not outside(figure)
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "forced"]
    assert list(line.get_ydata()) == pytest.approx([40, 70])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to draw"):
        course_figure({"Failed": {}}, labels, heading="")
