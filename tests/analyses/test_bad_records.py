"""A record that an editor cannot take ends no analysis: it is kept as failed, told, counted, and tried again."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import TINY, Analyse
from known_records import RECORDS

import workbench.studies.tracing_speed
from workbench.editors.ft import FT
from workbench.editors.memit import MEMIT
from workbench.editors.rome import ROME
from workbench.records.counterfact import write_counterfact
from workbench.records.course import write_requests
from workbench.records.reading import read_records
from workbench.runs.run import Run
from workbench.studies.defaults import records_path
from workbench.studies.stacked_edits import distinct

pytestmark = pytest.mark.usefixtures("quick_presets", "no_figures")
one_fast = pytest.mark.parametrize(
    "method", ["ft", *(pytest.param(method, marks=pytest.mark.slow) for method in ("rome", "memit"))]
)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Subjects that no editor can take."""
    subjects = {"Japan"}
    for editor, name in itertools.product((FT, ROME, MEMIT), ("__call__", "each")):
        whole = getattr(editor, name)

        def edit(self: Any, model: Any, requests: Any, whole: Any = whole) -> Any:
            if found := subjects & {request.subject for request in requests}:
                raise ValueError(f"no way to edit {found.pop()}")
            return whole(self, model, requests)

        monkeypatch.setattr(editor, name, edit)
    return subjects


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["caption"] for path in (folder / "tables").glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("methods", [["ft"], pytest.param(["rome", "ft"], marks=pytest.mark.slow)], ids=",".join)
def test_layers(analyse: Analyse, broken: set[str], text: Path, tmp_path: Path, methods: list[str]) -> None:
    write_counterfact(RECORDS, tmp_path / "records.json")
    command = ("compare_layers.py", "--model", TINY, "--records", tmp_path / "records.json",
               "--methods", ",".join(methods), "--layers", "1,2", "--limit", 3, "--window", 3, "--together", 1,
               "--text", text, "--out", tmp_path / "run")  # fmt: skip
    said = analyse(*command, code=3)
    run = Run.open(tmp_path / "run")
    assert run.status == "complete" and "record 2: ValueError: no way to edit Japan" in said.errors
    assert [(row["case_id"], row["method"]) for row in run.rows("failures")] == [(2, method) for method in methods]
    assert {row["case_id"] for row in run.rows("by_layer")} == {1, 3}
    told = captions(run.folder)
    for name in ("locating", "explained", *(f"layers_{method}" for method in methods)):
        assert f"1 of 3 records failed with {methods[0]}" in told[name], name
    assert run.read_json("results.json")["facts_edited"] == 2

    # The numbers are those of a run without the record: each trace stands beside its own record's edits.
    write_counterfact([RECORDS[0], RECORDS[2]], tmp_path / "fewer.json")
    fewer = [tmp_path / "fewer.json" if part == tmp_path / "records.json" else part for part in command[:-1]]
    analyse(*fewer, tmp_path / "fewer")
    rows = [Run.open(folder).rows("by_layer") for folder in (run.folder, tmp_path / "fewer")]
    rewrite = [
        {(r["method"], r["layer"], r["case_id"]): r["post"]["prompts"]["rewrite"] for r in some} for some in rows
    ]
    both = rewrite[0].keys() & rewrite[1].keys()  # the layer located is another one
    assert {key[1] for key in both} >= {1, 2} and all(rewrite[0][key] == rewrite[1][key] for key in both)

    broken.clear()
    assert not analyse(*command, "--retry").errors.count("failed")
    assert {row["case_id"] for row in run.rows("by_layer")} == {1, 2, 3}
    assert run.read_json("results.json")["facts_edited"] == 3


@pytest.mark.slow
@one_fast
def test_scaled(analyse: Analyse, broken: set[str], text: Path, tmp_path: Path, method: str) -> None:
    write_counterfact(RECORDS, tmp_path / "records.json")
    command = ("scale_edits.py", "--model", TINY, "--records", tmp_path / "records.json", "--methods", method,
               "--edits", "1,3", "--sample", 3, "--fluency", 0, "--layer", 2, "--text", text,
               "--out", tmp_path / "run")  # fmt: skip
    said = analyse(*command, code=3)
    run = Run.open(tmp_path / "run")
    assert f"1 of 3 records failed with {method} at 3 edits" in said.errors
    assert {(row["edits"], *row["cases"]) for row in run.rows("stacks")} >= {(1, 1), (1, 3)}
    (most,) = [row for row in run.rows("stacks") if row["edits"] == 3]
    assert sorted(most["cases"]) == [1, 3] and most["left_out"] == [2]
    assert "records failed" in captions(run.folder)["scores"]
    assert [row[-1] for row in run.tables()["scores"].rows] == ["3", "2", "2"]

    assert analyse(*command, code=3).printed == said.printed and len(run.rows("stacks")) == 3, "nothing is done again"
    broken.clear()
    analyse(*command, "--retry")
    assert [row["left_out"] for row in run.rows("stacks")].count([]) == 4
    assert [row[-1] for row in run.tables()["scores"].rows] == ["3", "3", "3"]


