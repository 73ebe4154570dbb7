"""A record that fails is kept as failed and told; the others go on."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import TINY, run

from workbench.editors.ft import FT
from workbench.machine.failures import lines, sentence
from workbench.records.reading import read_records
from workbench.runs.run import Run
from workbench.studies.edit import edit_records
from workbench.studies.measure import score_edits

pytestmark = pytest.mark.usefixtures("cache", "no_figures", "quick_presets")


@pytest.fixture
def study(records: Path, text: Path, tmp_path: Path) -> list[object]:
    """A study of four records, the second of which is longer than the context."""
    content = json.loads(records.read_text(encoding="utf-8"))
    long = json.loads(json.dumps(content[1]))
    long["case_id"] = 77
    long["requested_rewrite"]["prompt"] = "Paris " * 80 + "{} is"
    (tmp_path / "records.json").write_text(json.dumps([content[0], long, *content[1:]]))
    return ["study", "--model", TINY, "--records", tmp_path / "records.json", "--text", text,
            "--limit", 4, "--traces", 2, "--samples", 2, "--window", 3, "--layer", 2, "--method", "ft", "--fluency", 1,
            "--out", tmp_path / "run"]  # fmt: skip


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["caption"] for path in (folder / "tables").glob("*.json")}


def test_one_bad_record_does_not_end_a_study(study: list[object], tmp_path: Path) -> None:
    result = run(*study)
    assert result.exit_code == 3, result.output
    assert "1 of 2 facts failed, 1 of 4 records failed and are left out. --retry tries again." in result.output
    assert "record 77: ValueError: a text has" in result.output and "Traceback" not in result.output
    kept = Run.open(tmp_path / "run")
    assert kept.status == "complete"
    assert [row["case_id"] for row in kept.rows("failures")] == [77, 77]
    assert {row["case_id"] for row in kept.rows("evaluations")} == {0, 1, 2}
    told = captions(tmp_path / "run")
    assert "1 of 2 facts failed" in told["average_effects"]
    for name in ("scores", "generation", "accuracy", "change"):
        assert "1 of 4 records failed" in told[name], name
    assert "1 of 4 records failed" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_failed_is_tried_again_only_when_asked(
    records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["edit", "--model", TINY, "--records", records, "--text", text, "--layer", 2,
               "--method", "ft", "--limit", 3, "--out", tmp_path / "run"]  # fmt: skip
    made, asked, broken = FT.__call__, [], {"Japan"}

    def edit(self: FT, model: Any, requests: Any) -> Any:
        asked.append(requests[0].subject)
        if requests[0].subject in broken:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nstack ...")
        return made(self, model, requests)

    monkeypatch.setattr(FT, "__call__", edit)
    first = run(*command)
    assert first.exit_code == 3 and "2 edits at layer" in first.output
    assert "record 1: RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory\n" in first.output
    assert asked == ["Portugal", "Japan", "Egypt"]
    scored = run("evaluate", tmp_path / "run", "--out", tmp_path / "scores", "--fluency", 0)
    assert scored.exit_code == 3 and "1 of 3 records failed" in captions(tmp_path / "scores")["scores"]

    broken.clear()
    assert run(*command).exit_code == 3
    assert asked == ["Portugal", "Japan", "Egypt"], "not tried again"
    assert run(*command, "--retry").exit_code == 0
    assert asked == ["Portugal", "Japan", "Egypt", "Japan"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_ctrl_c_and_a_full_disk_end_a_run(records: Path, tiny_gpt2, tmp_path: Path, error: type[BaseException]) -> None:
    def editor(model: Any, requests: Any) -> Any:
        raise error

    kept = Run.create(tmp_path / "run", {})
    with pytest.raises(error):
        list(edit_records(kept, tiny_gpt2, editor, read_records(records)))
    assert not kept.rows("failures")


def test_weights_that_a_failed_edit_leaves_behind_end_the_run(records: Path, tiny_gpt2, tmp_path: Path) -> None:
    before = tiny_gpt2.snapshot()

    def editor(model: Any, requests: Any) -> Any:
        model.weight(0).add_(1)
        raise ValueError("half done")

    try:
        with pytest.raises(RuntimeError, match=r"record 0, which failed: .* has not the weights and edits"):
            kept = Run.create(tmp_path / "run", {})
            list(edit_records(kept, tiny_gpt2, editor, read_records(records)))
    finally:
        tiny_gpt2.restore_(before)


def test_a_run_of_failures_alone_says_why(records: Path, tiny_gpt2, tmp_path: Path) -> None:
    def editor(model: Any, requests: Any) -> Any:
        raise ValueError("no way")

    kept = Run.create(tmp_path / "run", {})
    edits = edit_records(kept, tiny_gpt2, editor, read_records(records))
    with pytest.raises(ValueError, match="none of the 3 records could be edited and scored: ValueError: no way"):
        score_edits(kept, tiny_gpt2, edits, records=read_records(records), seed=0)


def test_failures_in_words() -> None:
    assert sentence([]) == "" and lines([]) == []
    rows = [{"case_id": n, "what": "record", "method": "rome", "of": 100, "reason": "E"} for n in (1, 2, 2, 3, 4, 5, 6)]
    assert sentence(rows) == " 6 of 100 records failed with rome and are left out."
    assert lines(rows)[-1] == "  and 2 more, in failures.jsonl" and len(lines(rows)) == 7


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OverflowError("int too big to convert"), "error: OverflowError: int too big to convert (unexpected"),
        (TypeError("'NoneType' object"), "error: TypeError: 'NoneType' object (unexpected"),
        (MemoryError(), "error: not enough memory (MemoryError): try"),
        (RuntimeError("CUDA error\nmore\nand more"), "error: RuntimeError: CUDA error (unexpected"),
        (ValueError("one\n  two"), "error: one two"),
    ],
)
def test_no_traceback_reaches_a_user(
    error: Exception, said: str, records: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("workbench.models.loading.load_model", broken)
    result = run("trace", "--model", TINY, "--records", records, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.output and result.output.count("\n") == 1
