"""The survey's table on the golden model: resumed, a method that fails keeps its column, records that fail are told."""

import json
from pathlib import Path

import pandas as pd
import pytest
from command import TINY, Analyse

from workbench.records.counterfact import read_counterfact
from workbench.records.zsre import write_zsre
from workbench.runs.run import Run


@pytest.mark.usefixtures("quick_presets", "cache", "no_figures")
@pytest.mark.filterwarnings("ignore:.*the schema of MEND")
def test_the_table_is_made_resumed_and_told(analyse: Analyse, records: Path, text: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.json"
    write_zsre(read_counterfact(records)[:1], asked)
    arguments = ["survey_table.py", "--model", TINY, "--records", f"{records},{asked}", "--layer", "2"]
    arguments += ["--limit", "2", "--text", text, "--out", tmp_path / "run"]
    first = analyse(*arguments, "--methods", "ft", "--limit", "1")
    assert "| records | Reliability | teacher-forced |" in first.printed
    run = Run.open(tmp_path / "run")
    assert [(row["records"], row["case_id"]) for row in run.rows("edited")] == [("records", 0), ("asked", 0)]
    analyse(*arguments, "--methods", "ft", "--workers", "2")  # takes in one more
    assert [(row["records"], row["case_id"]) for row in run.rows("edited")[2:]] == [("records", 1)]
    again = analyse(*arguments, "--methods", "ft,emmet", code=3)
    assert len(run.rows("edited")) == 3 and "EMMET failed: ValueError: no preset" in again.printed
    assert analyse(*arguments, "--methods", "ft,emmet", code=3).printed == again.printed
    assert len(run.rows("failures")) == 1, "it is not tried again before --retry"
    table = pd.read_csv(tmp_path / "run" / "tables" / "survey.csv")
    shown = json.loads((tmp_path / "run" / "tables" / "survey.json").read_text())
    assert shown["columns"][:4] == ["Data set", "Score", "How", "Unedited"] and "EMMET" in shown["columns"]
    assert all(row[shown["columns"].index("EMMET")] == "failed" for row in shown["rows"])
    ours = table[(table["editor"] == "FT") & (table["metric"] == "records/reliability.forced")]
    assert ours["n"].tolist() == [2] and 0 <= ours["value"].item() <= 100
    assert table[(table["editor"] == "Unedited") & (table["metric"] == "asked/locality.forced")].empty
    assert (tmp_path / "run" / "tables" / "survey.tex").exists()


def test_data_sets_of_one_name_are_refused(analyse: Analyse, records: Path) -> None:
    said = analyse("survey_table.py", "--model", TINY, "--records", f"{records},{records}", code=1)
    assert "told apart by their names" in said.errors
    said = analyse("survey_table.py", "--model", TINY, "--records", records, "--methods", "rume", code=1)
    assert "no editor 'rume'; there are ft," in said.errors
