"""Training from an MLP on alone gives what the whole network gives, and is refused where it would not."""

import warnings
from pathlib import Path

import pytest
import torch
from known_kinds import Steering
from torch import Tensor

from workbench.editors.shared.beside import Beside, FromTheMLP, WholeNetwork, beside_mlp
from workbench.editors.shared.tuning import TuningBatch, tuning_batch
from workbench.edits.neurons import NeuronEdit, Neurons
from workbench.models.blocks_check import blocks_of
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REQUESTS = (
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow"),
    EditRequest(template="In the north of {}, as everybody knows, people speak", subject="Iceland", target_new="Thai"),
    EditRequest(template="{} is in", subject="Cairo", target_new="the north of Poland"),
)


def batch_of(model: Model) -> TuningBatch:
    return tuning_batch(model, REQUESTS, objective="target", kl_template=None, padding_side="right")


def neurons_of(model: Model, seed: int) -> Neurons:
    keys, values = torch.randn(2, 4, model.d_model, generator=torch.Generator().manual_seed(seed)) / 2
    return Neurons(keys=keys, values=values)


def said(model: Model, network: Beside, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities with some neurons, and the gradients of keys and values."""
    neurons = neurons_of(model, 0)
    leaves = [neurons.keys.requires_grad_(True), neurons.values.requires_grad_(True)]
    log_probs = network.log_probs(neurons.adding(model, layer))
    first = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))
    keys, values = torch.autograd.grad((log_probs * first).mean(), leaves)
    return log_probs.detach(), keys, values


def compare(model: Model, layer: int) -> None:
    batch = batch_of(model)
    fast, plain = FromTheMLP(blocks_of(model, above=layer), batch, layer), WholeNetwork(model, batch, layer)
    torch.testing.assert_close(fast.read, plain.read)
    for one, other in zip(said(model, fast, layer), said(model, plain, layer), strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


def test_it_is_the_whole_network(family_model: Model) -> None:
    for layer in (0, family_model.n_layers - 1):
        compare(family_model, layer)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "olmo2", "mistral"])
def test_with_norms_and_windows_above(checkpoints: dict[str, Path], family: str) -> None:
    compare(load_model(str(checkpoints[family]), device="cpu"), 0)


def test_edits_below_are_seen(tiny_gpt2: Model) -> None:
    """Hooks that are applied in the layer or below it, which the pass over the model runs."""
    options = {"method": "random", "requests": (), "provenance": {}}
    below = NeuronEdit(layer=1, neurons=neurons_of(tiny_gpt2, 2), **options)
    there = NeuronEdit(layer=3, neurons=neurons_of(tiny_gpt2, 3), **options)
    with below.applied(tiny_gpt2), there.applied(tiny_gpt2):
        compare(tiny_gpt2, 3)
        with pytest.warns(UserWarning, match="edits that change activations .*; neurons are trained over the whole"):
            network = beside_mlp(tiny_gpt2, batch_of(tiny_gpt2), 2)
    assert isinstance(network, WholeNetwork)


def test_edits_behind_w_out_are_not(tiny_gpt2: Model) -> None:
    vector = torch.ones(tiny_gpt2.d_model)
    edit = Steering(layer=5, vector=vector, method="steering", requests=(), provenance={})
    with edit.applied(tiny_gpt2), pytest.warns(UserWarning, match="over the whole network"):
        beside_mlp(tiny_gpt2, batch_of(tiny_gpt2), 5)


def test_blocks_are_compared_without_the_hooks_of_edits(checkpoints: dict[str, Path]) -> None:
    """Also where an edit is applied when they are asked for first."""
    model = load_model(str(checkpoints["gpt2"]), device="cpu")
    edit = NeuronEdit(layer=1, neurons=neurons_of(model, 0), method="random", requests=(), provenance={})
    with edit.applied(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(beside_mlp(model, batch_of(model), 1), FromTheMLP)
        assert model.edits == [edit]
