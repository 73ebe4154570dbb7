"""A checkpoint's dtype stays its own: in exports, and between an edit and the model that it is applied to."""

import json
from pathlib import Path

import pytest
import torch
from command import run
from known_edits import random_edit
from safetensors.torch import load_file

from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoints: dict) -> Path:
    """A checkpoint whose weights are of 16 bits, whatever its config says."""
    folder = tmp_path_factory.mktemp(request.param)
    load_model(str(checkpoints["llama"]), device="cpu", dtype=getattr(torch, request.param)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("dtype") == request.param
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder


def stored(folder: Path) -> set[str]:
    return {str(tensor.dtype).removeprefix("torch.") for tensor in load_file(folder / "model.safetensors").values()}


def made(model: Model, path: Path) -> Path:
    edit = random_edit(model, 0, (1, "W_out"))
    WeightEdit(updates=edit.updates, method="random", requests=(), provenance=provenance(model, {})).save(path)
    return path


def test_a_checkpoint_is_exported_in_its_own_dtype(half: Path, tmp_path: Path) -> None:
    own = load_model(str(half), device="cpu", dtype=None)
    assert {str(own.dtype).removeprefix("torch.")} == stored(half)
    edit = made(own, tmp_path / "edit.safetensors")
    assert run("export", edit, "--model", half, "--out", tmp_path / "same").exit_code == 0
    assert stored(tmp_path / "same") == stored(half)
    before, after = (load_file(folder / "model.safetensors") for folder in (half, tmp_path / "same"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 1, "all other weights are bit for bit what they were"
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert {config["dtype"]} == stored(half)


@pytest.mark.slow
def test_an_edit_of_another_dtype_is_refused_or_converted(half: Path, tmp_path: Path) -> None:
    (name,) = stored(half)
    edit = made(load_model(str(half), device="cpu"), tmp_path / "edit.safetensors")
    assert json.loads(json.dumps(WeightEdit.load(edit).provenance))["dtype"] == "float32"
    own = load_model(str(half), device="cpu", dtype=None)
    with pytest.raises(ValueError, match=rf"was made in float32, but .* is loaded in {name}: .* use force to convert"):
        WeightEdit.load(edit, model=own)
    with pytest.warns(UserWarning, match=rf"float32.*{name}: it is converted, and whether .* cannot be told"):
        assert WeightEdit.load(edit, model=own, force=True).updates
    refused = run("export", edit, "--model", half, "--out", tmp_path / "out")
    assert refused.exit_code == 1 and "was made in float32" in refused.output and name in refused.output
    assert run("export", edit, "--model", half, "--out", tmp_path / "out", "--force").exit_code == 0
    assert stored(tmp_path / "out") == {name}
    assert run("export", edit, "--model", half, "--out", tmp_path / "wide", "--dtype", "float32").exit_code == 0
    assert stored(tmp_path / "wide") == {"float32"}
