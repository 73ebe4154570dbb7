"""Editors and readers of one's own, from a file or a package: found, used without presets, refused in one line."""

import inspect
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from command import ANALYSES, TINY, Analyse, run

from workbench.cli import app
from workbench.cli.early_help import outlined
from workbench.editors.editor import Editor
from workbench.editors.make import make_editor
from workbench.editors.plugins import load_plugin, method_name
from workbench.editors.registry import EDITORS
from workbench.editors.rome import ROME
from workbench.machine import plugins
from workbench.machine.plugins import PluginError
from workbench.models.model import Model
from workbench.records.fields import RecordError
from workbench.records.reading import READERS, Reader, read_records
from workbench.runs.run import Run

NUDGE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from workbench.editors.editor import Editor
from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit, WeightUpdate

@dataclass(frozen=True, kw_only=True, eq=False)
class Nudge(Editor):
    method: ClassVar[str] = "My nudge"
    layer: int
    scale: float = 0.5

    @property
    def layers(self):
        return (self.layer,)

    def __call__(self, model, requests):
        d_in, d_out = model.weight(self.layer).shape
        update = WeightUpdate(layer=self.layer, left=torch.ones(d_in, 1), right=torch.full((1, d_out), self.scale))
        made = provenance(model, {"scale": self.scale})
        return WeightEdit(method=self.method, requests=tuple(requests), provenance=made, updates=(update,))
"""
READ = """
import csv
from workbench.records.facts import EditRequest, Record
from workbench.records.reading import Reader

def read(path):
    with path.open() as file:
        rows = [tuple(row) for row in csv.reader(file)]
    return [
        Record(case_id=case, request=EditRequest(template=template, subject=subject, target_new=new))
        for case, (template, subject, new) in enumerate(rows)
    ]

