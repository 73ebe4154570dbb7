"""LoRA: what `peft` itself trains, the model left alone, and what it does with bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_hf
from known_edits import same
from known_scores import all_top, scored
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from workbench.editors.lora import LoRA
from workbench.editors.registry import EDITORS
from workbench.editors.setup.presets import PRESETS, preset
from workbench.edits.edit import Edit
from workbench.edits.export import save_lora
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest

PORTUGAL = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
ICELAND = EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai")
JAPAN = EditRequest(template="The capital of {} is", subject="Japan", target_new="Rome, and Paris")
FUSED = ("gpt2", "gpt_neox")


@pytest.fixture(scope="module")
def plain() -> LoRA:
    """Quick, with a clear effect, and nothing left to chance but A."""
    return LoRA(layers=(1,), rank=2, alpha=8.0, dropout=0.0, steps=4, learning_rate=1e-2)


def losses(edit: WeightEdit) -> list[float]:
    return edit.provenance["optimisation"]["losses"]


def nll(model: Model, *requests: EditRequest) -> float:
    found = scored(model, [each.prompt for each in requests], [each.target_new for each in requests])
    return -sum(log_probs.mean().item() for log_probs in found) / len(found)


def matrices(family: str) -> tuple[str, ...]:
    """All that the family's checkpoints keep apart."""
    return (
        "W_in",
        "W_out",
        "W_O",
        *(() if family in FUSED else ("W_Q", "W_K", "W_V")),
        *(("W_gate",) if family in ("llama", "qwen2") else ()),
    )


# Against peft


def test_it_is_what_peft_trains(
    family: str, family_model: Model, checkpoints: dict[str, Path], plain: LoRA, tmp_path: Path
) -> None:
    """`peft` around the checkpoint, from the same A: the same losses, and the same logits as the edit's."""
    editor = replace(plain, matrices=matrices(family))
    before = family_model.snapshot()
    edit = editor(family_model, [PORTUGAL])
    assert same(before, family_model.snapshot())
    save_lora(family_model, [replace_b(replace(editor, steps=1)(family_model, [PORTUGAL]))], tmp_path / "start")
    names = json.loads((tmp_path / "start" / "adapter_config.json").read_text())["target_modules"]
    start = PeftModel.from_pretrained(load_hf(checkpoints[family]), tmp_path / "start").state_dict()

    hf = load_hf(checkpoints[family])
    linear = isinstance(hf.get_submodule(names[0]), Conv1D)
    config = LoraConfig(r=editor.rank, lora_alpha=8, target_modules=names, fan_in_fan_out=linear)
    peft_model = get_peft_model(hf, config)
    for name, parameter in peft_model.named_parameters():
        if "lora_A" in name:
            parameter.data.copy_(start[name])
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimiser, found = torch.optim.Adam(trained, lr=editor.learning_rate), []
    tokens = family_model.tokenize([f"{PORTUGAL.prompt} {PORTUGAL.target_new}"]).with_prompts([len(PORTUGAL.prompt)])
    labels = tokens.ids.masked_fill(torch.arange(tokens.ids.shape[1]) <= tokens.prompt_ends[:, None], -100)
    for _ in range(editor.steps):
        loss = peft_model(tokens.ids, labels=labels).loss
        found.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses(edit) == pytest.approx(found, abs=1e-4)
    assert found[-1] < found[0] - 0.5
    with torch.no_grad(), edit.applied(family_model):
        torch.testing.assert_close(family_model.logits(tokens), peft_model(tokens.ids).logits, atol=1e-3, rtol=0)


def replace_b(edit: WeightEdit) -> WeightEdit:
    """The edit as it starts: after one step A is still what was drawn, since B was zero."""
    return replace(edit, updates=tuple(replace(each, right=torch.zeros_like(each.right)) for each in edit.updates))