@pytest.mark.slow
@one_fast
def test_grouped(analyse: Analyse, broken: set[str], text: Path, tmp_path: Path, method: str) -> None:
    write_requests(RECORDS, tmp_path / "requests.json")
    command = ("multiple_edits.py", "--model", TINY, "--requests", tmp_path / "requests.json", "--methods", method,
               "--edits", "3", "--layer", 2, "--text", text, "--out", tmp_path / "run")  # fmt: skip
    said = analyse(*command, code=3)
    assert f"1 of 3 records failed with {method} at 3 edits" in said.errors
    run = Run.open(tmp_path / "run")
    (row,) = run.rows("groups")
    assert {one["case_id"] for one in row["answers"]} == {1, 3} and len(row["at_once"]) == 2
    assert all("1 of 3 records failed" in said for said in captions(run.folder).values())
    broken.clear()
    analyse(*command, "--retry")
    assert [row["left_out"] for row in run.rows("groups")] == [[2], []]
    assert [row[-1] for row in run.tables()["scores"].rows] == ["3", "3"]


def test_a_prompt_that_the_model_cannot_take(analyse: Analyse, text: Path, tmp_path: Path) -> None:
    long = replace(RECORDS[1], paraphrase_prompts=("Paris " * 300,))
    write_requests([RECORDS[0], long, RECORDS[2]], tmp_path / "requests.json")
    said = analyse("multiple_edits.py", "--model", TINY, "--requests", tmp_path / "requests.json", "--methods", "ft",
                   "--edits", "3", "--layer", 2, "--text", text, "--out", tmp_path / "run", code=3)  # fmt: skip
    assert "1 of 3 records failed and is left out. --retry tries again.\n  record 2: " in said.errors
    run = Run.open(tmp_path / "run")
    for rows in (run.rows("unedited"), run.rows("groups")):
        assert {one["case_id"] for one in rows[0]["answers"]} == {1, 3}


@pytest.mark.slow
def test_editing_benchmark(analyse: Analyse, broken: set[str], tmp_path: Path) -> None:
    bad = distinct(read_records(records_path("atlas")))[1]
    broken |= {bad.request.subject}
    command = ("benchmark_editing.py", "--models", TINY, "--requests", 3, "--plain", 1, "--repeats", 1,
               "--tokens", 300, "--out", tmp_path / "run")  # fmt: skip
    said = analyse(*command, code=3)
    run = Run.open(tmp_path / "run")
    (row,) = [row for row in run.rows("edits") if row["method"] == "memit"]
    assert bad.case_id in row["left_out"] and row["fast"]["requests"] == 3 - len(row["left_out"])
    assert f"record {bad.case_id}: ValueError: no way to edit" in said.errors
    assert "failed with memit on" in captions(run.folder)["speed"]
    broken.clear()
    analyse(*command, "--retry")
    assert [row["left_out"] for row in run.rows("edits") if row["method"] == "memit"][-1] == []


@pytest.mark.slow
def test_tracing_benchmark(analyse: Analyse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("workbench.studies.benchmarking.matmul_rate", lambda *_: 1e9)
    whole, asked = workbench.studies.tracing_speed.trace_fact, []

    def trace(model: Any, fact: Any, **options: Any) -> Any:
        if fact not in asked:
            asked.append(fact)
        if fact == asked[0]:
            raise RuntimeError("no way")
        return whole(model, fact, **options)

    monkeypatch.setattr(workbench.studies.tracing_speed, "trace_fact", trace)
    command = ("benchmark_tracing.py", "--models", "atlas", "--facts", 2, "--samples", 1, "--window", 3,
               "--cells", 2, "--growth-facts", "1,2", "--growth-tokens", "8,12", "--growth-layers", "1,2",
               "--growth-cells", 1, "--out", tmp_path / "run")  # fmt: skip
    said = analyse(*command, code=3)
    assert "1 of 2 facts failed with atlas and is left out" in said.errors and "RuntimeError: no way" in said.errors
    run = Run.open(tmp_path / "run")
    assert len(run.rows("facts")) == 1 and "1 of 2 facts failed" in captions(run.folder)["atlas"]
    assert run.rows("facts")[0]["difference"] < 1e-5
    assert [row["asked"] for row in run.rows("growth")] == [1, 2, 8, 12, 1, 2]
    assert "atlas_growth" in run.figures() and len(run.tables()["atlas_growth"].rows) == 9
    row = dict(zip(run.tables()["atlas"].columns, run.tables()["atlas"].rows[-1], strict=True))
    assert (
        all(float(row[way]) > 1 for way in ("Ratio", "Ratio, published")) and row["MiB (published, plain, fast)"] != "-"
    )
    monkeypatch.setattr(workbench.studies.tracing_speed, "trace_fact", whole)
    analyse(*command, "--retry")
    assert len({row["case_id"] for row in run.rows("facts")}) == 2


def test_texts_that_would_be_called_alike_are_refused(analyse: Analyse) -> None:
    said = analyse("compare_texts.py", "--texts", "one/text.txt,other/text.txt", code=1)
    assert "--texts takes files of different names, got one/text.txt, other/text.txt: rename one" in said.errors
