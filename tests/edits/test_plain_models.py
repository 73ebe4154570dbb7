"""Edits on plain `transformers` models: put in for a block and out again to the bit, kept, and read from a diff."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_hf
from known_edits import random_edit, same
from known_kinds import Steers
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from workbench.edits.edit import Edit
from workbench.edits.export import save_lora
from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.places import of_model, places_of
from workbench.records.facts import EditRequest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
of_some_families = pytest.mark.parametrize(
    "family",
    ["gpt2", "phi3", *(pytest.param(each, marks=pytest.mark.slow) for each in ("gptj", "gpt_neox", "llama", "opt"))],
)
"""Weights stored the other way round, tied, and fused, among the fast tests."""


@functools.lru_cache(maxsize=3)
def load_both(folder: Path) -> tuple[Model, Any]:
    return load_model(str(folder), device="cpu"), load_hf(folder)


@pytest.fixture
def loaded(family: str, checkpoints: dict[str, Path]) -> tuple[Model, Any]:
    """A family's model here and as it is in `transformers`; tests leave both as they find them."""
    return load_both(checkpoints[family])


def some_edit(model: Model, seed: int) -> WeightEdit:
    """An edit of an MLP's matrices, of W_gate where there is one: of Phi-3 it is half of a parameter."""
    gated = (((0, "W_gate"),) if (0, "W_gate") in model.once(of_model) else ()) + ((2, "W_O"),)
    return random_edit(model, seed, (1, "W_out"), (2, "W_in"), (2, "W_out"), *gated)


def state(hf: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in hf.state_dict().items()}


@of_some_families
@torch.no_grad()
def test_a_plain_model_has_an_edit_for_a_block(loaded: tuple[Model, Any], texts: list[str]) -> None:
    model, hf = loaded
    first, second = some_edit(model, 0), some_edit(model, 1)
    tokens, before = model.tokenize(texts[1:2]), state(hf)
    unedited = hf(tokens.ids).logits
    with first.applied_to(hf) as edited:
        assert edited is hf and all(parameter.requires_grad for parameter in hf.parameters())
        once = state(hf)
        with first.applied(model):
            torch.testing.assert_close(hf(tokens.ids).logits, model.logits(tokens), atol=1e-4, rtol=0)
        with pytest.raises(KeyError), second.applied_to(hf):
            with second.applied(model), first.applied(model):
                torch.testing.assert_close(hf(tokens.ids).logits, model.logits(tokens), atol=1e-4, rtol=0)
            raise KeyError
        assert same(state(hf), once) and not same(once, before)
        assert (hf(tokens.ids).logits - unedited).abs().max() > 0.1
    assert same(state(hf), before)
    assert [*hf.state_dict()] == [*before]


@of_some_families
def test_places_are_those_of_the_hooked_model(loaded: tuple[Model, Any]) -> None:
    model, hf = loaded
    assert places_of(hf) == model.once(of_model)
    for (layer, matrix), place in places_of(hf).items():
        assert torch.equal(place.view(hf.get_parameter(place.parameter)), model.weight(layer, matrix))


