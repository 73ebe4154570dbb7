"""CaliNet: the published code's slots, batches, and what it does with bad input."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_scores import all_top, scored
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.calinet import CaliNet
from workbench.editors.make import make_editor
from workbench.editors.setup.presets import PRESETS
from workbench.editors.shared.beside import WholeNetwork
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.neurons import NeuronEdit, Neurons
from workbench.edits.sequence import sequence
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "survey" / "calinet.json").read_text(encoding="utf-8"))

REQUESTS = (
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow"),
    EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish"),
    EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai"),
)
PLAIN = CaliNet(layer=4, slots=8, steps=5)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "survey" / "calinet.safetensors")


def edit_of(neurons: Neurons) -> NeuronEdit:
    return NeuronEdit(layer=5, neurons=neurons, method="CaliNet", requests=(), provenance={})


def test_golden_slots(tiny_gpt2: Model, golden: dict[str, Tensor]) -> None:
    """What slots of both kinds add, and what the model says with them."""
    relu = Neurons(keys=golden["relu.wi_ex"], values=golden["relu.wo_ex"].T, activation="relu")
    gated = Neurons(
        keys=golden["gated.wi_0_ex"], gates=golden["gated.wi_1_ex"], values=golden["gated.wo_ex"].T,
        activation="gelu_new",
    )  # fmt: skip
    for name, slots in (("relu", relu), ("gated", gated)):
        found = slots.adding(tiny_gpt2, 5)(golden["x"])
        torch.testing.assert_close(found, golden[f"{name}.extra"], atol=1e-5, rtol=1e-5)
    tokens = tiny_gpt2.tokenize([f"{REFERENCE['prompt']} {REFERENCE['target']}"])
    with edit_of(relu).applied(tiny_gpt2):
        logits = tiny_gpt2.logits(tokens)[0]
        (score,) = score_targets(tiny_gpt2, [(REFERENCE["prompt"], REFERENCE["target"])])
    torch.testing.assert_close(logits, golden["gpt2.relu.logits"], atol=1e-4, rtol=1e-5)
    assert -score.log_probs.mean().item() == pytest.approx(REFERENCE["nll_of_target_with_slots"], abs=1e-5)


def test_published_start() -> None:
    """Torch's default for both maps, as the published slots are."""
    slots = CaliNet(layer=5, slots=16, start="published", gated=True)._started([], 64)
    expected: dict[str, Any] = {"keys": "wi_ex", "gates": "wi_ex", "values": "wo_ex"}
    for name, matrix in slots.items():
        assert matrix.std().item() == pytest.approx(REFERENCE["initial_slot_std"][expected[name]], rel=0.06)


# What it is and does ------------------------------------------------------------------------------------


def targets(model: Model, requests: Sequence[EditRequest]) -> list[float]:
    """Mean negative log-likelihood of each request's target."""
    said = scored(model, [each.prompt for each in requests], [each.target_new for each in requests])
    return [-each.mean().item() for each in said]


def losses(edit: NeuronEdit) -> list[float]:
    return edit.provenance["optimisation"]["losses"]


def test_one_module_for_many_facts(tiny_gpt2: Model) -> None:
    """It says them all, is itself before it is trained, and is left as it was."""
    before, untouched = tiny_gpt2.snapshot(), state_fingerprint(tiny_gpt2)
    own = targets(tiny_gpt2, REQUESTS)
    edit = replace(PLAIN, steps=300, loss_reached=0.1)(tiny_gpt2, REQUESTS)
    assert losses(edit)[0] == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert losses(edit)[-1] < 0.1 and len(losses(edit)) < 300
    assert edit.requests == REQUESTS and edit.neurons.keys.shape == (8, 64)
    with edit.applied(tiny_gpt2):
        found = targets(tiny_gpt2, REQUESTS)
        said = all_top(tiny_gpt2, [each.prompt for each in REQUESTS], [each.target_new for each in REQUESTS])
    assert said == [True] * 3
    assert sum(found) / len(found) == pytest.approx(losses(edit)[-1], abs=1e-4)
    assert targets(tiny_gpt2, REQUESTS) == own and same(before, tiny_gpt2.snapshot())
    check_restored(tiny_gpt2, untouched, after="a test")


