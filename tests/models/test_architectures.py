"""What cannot be read and edited is refused in one sentence; of what reads images the text part is loaded, alone."""

import builtins
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from workbench.models import architectures
from workbench.models.architectures import refusal
from workbench.models.loading import load_model
from workbench.studies.tiny_models import CONFIGS, make_checkpoint, make_config, make_tokenizer

SMALL: dict[str, Any] = {"vocab_size": 340, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32}
TEXT: dict[str, Any] = SMALL | {"num_hidden_layers": 3, "num_key_value_heads": 2, "max_position_embeddings": 48}
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip

# Refusals --------------------------------------------------------------------------------------------------


REFUSED = {
    "Mixtral": "mixture of experts", "Qwen2Moe": "mixture of experts", "Qwen3Moe": "mixture of experts",
    "Olmoe": "mixture of experts", "GptOss": "mixture of experts", "GraniteMoe": "mixture of experts",
    "Mamba": "state-space", "Mamba2": "state-space", "Rwkv": "recurrent", "RecurrentGemma": "recurrent",
    "T5": "encoder-decoder", "Bart": "encoder-decoder", "Bert": "both directions",
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_of_networks_are_refused_by_their_configuration(kind: str, tmp_path: Path) -> None:
    """Before any weights are read: there are none here."""
    config = getattr(transformers, f"{kind}Config")()
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=REFUSED[kind]) as caught:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("family", CONFIGS)
def test_known_families_are_not_refused(family: str) -> None:
    assert refusal(make_config(family)) is None


def test_what_transformerlens_does_not_know_is_refused_in_a_sentence(tmp_path: Path) -> None:
    config = transformers.CTRLConfig(vocab_size=340, n_embd=32, dff=32, n_layer=1, n_head=4, n_positions=48)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer(tmp_path, bos=False)
    with pytest.raises(ValueError, match="TransformerLens cannot hook CTRLLMHeadModel") as caught:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_configuration_that_transformerlens_passes_by_is_refused(tmp_path: Path) -> None:
    """It scales GPT-2's attention by the heads' width, whatever the configuration says."""
    for scaled in (False, True):
        folder = tmp_path / str(scaled)
        make_checkpoint("gpt2", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"scale_attn_weights": scaled}))
    with pytest.raises(ValueError, match=r"cannot hook GPT2LMHeadModel: its logits are off by 0\.\d+ of their size"):
        load_model(str(tmp_path / "False"), device="cpu")
    assert load_model(str(tmp_path / "True"), device="cpu").n_layers == 3
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert load_model(str(tmp_path / "True"), device="cpu", dtype=dtype).dtype == dtype


def test_a_falcon_whose_biases_count_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.23 adds them to the mask, and its eager attention once more; where they agree it is read."""
    config = transformers.FalconConfig(alibi=True)
    assert "adds its linear biases (ALiBi) twice" in str(refusal(config))
    monkeypatch.setattr(architectures, "_counts_biases_twice", lambda: False)
    assert refusal(config) is None


# Nothing on the machine changes ----------------------------------------------------------------------------


def gemma() -> transformers.PretrainedConfig:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = TEXT | {"head_dim": 16, "sliding_window": 8, "layer_types": layers}
    return transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=4)


def llava() -> transformers.PretrainedConfig:
    vision = VISION | {"model_type": "clip_vision_model", "projection_dim": 8}
    return transformers.LlavaConfig(text_config=TEXT | {"model_type": "llama"}, vision_config=vision)


@pytest.mark.parametrize("make", [gemma, llava])
def test_a_vision_checkpoint_gives_its_text_part_without_a_subprocess(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = transformers.AutoModelForImageTextToText.from_config(make(), attn_implementation="eager").eval()
    whole.save_pretrained(tmp_path / "whole")
    make_tokenizer(tmp_path / "whole", bos=False)

    def started(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    model = load_model(str(tmp_path / "whole"), device="cpu")
    tokens = model.tokenize(["In Rome, the Colosseum"])
    with torch.no_grad():
        logits = model.logits(tokens)
        torch.testing.assert_close(logits, whole(tokens.ids).logits, atol=1e-5, rtol=1e-5)
        model.save_pretrained(tmp_path / "text")
        assert torch.equal(load_model(str(tmp_path / "text"), device="cpu").logits(tokens), logits)
    model.weight(1)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoints_own_code_is_never_run(
    file: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*arguments: Any) -> str:
        raise AssertionError(f"a question was asked: {arguments}")

    monkeypatch.setattr(builtins, "input", asked)
    folder = Path(shutil.copytree(checkpoints["gpt2"], tmp_path / "own"))
    for name in ("own_config", "own_model", "own_tokens"):
        (folder / f"{name}.py").write_text("raise SystemExit('own code was run')\n")
    settings = json.loads((folder / file).read_text())
    if file == "config.json":
        settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own_config.Own"}}
    else:
        settings |= {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]},
        }
    (folder / file).write_text(json.dumps(settings))
    if file == "config.json":
        with pytest.raises(ValueError, match="asks for code of its own to be run, which is never done here"):
            load_model(str(folder), device="cpu")
    else:
        assert load_model(str(folder), device="cpu").tokenize(["In Rome"]).ids.numel()
