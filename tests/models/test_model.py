"""The adapter against Hugging Face itself: logits under padding, hooks, weights, scores."""

from typing import Any

import pytest
import torch
from known_edits import random_edit
from known_scores import all_top, scored

from workbench.edits.ledger import state_fingerprint, unedited_fingerprint
from workbench.models.model import SITES, Model
from workbench.records.joining import join

LAYER_SITES = ("resid_pre", "resid_post", "mlp_out", "attn_out", "mlp_pre", "mlp_key")
FUSED = ("gpt2", "gpt_neox")
"""Families whose checkpoints keep queries, keys and values in one matrix."""


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_logits_are_hugging_faces_under_padding(
    family_model: Model, family_hf: Any, padding_side, texts: list[str]
) -> None:
    tokens = family_model.tokenize(texts, padding_side=padding_side)
    logits = family_model.logits(tokens)
    for row in range(len(texts)):
        start, last = int(tokens.starts[row]), int(tokens.lasts[row])
        ids = tokens.ids[row, start : last + 1]
        assert tokens.mask[row].sum() == len(ids) == len(tokens.offsets[row])
        torch.testing.assert_close(logits[row, start : last + 1], family_hf(ids[None]).logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_keep_last_is_the_end_of_all_logits(family_model: Model, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts, padding_side="left")
    torch.testing.assert_close(
        family_model.logits(tokens, keep_last=3), family_model.logits(tokens)[:, -3:], atol=1e-5, rtol=0
    )


def test_facts_of_the_model(family: str, family_model: Model, texts: list[str]) -> None:
    assert (family_model.n_layers, family_model.d_model, family_model.n_ctx) == (3, 32, 48)
    assert family_model.d_mlp == {"gpt2": 96, "gptj": 80, "gpt_neox": 72, "llama": 56, "qwen2": 64}[family]
    assert family_model.dtype == torch.float32 and family_model.device.type == "cpu"
    assert not any(parameter.requires_grad for parameter in family_model.bridge.parameters())
    assert not family_model.logits(family_model.tokenize(texts)).requires_grad
    assert not family_model.bridge.training and not family_model.bridge.original_model.training


def test_every_site_fires_and_has_its_shape(family_model: Model, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts)
    names = [(site, family_model.hook_name(site, layer)) for site in LAYER_SITES for layer in range(3)]
    names.append(("embed", family_model.hook_name("embed")))
    found = family_model.activations(tokens, [name for _, name in names])
    for site, name in names:
        width = family_model.d_mlp if site in ("mlp_pre", "mlp_key") else 32
        assert found[name].shape == (*tokens.ids.shape, width)
    assert set(SITES) <= set(LAYER_SITES)


@torch.no_grad()
def test_sites_are_what_they_say(family: str, family_model: Model, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts)
    for layer in range(3):
        sites = {site: family_model.hook_name(site, layer) for site in LAYER_SITES}
        found = family_model.activations(tokens, list(sites.values()))
        value = {site: found[name] for site, name in sites.items()}
        bias = getattr(family_model.bridge.blocks[layer].mlp, "b_out", None)
        mlp_out = value["mlp_key"] @ family_model.weight(layer) + (0 if bias is None else bias)
        torch.testing.assert_close(mlp_out, value["mlp_out"], atol=1e-5, rtol=0)
        total = value["resid_pre"] + value["attn_out"] + value["mlp_out"]
        torch.testing.assert_close(total, value["resid_post"], atol=1e-5, rtol=0)
    hf: Any = family_model.bridge.original_model
    embedding = hf.get_input_embeddings()
    found = family_model.activations(tokens, ["hook_embed"])["hook_embed"]
    torch.testing.assert_close(found, embedding.weight[tokens.ids], atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("site", LAYER_SITES)
def test_a_hook_that_returns_a_tensor_is_obeyed(family_model: Model, site: str, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts)
    clean = family_model.logits(tokens)
    name = family_model.hook_name(site, 2)
    unchanged = family_model.logits(tokens, hooks=[(name, lambda tensor, hook: tensor.clone())])
    zeroed = family_model.logits(tokens, hooks=[(name, lambda tensor, hook: torch.zeros_like(tensor))])
    assert torch.equal(clean, unchanged)
    assert (clean - zeroed).abs().max() > 1e-3
    assert torch.equal(clean, family_model.logits(tokens)), "hooks are gone after the run"


def test_activations_stop_early(family_model: Model, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts)
    reached: list[int] = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, layer=layer: reached.append(layer))
        for layer, block in enumerate(family_model.bridge.blocks)
    ]
    family_model.activations(tokens, [family_model.hook_name("mlp_out", 1)])
    for handle in handles:
        handle.remove()
    assert reached == [0, 1]


