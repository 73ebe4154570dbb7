"""Attributions are those of the published code, and sum to what a layer's neurons add to the probability."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from known_kinds import Steers
from safetensors.torch import load_file

from workbench.models.blocks import BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.tokens import TokenRow
from workbench.records.facts import EditRequest
from workbench.tracing import integrated
from workbench.tracing.integrated import Engine, NeuronSite, attribute_neurons
from workbench.tracing.neurons import KnowledgeNeurons, answered, knowledge_neurons, refined

REFERENCE = json.loads((GOLDEN / "survey" / "kn.json").read_text(encoding="utf-8"))
REQUEST = EditRequest(
    template="The language spoken in {} is", subject="Iceland", target_new="Thai", target_true="Icelandic"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "survey" / "kn.safetensors")


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() / expected.norm() < 1e-5)


@pytest.mark.parametrize("case", range(4))
def test_golden_easyedit(tiny_gpt2: Model, golden: dict[str, torch.Tensor], case: int):
    entry = REFERENCE["easyedit"][case]
    (asked,) = tiny_gpt2.encode([entry["prompt"]])
    found = attribute_neurons(
        tiny_gpt2, asked, entry["ground_truth_ids"], layers=range(6), site="mlp_pre", points="ends"
    )
    assert close(found, golden[f"easyedit.{case}.scores"])


@pytest.mark.parametrize("case", range(3))
def test_golden_eleuther(tiny_gpt2: Model, golden: dict[str, torch.Tensor], case: int):
    entry = REFERENCE["eleuther"][case]
    subject = entry["prompt"].split("In ")[-1].split("in ")[-1].split()[0].rstrip(",")
    request = EditRequest(
        template=entry["prompt"].replace(subject, "{}"),
        subject=subject,
        target_new="Thai",
        target_true=entry["ground_truth"],
    )
    found = knowledge_neurons(tiny_gpt2, request, threshold=0.3, site="mlp_pre", points="ends", tokens="extended")
    assert close(found.attributions, golden[f"eleuther.{case}.scores"])
    assert [list(place) for place in found.neurons] == golden[f"eleuther.{case}.neurons"].tolist()


@pytest.mark.parametrize("case", range(2))
def test_golden_dai(tiny_gpt2: Model, golden: dict[str, torch.Tensor], case: int):
    entry = REFERENCE["dai"][case]
    subject = ("Mexico", "Argentina")[case]
    templates = [prompt.replace(subject, "{}") for prompt in entry["prompts"]]
    request = EditRequest(template=templates[0], subject=subject, target_new="German", target_true="Spanish")
    found = knowledge_neurons(tiny_gpt2, request, templates=templates, points="left")
    assert close(found.by_prompt, golden[f"dai.{case}.scores"])
    assert [list(place) for place in found.neurons] == entry["bag"]


@pytest.mark.parametrize("site", ["mlp_key", "mlp_pre"])
def test_a_layers_attributions_sum_to_what_its_neurons_add(family_model: Model, site: NeuronSite):
    """To the accuracy of the sum over points, whose error halves as their number doubles."""
    (asked,) = family_model.encode(["In Paris the Eiffel Tower"])
    tokens = family_model.pad([asked])

    def probabilities(layer: int | None) -> torch.Tensor:
        def silence(state: torch.Tensor, hook: object) -> torch.Tensor:
            return torch.cat([state[:, :-1], torch.zeros_like(state[:, -1:])], dim=1)

        hooks = [] if layer is None else [(family_model.hook_name(site, layer), silence)]
        return family_model.logits(tokens, hooks=hooks, keep_last=1)[0, -1].softmax(dim=-1)

    answer = int(probabilities(None).argmax())
    added = torch.stack([(probabilities(None) - probabilities(layer))[answer] for layer in range(3)])
    errors = []
    for steps in (16, 128):
        found = attribute_neurons(family_model, asked, [answer], layers=range(3), steps=steps, site=site)
        errors.append((found.sum(dim=1) - added).abs().max())
    assert added.abs().max() > 1e-5
    assert errors[1] < 0.05 * added.abs().max() and errors[1] < 0.3 * errors[0]


def test_points_lie_left_and_right(tiny_gpt2: Model):
    """Right less left is the integrand at the end less that at the start; with one point, `ends` is the start."""
    found = {
        points: knowledge_neurons(tiny_gpt2, REQUEST, layers=[3], steps=1, points=points).attributions
        for points in ("right", "left", "ends")
    }
    assert torch.equal(found["left"], found["ends"]) and not torch.allclose(found["left"], found["right"])
    two = {
        points: knowledge_neurons(tiny_gpt2, REQUEST, layers=[3], steps=2, points=points).attributions
        for points in ("right", "left")
    }
    torch.testing.assert_close(two["right"] - two["left"], (found["right"] - found["left"]) / 2, atol=1e-6, rtol=1e-4)


def test_the_mean_over_tokens_is_linear(tiny_gpt2: Model):
    (asked,) = tiny_gpt2.encode([REQUEST.prompt])
    ids = tiny_gpt2.encode([f"{REQUEST.prompt} Icelandic"])[0].ids[len(asked.ids) :]
    each = torch.stack([attribute_neurons(tiny_gpt2, asked, [one], layers=[2, 3], steps=4) for one in ids])
    options = {"layers": [2, 3], "steps": 4}
    torch.testing.assert_close(
        knowledge_neurons(tiny_gpt2, REQUEST, tokens="mean", **options).attributions, each.mean(dim=0),
        atol=1e-7, rtol=1e-4,
    )  # fmt: skip
    torch.testing.assert_close(
        knowledge_neurons(tiny_gpt2, REQUEST, **options).attributions, each[0], atol=1e-7, rtol=1e-4
    )


@pytest.mark.parametrize("site", ["mlp_key", "mlp_pre"])
def test_the_fast_engine_is_the_plain_one(family_model: Model, site: NeuronSite):
    """Layers in any order; more points than climb together."""
    row, first = answered(family_model, "In Paris the Eiffel Tower", "stands", None)
    asked = TokenRow(text=row.text, ids=row.ids[:first], offsets=row.offsets[:first])
    options = {"layers": [2, 0, 1], "steps": 60, "site": site, "points": "left"}
    plain, fast = (
        attribute_neurons(family_model, asked, row.ids[first:], engine=engine, **options)
        for engine in ("plain", "fast")
    )
    assert plain.norm(dim=1).min() > 0 and close(fast, plain)


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_the_fast_engine_sees_as_far_as_windows_reach(checkpoints: dict[str, Path], name: str):
    model = load_model(str(checkpoints[name]), device="cpu")
    (asked,) = model.encode(["In Paris the Eiffel Tower stands in"])
    assert any((blocks_of(model).window(layer) or 10**6) < len(asked.ids) for layer in range(model.n_layers))
    plain, fast = (
        attribute_neurons(model, asked, [5], layers=range(model.n_layers), steps=3, engine=engine)
        for engine in ("plain", "fast")
    )
    assert close(fast, plain)


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_little_memory_changes_nothing(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch, engine: Engine):
    (asked,) = tiny_gpt2.encode([REQUEST.prompt])
    options = {"answers": [7], "layers": [1, 4], "steps": 5, "engine": engine}
    much = attribute_neurons(tiny_gpt2, asked, **options)
    sizes = []
    softmax = integrated._probability
    monkeypatch.setattr(
        integrated, "_probability", lambda logits, *rest: sizes.append(len(logits)) or softmax(logits, *rest)
    )
    monkeypatch.setattr(tiny_gpt2, "budget", 1e-9)
    little = attribute_neurons(tiny_gpt2, asked, **options)
    assert sizes == [1] * 10
    torch.testing.assert_close(little, much, atol=1e-7, rtol=1e-4)


def test_hooks_are_run_and_said(tiny_gpt2: Model):
    """The fast engine would pass the hooks of an edit by."""
    (asked,) = tiny_gpt2.encode([REQUEST.prompt])
    options = {"answers": [7], "layers": [1, 4], "steps": 2}
    bare = attribute_neurons(tiny_gpt2, asked, **options)
    with Steers()(tiny_gpt2, [REQUEST]).applied(tiny_gpt2):
        with pytest.raises(BlocksError, match="edits that change activations are applied"):
            attribute_neurons(tiny_gpt2, asked, engine="fast", **options)
        with pytest.warns(UserWarning, match="activations are applied to it; attributing by the plain engine"):
            found = attribute_neurons(tiny_gpt2, asked, **options)
        plain = attribute_neurons(tiny_gpt2, asked, engine="plain", **options)
    assert torch.equal(found, plain) and not close(found, bare)


# What is kept ------------------------------------------------------------------------------------------


def made(*counted: set[int], share: float = 0.7) -> KnowledgeNeurons:
    """Of one layer, numbered 2; the prompts' neurons that count."""
    by_prompt = torch.zeros(len(counted), 1, 12)
    for prompt, neurons in enumerate(counted):
        by_prompt[prompt, 0, sorted(neurons)] = 1.0 + prompt
        by_prompt[prompt, 0, 11] = 0.2 * (1.0 + prompt)  # the threshold itself does not count
    return KnowledgeNeurons(
        prompts=tuple(map(str, counted)), answer="a", layers=(2,), by_prompt=by_prompt, threshold=0.2, share=share
    )


