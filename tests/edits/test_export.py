"""Exports reload, in transformers and peft, to the edited logits; folders are replaced whole or not at all."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import load_hf
from known_edits import random_edit
from peft import PeftModel
from safetensors.torch import load_file

from workbench.edits.export import save_checkpoint, save_lora
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.loading import load_model
from workbench.models.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load_adapted(base: Path, folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of adapter weights that it misses or does not know
        return PeftModel.from_pretrained(load_hf(base), folder).eval()


@torch.no_grad()
def test_an_edited_checkpoint_reloads_to_the_same_logits(family_model: Model, tmp_path: Path, texts: list[str]):
    ids = family_model.tokenize(texts[1:2]).ids
    before = family_model.logits(family_model.tokenize(texts[1:2]))
    with random_edit(family_model, 0, (1, "W_out"), (2, "W_in"), (2, "W_out")).applied(family_model):
        edited = family_model.logits(family_model.tokenize(texts[1:2]))
        save_checkpoint(family_model, tmp_path / "deep" / "edited")
        fingerprint = family_model.fingerprint()
    assert (edited - before).abs().max() > 0.1
    torch.testing.assert_close(load_hf(tmp_path / "deep" / "edited")(ids).logits, edited, atol=1e-5, rtol=0)
    again = load_model(str(tmp_path / "deep" / "edited"), device="cpu")
    assert again.fingerprint() == fingerprint
    assert names(tmp_path / "deep") == ["edited"]


@torch.no_grad()
def test_an_adapter_gives_the_edited_logits_in_peft(
    family: str, family_model: Model, checkpoints: dict[str, Path], tmp_path: Path, texts: list[str]
):
    tokens = family_model.tokenize(texts[1:2])
    gate = ((0, "W_gate"),) if family in ("llama", "qwen2") else ()
    edits = [
        random_edit(family_model, 0, (1, "W_out"), (2, "W_out"), (2, "W_out"), rank=1),
        random_edit(family_model, 1, (1, "W_out"), (1, "W_in"), *gate, rank=3),
    ]
    save_lora(family_model, edits, tmp_path / "adapter")
    before = family_model.logits(tokens)
    with edits[0].applied(family_model), edits[1].applied(family_model):
        edited = family_model.logits(tokens)
        save_lora(family_model, family_model.edits, tmp_path / "applied")
    assert (edited - before).abs().max() > 0.1
    adapted = load_adapted(checkpoints[family], tmp_path / "adapter")
    torch.testing.assert_close(adapted(tokens.ids).logits, edited, atol=1e-4, rtol=0)

    assert names(tmp_path / "adapter") == ["adapter_config.json", "adapter_model.safetensors"]
    for name in names(tmp_path / "adapter"):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "applied" / name).read_bytes()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoints[family])
    assert sorted(config["rank_pattern"].values()) == sorted([4, 2, 3, *[3 for _ in gate]])
    assert set(config["target_modules"]) == set(config["rank_pattern"])
    assert config["fan_in_fan_out"] == (family == "gpt2")


@torch.no_grad()
def test_the_factors_multiply_to_the_update(tiny_gpt2: Model, tmp_path: Path):
    edit = random_edit(tiny_gpt2, 0, (3, "W_out"))
    save_lora(tiny_gpt2, [edit], tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.transformer.h.3.mlp.c_proj.lora_{name}.weight"] for name in "AB")
    torch.testing.assert_close((b @ a).T, edit.updates[0].dense())


@torch.no_grad()
def test_an_edit_of_full_rank_is_an_adapter_only_when_forced(
    family: str, family_model: Model, checkpoints: dict[str, Path], tmp_path: Path, texts: list[str]
):
    tokens = family_model.tokenize(texts[:1])
    edits = [random_edit(family_model, seed, (1, "W_out"), (1, "W_in"), rank=20) for seed in range(2)]
    with pytest.raises(ValueError, match=r"have rank 40 together, and 32 is full.*export a checkpoint, or use force"):
        save_lora(family_model, edits, tmp_path / "adapter")
    assert names(tmp_path) == []
    save_lora(family_model, edits, tmp_path / "adapter", force=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == {32}
    with edits[0].applied(family_model), edits[1].applied(family_model):
        edited = family_model.logits(tokens)
    adapted = load_adapted(checkpoints[family], tmp_path / "adapter")
    torch.testing.assert_close(adapted(tokens.ids).logits, edited, atol=1e-4, rtol=0)


def test_what_is_no_adapter(tiny_gpt2: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="no update to write"):
        save_lora(tiny_gpt2, [], tmp_path / "adapter")
    wide = WeightUpdate(layer=1, left=torch.ones(12, 1), right=torch.ones(1, tiny_gpt2.d_model))
    edit = WeightEdit(updates=(wide,), method="random", requests=(), provenance={})
    with pytest.raises(ValueError, match=r"12 x 64, but that matrix .* is 256 x 64; was the edit made for another"):
        save_lora(tiny_gpt2, [edit], tmp_path / "adapter")
    with pytest.raises(IndexError, match="layer 47"):
        deep = WeightEdit(
            updates=(WeightUpdate(layer=47, left=wide.left, right=wide.right),), method="", requests=(), provenance={}
        )
        save_lora(tiny_gpt2, [deep], tmp_path / "adapter")
    assert names(tmp_path) == []


def test_a_matrix_that_is_not_a_modules_own_is_refused(tiny_gpt2: Model, tmp_path: Path, monkeypatch):
    edit = random_edit(tiny_gpt2, 0, (1, "W_out"))
    half = tiny_gpt2.weight(1)[:, :32]
    narrow = WeightUpdate(layer=1, left=edit.updates[0].left, right=edit.updates[0].right[:, :32])
    monkeypatch.setattr(Model, "weight", lambda self, layer, matrix="W_out": half)
    part = WeightEdit(updates=(narrow,), method="random", requests=(), provenance={})
    with pytest.raises(ValueError, match=r"W_out of layer 1 .* is not the weight of a module.*export a checkpoint"):
        save_lora(tiny_gpt2, [part], tmp_path / "adapter")


def test_folders_are_replaced_only_when_asked_and_only_if_they_are_exports(tiny_gpt2: Model, tmp_path: Path):
    first, second = (random_edit(tiny_gpt2, seed, (1, "W_out")) for seed in range(2))
    (tmp_path / "out").mkdir()
    save_lora(tiny_gpt2, [first], tmp_path / "out")  # an empty folder is free
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="is not empty: choose another folder, or overwrite it"):
        save_lora(tiny_gpt2, [second], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    save_checkpoint(tiny_gpt2, tmp_path / "out", overwrite=True)
    assert "config.json" in names(tmp_path / "out") and "adapter_config.json" not in names(tmp_path / "out")

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.txt").write_text("mine")
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "config.json").write_text("{}")
    for name in ("notes", "project"):
        with pytest.raises(ValueError, match="holds something else than an exported model"):
            save_checkpoint(tiny_gpt2, tmp_path / name, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        save_checkpoint(tiny_gpt2, tmp_path / "notes" / "config.txt", overwrite=True)
    assert names(tmp_path) == ["notes", "out", "project"] and names(tmp_path / "notes") == ["config.txt"]


def test_the_folder_that_a_model_came_from_is_never_replaced(checkpoints: dict[str, Path]):
    model, before = load_model(str(checkpoints["gpt2"]), device="cpu"), names(checkpoints["gpt2"])
    with pytest.raises(ValueError, match="was loaded from"):
        save_checkpoint(model, checkpoints["gpt2"], overwrite=True)
    assert names(checkpoints["gpt2"]) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_export_that_is_interrupted_changes_nothing(tiny_gpt2: Model, tmp_path: Path, monkeypatch, overwrite: bool):
    if overwrite:
        save_checkpoint(tiny_gpt2, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out/*")}
    save = type(tiny_gpt2.checkpoint).save

    def interrupted(checkpoint: object, folder: Path) -> None:
        save(checkpoint, folder)  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tiny_gpt2.checkpoint), "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tiny_gpt2, tmp_path / "out", overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out/*")} == before
    assert names(tmp_path) == (["out"] if overwrite else [])