MINE = Reader(name="my table", suffix=".csv", read=read)
"""


def write(folder: Path, code: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(code, encoding="utf-8")
    return folder / name


def offer(monkeypatch: pytest.MonkeyPatch, group: str, **values: str) -> None:
    """Have an installed package offer these under a group."""
    found = {name: EntryPoint(name, value, group) for name, value in values.items()}
    monkeypatch.setattr(plugins, "offered", lambda asked: found if asked == group else {})


def test_an_editor_from_a_file_has_its_defaults_and_the_located_layer(tiny_gpt2: Model, tmp_path: Path) -> None:
    path = write(tmp_path, NUDGE)
    assert load_plugin(path) == load_plugin(str(path)) == ("my_nudge",)
    assert [*EDITORS][-1] == "my_nudge" and EDITORS["my_nudge"].method == "My nudge"
    making = {"layer": 3, "texts": tuple, "seed": 0, "cache": tmp_path}
    editor = make_editor(tiny_gpt2, "my_nudge", **making)
    assert (editor.layers, editor.scale) == ((3,), 0.5)  # pyright: ignore
    assert make_editor(tiny_gpt2, "my_nudge", scale=2.0, **making).scale == 2.0  # pyright: ignore


def test_names_of_methods_are_those_of_the_workbench() -> None:
    assert [method_name(editor) for editor in EDITORS.values()] == [*EDITORS]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import torhc", r"line 1: ModuleNotFoundError: No module named 'torhc'"),
        ("x = 1\ndef f(:", r"line 2: SyntaxError"),
        ("x = 1", r"it defines no subclass of Editor and no Reader"),
        (NUDGE.replace('"My nudge"', '"ROME"'), r"the name 'rome' exists already: choose another"),
        (NUDGE.replace('method: ClassVar[str] = "My nudge"', ""), r"'nudge' lacks its display name"),
        (NUDGE.replace("def layers", "def others"), r"'my_nudge' lacks `layers`"),
        (NUDGE.replace("def __call__", "def call"), r"'my_nudge' lacks __call__"),
        (NUDGE.replace("@dataclass(frozen=True, kw_only=True, eq=False)", ""), r"'my_nudge' is no dataclass"),
        (READ.replace("my table", "CounterFact"), r"the name 'CounterFact' exists already"),
        (READ.replace(', suffix=".csv"', ""), r"'my table' names neither fields nor a suffix"),
    ],
)
def test_a_broken_plugin_is_told_in_one_line(tmp_path: Path, code: str, why: str) -> None:
    path = write(tmp_path, code)
    with pytest.raises(PluginError, match=rf"^plugin {path}: {why}") as told:
        load_plugin(path)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_or_named_as_another(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="there is no such Python file"):
        load_plugin(tmp_path / "nothing.py")
    load_plugin(write(tmp_path, READ))
    (tmp_path / "second").mkdir()
    with pytest.raises(PluginError, match="has the same name: rename one of them"):
        load_plugin(write(tmp_path / "second", NUDGE))
    with pytest.raises(PluginError, match="the name 'my table' exists already"):
        load_plugin(write(tmp_path, READ, "again.py"))


def test_a_reader_recognises_its_files(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, READ))
    with pytest.warns(UserWarning, match="the schema of my table, 1 record; they have no paraphrase"):
        (record,) = read_records(write(tmp_path, "{} plays the,Miles Davis,piano\n", "facts.csv"))
    assert record.request.prompt == "Miles Davis plays the"
    with pytest.raises(RecordError, match=r"the reader 'my table' failed: ValueError: not enough values"):
        read_records(write(tmp_path, "{} plays the,Miles Davis\n", "short.csv"))
    READERS.add("of ours", Reader(name="of ours", fields=("q",), read=lambda path: []), source="here")  # pyright: ignore
    with pytest.raises(RecordError, match="the reader 'of ours' gives records"):
        read_records(write(tmp_path, json.dumps([{"q": "What?"}]), "ours.json"))
    with pytest.raises(RecordError, match=r"of a schema that is known, my table \('\.csv'\); of ours \('q'\); Counter"):
        read_records(write(tmp_path, json.dumps([{"x": 1}]), "other.json"))


def test_what_packages_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "workbench.editors", ours="workbench.editors.rome:ROME", lost="nowhere:X", no="json:dumps")
    assert {"ours", "lost", "no"} <= {*EDITORS}
    assert EDITORS["ours"] is ROME
    with pytest.raises(PluginError, match=r"'lost' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"):
        EDITORS["lost"]
    with pytest.raises(PluginError, match=r"'no' is no subclass of workbench.editors.editor.Editor"):
        EDITORS["no"]
    offer(monkeypatch, "workbench.editors", rome="workbench.editors.rome:ROME")
    assert [*EDITORS].count("rome") == 1 and EDITORS["memit"]
    with pytest.raises(PluginError, match="the name 'rome' exists already: uninstall the package"):
        EDITORS["rome"]
    offer(monkeypatch, "workbench.readers", ours="workbench.records.reading:READERS")
    with pytest.raises(PluginError, match=r"'ours' is no workbench\.records\.reading\.Reader"):
        READERS["ours"]


def test_what_takes_methods_or_records_takes_plugins() -> None:
    mains = [each.callback.__wrapped__ for each in app.registered_commands]  # pyright: ignore
    mains += [outlined(path)["main"] for path in sorted(ANALYSES.glob("*.py")) if "def main(" in path.read_text()]
    named = [set(inspect.signature(main).parameters) for main in mains]
    asking = [names for names in named if names & {"method", "methods", "records"}]
    assert len(asking) > 10 and all("plugin" in names for names in asking)


@pytest.mark.usefixtures("cache", "no_figures")
def test_commands_run_with_a_plugin(tmp_path: Path, records: Path) -> None:
    out, plugin = tmp_path / "run", write(tmp_path, NUDGE)
    command = ("edit", "--model", TINY, "--records", records, "--limit", 1, "--layer", 2, "--out", out)
    done = run(*command, "--method", "my_nudge", "--plugin", plugin)
    assert done.exit_code == 0, done.output
    assert "1 edits at layer 2" in done.stdout
    settings = Run.open(out).settings
    assert settings["plugin"] == [str(plugin)] and f"plugin {plugin}" in settings["content"]
    write(tmp_path, NUDGE.replace("0.5", "0.6"))
    changed = run(*command, "--method", "my_nudge", "--plugin", plugin)
    assert changed.exit_code == 1 and f"another content of plugin {plugin}" in changed.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("quick_presets", "no_figures")
def test_an_analysis_runs_with_a_plugin(tmp_path: Path, records: Path, text: Path, analyse: Analyse) -> None:
    plugin = write(tmp_path, NUDGE)
    said = analyse(
        "compare_editors.py", "--model", TINY, "--records", records, "--text", text, "--methods", "my_nudge",
        "--plugin", plugin, "--limit", 2, "--layer", 2, "--fluency", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "My nudge" in said.printed + (tmp_path / "run" / "tables" / "scores.csv").read_text()


def test_an_editor_without_layer_needs_none(tiny_gpt2: Model, tmp_path: Path) -> None:
    code = NUDGE.replace("    layer: int\n", "    layers: tuple[int, ...] = (1,)\n").replace("self.layer)", "1)")
    code = code.replace("    @property\n    def layers(self):\n        return (self.layer,)\n", "")
    load_plugin(write(tmp_path, code.replace("layer=self.layer,", "layer=1,")))
    editor = make_editor(tiny_gpt2, "my_nudge", layer=3, texts=tuple, seed=0, cache=tmp_path)
    assert isinstance(editor, Editor) and editor.layers == (1,)