def test_the_published_start_is_another_model(tiny_gpt2: Model) -> None:
    one, other = (losses(replace(PLAIN, steps=1, start=start)(tiny_gpt2, REQUESTS)) for start in ("zero", "published"))
    assert abs(one[0] - other[0]) > 1e-3


@pytest.mark.slow
def test_parts_and_the_whole_network_find_the_same(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts that do not fit into memory together, and an MLP whose layers above cannot be run alone."""
    quick = replace(PLAIN, layer=2, steps=4, gated=True)
    together = quick(tiny_gpt2, REQUESTS)
    monkeypatch.setattr(tiny_gpt2, "budget", 1e-6)
    apart = quick(tiny_gpt2, REQUESTS)
    monkeypatch.setattr("workbench.editors.calinet.beside_mlp", WholeNetwork)
    slow = quick(tiny_gpt2, REQUESTS)
    for other in (apart, slow):
        assert losses(other) == pytest.approx(losses(together), rel=1e-4)
        for name, tensor in together.tensors().items():
            torch.testing.assert_close(other.tensors()[name], tensor, atol=1e-4, rtol=1e-2)


def test_batches_in_sequence(tiny_gpt2: Model, tmp_path: Path) -> None:
    """Slots on slots: each batch is trained on what those before leave, and comes off alone."""
    untouched = state_fingerprint(tiny_gpt2)
    with sequence(tiny_gpt2, PLAIN, REQUESTS, chunk=2, folder=tmp_path / "edits") as steps:
        first, second = list(steps)
        assert isinstance(first, NeuronEdit) and isinstance(second, NeuronEdit)
        assert targets(tiny_gpt2, REQUESTS[2:])[0] == pytest.approx(losses(second)[-1], abs=1e-4)
        steps.rollback(1)
        assert losses(second)[0] == pytest.approx(targets(tiny_gpt2, REQUESTS[2:])[0], abs=1e-4)
    loaded = NeuronEdit.load(tmp_path / "edits" / "00000-00001.safetensors", model=tiny_gpt2)
    assert loaded.digest == first.digest
    check_restored(tiny_gpt2, untouched, after="a test")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_families_in_half_precision(checkpoints: dict[str, Path], family: str) -> None:
    model = load_model(str(checkpoints[family]), device="cpu", dtype=torch.bfloat16)
    edit = replace(PLAIN, layer=1, steps=8)(model, REQUESTS)
    assert edit.neurons.keys.dtype == torch.float32 and losses(edit)[-1] < losses(edit)[0]
    with edit.applied(model):
        found = targets(model, REQUESTS)
    assert sum(found) / len(found) == pytest.approx(losses(edit)[-1], abs=0.1)


def test_presets(tiny_gpt2: Model) -> None:
    """At the layers that they name, or where tracing points."""
    for entry in json.loads((PRESETS / "calinet.json").read_text(encoding="utf-8")).values():
        CaliNet(layer=1, **{name: value for name, value in entry["fields"].items() if name != "layers"})
    editor = make_editor(
        tiny_gpt2, "calinet", layer=2, preset_of="atlas", alone=True, seed=3, cache=Path(), texts=lambda: []
    )
    assert isinstance(editor, CaliNet) and (editor.layers, editor.seed) == ((2,), 3)


# Bad input ----------------------------------------------------------------------------------------------


def test_bad_input_leaves_the_model_alone(tiny_gpt2: Model) -> None:
    for bad, message in [
        ({"slots": 0}, "slots and steps must be at least 1, got 0 and 5000"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"activation": "step"}, "no activation 'step'"),
    ]:
        options: dict[str, Any] = {"layer": 1} | bad
        with pytest.raises(ValueError, match=message):
            CaliNet(**options)
    before = tiny_gpt2.snapshot()
    contradictory = [REQUESTS[0], replace(REQUESTS[0], target_new="Rome")]
    cases: list[tuple[dict[str, Any], Sequence[EditRequest], type[Exception], str]] = [
        ({"layer": 6}, REQUESTS, IndexError, "layer 6 is out of range"),
        ({}, [], ValueError, "at least one request"),
        ({}, contradictory, ValueError, "contradictory"),
        ({"learning_rate": 1e30}, REQUESTS, ValueError, "the loss of 3 requests, the first about 'Portugal', is not"),
    ]
    for changes, requests, error, message in cases:
        with pytest.raises(error, match=message):
            replace(PLAIN, **changes)(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []
