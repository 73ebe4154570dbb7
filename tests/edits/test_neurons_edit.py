"""Neurons beside an MLP: what they are in weights, stacked, saved, in generation, and where they do not fit."""

from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from known_edits import random_edit, same
from known_scores import scored
from torch import Tensor

from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.neurons import NeuronEdit, Neurons
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.studies.tiny_models import CONFIGS

QUICK = ("gpt2", "llama", "gemma2", "olmo2", "falcon")
PROMPTS = ["The capital of Portugal is", "In Iceland, most people speak", "Rome"]


def edit_of(neurons: Neurons, layer: int = 1) -> NeuronEdit:
    return NeuronEdit(layer=layer, neurons=neurons, method="random", requests=(), provenance={})


def random_neurons(model: Model, *, seed: int = 0, count: int = 3, **options: Any) -> Neurons:
    generator = torch.Generator().manual_seed(seed)
    keys, values, gates = (torch.randn(count, model.d_model, generator=generator) / 2 for _ in range(3))
    options = {"gates": gates, **options}
    return Neurons(keys=keys, values=values, biases=torch.randn(count, generator=generator), **options)


def logits(model: Model, padding_side: Any = "right") -> Tensor:
    with torch.no_grad():
        return model.logits(model.tokenize(PROMPTS, padding_side=padding_side))


@cache
def loaded(path: Path, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(str(path), device="cpu", dtype=dtype)


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in CONFIGS]
)
def test_they_are_more_of_the_mlps_own(checkpoints: dict[str, Path], family: str) -> None:
    """Copies of the MLP's neurons with values of the other sign take these out, whatever stands behind W_out."""
    model, layer, taken = loaded(checkpoints[family]), 1, slice(3, 20)
    mlp: Any = model.bridge.blocks[layer].mlp
    gated = getattr(mlp, "W_gate", None) is not None
    columns = model.weight(layer, "W_gate" if gated else "W_in").T[taken].clone()
    bias = getattr(mlp, "b_gate" if gated else "b_in", None)
    neurons = Neurons(
        keys=columns,
        biases=None if bias is None else bias.detach()[taken].clone(),
        gates=model.weight(layer, "W_in").T[taken].clone() if gated else None,
        values=-model.weight(layer)[taken].clone(),
    )
    before, own = model.snapshot(), logits(model)
    with edit_of(neurons).applied(model):
        found = logits(model)
    try:
        model.weight(layer)[taken] = 0
        expected = logits(model)
    finally:
        model.restore_(before)
    assert (expected - own).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_without_neurons_it_is_the_model_bit_for_bit(checkpoints: dict[str, Path], family: str) -> None:
    model = loaded(checkpoints[family])
    own = logits(model)
    with edit_of(random_neurons(model, count=0)).applied(model):
        assert model.edit_hooks() == []
        assert torch.equal(logits(model), own)


def test_stacked_they_come_off_in_any_order(tiny_gpt2: Model) -> None:
    """Beside neurons of the same layer and changed weights; what remains is what it would be alone."""
    edits: list[Edit] = [edit_of(random_neurons(tiny_gpt2, seed=seed)) for seed in (0, 1)]
    edits.append(random_edit(tiny_gpt2, 0, (1, "W_out")))
    own, before, untouched = logits(tiny_gpt2), tiny_gpt2.snapshot(), state_fingerprint(tiny_gpt2)
    alone = []
    for edit in edits:
        with edit.applied(tiny_gpt2):
            alone.append(logits(tiny_gpt2))
            assert not torch.equal(alone[-1], own)
    for order in permutations(range(3)):
        for edit in edits:
            edit.apply_(tiny_gpt2)
        for index in order[:2]:
            edits[index].revert_(tiny_gpt2)
        assert torch.equal(logits(tiny_gpt2), alone[order[2]])
        edits[order[2]].revert_(tiny_gpt2)
    assert torch.equal(logits(tiny_gpt2), own) and same(before, tiny_gpt2.snapshot())
    check_restored(tiny_gpt2, untouched, after="a test")