@of_some_families
@torch.no_grad()
def test_to_hf_is_a_plain_model_with_the_kept_edits(
    loaded: tuple[Model, Any], texts: list[str], tmp_path: Path
) -> None:
    model, hf = loaded
    tokens, edit, drawn = model.tokenize(texts[1:2]), some_edit(model, 0), torch.random.get_rng_state()
    assert same(state(model.to_hf()), state(hf))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    with edit.applied(model):
        plain, edited = model.to_hf(), model.logits(tokens)
    assert type(plain) is type(hf) and not plain.training
    assert all(parameter.requires_grad for parameter in plain.parameters())
    torch.testing.assert_close(plain(tokens.ids).logits, edited, atol=1e-4, rtol=0)
    written = plain.generate(tokens.ids, attention_mask=tokens.mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert written[0, tokens.ids.shape[1]] == edited[0, -1].argmax()
    plain.save_pretrained(tmp_path)
    assert same(state(load_hf(tmp_path)), state(plain))


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@torch.no_grad()
def test_an_adapter_is_loaded_on_top(loaded: tuple[Model, Any], texts: list[str], tmp_path: Path) -> None:
    model, _ = loaded
    kept, adapter, tokens = some_edit(model, 0), some_edit(model, 1), model.tokenize(texts[1:2])
    save_lora(model, [adapter], tmp_path / "adapter")
    with kept.applied(model):
        adapted: Any = PeftModel.from_pretrained(model.to_hf(), str(tmp_path / "adapter")).eval()
        with adapter.applied(model):
            edited = model.logits(tokens)
    torch.testing.assert_close(adapted(tokens.ids).logits, edited, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2"])
def test_it_is_trained_as_any_model(loaded: tuple[Model, Any], texts: list[str], tmp_path: Path) -> None:
    model, hf = loaded
    plain, ids = model.to_hf(), model.tokenize(texts[1:2]).ids[0]
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=2, use_cpu=True, learning_rate=1e-3, **quiet)
    examples: Any = [{"input_ids": ids, "labels": ids}] * 2
    Trainer(model=plain, args=arguments, train_dataset=examples).train()
    assert not same(state(plain), state(hf))
    assert same(state(model.to_hf()), state(hf))


# What another model differs in ------------------------------------------------------------------------------------


@of_some_families
@torch.no_grad()
def test_a_difference_is_the_edit_that_was_made(loaded: tuple[Model, Any], texts: list[str], tmp_path: Path) -> None:
    model, hf = loaded
    made, tokens = some_edit(model, 0), model.tokenize(texts[1:2])
    with made.applied(model):
        edited, wanted = model.to_hf(), model.logits(tokens)
    found = Edit.from_hf_diff(hf, edited)
    assert isinstance(found, WeightEdit) and found.places == made.places
    assert {update.left.shape[1] for update in found.updates} == {2}
    found.check_made_for(model)
    with found.applied(model):
        torch.testing.assert_close(model.logits(tokens), wanted, atol=1e-4, rtol=0)
        for name, tensor in edited.named_parameters():
            torch.testing.assert_close(model.parameters[name], tensor.detach(), atol=1e-6, rtol=1e-6)
    found.save(tmp_path / "found.safetensors")
    assert Edit.load(tmp_path / "found.safetensors", model=model).digest == found.digest
    changed = {place.parameter for key, place in places_of(hf).items() if key in made.places}
    for before, after in (
        (model, edited.state_dict()),  # tied parameters have two names there
        (hf.state_dict(), edited),
        ({name: hf.get_parameter(name) for name in changed}, edited),
    ):
        assert Edit.from_hf_diff(before, after).digest == found.digest


@pytest.mark.parametrize("family", ["gpt2"])
@torch.no_grad()
def test_a_difference_of_full_rank_is_kept_whole(loaded: tuple[Model, Any], tmp_path: Path) -> None:
    model, hf = loaded
    edited, request = copy.deepcopy(hf), EditRequest(template="{} is", subject="It", target_new="new")
    edited.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    edited.transformer.h[1].mlp.c_proj.bias[3] = 2.0
    hf.save_pretrained(tmp_path)
    model.checkpoint.tokenizer.save_pretrained(tmp_path)
    edit = Edit.from_hf_diff(tmp_path, edited, method="Mine", requests=[request])
    assert isinstance(edit, WeightEdit) and edit.places == {(1, "W_in"), (1, "b_out")}
    assert (edit.method, edit.requests) == ("Mine", (request,))
    assert sorted(update.left.shape[1] for update in edit.updates) == [1, 32]
    assert edit.norms(model)[1] > 0.4
    with edit.applied_to(hf):
        assert torch.allclose(hf.transformer.h[1].mlp.c_fc.weight, edited.transformer.h[1].mlp.c_fc.weight)


@pytest.mark.parametrize("family", ["gpt2"])
@torch.no_grad()
def test_what_is_no_edit_of_weights_is_refused(loaded: tuple[Model, Any]) -> None:
    _, hf = loaded
    edited = copy.deepcopy(hf)
    with pytest.raises(ValueError, match="do not differ"):
        Edit.from_hf_diff(hf, edited)
    edited.transformer.h[0].attn.c_attn.weight[:, :32] += 1
    edited.transformer.wte.weight += 1
    with pytest.raises(ValueError, match=r"^transformer\.h\.0\.attn\.c_attn\.weight, transformer\.wte\.weight differ"):
        Edit.from_hf_diff(hf, edited)
    with pytest.raises(ValueError, match="two state dicts do not say what model"):
        Edit.from_hf_diff(hf.state_dict(), edited.state_dict())
    with pytest.raises(ValueError, match=r"before and torch\.float16 after: load both in one dtype"):
        Edit.from_hf_diff(hf, copy.deepcopy(hf).half())
    with pytest.raises(ValueError, match=r"h\.0\.ln_1\.weight of 'after' are no parameters"):
        Edit.from_hf_diff(hf, {"h.0.ln_1.weight": torch.ones(32)})
    untied = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    untied["lm_head.weight"] += 1
    with pytest.raises(ValueError, match=r"after, lm_head\.weight is not what transformer\.wte\.weight is, though"):
        Edit.from_hf_diff(hf, untied)
    with pytest.raises(ValueError, match="is \\(340, 32\\) before and \\(3, 2\\) after"):
        Edit.from_hf_diff(hf, {"transformer.wte.weight": torch.ones(3, 2)})


@pytest.mark.parametrize("family", ["gpt2"])
def test_what_a_plain_model_cannot_hold_is_refused(loaded: tuple[Model, Any]) -> None:
    model, hf = loaded
    steering = Steers()(model, [EditRequest(template="{} is", subject="It", target_new="new")])
    with pytest.raises(ValueError, match="a plain model holds weights alone, and a Steering edit is of another kind"):
        steering.applied_to(hf)
    with steering.applied(model), pytest.raises(ValueError, match="a plain model holds weights alone, and Steering"):
        model.to_hf()
    edit = random_edit(model, 0, (1, "W_out"))
    with pytest.raises(ValueError, match=r"a model of `transformers` is needed, got Model"), edit.applied_to(model):
        pass
    with pytest.raises(ValueError, match="Linear is no causal language model"), edit.applied_to(torch.nn.Linear(2, 2)):
        pass
    deep = WeightEdit(
        updates=tuple(
            type(update)(layer=7, left=update.left, right=update.right, matrix=update.matrix) for update in edit.updates
        ),
        method="deep", requests=(), provenance={},
    )  # fmt: skip
    with pytest.raises(IndexError, match="layer 7 is out of range"), deep.applied_to(hf):
        pass
    wide = load_hf_wide(hf)
    with pytest.raises(ValueError, match="was the edit made for another model"), edit.applied_to(wide):
        pass
    assert same(state(hf), state(model.to_hf()))


def load_hf_wide(hf: Any) -> Any:
    """A model of the same family with wider MLPs."""
    config = copy.deepcopy(hf.config)
    config.n_inner = 100
    return type(hf)(config)
