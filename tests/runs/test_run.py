"""A run's folder can be read at any moment, resumed with the same settings, and not with others."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command import ANALYSES
from matplotlib.figure import Figure

from workbench.editors.training.network import own_path
from workbench.figures.plotting import font_families
from workbench.machine import environment as provenance
from workbench.machine import paths
from workbench.machine.intervals import Estimate
from workbench.machine.paths import ROOT
from workbench.measuring.summaries import Summary
from workbench.runs.artifacts import save_figure
from workbench.runs.folder import check_apart, clear, locked
from workbench.runs.run import Run
from workbench.studies.contents import contents, preset_contents
from workbench.tables.scores import main_table
from workbench.tables.table import to_latex, to_markdown

SETTINGS = {"model": "atlas", "records": Path("records.json"), "seed": 0, "lengths": (5, 10)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", SETTINGS)


def make_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_create_writes_settings_and_environment(run: Run) -> None:
    assert json.loads((run.folder / "settings.json").read_text()) == {
        "model": "atlas",
        "records": "records.json",
        "seed": 0,
        "lengths": [5, 10],
    }
    environment = run.read_json("environment.json")
    assert environment["versions"]["torch"] == torch.__version__
    assert {"date", "python", "platform", "gpu", "commit"} <= environment.keys()
    assert (environment["gpu"] is None) != torch.cuda.is_available()
    assert run.status == "running"


def test_same_settings_resume(run: Run) -> None:
    run.append("scores", {"case_id": 1})
    again = Run.create(run.folder, SETTINGS)
    assert again.rows("scores") == [{"case_id": 1}]
    assert again.settings == Run.open(run.folder).settings
    assert len(again.read_json("environment.json")["resumed"]) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({**SETTINGS, "seed": 1}, "seed was 0 and is now 1"),
        ({**SETTINGS, "limit": 5}, r"limit was '\(not set\)' and is now 5"),
        ({key: value for key, value in SETTINGS.items() if key != "seed"}, "seed was 0 and is now"),
    ],
)
def test_other_settings_are_refused_by_name(run: Run, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Run.create(run.folder, changed)
    assert "--out" in str(caught.value) and "--fresh" in str(caught.value)


def test_folders_that_are_no_runs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files but is no run"):
        Run.create(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="is a file"):
        Run.create(tmp_path / "thesis.tex", SETTINGS)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Run.open(tmp_path)


def test_settings_of_something_else_make_no_run_and_what_is_hidden_stays(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"editor.tabSize": 4}')
    with pytest.raises(ValueError, match="holds files but is no run's"):
        clear(tmp_path)
    run = Run.create(tmp_path / "run", SETTINGS)
    hidden, left = run.folder / ".gitignore", run.folder / ".edits.json.a1_b2c3d"
    for path in (hidden, left):
        path.touch()
    Run.create(run.folder, SETTINGS)
    assert hidden.exists() and not left.exists()


def test_other_weights_are_refused(run: Run) -> None:
    run.check_model("a" * 64)
    run.check_model("a" * 64)
    with pytest.raises(ValueError, match="begun with model weights aaaaaaaaaaaa, these are bbbbbbbbbbbb"):
        run.check_model("b" * 64)


def test_other_versions_are_refused_by_name(run: Run) -> None:
    environment = run.read_json("environment.json")
    environment["versions"]["torch"] = environment["versions"]["torch"].partition("+")[0] + "+cu999"
    run.write_json("environment.json", environment)
    Run.create(run.folder, SETTINGS)  # built for another device
    environment["versions"] |= {"torch": "1.0", "numpy": None}
    run.write_json("environment.json", environment)
    with pytest.raises(ValueError, match=r"begun with torch 1\.0 \(now .*\), numpy None .*: install .* --fresh"):
        Run.create(run.folder, SETTINGS)
    assert run.read_json("environment.json") == environment


def test_records_come_back_as_they_were(run: Run) -> None:
    rows = [{"case_id": 1, "text": 'line\nbreak "東京" <b>'}, {"case_id": 2, "values": [0.1, 1e-30], "none": None}]
    for row in rows:
        run.append("scores", row)
    assert run.rows("scores") == rows
    assert run.done("scores", "case_id") == {1, 2}
    assert run.rows("others") == [] and run.done("others", "case_id") == set()


def test_tensors_and_arrays_are_written_as_numbers(run: Run) -> None:
    run.append("scores", {"tensor": torch.eye(2), "array": np.arange(2), "scalar": np.float32(0.5), "set": {2, 1}})
    assert run.rows("scores") == [{"tensor": [[1, 0], [0, 1]], "array": [0, 1], "scalar": 0.5, "set": [1, 2]}]
    with pytest.raises(TypeError, match="cannot write object"):
        run.append("scores", {"bad": object()})
    assert len(run.rows("scores")) == 1


def test_a_torn_line_is_ignored_then_replaced(run: Run) -> None:
    run.append("scores", {"case_id": 1})
    with (run.folder / "scores.jsonl").open("ab") as file:
        file.write('{"case_id": 2, "text": "東'.encode()[:-1])
    with pytest.warns(UserWarning, match="last line is incomplete"):
        assert run.done("scores", "case_id") == {1}
    run.append("scores", {"case_id": 2})
    assert run.rows("scores") == [{"case_id": 1}, {"case_id": 2}]


@pytest.mark.parametrize("damage", ["flipped", "not json", "no checksum", "another run's"])
def test_a_damaged_line_is_left_out_and_done_again(run: Run, tmp_path: Path, damage: str) -> None:
    for case in (1, 2, 3):
        run.append("scores", {"case_id": case, "score": 0.25})
    path = run.folder / "scores.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "another run's":
        other = Run.create(tmp_path / "other", {**SETTINGS, "seed": 1})
        other.append("scores", {"case_id": 2, "score": 0.75})
        lines[1] = (other.folder / "scores.jsonl").read_bytes()
    else:
        lines[1] = {
            "flipped": lines[1].replace(b"0.25", b"0.75"),
            "not json": b"not json\n",
            "no checksum": b'{"case_id": 2, "score": 0.75}\n',
        }[damage]
    path.write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match=r"scores\.jsonl: line 2 is damaged"):
        assert run.done("scores", "case_id") == {1, 3}
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        again = Run.create(run.folder, SETTINGS)
    assert (run.folder / "scores.jsonl.damaged").read_bytes() == lines[1]
    again.append("scores", {"case_id": 2, "score": 0.25})
    assert [row["case_id"] for row in again.rows("scores")] == [1, 3, 2]  # without a warning, which would raise


def test_nothing_is_lost_where_settings_were_edited_by_hand(run: Run) -> None:
    for case in range(100):
        run.append("scores", {"case_id": case})
    path, settings = run.folder / "scores.jsonl", run.folder / "settings.json"
    rows, kept = path.read_bytes(), settings.read_text()
    settings.write_text(kept.replace('"seed"', '"sead"'))
    edited = json.loads(settings.read_text())
    with pytest.warns(UserWarning) as warned:
        assert Run.create(run.folder, edited).rows("scores") == []
    assert [str(one.message).partition("scores.jsonl: ")[2] for one in warned] == [
        "100 lines, from line 1 on, are damaged or of other settings, and moved to scores.jsonl.damaged"
    ]
    settings.write_text(kept)
    (run.folder / "scores.jsonl.damaged").rename(path)
    assert path.read_bytes() == rows and len(Run.create(run.folder, SETTINGS).rows("scores")) == 100


def test_every_flipped_byte_of_a_line_is_noticed(run: Run) -> None:
    run.append("scores", {"case_id": 1, "text": "a"})
    path = run.folder / "scores.jsonl"
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.warns(UserWarning, match="damaged|incomplete"):
            assert run.rows("scores") == []


def test_another_content_of_the_files_is_refused_by_name(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text("[1]")
    settings = {"records": str(records), "text": "wikitext"}
    Run.create(tmp_path / "run", {**settings, "content": contents(settings)})
    Run.create(tmp_path / "run", {**settings, "content": contents(settings)})
    records.write_text("[2]")
    with pytest.raises(ValueError, match=rf"begun with another content of records {records}: .*--fresh"):
        Run.create(tmp_path / "run", {**settings, "content": contents(settings)})
    assert contents({"held_out": str(records)}).keys() == {f"held_out {records}"}


def test_a_preset_that_changed_is_refused_by_name(run: Run) -> None:
    run.check_presets({"preset rome of atlas": "a"})
    run.check_presets({"preset rome of atlas": "a", "preset memit of atlas": "b"})
    with pytest.raises(ValueError, match="begun with another preset memit of atlas: "):
        run.check_presets({"preset rome of atlas": "a", "preset memit of atlas": "c"})


def test_a_trained_network_is_part_of_what_a_run_goes_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = preset_contents("atlas", ["mend", "rome", "rome"])
    assert before.keys() == {"preset mend of atlas", "network mend of atlas", "preset rome of atlas"}
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    own_path("mend", "atlas").parent.mkdir()
    own_path("mend", "atlas").write_bytes(b"another")
    after = preset_contents("atlas", ["mend", "rome"])
    assert [name for name in before if after[name] != before[name]] == ["network mend of atlas"]
    assert preset_contents("no-such-model", ["rome"], preset_of="gpt2-xl").keys() == {"preset rome of gpt2-xl"}


@pytest.mark.parametrize(
    "script", sorted([*ANALYSES.glob("*.py"), *(ROOT / "workbench" / "cli").glob("*.py")]), ids=lambda path: path.stem
)
def test_a_command_that_edits_says_by_which_methods(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    opened = re.findall(r"\banalysis\((?:[^()]|\([^()]*\))*\) as", source)
    if opened and re.search(r"\b(make_editor|made_editor|ask|edit_alone)\(", source):
        assert any("methods=" in call for call in opened)


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_folder_that_a_kill_left_half_made_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    written, replace = [], os.replace

    def kill(*names: Any) -> None:
        written.append(names)
        if len(written) == killed_at:
            os._exit(9)
        replace(*names)

    if (child := os.fork()) == 0:
        monkeypatch.setattr("os.replace", kill)
        Run.create(tmp_path / "run", SETTINGS)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    run = Run.create(tmp_path / "run", SETTINGS)
    Run.create(tmp_path / "run", SETTINGS)  # which sweeps
    assert sorted(path.name for path in run.folder.iterdir()) == ["environment.json", "settings.json", "status.json"]


def test_one_writer_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder), Run.create(folder, SETTINGS).running():
        code = f"import pathlib, workbench.runs.folder as f\nwith f.locked(pathlib.Path({str(folder)!r})): pass"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"is being written by process {os.getpid()}: wait until it is done" in second.stderr
    with locked(folder):
        pass


def test_afresh_deletes_a_run_and_nothing_else(run: Run, tmp_path: Path) -> None:
    run.append("scores", {"case_id": 1})
    run.write_text("tables/scores.md", "old")
    clear(run.folder)
    assert list(run.folder.iterdir()) == []
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    for use in (clear, lambda folder: locked(folder).__enter__()):
        with pytest.raises(ValueError, match=r"holds files but is no run"):
            use(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_what_is_stopped_in_the_midst_of_deleting_is_ended_by_the_next(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_text("tables/scores.md", "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        clear(run.folder)
    stopped = tmp_path / "another"
    shutil.copytree(run.folder, stopped)
    with locked(run.folder):
        assert [path.name for path in run.folder.iterdir()] == [".lock"]
        Run.create(run.folder, SETTINGS)
    again = Run.create(stopped, SETTINGS)  # without a lock, as in Python
    again.append("scores", {"case_id": 1})
    with locked(stopped):
        assert again.rows("scores"), "what was made since stays"


def test_a_text_is_no_file_that_lies_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    check_apart(tmp_path, {"prompt": "", "subject": "very " * 200, "out": tmp_path})
    with pytest.raises(ValueError, match="'here' lies in"):
        (tmp_path / "below" / "here").touch()
        check_apart(tmp_path, {"records": "here"})


def test_status_of_a_finished_run(run: Run) -> None:
    with run.running():
        assert run.status == "running"
    assert run.status == "complete"


@pytest.mark.parametrize(("error", "reason"), [(KeyboardInterrupt(), "Ctrl-C"), (ValueError("no"), "ValueError: no")])
def test_status_of_a_run_that_was_stopped(run: Run, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), run.running():
        run.append("scores", {"case_id": 1})
        raise error
    assert run.status == "interrupted"
    assert run.read_json("status.json")["reason"] == reason
    assert run.done("scores", "case_id") == {1}


def test_files_appear_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("page.html", "old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        run.write_text("page.html", "new")
    assert (run.folder / "page.html").read_text() == "old"
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]


def test_notes_add_up(run: Run) -> None:
    run.note(layer=4)
    run.note(method="ROME", layer=5)
    assert run.read_json("results.json") == {"layer": 5, "method": "ROME"}


def test_damaged_results_are_refused_or_noted_again(run: Run) -> None:
    run.note(layer=5, scores={"ES": 0.1, "none": None}, names=("a", "b"))
    path = run.folder / "results.json"
    found, whole = run.read_json("results.json"), path.read_bytes()
    assert found == {"layer": 5, "scores": {"ES": 0.1, "none": None}, "names": ["a", "b"]}
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            read = run.read_json("results.json")
        except ValueError as error:
            assert str(path) in str(error) and "--fresh" in str(error)
        else:  # white space, or the name of the checksum
            assert {name: read.get(name) for name in found} == found
    path.write_bytes(whole.replace(b"5", b"6", 1))
    with pytest.warns(UserWarning, match="has not the checksum .*; its numbers are noted again"):
        Run.create(run.folder, SETTINGS)
    assert run.read_json("results.json") == {}


@pytest.mark.slow
def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    first, second = (save_figure(make_figure(), tmp_path / name / "figure") for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".pdf").read_bytes() == second.with_suffix(".pdf").read_bytes()
    assert b"CreationDate" not in first.with_suffix(".pdf").read_bytes()


def test_dots_in_a_figure_name_are_kept(tmp_path: Path) -> None:
    assert save_figure(make_figure(), tmp_path / "layer.4").name == "layer.4.png"


def test_figures_come_back_with_their_captions(run: Run) -> None:
    for name in ("trace_10", "trace_2"):
        run.save_figure(name, make_figure(), caption=f"About {name}")
    assert [(name, figure.caption) for name, figure in run.figures().items()] == [
        ("trace_2", "About trace_2"),
        ("trace_10", "About trace_10"),
    ]
    assert run.figures()["trace_2"].path.read_bytes().startswith(b"\x89PNG")


def test_a_table_is_saved_in_every_form(run: Run) -> None:
    metrics = ("S", "ES", "EM", "PS", "PM", "NS", "NM", "fluency")
    estimates = {metric: Estimate(value=0.5, low=0.4, high=0.6, n=9) for metric in metrics}
    table = main_table({"ROME": Summary(n=9, level=0.95, resamples=10, pre=estimates, post=estimates)})
    csv = run.save_table("scores", table)
    assert csv.with_suffix(".md").read_text() == to_markdown(table)
    assert csv.with_suffix(".tex").read_text() == to_latex(table, label="tab:scores")
    pd.testing.assert_frame_equal(pd.read_csv(csv), table.numbers(), check_dtype=False)
    saved = run.tables()["scores"]
    assert saved.caption == table.caption and saved.columns[0] == "Editor"
    assert saved.rows[1][:2] == ("ROME", "50.0 (40.0-60.0)")


def test_numbers_of_a_frame_of_texts_are_columns_of_their_own(run: Run) -> None:
    frame = pd.DataFrame({"Site": ["a", "b"], "Effect": ["0.37 ± 0.01", "0.4"], "Inside (%)": ["-", "97 (-3 to 99)"]})
    found = pd.read_csv(run.save_table("effects", frame))
    assert found.columns.tolist() == ["Site", "Effect", "Effect ±", "Inside (%)", "Inside (%) from", "Inside (%) to"]
    assert found.loc[0, ["Effect", "Effect ±"]].tolist() == [0.37, 0.01] and found.loc[1, "Inside (%) from"] == -3
    assert run.tables()["effects"].rows[0][1] == "0.37 ± 0.01"


def test_a_frame_is_saved_in_every_form(run: Run) -> None:
    frame = pd.DataFrame({"Role": ["a|b", "100 %"], "Effect": [0.123456, float("nan")], "Facts": [3, 4]})
    csv = run.save_table("roles", frame, caption="Effects & roles")
    pd.testing.assert_frame_equal(pd.read_csv(csv), frame)
    assert run.tables()["roles"].rows == (("a|b", "0.123", "3"), ("100 %", "-", "4"))
    assert "| a\\|b | 0.123 | 3 |" in csv.with_suffix(".md").read_text()
    latex = csv.with_suffix(".tex").read_text()
    assert r"100 \%" in latex and r"Effects \& roles" in latex


def test_the_commit_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    commit = provenance._commit(tmp_path.resolve())
    assert commit is not None and len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert provenance._commit(tmp_path.resolve()) == f"{commit}+changes"
    (tmp_path / "site-packages").mkdir()
    assert provenance._commit(tmp_path.resolve() / "site-packages") is None


def test_characters_that_no_font_draws_are_told_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    figure = make_figure()
    figure.text(0.1, 0.5, "\ue000 and \ue001 and \ue000")  # private use: no font has them
    save_figure(figure, tmp_path / "map")
    (said,) = [str(one.message) for one in recwarn]
    assert "\ue000 \ue001 of figure 'map'" in said and "install" in said


def test_fonts_for_other_writings_follow_matplotlibs_own() -> None:
    assert font_families(["SimHei", "Comic", "Noto Sans CJK JP"]) == ["DejaVu Sans", "Noto Sans CJK JP", "SimHei"]
