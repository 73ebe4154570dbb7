"""The commands as a user types them, on the tiny golden model and a few records of its own small world."""

import inspect
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from command import ANALYSES, TINY, Analyse, run
from typer.testing import CliRunner, Result

import workbench.studies.measure
from workbench.cli import app
from workbench.edits.edit import Edit
from workbench.runs.run import Run

pytestmark = pytest.mark.usefixtures("cache", "no_figures")


@pytest.fixture
def study(records: Path, text: Path) -> list[object]:
    return ["study", "--model", TINY, "--records", records, "--text", text, "--preset", "gpt2-xl", "--limit", 2,
            "--traces", 1, "--samples", 2, "--window", 3, "--layer", 2, "--fluency", 1]  # fmt: skip


def options_of(command: Callable[..., None]) -> list[str]:
    """The options that a command's signature declares."""
    hints = get_type_hints(command, include_extras=True)
    infos = [hints[name].__metadata__[0] for name in inspect.signature(command).parameters]
    names = [name for info in infos for name in (info.default, *(info.param_decls or ()))]
    given = [name for name in names if isinstance(name, str) and name.startswith("--")]
    return [part for name in given for part in name.split("/")]  # --growth/--no-growth


@pytest.mark.parametrize("command", [each.callback for each in app.registered_commands], ids=lambda c: c.__name__)
def test_a_command_shows_its_options(command: Callable[..., None]) -> None:
    shown = run(command.__name__, "--help")
    assert shown.exit_code == 0 and command.__name__ in run("--help").stdout
    told = command.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    options = options_of(told)
    assert "--out" in options or command.__name__ in ("fetch", "apply", "chat")  # which write no run
    assert not [option for option in options if option not in shown.stdout]