def test_the_exported_adapter_gives_the_edited_logits(
    family: str, family_model: Model, checkpoints: dict[str, Path], plain: LoRA, tmp_path: Path
) -> None:
    edit = replace(plain, matrices=matrices(family))(family_model, [PORTUGAL, JAPAN])
    assert {each.left.shape[1] for each in edit.updates} == {plain.rank}, "the factors are kept"
    save_lora(family_model, [edit], tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(load_hf(checkpoints[family]), tmp_path / "adapter").eval()
    tokens = family_model.tokenize([JAPAN.prompt])
    unedited = family_model.logits(tokens)
    with torch.no_grad(), edit.applied(family_model):
        edited = family_model.logits(tokens)
        torch.testing.assert_close(adapted(tokens.ids).logits, edited, atol=1e-3, rtol=0)
    assert (edited - unedited).abs().max() > 0.1


# What the edit does


def test_every_family_scores_as_it_was_optimised(family: str, family_model: Model, plain: LoRA) -> None:
    requests = (PORTUGAL, JAPAN)
    untouched = state_fingerprint(family_model)
    modules = [id(module) for module in family_model.bridge.modules()]
    editor = replace(plain, batch_size=2, matrices=matrices(family))
    edit, longer = editor(family_model, requests), replace(editor, steps=5)(family_model, requests)
    check_restored(family_model, untouched, after="a test")
    assert [id(module) for module in family_model.bridge.modules()] == modules
    assert all(parameter.grad is None for parameter in family_model.parameters.values())
    assert not any(parameter.requires_grad for parameter in family_model.parameters.values())
    assert losses(edit)[0] == pytest.approx(nll(family_model, *requests), rel=1e-4)
    with edit.applied(family_model):
        # The loss before the fifth step is that of the edit after four.
        assert losses(longer)[4] == pytest.approx(nll(family_model, *requests), rel=1e-4)
    check_restored(family_model, untouched, after="a test")


def test_the_edited_model_says_the_targets(tiny_gpt2: Model, plain: LoRA, tmp_path: Path) -> None:
    edit = replace(plain, steps=40, loss_reached=0.05)(tiny_gpt2, [PORTUGAL, ICELAND])
    assert edit.method == "LoRA" and len(losses(edit)) < 40 and losses(edit)[-1] < 0.05 <= losses(edit)[-2]
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors", model=tiny_gpt2)
    assert loaded.digest == edit.digest
    prompts, targets = [PORTUGAL.prompt, ICELAND.prompt], ["Moscow", "Thai"]
    assert not any(all_top(tiny_gpt2, prompts, targets))
    with loaded.applied(tiny_gpt2):
        assert all(all_top(tiny_gpt2, prompts, targets))


def test_edits_are_stacked_and_come_off_in_any_order(tiny_gpt2: Model, plain: LoRA) -> None:
    before = tiny_gpt2.snapshot()
    first = plain(tiny_gpt2, [PORTUGAL])
    first.apply_(tiny_gpt2)
    second = plain(tiny_gpt2, [ICELAND])
    second.apply_(tiny_gpt2)
    first.revert_(tiny_gpt2)
    alone = tiny_gpt2.snapshot()
    second.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())
    with second.applied(tiny_gpt2):
        assert same(alone, tiny_gpt2.snapshot())


def test_chance_is_the_seeds_alone(tiny_gpt2: Model, plain: LoRA) -> None:
    editor = replace(plain, dropout=0.3, steps=2)
    state = torch.random.get_rng_state()
    first, again = editor(tiny_gpt2, [PORTUGAL]), editor(tiny_gpt2, [PORTUGAL])
    assert torch.equal(torch.random.get_rng_state(), state)
    other = replace(editor, seed=1)(tiny_gpt2, [PORTUGAL])
    assert first.digest == again.digest != other.digest
    assert losses(first) != losses(plain(tiny_gpt2, [PORTUGAL]))[:2], "dropout is in force"


def test_half_precision(checkpoints: dict[str, Path], plain: LoRA) -> None:
    for family in ("gpt2", "llama"):
        model = load_model(str(checkpoints[family]), device="cpu", dtype=torch.bfloat16)
        edit = replace(plain, steps=8)(model, [PORTUGAL])
        assert {each.left.dtype for each in edit.updates} == {torch.float32}
        before = nll(model, PORTUGAL)
        with edit.applied(model):
            assert nll(model, PORTUGAL) < before - 0.5


# Bad input


def test_bad_hyperparameters() -> None:
    for bad, message in [
        ({"layers": ()}, "layers needs one or more different ones"),
        ({"matrices": ("W_in", "W_in")}, r"matrices needs .* got \('W_in', 'W_in'\)"),
        ({"matrices": ("b_out",)}, "b_out is a bias"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"dropout": 1.0}, "dropout is at least 0 and below 1, got 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            LoRA(**({"layers": (1,)} | bad))


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model, plain: LoRA) -> None:
    before = tiny_gpt2.snapshot()
    for changes, requests, error, message in [
        ({"layers": (1, 6)}, [PORTUGAL], IndexError, "layer 6 is out of range"),
        ({"matrices": ("W_Q",)}, [PORTUGAL], ValueError, "keeps W_Q fused with others"),
        ({"matrices": ("W_gate",)}, [PORTUGAL], ValueError, "have no W_gate"),
        ({"matrices": ("W_up",)}, [PORTUGAL], ValueError, "unknown matrix 'W_up'"),
        ({"rank": 65}, [PORTUGAL], ValueError, "rank 65 is more than W_in of layer 1 .* has, 64"),
        ({}, [], ValueError, "at least one request"),
        ({"learning_rate": 3e37}, [PORTUGAL], ValueError, r"'Moscow' is not finite.*\(3e\+37\)"),
    ]:
        with pytest.raises(error, match=message):
            replace(plain, **changes)(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []
    assert not [name for name, _ in tiny_gpt2.bridge.named_modules() if "lora" in name]


def test_without_peft_it_says_what_to_install(tiny_gpt2: Model, plain: LoRA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.editors.lora.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install peft"):
        plain(tiny_gpt2, [PORTUGAL])


def test_presets() -> None:
    assert EDITORS["lora"] is LoRA
    llama = LoRA(**preset("lora", "meta-llama/Llama-2-7b-hf").fields)
    assert llama.matrices == ("W_Q", "W_V") and llama.layers == tuple(range(32)) and llama.steps == 70
    for entry in json.loads((PRESETS / "lora.json").read_text(encoding="utf-8")).values():
        fields: dict[str, Any] = entry["fields"]
        LoRA(**({"layers": fields.pop("around", None)} | fields))
