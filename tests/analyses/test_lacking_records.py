"""Records that lack what an analysis compares: it goes on without, or says at once what is missing."""

from dataclasses import replace
from pathlib import Path

import pytest
from command import TINY, Analyse, run
from known_records import RECORDS

from workbench.records.counterfact import write_counterfact
from workbench.records.facts import Record
from workbench.runs.run import Run

pytestmark = pytest.mark.usefixtures("quick_presets", "no_figures", "cache")


def written(folder: Path, records: list[Record]) -> Path:
    write_counterfact(records, folder / "records.json")
    return folder / "records.json"


def asked(records: Path, out: Path) -> list[object]:
    return ["--model", TINY, "--records", records, "--methods", "ft", "--layer", 2, "--fluency", 0, "--out", out]


@pytest.mark.slow
def test_without_neighbors_there_is_no_s(analyse: Analyse, text: Path, tmp_path: Path) -> None:
    path = written(tmp_path, [replace(record, neighborhood_prompts=()) for record in RECORDS])
    compared = run("compare", *asked(path, tmp_path / "compared"), "--limit", 2, "--stacked", "none", "--text", text)
    assert compared.exit_code == 0 and Run.open(tmp_path / "compared").status == "complete"
    assert "so there is no S" in (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
    scaled = analyse(
        "scale_edits.py", *asked(path, tmp_path / "scaled"), "--edits", "1,2", "--sample", 2, "--text", text
    )
    assert "so there is no S" in scaled.printed and "nan" not in scaled.printed.rsplit("S is", 1)[-1]
    layers = analyse(
        "compare_layers.py", "--model", TINY, "--records", path, "--layers", "1,2", "--out", tmp_path / "layers", code=1
    )
    assert "the 3 records have no neighborhood prompts, so there is no S to compare layers by" in layers.errors
    assert not (tmp_path / "layers").exists()


def test_records_without_a_true_answer_are_told(text: Path, tmp_path: Path) -> None:
    unknown = [replace(record, request=replace(record.request, target_true=None)) for record in RECORDS]
    for records, said in (
        ([RECORDS[0], *unknown[1:]], f"{len(RECORDS) - 1} of {len(RECORDS)} records have no true answer"),
        (unknown, f"none of {len(RECORDS)} records has a true answer"),
    ):
        path = written(tmp_path, list(records))
        result = run("compare", *asked(path, tmp_path / "out"), "--limit", 1, "--stacked", "none", "--text", text)
        assert said in " ".join(result.output.split()) and (result.exit_code == 0) == (records is not unknown)
