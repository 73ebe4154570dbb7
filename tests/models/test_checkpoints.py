"""Loading and saving: precision, edits, silence, and what is said when a model cannot be had."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import load_hf
from known_scores import scored
from safetensors.torch import load_file, save_file

from workbench.models.loading import load_model, named_device
from workbench.models.model import Model


@torch.no_grad()
@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=f'device \'{device}\' is not available here; give "cpu" or "auto"'):
        named_device(device)


def test_an_edited_model_is_saved_and_reloaded(family_model: Model, tmp_path: Path, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts)
    snapshot = family_model.snapshot()
    try:
        family_model.weight(1).add_(torch.outer(torch.linspace(-1, 1, family_model.d_mlp), torch.linspace(1, 2, 32)))
        edited = family_model.logits(tokens)
        family_model.save_pretrained(tmp_path)
        again = load_model(str(tmp_path), device="cpu")
        assert again.fingerprint() == family_model.fingerprint()
        assert torch.equal(again.tokenize(texts).ids, tokens.ids)
        assert torch.equal(again.logits(tokens), edited)
        one = family_model.tokenize(texts[:1])
        expected = load_hf(tmp_path)(one.ids).logits
        torch.testing.assert_close(family_model.logits(one), expected, atol=1e-5, rtol=0)
    finally:
        family_model.restore_(snapshot)


def test_half_precision_on_disk_loads_as_asked(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints["gpt2"], tmp_path, dirs_exist_ok=True)
    load_hf(tmp_path).half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    full, half = (
        load_model(str(tmp_path), device="cpu"),
        load_model(str(tmp_path), device="cpu", dtype=torch.bfloat16),
    )
    assert {p.dtype for p in full.parameters.values()} == {torch.float32}
    assert {p.dtype for p in half.parameters.values()} == {torch.bfloat16} and half.dtype == torch.bfloat16
    assert half.logits(half.tokenize(["Rome"])).dtype == torch.bfloat16
    assert half.fingerprint() != full.fingerprint()
    assert scored(half, ["Rome stands in"], ["Italy"])[0].dtype == torch.float32


def test_models_that_cannot_be_loaded(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    way_out = r'give "atlas", a local Hugging Face folder, a .gguf file, or a hub name such as gpt2-xl'

    def refused(*_, **__):
        raise OSError("We couldn't connect to the hub.\nSecond line")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoConfig, "from_pretrained", refused)
        with pytest.raises(ValueError, match=rf"'no/such-model': We couldn't connect to the hub; {way_out}"):
            load_model("no/such-model")
    with pytest.raises(ValueError, match=rf"has no config.json and no .gguf file; {way_out}"):
        load_model(str(tmp_path))
    for missing in ("/no/such/folder", "./nothing"):
        with pytest.raises(
            ValueError, match=rf"cannot load model '{missing}': .* is not a folder and not a .gguf file; {way_out}"
        ):
            load_model(missing)
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["gpt2"], broken)
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"cannot load model .*broken'.*{way_out}"):
        load_model(str(broken))


@pytest.mark.parametrize("fault", ["lacks", "holds NaN or infinity in", "has other shapes than its config for"])
def test_weights_that_transformers_would_make_up_are_refused_by_name(
    checkpoints: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    broken, name = tmp_path / "broken", "model.layers.1.mlp.down_proj.weight"
    shutil.copytree(checkpoints["llama"], broken)
    weights = load_file(broken / "model.safetensors")
    if fault == "lacks":
        del weights[name]
    elif fault.startswith("holds"):
        weights[name][0, 0] = float("nan")
    else:
        weights[name] = weights[name][1:].clone()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"broken': the checkpoint {fault} {re.escape(name)}; give"):
        load_model(str(broken))


def changed(source: Path, folder: Path, **fields: Any) -> Path:
    """A checkpoint whose config says something else."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return folder


@torch.no_grad()
def test_a_checkpoint_in_8_bits_is_read_saved_and_read_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """In blocks, as Qwen3's and DeepSeek's are; one whose config does not say so is refused."""
    how = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
    stored = changed(checkpoints["llama"], tmp_path / "stored", quantization_config=how)
    expected = load_file(stored / "model.safetensors")
    weights = {}
    for name, weight in expected.items():
        weights[name] = weight
        if "_proj" in name:
            scale = torch.full([size // 8 for size in weight.shape], 0.01)
            weights |= {name: (weight / 0.01).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
            expected[name] = 0.01 * weights[name].float()
    save_file(weights, stored / "model.safetensors", metadata={"format": "pt"})
    model = load_model(str(stored), device="cpu")
    assert model.dtype == torch.float32
    for name, parameter in model.parameters.items():
        torch.testing.assert_close(parameter, expected[name], msg=name)
    model.save_pretrained(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu")
    assert again.logits(again.tokenize(["Rome"])).equal(model.logits(model.tokenize(["Rome"])))
    silent = changed(stored, tmp_path / "silent", quantization_config=None)
    with pytest.raises(ValueError, match=r"of which its config says nothing: model\.layers\.0.*_scale_inv"):
        load_model(str(silent))


@pytest.mark.parametrize(
    ("config", "how"),
    [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"load_in_4bit": True}, "bitsandbytes")],
)
def test_quantised_weights_are_refused_with_the_way_out(
    checkpoints: dict[str, Path], tmp_path: Path, config: dict[str, Any], how: str
) -> None:
    folder = changed(checkpoints["gpt2"], tmp_path / "quantised", quantization_config=config)
    with pytest.raises(
        ValueError, match=rf"it is quantised \({how}\), and only plain weights .* made from, or save it"
    ):
        load_model(str(folder))


def test_weights_that_the_config_has_no_use_for_are_told(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    fewer = changed(checkpoints["llama"], tmp_path / "fewer", num_hidden_layers=1)
    with pytest.warns(
        UserWarning, match=r"fewer holds weights that its config has no use for, left out: model\.layers\.1"
    ):
        load_model(str(fewer), device="cpu")


def test_folders_that_are_no_models_are_told_apart(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter: merge it into its base model, and save that"):
        load_model(str(tmp_path))
    without = changed(checkpoints["llama"], tmp_path / "without")
    for path in without.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"it has no tokenizer that can be read, such as tokenizer\.json"):
        load_model(str(without))


def test_a_slow_tokenizer_is_refused(checkpoints: dict[str, Path], monkeypatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ValueError, match="tokenizer is not a fast one"):
        load_model(str(checkpoints["gpt2"]))


def test_a_device_that_is_not_there(checkpoints: dict[str, Path], monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda' is not available"):
        load_model(str(checkpoints["gpt2"]), device="cuda")


def test_loading_is_silent_and_leaves_the_settings(checkpoints: dict[str, Path], capfd) -> None:
    logging = transformers.utils.logging
    logging.enable_progress_bar()
    try:
        level = logging.get_verbosity()
        load_model(str(checkpoints["gpt2"]), device="cpu")
        assert logging.get_verbosity() == level and logging.is_progress_bar_enabled()
    finally:
        logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
