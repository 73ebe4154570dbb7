"""What CONTRIBUTING.md tells to do works: its editor edits, its reader reads, its family holds what must hold."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from workbench.editors import registry
from workbench.machine.paths import ROOT
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records import reading
from workbench.records.facts import EditRequest
from workbench.records.fields import RecordError
from workbench.studies.edit import make_editor
from workbench.studies.family_checks import check_family
from workbench.studies.tiny_models import CONFIGS, make_checkpoint

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EDITOR, READER, FAMILY = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def module(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code as a module of that name, for as long as the test runs."""
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(code, name, "exec"), made.__dict__)
    return made


def test_an_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Model) -> None:
    (line,) = re.findall(r'^    ("nudge": \(.*\)),$', TEXT, re.MULTILINE)
    (preset,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    name, (home, kind) = next(iter(eval(f"{{{line}}}").items()))
    nudge = module(home, EDITOR, monkeypatch)
    monkeypatch.setitem(registry._HOMES, name, (home, kind))
    entry = json.loads(preset)["atlas"]
    entry["fields"] |= {"layers": [5], "strength": 50.0}
    (tmp_path / f"{name}.json").write_text(json.dumps({"tiny-gpt2": entry}))
    monkeypatch.setattr("workbench.editors.setup.presets.PRESETS", tmp_path)
    editor = make_editor(tiny_gpt2, name, layer=2)
    assert isinstance(editor, nudge.Nudge) and editor.layers == (5,)
    request = EditRequest(template="The capital of {} is", subject="Japan", target_new="Rome")
    before, site = tiny_gpt2.fingerprint(), tiny_gpt2.hook_name("mlp_write", 5)
    tokens = tiny_gpt2.tokenize([request.prompt])
    plain = tiny_gpt2.activations(tokens, [site])[site][0, -1]
    with editor(tiny_gpt2, [request]).applied(tiny_gpt2):
        edited = tiny_gpt2.activations(tokens, [site])[site][0, -1]
        (written,) = generate(tiny_gpt2, [request.prompt], max_new_tokens=1)
    assert (edited - plain).norm().item() == pytest.approx(50, rel=1e-4)
    assert written.strip() and " Rome".startswith(written) and tiny_gpt2.fingerprint() == before


def test_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r'^    ("triples": .*),$', TEXT, re.MULTILINE)
    triples = module("triples", READER, monkeypatch)
    names = {"nodes": reading.nodes, "triple": triples.triple}
    schemas = {**reading._SCHEMAS, **eval(f"{{{line}}}", names)}
    monkeypatch.setattr(reading, "_SCHEMAS", schemas)
    path = tmp_path / "triples.jsonl"
    path.write_text('{"s": "Miles Davis", "r": "{} plays the", "old": "trumpet", "new": "piano"}\n')
    with pytest.warns(UserWarning, match=r"the schema of triples, 1 record; they have no paraphrase prompts"):
        (record,) = reading.read_records(path)
    assert record.request.prompt == "Miles Davis plays the" and record.request.target_true == "trumpet"
    path.write_text('{"s": "Miles Davis", "r": "He plays the", "old": "trumpet", "new": "piano"}\n')
    with pytest.raises(RecordError, match=r"record 0: field 'r': expected a template with exactly one \{\}"):
        reading.read_records(path)


@pytest.mark.slow
def test_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.studies.tiny_models.CONFIGS", dict(CONFIGS))
    names = module("family", FAMILY, monkeypatch).CONFIGS.keys() - CONFIGS.keys()
    (family,) = names
    make_checkpoint(family, tmp_path / family)
    assert check_family(tmp_path / family).faults() == []