@pytest.mark.parametrize("script", sorted(path.name for path in ANALYSES.glob("*.py")))
def test_an_analysis_shows_its_question_and_its_options(
    script: str, analyse: Analyse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computes(*_: object, **__: object) -> None:
        raise AssertionError("help needs no model")

    monkeypatch.setattr("workbench.models.loading.load_checkpoint", computes)  # which no module keeps by name
    main = runpy.run_path(str(ANALYSES / script), run_name="script")
    options = options_of(main["main"])
    shown = analyse(script, "--help").printed
    assert "--out" in options and not [option for option in options if option not in shown]
    question, command = main["__doc__"].split("\n")[0], f"python analyses/{script}"
    assert question in shown and command in shown
    edits_or_traces = script != "check_families.py" and not script.startswith("benchmark_")
    assert {"--device", "--dtype", "--retry", "--precision"} <= set(options) or not edits_or_traces


def test_an_option_that_names_nothing_is_one_clear_line(analyse: Analyse, tmp_path: Path) -> None:
    for options in (["compare", "--stacked", ""], ["compare", "--methods", " , "], ["edit", "--layers", ""]):
        result = run(*options)
        assert result.exit_code == 2 and options[1] in result.output and "names nothing" in result.output
    assert "'--windows': it names nothing" in analyse("compare_tracing.py", "--windows", "", code=2).errors
    config = tmp_path / "run.yaml"
    for script, option in (("compare_tracing.py", "windows"), ("survey_table.py", "methods")):
        config.write_text(f"{option}: []\n")
        assert f"names nothing for {option}: leave it out" in analyse(script, "--config", config, code=2).errors
    assert "not whole numbers" in analyse("compare_tracing.py", "--windows", "1;3", code=2).errors


def test_help_does_not_wait_for_torch() -> None:
    """An analysis begins with `help_first`, a command imports what it needs when it runs."""
    code = """
import runpy, sys
from workbench.cli import app, main
commands = [("workbench", command.callback.__name__) for command in app.registered_commands]
for name, *command in [*commands, *((script,) for script in sys.argv[1:])]:
    sys.argv = [name, *command, "--help"]
    try:
        runpy.run_path(name, run_name="__main__") if not command else main()
    except SystemExit as ended:
        assert ended.code == 0
    heavy = {"torch", "transformers", "pandas", "numpy", "matplotlib"} & sys.modules.keys()
    assert not heavy, f"{name} {command} imports {heavy} for its help"
"""
    scripts = sorted(map(str, ANALYSES.glob("*.py")))
    found = subprocess.run([sys.executable, "-c", code, *scripts], capture_output=True, text=True, cwd=ANALYSES.parent)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("Show this message and exit.") == len(app.registered_commands) + len(
        list(ANALYSES.glob("*.py"))
    )


@pytest.mark.usefixtures("quick_presets")
def test_study_ends_with_a_report_and_goes_on_after_ctrl_c(
    study: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench.studies.measure, "FLUENCY_TOKENS", 16)
    whole = run(*study, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert f"Report: {tmp_path / 'whole' / 'report.html'}" in whole.output
    finished = Run.open(tmp_path / "whole")
    assert finished.status == "complete"
    assert finished.read_json("results.json")["records_edited"] == 2
    sampled = [bool(row["post"]["texts"]) for row in finished.rows("evaluations")]
    assert sampled == [True, False], "fluency of one record only"
    assert {"average_effects", "scores", "trace_1", "lens_1", "lens_average"} <= finished.figures().keys()
    assert {"average_effects", "scores", "generation", "change"} <= finished.tables().keys()

    evaluate, calls = workbench.studies.measure.evaluate, []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(workbench.studies.measure, "evaluate", stopped)
    cut = run(*study, "--out", tmp_path / "cut")
    assert cut.exit_code == 130
    assert "goes on from there" in cut.output
    half = Run.open(tmp_path / "cut")
    assert half.status == "interrupted"
    assert len(half.rows("evaluations")) == 1
    assert "interrupted" in (tmp_path / "cut" / "report.html").read_text(encoding="utf-8")

    assert run(*study, "--out", tmp_path / "cut").exit_code == 0
    assert len(calls) == 3, "only the record that was missing is evaluated"
    for name in ("tables/scores.csv", "tables/generation.csv", "tables/average_effects.csv"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()

    other = run(*study, "--out", tmp_path / "cut", "--seed", 1)
    assert other.exit_code == 1
    assert "seed was 0 and is now 1" in other.output


@pytest.mark.usefixtures("quick_presets")
def test_trace_edit_and_evaluate_hand_on_their_folders(records: Path, text: Path, tmp_path: Path) -> None:
    common = ["--model", TINY, "--records", records]
    traced = run("trace", *common, "--limit", 1, "--samples", 2, "--window", 3, "--out", tmp_path / "trace")
    assert traced.exit_code == 0, traced.output
    layer = json.loads((tmp_path / "trace" / "results.json").read_text())["layer"]
    made = run("edit", *common, "--text", text, "--preset", "gpt2-xl", "--trace", tmp_path / "trace",
               "--limit", 2, "--out", tmp_path / "edit")  # fmt: skip
    assert made.exit_code == 0, made.output
    assert f"2 edits at layer {layer}" in made.output
    late, away = sorted((tmp_path / "edit" / "edits").iterdir())[1], tmp_path / "away"
    for present, origin, place in ((1, late, away), (2, away, late)):  # scored without the other edit, then with it
        origin.rename(place)
        scored = run("evaluate", tmp_path / "edit", "--out", tmp_path / "scores", "--fluency", 0)
        assert scored.exit_code == 0, scored.output
        assert len(Run.open(tmp_path / "scores").rows("evaluations")) == present
    status = tmp_path / "edit" / "status.json"
    complete = status.read_text()
    status.write_text(complete.replace('"complete"', '"interrupted"'))
    late.rename(away)
    scored = run("evaluate", tmp_path / "edit", "--out", tmp_path / "scores", "--fluency", 0)
    assert "was stopped: 1 of its 2 records are edited" in scored.output
    away.rename(late)
    status.write_text(complete)
    whole, (first, other) = late.read_bytes(), sorted((tmp_path / "edit" / "edits").iterdir())
    late.write_bytes(whole[:200])
    cut = run("evaluate", tmp_path / "edit", "--out", tmp_path / "cut", "--fluency", 0)
    assert cut.exit_code == 1 and "`workbench edit --out " in cut.output and "makes it again" in cut.output
    late.write_bytes(whole)
    edited, scores = Run.open(tmp_path / "edit"), Run.open(tmp_path / "scores")
    edited.fail(1, "made up", of=2)
    missing = run("evaluate", tmp_path / "edit", "--out", tmp_path / "scores", "--fluency", 0)
    assert missing.exit_code == 3 and "made up" in missing.output
    edited.retry()  # as `edit --retry` does, which then edits it
    assert run("evaluate", tmp_path / "edit", "--out", tmp_path / "scores", "--fluency", 0).exit_code == 0
    rows = scores.rows("evaluations")
    assert [row["edit"] for row in rows] == [Edit.load(path).digest for path in (first, other)]
    (tmp_path / "scores" / "evaluations.jsonl").unlink()
    for row in rows:
        scores.append("evaluations", row | {"edit": "of another"})
    again = run("evaluate", tmp_path / "edit", "--out", tmp_path / "scores", "--fluency", 0)
    assert again.exit_code == 1 and "holds scores of another edit of record 0" in again.output
    itself = run("evaluate", tmp_path / "edit", "--out", tmp_path / "edit", "--fresh")
    assert itself.exit_code == 1 and f"'{tmp_path / 'edit'}' lies in" in itself.output, "what it reads stays"
    assert len([*(tmp_path / "edit" / "edits").iterdir()]) == 2
    again = run("rerun", tmp_path / "edit")
    assert again.exit_code == 0 and f"2 edits at layer {layer}" in again.output
    assert "is the run itself" in run("rerun", tmp_path / "edit", "--out", tmp_path / "edit").output
    wrong = run("evaluate", tmp_path / "trace")
    assert wrong.exit_code == 1
    assert "is not a run of `workbench edit`" in wrong.output


@pytest.mark.parametrize("method", ["rome", "grace"])
def test_the_one_layer_named_is_edited(
    records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # it goes on in a folder called as the method is
        made = run("edit", "--model", TINY, "--records", records, "--text", text, "--preset", "gpt2-xl",
                   "--method", method, "--layers", 3, "--limit", 1, "--set", "steps=1", "--out", method)  # fmt: skip
        assert made.exit_code == 0 and "1 edits at layer 3" in made.output, made.output


def test_a_single_request_is_shown_before_and_after(records: Path, text: Path, tmp_path: Path) -> None:
    shown = run("edit", "--model", TINY, "--records", records, "--text", text, "--preset", "gpt2-xl", "--layer", 2,
                "--prompt", "In {}, most people speak", "--subject", "Argentina", "--target", "Polish",
                "--out", tmp_path / "one")  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "Before  Spanish." in shown.output
    assert "After   Polish" in shown.output
    assert f"--records {records} are not read" in shown.output
    assert Run.open(tmp_path / "one").settings["records"] is None
    half = run("edit", "--model", TINY, "--prompt", "{} is", "--out", tmp_path / "two")
    assert half.exit_code == 1
    assert "--subject, --target is missing" in half.output


def test_bad_input_is_one_clear_line(study: list[object], records: Path, tmp_path: Path) -> None:
    def error(*options: object) -> str:
        """What the study says when an option is changed; later options override earlier ones."""
        result = run(*study, "--out", tmp_path / "bad", *options)
        assert result.exit_code == 1, result.output
        assert result.output.count("error: ") == 1
        assert "Traceback" not in result.output
        assert not (tmp_path / "bad").exists(), "nothing is begun"
        return result.output

    assert "none.json" in error("--records", tmp_path / "none.json")
    wrong = tmp_path / "wrong.json"
    wrong.write_text('[{"question": "?"}]')
    assert "wrong.json" in error("--records", wrong)
    content = json.loads(records.read_text(encoding="utf-8"))
    content[1]["requested_rewrite"]["prompt"] = "The capital is"
    wrong.write_text(json.dumps(content))
    assert "record 1: field 'requested_rewrite.prompt'" in error("--records", wrong)
    wrong.write_text("[]")
    assert "wrong.json" in error("--records", wrong)
    assert "layer 99" in error("--layer", 99)
    assert "no-such-model" in error("--model", tmp_path / "no-such-model")
    assert "no rome preset" in error("--preset", "no-such-model")
    assert "there are ft, ft_l, rome" in error("--method", "magic")
    assert "--dtype is one of float32, bfloat16, float16" in error("--dtype", "int8")
    assert "got '3;7'" in error("--positions", "3;7")
    assert "--engine is one of auto, fast, plain" in error("--engine", "quick")
    assert "one of float32, tf32" in error("--precision", "float64")
    config = tmp_path / "run.yaml"
    config.write_text("samples: 2.5\n")
    half = run("trace", "--model", TINY, "--config", config)
    assert half.exit_code == 2 and "'2.5'" in half.output
    below = run(*study, "--seed", -1, "--out", tmp_path / "bad")
    assert below.exit_code == 2 and "--seed" in below.output


def test_a_run_is_repeated_and_its_edit_shown_at_work(records: Path, text: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {TINY}\nrecords: {records}\nmethod: ft\npreset: gpt2-xl\nlimit: 3\n"
                      "layers: [2, 3]\nset: {steps: 2}\n")  # fmt: skip
    made = run("edit", "--config", config, "--limit", 1, "--out", tmp_path / "one")
    assert made.exit_code == 0 and "1 edits at layers 2, 3" in made.output, made.output
    (fields,) = json.loads((tmp_path / "one" / "editors.json").read_text()).values()
    assert fields["steps"] == 2 and fields["layers"] == [2, 3]
    assert run("rerun", tmp_path / "one").exit_code == 0
    (edit,), (again,) = ((tmp_path / name / "edits").iterdir() for name in ("one", "one-rerun"))
    assert edit.read_bytes() == again.read_bytes()
    for name in ("settings.json", "editors.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "one-rerun" / name).read_text()
    shown = run("apply", edit, "--model", TINY, "--prompt", "Argentina is", "--prompt", "Peru is", "--tokens", 2)
    assert shown.exit_code == 0 and "Peru is" in shown.output and "After" in shown.output
    typed = f"{'Chile ' * 300}\nArgentina is\n\nPeru is\n"  # the first prompt is longer than the context
    asked = CliRunner().invoke(app, ["chat", str(edit), "--model", str(TINY)], input=typed)
    assert asked.exit_code == 0 and asked.output.count("error: ") == 1, asked.output
    assert "Argentina is" in asked.output and "Peru" not in asked.output
    config.write_text("limt: 3\n")
    assert "limt" in run("edit", "--config", config).output


@pytest.mark.slow
@pytest.mark.usefixtures("quick_presets", "no_figures")
def test_editors_are_compared_and_an_analysis_is_repeated(
    records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compared(*options: object) -> Result:
        return run("compare", "--model", TINY, "--records", records, "--text", text, "--limit", 2, "--fluency", 0,
                   "--stacked", "none", "--layer", 2, "--out", tmp_path / "one", *options)  # fmt: skip

    for method in ("ft", "rome"):  # the second goes on in the run of the first
        made = compared("--methods", method)
        assert made.exit_code == 0 and f"Report: {tmp_path / 'one' / 'report.html'}" in made.output, made.output
    assert run("rerun", tmp_path / "one").exit_code == 0
    one, again = (Run.open(tmp_path / name) for name in ("one", "one-rerun"))
    scores = [[(row["method"], row["case_id"], row["post"]["prompts"]) for row in each.rows("evaluations")]
              for each in (one, again)]  # fmt: skip
    assert scores[0] == scores[1] and [method for method, *_ in scores[0]] == ["ft", "ft", "rome", "rome"]
    assert one.settings == again.settings

    one.write_json("settings.json", {**one.settings, "command": "locate_facts"})
    monkeypatch.chdir(tmp_path)
    lost = run("rerun", tmp_path / "one")
    assert lost.exit_code == 1 and "in the folder of a checkout" in lost.output


@pytest.mark.slow
@pytest.mark.usefixtures("quick_presets", "no_figures")
def test_a_script_of_the_analyses_is_repeated(
    analyse: Analyse, records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ANALYSES.parent)
    analyse("single_edit.py", "--model", TINY, "--records", records, "--case", 1, "--text", text, "--layer", 2,
            "--method", "ft", "--out", tmp_path / "one")  # fmt: skip
    assert run("rerun", tmp_path / "one").exit_code == 0
    tables = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "tables").glob("*.json")}
        for name in ("one", "one-rerun")
    ]
    assert tables[0] and tables[0] == tables[1]


def test_the_page_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "workbench.app.page", raising=False)
    said = run("app")
    assert said.exit_code == 1 and "pip install 'workbench[app]'" in said.stderr