def test_neurons_are_kept_that_more_than_a_share_of_prompts_counts():
    found = made({1, 5, 7}, {1, 5}, {1, 5}, {1, 3})
    assert found.neurons == ((2, 1), (2, 5))
    assert replace(found, share=0.75).neurons == ((2, 1),)
    assert replace(found, share=0.2).neurons == ((2, 1), (2, 3), (2, 5), (2, 7))
    assert made({4}).neurons == ((2, 4),)
    assert replace(found, by_prompt=-found.by_prompt).neurons == (), "none raises the probability"


def test_the_share_moves_until_two_to_five_are_kept_on_average():
    few, many = made({1}, {1, 2}, {1, 2, 3}, {1, 3}), made(*[set(range(9))] * 3, {0, 1})
    assert [len(each.neurons) for each in (few, many)] == [1, 9]
    assert [each.share for each in refined([few, many])] == [0.7, 0.7]
    assert [(each.share, len(each.neurons)) for each in refined([few])] == [(0.45, 3)]
    assert [(each.share, len(each.neurons)) for each in refined([many])] == [(0.75, 2)]
    assert [each.share for each in refined([made({1})])] == [0.4], "after six moves it stays"
    assert [each.share for each in refined([made(set(range(9)))])] == [0.95], "below 1"


def test_bad_input(tiny_gpt2: Model):
    for bad, message in [
        ({"steps": 0}, "steps must be at least 1"),
        ({"threshold": -1.0}, "threshold is a share"),
        ({"templates": ["no subject"]}, "template needs exactly one {}"),
    ]:
        with pytest.raises(ValueError, match=message):
            knowledge_neurons(tiny_gpt2, REQUEST, **bad)
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(4).fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN probabilities for 'The language spoken in Iceland is'"):
            knowledge_neurons(tiny_gpt2, REQUEST, steps=1, layers=[3])
    finally:
        tiny_gpt2.restore_(before)
