"""CaliNet: the published code's slots, batches, and what it does with bad input."""

import json
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.calinet import CaliNet
from workbench.edits.neurons import NeuronEdit, Neurons
from workbench.models.model import Model
from workbench.models.scoring import score_targets

REFERENCE = json.loads((GOLDEN / "survey" / "calinet.json").read_text(encoding="utf-8"))


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
    slots = CaliNet(layer=5, slots=16, start="published", gated=True)._started(64)
    expected: dict[str, Any] = {"keys": "wi_ex", "gates": "wi_ex", "values": "wo_ex"}
    for name, matrix in slots.items():
        assert matrix.std().item() == pytest.approx(REFERENCE["initial_slot_std"][expected[name]], rel=0.06)