def test_gradients_flow_to_an_inserted_tensor(family_model: Model) -> None:
    tokens = family_model.tokenize(["The Eiffel Tower stands in"])
    delta = torch.zeros(32, requires_grad=True)
    hook = (family_model.hook_name("mlp_out", 1), lambda tensor, hook: tensor + delta)
    family_model.logits(tokens, hooks=[hook])[0, -1, 5].backward()
    assert delta.grad is not None and delta.grad.abs().max() > 0


def test_a_hook_that_never_fires_raises(family: str, family_model: Model) -> None:
    tokens = family_model.tokenize(["Rome"])
    silent = "blocks.0.attn.qkv.hook_out" if family in ("gpt2", "gpt_neox") else "blocks.0.attn.hook_hidden_states"
    hooks = [(name, lambda tensor, hook: None) for name in (silent, family_model.hook_name("mlp_out", 0))]
    with pytest.raises(RuntimeError, match=rf"never fired on .*: {silent}$"):
        family_model.logits(tokens, hooks=hooks)
    with pytest.raises(RuntimeError, match="never fired"):
        family_model.activations(tokens, [silent])


def test_bad_hooks_layers_and_matrices(family: str, family_model: Model) -> None:
    tokens = family_model.tokenize(["Rome"])
    with pytest.raises(ValueError, match=r"no hook 'blocks\.9\.hook_mlp_out'"):
        family_model.logits(tokens, hooks=[("blocks.9.hook_mlp_out", lambda tensor, hook: None)])
    with pytest.raises(ValueError, match="unknown site 'mlp'; expected one of embed, resid_pre"):
        family_model.hook_name("mlp", 0)
    for layer in (3, -1, None):
        with pytest.raises(IndexError, match=rf"layer {layer} is out of range; .* layers 0 to 2"):
            family_model.hook_name("mlp_out", layer)
    with pytest.raises(IndexError, match="layer 7"):
        family_model.weight(7)
    with pytest.raises(ValueError, match="unknown matrix 'W_up'; expected one of W_out"):
        family_model.weight(0, "W_up")
    if family in FUSED:
        with pytest.raises(ValueError, match="keeps W_Q fused with others"):
            family_model.weight(0, "W_Q")
    if family in ("gpt2", "gptj", "gpt_neox"):
        with pytest.raises(ValueError, match="no W_gate"):
            family_model.weight(0, "W_gate")
    else:
        assert family_model.weight(0, "W_gate").shape == (32, family_model.d_mlp)


def test_a_write_changes_logits_and_restore_is_exact(family: str, family_model: Model, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts)
    before, snapshot, fingerprint = (
        family_model.logits(tokens),
        family_model.snapshot(),
        family_model.fingerprint(),
    )
    for matrix in ("W_out", "W_in", "W_O", *(() if family in FUSED else ("W_Q", "W_K", "W_V"))):
        family_model.weight(1, matrix).mul_(1.5)
        assert family_model.fingerprint() != fingerprint
        assert not torch.equal(family_model.logits(tokens), before)
        family_model.restore_(snapshot)
        assert family_model.fingerprint() == fingerprint
        assert torch.equal(family_model.logits(tokens), before)
    for name, value in family_model.parameters.items():
        assert torch.equal(value, snapshot[name]) and value is not snapshot[name]
    with pytest.raises(ValueError, match="snapshot is not of"):
        family_model.restore_({"a": torch.zeros(1)})


