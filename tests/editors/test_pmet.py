"""PMET writes only what the MLP does of its joint optimisation, spread by square roots; many requests go as one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_scores import scored
from safetensors.torch import load_file

from workbench.editors.pmet import PMET, optimise_outputs
from workbench.editors.search.fast_values import search_together
from workbench.editors.search.outputs import OutputSearch
from workbench.editors.search.values import OptimisedValue, optimise_value
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.shared.keys import subject_states
from workbench.editors.shared.moment import SecondMoment
from workbench.editors.shared.subject import in_contexts
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REQUESTS = [
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon"),
    EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish", target_true="Spanish"),
]
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "learning_rate": 0.2,
    "weight_decay": 0.01,
    "clamp": 0.75,
    "kl_weight": 0.1,
    "kl_template": "{} is a",
}


@pytest.fixture(scope="module")
def moments() -> dict[int, SecondMoment]:
    found = load_file(GOLDEN / "rome.safetensors")
    return {n: SecondMoment(layer=n, matrix=found[f"second_moment.{n}"], count=37_512) for n in (1, 2, 3)}


@pytest.fixture(scope="module")
def editor(moments: dict[int, SecondMoment]) -> PMET:
    return PMET(layers=(1, 2, 3), second_moments=moments, moment_weight=1.0, **SETTINGS)


def outputs(model: Model, layer: int, requests: Sequence[EditRequest]) -> torch.Tensor:
    name = model.hook_name("mlp_out", layer)
    return subject_states(model, name, [r.template for r in requests], [r.subject for r in requests])


def optimise(model: Model, request: EditRequest, **changes: Any) -> OptimisedValue:
    return optimise_outputs(model, request, [request.template], layer=2, **(SETTINGS | changes))


def test_the_spread_goes_by_square_roots(tiny_gpt2: Model, editor: PMET):
    before = tiny_gpt2.snapshot()
    edit = editor(tiny_gpt2, REQUESTS)
    assert same(before, tiny_gpt2.snapshot())
    assert edit.method == "PMET"
    # Only MLPs are written.
    assert [(update.layer, update.matrix) for update in edit.updates] == [(n, "W_out") for n in (1, 2, 3)]
    with replace(edit, updates=edit.updates[:2]).applied(tiny_gpt2):
        wanted = outputs(tiny_gpt2, 3, REQUESTS) + edit.updates[2].right.double()
    for index, update in enumerate(edit.updates):
        with replace(edit, updates=edit.updates[:index]).applied(tiny_gpt2):
            missing = wanted - outputs(tiny_gpt2, 3, REQUESTS)
        torch.testing.assert_close(update.right.double() * (3 - index) ** 0.5, missing, rtol=1e-4, atol=1e-5)
    # What is wanted is the MLP's own output, changed by its own delta.
    for row, request in enumerate(REQUESTS):
        value = optimise_outputs(tiny_gpt2, request, [request.template], layer=3, **SETTINGS)
        torch.testing.assert_close(wanted[row].float(), value.initial + value.delta, rtol=1e-3, atol=1e-4)


def test_one_layer_without_regularisation_reaches_the_output(family_model: Model):
    request = EditRequest(template="The {} stands in", subject="Eiffel Tower", target_new="Rome")
    eye = {1: SecondMoment(layer=1, matrix=torch.eye(family_model.d_mlp), count=1)}
    settings: dict[str, Any] = SETTINGS | {"learning_rate": 0.05, "clamp": 4.0}
    edit = PMET(layers=(1,), second_moments=eye, moment_weight=1e-6, **settings)(family_model, [request])
    value = optimise_outputs(family_model, request, [request.template], layer=1, **settings)
    assert value.delta.norm() > 1e-2
    with edit.applied(family_model):
        now = outputs(family_model, 1, [request])[0].float()
    torch.testing.assert_close(now, value.initial + value.delta, rtol=1e-3, atol=1e-3)


def test_where_attention_and_mlp_are_parallel_each_does_half(checkpoints: dict[str, Path]):
    """GPT-J adds both to the same stream: each delta moves as half of one that moves twice as fast."""
    model = load_model(str(checkpoints["gptj"]), device="cpu")
    request = EditRequest(template="The {} stands in", subject="Eiffel Tower", target_new="Rome")
    free: dict[str, Any] = SETTINGS | {"weight_decay": 0.0, "clamp": 1e3, "steps": 4, "learning_rate": 0.02}
    ours = optimise_outputs(model, request, [request.template], layer=1, **free)
    free["learning_rate"] = 0.04
    both = optimise_value(model, request, [request.template], site="resid_post", layer=1, **free)
    assert len(ours.losses) == len(both.losses) == 4
    torch.testing.assert_close(2 * ours.delta, both.delta, rtol=1e-3, atol=1e-4)
    assert [loss.total for loss in ours.losses] == pytest.approx([loss.total for loss in both.losses], rel=1e-4)


def test_the_loss_falls_and_its_terms_begin_at_zero(tiny_gpt2: Model):
    value = optimise(tiny_gpt2, REQUESTS[0])
    (log_probs,) = scored(tiny_gpt2, [REQUESTS[0].prompt], [REQUESTS[0].target_new])
    assert value.losses[0].nll == pytest.approx(-log_probs.mean().item(), rel=1e-4)
    assert value.losses[0].kl == pytest.approx(0, abs=1e-6) and value.losses[0].weight_decay == 0
    assert value.losses[-1].total < value.losses[0].total
    assert value.losses[1].weight_decay > 0


def test_the_change_is_clamped(tiny_gpt2: Model):
    value = optimise(tiny_gpt2, REQUESTS[0], clamp=0.3)
    assert (value.delta.norm() / value.initial.norm()).item() == pytest.approx(0.3, rel=1e-5)


@pytest.mark.slow
def test_it_ends_once_the_target_is_the_answer_and_little_else_has_changed(tiny_gpt2: Model):
    settings = {"steps": 60, "clamp": 10.0, "weight_decay": 2.0}
    ended = optimise(tiny_gpt2, REQUESTS[1], **settings, kl_weight=0.0)
    assert 1 < len(ended.losses) < 60 and ended.losses[-1].total >= 0.05
    # A divergence that weighs more keeps it going, the likelihood then counting a tenth.
    longer = optimise(tiny_gpt2, REQUESTS[1], **settings, kl_weight=100.0)
    assert len(longer.losses) > len(ended.losses)


def test_no_step_makes_no_change(tiny_gpt2: Model, editor: PMET):
    for update in replace(editor, steps=1)(tiny_gpt2, REQUESTS).updates:
        torch.testing.assert_close(update.dense(), torch.zeros(256, 64), rtol=0, atol=1e-5)


def test_the_edited_model_says_the_target(tiny_gpt2: Model, editor: PMET):
    request = REQUESTS[1]
    (before,) = scored(tiny_gpt2, [request.prompt], [request.target_new])
    stronger = replace(editor, steps=20, clamp=4.0, moment_weight=0.1)
    with stronger(tiny_gpt2, [request]).applied(tiny_gpt2) as edited:
        (after,) = scored(edited, [request.prompt], [request.target_new])
    assert after.mean() > before.mean() + 1


def test_weights_that_are_not_numbers(tiny_gpt2: Model, editor: PMET):
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(4).fill_(float("nan"))
        with pytest.raises(ValueError, match="diverged at step 0"):
            editor(tiny_gpt2, REQUESTS[:1])
    finally:
        tiny_gpt2.restore_(before)


# Many requests at once ---------------------------------------------------------------------------------

MANY = (
    *REQUESTS,
    EditRequest(template="{}'s capital city is", subject="Japan", target_new="Rome and Thai"),
    EditRequest(template="People speak Greek in {}", subject="Greece", target_new="and Cairo"),
)
CONTEXTS = (("{}", "It is known that {}", "Therefore, {}"), ("{}",), ("{}", "They say: {}"), ("{}", "In short, {}"))
TEMPLATES = [in_contexts(request.template, contexts) for request, contexts in zip(MANY, CONTEXTS, strict=True)]


def together(
    model: Model,
    requests: Sequence[EditRequest] = MANY,
    templates: Sequence[Sequence[str]] = TEMPLATES,
    **changes: Any,
) -> list[OptimisedValue]:
    options = SETTINGS | {"layer": 1, "loss_layer": None} | changes
    return search_together(OutputSearch, optimise_outputs, model, requests, templates, **options)


def one_by_one(
    model: Model,
    requests: Sequence[EditRequest] = MANY,
    templates: Sequence[Sequence[str]] = TEMPLATES,
    **changes: Any,
) -> list[OptimisedValue]:
    options: dict[str, Any] = SETTINGS | {"layer": 1} | changes
    return [
        optimise_outputs(model, request, each, **options) for request, each in zip(requests, templates, strict=True)
    ]


def assert_same(found: Sequence[OptimisedValue], alone: Sequence[OptimisedValue]) -> None:
    for ours, plain in zip(found, alone, strict=True):
        torch.testing.assert_close(ours.initial, plain.initial, atol=1e-5, rtol=1e-5)
        assert (ours.delta - plain.delta).norm() <= 1e-4 * plain.delta.norm()
        assert len(ours.losses) == len(plain.losses)
        for term in ("nll", "kl", "weight_decay"):
            terms = [getattr(loss, term) for loss in plain.losses]
            assert [getattr(loss, term) for loss in ours.losses] == pytest.approx(terms, abs=1e-4)


@pytest.mark.slow
def test_many_find_what_each_finds_alone_in_every_family(family_model: Model):
    changes = {"steps": 12, "clamp": 2.0}
    assert_same(together(family_model, **changes), one_by_one(family_model, **changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"layer": 2, "loss_layer": 3},
        pytest.param({"layer": 4}, marks=pytest.mark.slow),
        pytest.param({"layer": 0}, marks=pytest.mark.slow),
        {"steps": 1},
    ],
    ids=str,
)
def test_many_at_other_layers(tiny_gpt2: Model, changes: dict[str, Any]):
    assert_same(together(tiny_gpt2, **changes), one_by_one(tiny_gpt2, **changes))


def test_many_in_the_last_layer(tiny_gpt2: Model):
    # Prompts end in their subjects: of others the last layer's outputs at the subject say nothing.
    subjects = {"Greece": "Cairo", "Japan": "Rome", "Egypt": "and Thai"}
    requests = [EditRequest(template="People in {}", subject=s, target_new=t) for s, t in subjects.items()]
    templates = [in_contexts(request.template, contexts) for request, contexts in zip(requests, CONTEXTS, strict=False)]
    found, alone = (search(tiny_gpt2, requests, templates, layer=5) for search in (together, one_by_one))
    assert_same(found, alone)


@pytest.mark.slow
def test_many_end_each_in_its_own_way(tiny_gpt2: Model):
    requests = [
        EditRequest(template="In {}, most people speak", subject="Argentina", target_new="German"),
        EditRequest(template="The capital of {} is", subject="Japan", target_new="J"),
        EditRequest(template="In {}, most people speak", subject="Greece", target_new="P"),
    ]
    templates = [(request.template,) for request in requests]
    changes: dict[str, Any] = {"layer": 2, "steps": 12, "clamp": 20.0, "weight_decay": 0.0, "kl_weight": 0.003}
    found = together(tiny_gpt2, requests, templates, **changes)
    assert_same(found, one_by_one(tiny_gpt2, requests, templates, **changes))
    never, answered, reached = found
    # The one that goes on is the answer as well, its likelihood weighed by a tenth from then on.
    assert len(never.losses) == 12 and never.losses[-1].nll < 0.05 <= never.losses[-1].total
    assert 1 < len(answered.losses) < 12 and answered.losses[-1].total >= 0.05 and answered.losses[-1].kl <= 0.01
    assert len(answered.losses) < len(reached.losses) < 12
    assert reached.losses[-1].total < 0.05 and reached.losses[-1].kl > 0.01


def test_outputs_that_diverge_name_their_request(tiny_gpt2: Model):
    known = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Lisbon")
    requests, templates = [known, *MANY[1:]], [(known.template,), *TEMPLATES[1:]]
    # The first one ends before any step.
    with pytest.raises(
        ValueError, match=r"outputs for 'In Argentina, .*' -> 'Polish' diverged at step 1.*learning_rate"
    ):
        together(tiny_gpt2, requests, templates, learning_rate=float("inf"))


@pytest.mark.slow
def test_a_model_of_another_shape_is_edited_with_a_warning(
    tiny_gpt2: Model, editor: PMET, monkeypatch: pytest.MonkeyPatch
):
    editor = replace(editor, contexts=("{}", "It is known that {}"))
    found = editor._values(tiny_gpt2, MANY)

    def refuse(self: Blocks, model: Model) -> None:
        raise BlocksError("the blocks cannot be run part by part")

    monkeypatch.setattr(tiny_gpt2, "_found", {})
    monkeypatch.setattr(Blocks, "__init__", refuse)
    with pytest.warns(UserWarning, match="over the whole network"):
        plain = editor._values(tiny_gpt2, MANY)
    assert_same(found, plain)


def test_published_presets():
    published = PMET(second_moments={}, **preset("pmet", "EleutherAI/gpt-j-6B").fields)
    assert published.layers == tuple(range(3, 9)) and published.moment_weight == 6000
    # The defaults are these.
    defaults = PMET(layers=published.layers, second_moments={}, loss_layer=27)
    assert replace(published, second_moments=defaults.second_moments).__dict__ == defaults.__dict__
    for entry in json.loads((PRESETS / "pmet.json").read_text(encoding="utf-8")).values():
        options = {name: value for name, value in entry["fields"].items() if name not in ("layers", "around")}
        PMET(layers=(0,), second_moments={}, **options)
