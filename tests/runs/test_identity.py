"""A result belongs to what made it: nothing is gone on with, or scored, that is another's or damaged."""

import json
import os
import signal
from pathlib import Path

import pytest
import typer
from command import TINY, run

from workbench.cli.session import told
from workbench.edits.edit import Edit
from workbench.records.reading import read_records
from workbench.runs.identity import together

pytestmark = pytest.mark.usefixtures("cache", "no_figures", "quick_presets")


def test_edits_are_of_their_records(records: Path, text: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "records.json", tmp_path / "run"
    file.write_bytes(records.read_bytes())
    command = ["edit", "--model", TINY, "--records", file, "--text", text, "--layer", 2,
               "--method", "ft", "--limit", 2, "--out", out]  # fmt: skip
    evaluate = ["evaluate", out, "--fluency", 0, "--out", tmp_path / "scores"]
    made = run(*command)
    assert made.exit_code == 0, made.output
    first, second = sorted((out / "edits").iterdir())
    whole = first.read_bytes()

    first.write_bytes(second.read_bytes())  # another record's edit
    assert "is an edit for" in (refused := run(*evaluate)).output and refused.exit_code == 1
    assert "it is made again" in (again := run(*command)).output and again.exit_code == 0
    assert first.read_bytes() == whole  # to the byte

    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # damaged
    assert "checksum" in (refused := run(*evaluate)).output and refused.exit_code == 1
    assert "it is made again" in (again := run(*command)).output and again.exit_code == 0
    assert first.read_bytes() == whole

    content = json.loads(file.read_text(encoding="utf-8"))
    content[0]["requested_rewrite"]["target_new"]["str"] = "Atlantis"
    file.write_text(json.dumps(content))
    assert f"another content of records {file}" in (refused := run(*command)).output and refused.exit_code == 1
    assert "is an edit for" in run(*evaluate[:-1], tmp_path / "other").output
    assert run(*command, "--fresh").exit_code == 0
    assert Edit.load(first).requests == (read_records(file)[0].request,)


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended:
        told(lambda: os.kill(os.getpid(), signal.SIGTERM), "any")()
    assert ended.value.exit_code == 143 and "the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_goes_on_is_repeated_with_all_that_it_took_in() -> None:
    begun = {"methods": ["ft", "rome"], "limit": 100, "together": 20}
    assert together(begun, {"methods": ["rome", "memit"], "limit": 50, "together": 1}) == {
        "methods": ["ft", "rome", "memit"],
        "limit": 100,
        "together": 1,
    }
    assert together({"together": 1}, {"limit": 5})["limit"] == 5