def test_w_out_is_d_mlp_by_d_model(family_model: Model) -> None:
    assert family_model.weight(2).shape == (family_model.d_mlp, 32)
    assert family_model.weight(2, "W_in").shape == (32, family_model.d_mlp)


def by_hand(model: Model, hf: Any, prompt: str, target: str) -> torch.Tensor:
    """log p of the target after the prompt, one token at a time; the texts are such that the tokens add up."""
    prompt_ids = model.tokenize([prompt]).ids
    joined = join(prompt, target)[len(prompt) :]
    target_ids = torch.tensor([model.tokenizer(joined, add_special_tokens=False)["input_ids"]])
    ids = torch.cat([prompt_ids, target_ids], dim=1)
    log_probs = hf(ids).logits[0].log_softmax(-1)
    return torch.stack(
        [log_probs[prompt_ids.shape[1] - 1 + i, token] for i, token in enumerate(target_ids[0].tolist())]
    )


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_target_log_probs_by_hand(family_model: Model, family_hf: Any, batch_size: int) -> None:
    prompts = ["The Eiffel Tower stands in", "In Rome", "東京は日本の", "Most people in Iceland speak"]
    targets = ["Paris", "most people speak", "首都", "Icelandic"]
    found = scored(family_model, prompts, targets, batch_size=batch_size)
    assert [len(values) for values in found][1] > 1, "a target of several tokens"
    for prompt, target, values in zip(prompts, targets, found, strict=True):
        expected = by_hand(family_model, family_hf, prompt, target)
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


def test_a_space_of_the_prompt_or_the_target_counts_once(tiny_gpt2: Model) -> None:
    ways = [("The capital of Portugal is", "Lisbon"), ("The capital of Portugal is ", "Lisbon")]
    ways.append(("The capital of Portugal is", " Lisbon"))
    found = scored(tiny_gpt2, *map(list, zip(*ways, strict=True)))
    torch.testing.assert_close(found[2], found[0])
    # Here the space is a token by itself, so in the second way it belongs to the prompt.
    torch.testing.assert_close(found[1], found[0][1:])
    assert join("a", "b") == join("a ", "b") == join("a", " b") == "a b"
    assert float(found[0].sum().exp()) > 0.8


def test_greedy_matches(tiny_gpt2: Model) -> None:
    prompts = ["The capital of Portugal is", "The capital of Portugal is", "In Argentina, most people speak"]
    assert all_top(tiny_gpt2, prompts, ["Lisbon", "Moscow", "Spanish"]) == [True, False, True]


def test_bad_prompts_and_targets(tiny_gpt2: Model) -> None:
    for prompt, target, message in (("a", "", "target is blank"), (" ", "b", "prompt is blank")):
        with pytest.raises(ValueError, match=message):
            scored(tiny_gpt2, [prompt], [target])
    with pytest.raises(ValueError, match="batch_size >= 1"):
        scored(tiny_gpt2, ["a"], ["c"], batch_size=0)
    assert scored(tiny_gpt2, [], []) == []


def test_what_a_model_finds_out_about_itself_leaves_its_edits_in_force(tiny_gpt2: Model) -> None:
    edit, untouched = random_edit(tiny_gpt2, 0, (2, "W_out")), state_fingerprint(tiny_gpt2)
    with edit.applied(tiny_gpt2):
        assert tiny_gpt2.once(unedited_fingerprint) == untouched
        assert tiny_gpt2.edits == [edit] and state_fingerprint(tiny_gpt2) != untouched
    assert state_fingerprint(tiny_gpt2) == untouched