@pytest.mark.parametrize("options", [{}, {"gates": None, "activation": "relu"}])
def test_saved_and_loaded(tiny_gpt2: Model, tmp_path: Path, options: dict[str, Any]) -> None:
    edit = replace(edit_of(random_neurons(tiny_gpt2, **options)), carried={"queries": torch.ones(2, 64)})
    edit.save(tmp_path / "edit.safetensors")
    found = Edit.load(tmp_path / "edit.safetensors")
    assert isinstance(found, NeuronEdit) and found.digest == edit.digest
    assert torch.equal(found.carried["queries"], torch.ones(2, 64))
    with edit.applied(tiny_gpt2):
        expected = logits(tiny_gpt2)
    with found.applied(tiny_gpt2):
        assert torch.equal(logits(tiny_gpt2), expected)
    others = [replace(edit, layer=2), replace(edit, neurons=replace(edit.neurons, activation="silu"))]
    assert len({each.digest for each in (edit, *others)}) == 3


@pytest.mark.slow
def test_generation_with_the_cache_equals_generation_without(checkpoints: dict[str, Path], tiny_gpt2: Model) -> None:
    """Prompts of several lengths side by side."""
    for model in (tiny_gpt2, loaded(checkpoints["llama"])):
        own = generate(model, PROMPTS, max_new_tokens=5)
        with edit_of(random_neurons(model, count=8)).applied(model):
            found = generate(model, PROMPTS, max_new_tokens=5)
            for prompt, text in zip(PROMPTS, found, strict=True):
                row = model.encode([prompt])[0]
                ids = list(row.ids)
                for _ in range(5):
                    with torch.no_grad():
                        said = model.logits(model.pad([replace(row, ids=tuple(ids))]), keep_last=1)[0, -1]
                    ids.append(int(said.argmax()))
                assert model.text.continuation(ids[: len(row.ids)], ids[len(row.ids) :]).startswith(text)
        assert found != own


def test_half_precision(checkpoints: dict[str, Path]) -> None:
    """Neurons stay in single precision: what they add is rounded once."""
    for family in ("gpt2", "llama"):
        whole, half = (loaded(checkpoints[family], dtype) for dtype in (torch.float32, torch.bfloat16))
        edit = edit_of(random_neurons(whole))
        with edit.applied(whole), edit.applied(half):
            said = [scored(model, PROMPTS[:2], ["Moscow", "Thai"]) for model in (whole, half)]
        for one, other in zip(*said, strict=True):
            torch.testing.assert_close(one, other, atol=0.1, rtol=0.02)


def test_what_does_not_fit(tiny_gpt2: Model, checkpoints: dict[str, Path]) -> None:
    edit = edit_of(random_neurons(tiny_gpt2))
    neurons = edit.neurons
    with pytest.raises(ValueError, match=r"the neurons are of size 64, but the states of .* of 32"):
        edit.apply_(loaded(checkpoints["gpt2"]))
    for count in (0, 3):
        with pytest.raises(IndexError, match="layer 9"):
            edit_of(random_neurons(tiny_gpt2, count=count), layer=9).apply_(tiny_gpt2)
    assert tiny_gpt2.edits == []
    with pytest.raises(ValueError, match="the neurons beside the MLP of layer 1 are not finite"):
        edit_of(replace(neurons, values=neurons.values / 0))
    with pytest.raises(ValueError, match=r"no activation .step.; give one of .*relu.*, or None"):
        replace(neurons, activation="step")


def test_they_are_moved_to_a_device_once(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every pass, of which generation has one a token."""
    edit = edit_of(random_neurons(tiny_gpt2))
    elsewhere = torch.device("meta")
    assert edit._on(elsewhere) is edit._on(elsewhere) and edit._on(elsewhere).keys.device == elsewhere
    assert edit._on(tiny_gpt2.device).keys.device == tiny_gpt2.device
    moves: list[torch.device] = []
    monkeypatch.setattr(Tensor, "to", lambda tensor, *_, **__: moves.append(tensor.device) or tensor)
    edit.hooks(tiny_gpt2)
    assert not moves
