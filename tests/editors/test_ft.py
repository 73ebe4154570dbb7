"""Fine-tuning: the published code's numbers, what the change does, and what it does with bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_scores import all_top, scored
from safetensors.torch import load_file

from workbench.editors.ft import FT, FTL
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.shared.requests import check_requests
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "memit.json").read_text(encoding="utf-8"))
REQUESTS = [
    EditRequest(
        template=entry["prompt"],
        subject=entry["subject"],
        target_new=entry["target_new"]["str"],
        target_true=entry["target_true"]["str"],
    )
    for entry in REFERENCE["requests"]
]
OTHERS = [
    EditRequest(template="The {} stands in", subject="Eiffel Tower", target_new="Rome, and Paris"),
    EditRequest(template="In {}, most people speak", subject="Iceland", target_new="Japanese"),
    EditRequest(template="{} founded", subject="Steve Jobs", target_new="Paris"),
]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "memit.safetensors")


@pytest.fixture(scope="module")
def plain() -> FT:
    """Quick, and with a clear effect."""
    return FT(layers=(1,), steps=4, learning_rate=2e-3)


def nll(model: Model, requests: list[EditRequest]) -> float:
    """Mean over requests of the mean over the target's tokens."""
    found = scored(model, [each.prompt for each in requests], [each.target_new for each in requests])
    return -sum(log_probs.mean().item() for log_probs in found) / len(found)


def losses(edit: WeightEdit) -> list[float]:
    return edit.provenance["optimisation"]["losses"]


# The published code


@pytest.mark.parametrize("name", ["ft", "ft_l"])
def test_golden_change_of_weight_and_bias(tiny_gpt2: Model, golden: dict[str, torch.Tensor], name: str):
    published = REFERENCE[f"{name}_hparams"]
    (layer,) = published["layers"]
    editor = FT(
        layers=(layer,),
        steps=published["num_steps"],
        learning_rate=published["lr"],
        weight_decay=float(published["weight_decay"]),
        norm_constraint=published["norm_constraint"] or None,
        objective="prompt_last",
        bias=True,
    )
    before = tiny_gpt2.snapshot()
    weight, bias = editor(tiny_gpt2, REQUESTS[:1]).updates
    assert same(before, tiny_gpt2.snapshot())
    assert [(each.layer, each.matrix) for each in (weight, bias)] == [(layer, "W_out"), (layer, "b_out")]
    for update, expected in [
        (weight, golden[f"{name}.delta.{layer}.weight"]),
        (bias, golden[f"{name}.delta.{layer}.bias"][None]),
    ]:
        assert (update.dense() - expected).norm() / expected.norm() < 1e-3


def test_the_bias_is_written_and_comes_back(tiny_gpt2: Model, plain: FT):
    before = tiny_gpt2.snapshot()
    name = "transformer.h.1.mlp.c_proj.bias"
    edit = replace(plain, bias=True)(tiny_gpt2, REQUESTS[:2])
    with edit.applied(tiny_gpt2):
        torch.testing.assert_close(tiny_gpt2.parameters[name], before[name] + edit.updates[1].dense()[0])
        written = nll(tiny_gpt2, REQUESTS[:2])
    assert same(before, tiny_gpt2.snapshot())
    assert losses(replace(plain, bias=True, steps=5)(tiny_gpt2, REQUESTS[:2]))[-1] == pytest.approx(written, rel=1e-4)


# What the change does


def test_every_family_scores_as_it_was_optimised(family_model: Model):
    editor = FT(layers=(0, 1), steps=3, learning_rate=5e-3)
    before = family_model.snapshot()
    flags = [parameter.requires_grad for parameter in family_model.parameters.values()]
    edit, longer = editor(family_model, OTHERS), replace(editor, steps=4)(family_model, OTHERS)
    assert same(before, family_model.snapshot())
    assert [parameter.requires_grad for parameter in family_model.parameters.values()] == flags
    assert all(parameter.grad is None for parameter in family_model.parameters.values())
    assert losses(longer)[:3] == pytest.approx(losses(edit))
    assert losses(edit)[0] == pytest.approx(nll(family_model, OTHERS), rel=1e-4)
    with edit.applied(family_model):
        # The loss before the fourth step is that of the edit after three.
        assert losses(longer)[3] == pytest.approx(nll(family_model, OTHERS), rel=1e-4)
    assert same(before, family_model.snapshot())
    assert losses(longer) == sorted(losses(longer), reverse=True)


def test_the_first_step_is_adams_on_the_weight_itself(tiny_gpt2: Model, plain: FT):
    request, decay = REQUESTS[0], 0.3
    hf = tiny_gpt2.bridge.original_model
    weight = tiny_gpt2.parameters["transformer.h.1.mlp.c_proj.weight"]
    tokens = tiny_gpt2.tokenize([f"{request.prompt} {request.target_new}"])
    count = len(tokens.offsets[0]) - len(tiny_gpt2.tokenize([request.prompt]).offsets[0])
    try:
        weight.requires_grad_(True)
        with torch.enable_grad():
            log_probs = hf(tokens.ids).logits[0, -count - 1 : -1].log_softmax(dim=-1)
            loss = -log_probs.gather(1, tokens.ids[0, -count:, None]).mean()
            gradient = torch.autograd.grad(loss, weight)[0] + decay * weight.detach()
    finally:
        weight.requires_grad_(False)
    (update,) = replace(plain, steps=1, weight_decay=decay)(tiny_gpt2, [request]).updates
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.9
    expected = -plain.learning_rate * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(update.dense()[clear], expected[clear], rtol=1e-3, atol=0)


def test_the_edited_model_says_the_targets(tiny_gpt2: Model, plain: FT):
    edit = replace(plain, steps=20, learning_rate=5e-3)(tiny_gpt2, REQUESTS)
    assert edit.method == "FT" and edit.requests == tuple(REQUESTS)
    prompts, targets = [each.prompt for each in REQUESTS], [each.target_new for each in REQUESTS]
    assert not any(all_top(tiny_gpt2, prompts, targets))
    with edit.applied(tiny_gpt2):
        assert all(all_top(tiny_gpt2, prompts, targets))


@pytest.mark.parametrize("constraint", [1e-3, 5e-3])
def test_the_constraint_holds_elementwise(tiny_gpt2: Model, constraint: float):
    edit = FTL(layers=(0, 2), steps=8, learning_rate=2e-3, norm_constraint=constraint)(tiny_gpt2, REQUESTS[:2])
    assert edit.method == "FT-L"
    for update in edit.updates:
        assert update.dense().abs().max().item() == pytest.approx(constraint, rel=1e-6)
    assert losses(edit)[-1] < losses(edit)[0]


def test_a_constraint_never_reached_changes_nothing(tiny_gpt2: Model, plain: FT):
    free, bound = plain(tiny_gpt2, REQUESTS[:1]), replace(plain, norm_constraint=1.0)(tiny_gpt2, REQUESTS[:1])
    assert torch.equal(free.updates[0].dense(), bound.updates[0].dense())


def test_objectives_agree_on_a_target_of_one_token(tiny_gpt2: Model, plain: FT):
    one = replace(REQUESTS[1], target_new="Spanish")
    assert len(scored(tiny_gpt2, [one.prompt], ["Spanish"])[0]) == 1
    ours, theirs = plain(tiny_gpt2, [one]), replace(plain, objective="prompt_last")(tiny_gpt2, [one])
    assert torch.equal(ours.updates[0].dense(), theirs.updates[0].dense())


def test_objectives_differ_in_where_later_tokens_are_scored(tiny_gpt2: Model, plain: FT):
    long = replace(REQUESTS[0], target_new="Moscow is the capital")
    tokens = tiny_gpt2.tokenize([f"{long.prompt} {long.target_new}"])
    after = tiny_gpt2.logits(tiny_gpt2.tokenize([long.prompt]))[0, -1].log_softmax(dim=-1)
    count = len(scored(tiny_gpt2, [long.prompt], [long.target_new])[0])
    assert count > 1
    published = replace(plain, objective="prompt_last", steps=1)(tiny_gpt2, [long])
    assert losses(published) == [pytest.approx(-after[tokens.ids[0, -count:]].mean().item(), rel=1e-4)]
    assert losses(replace(plain, steps=1)(tiny_gpt2, [long])) == [pytest.approx(nll(tiny_gpt2, [long]), rel=1e-4)]


def test_batches_step_one_after_another(tiny_gpt2: Model, plain: FT):
    together, apart = replace(plain, steps=1), replace(plain, steps=1, batch_size=1)
    first = together(tiny_gpt2, REQUESTS[:1])
    with first.applied(tiny_gpt2):
        later = nll(tiny_gpt2, REQUESTS[1:2])
    both = apart(tiny_gpt2, REQUESTS[:2])
    assert losses(both) == [pytest.approx((nll(tiny_gpt2, REQUESTS[:1]) + later) / 2, rel=1e-4)]
    assert losses(together(tiny_gpt2, REQUESTS[:2])) == [pytest.approx(nll(tiny_gpt2, REQUESTS[:2]), rel=1e-4)]


def test_the_divergence_holds_the_subject_back(tiny_gpt2: Model, plain: FT):
    free = replace(plain, steps=6)
    held = replace(free, kl_weight=10.0, kl_template="People in {} speak")

    def essence() -> torch.Tensor:
        tokens = tiny_gpt2.tokenize(["People in Portugal"])
        return tiny_gpt2.logits(tokens)[0, -1].log_softmax(dim=-1)

    def divergence(edit: WeightEdit) -> float:
        before = essence()
        with edit.applied(tiny_gpt2):
            return torch.nn.functional.kl_div(before, essence(), log_target=True, reduction="sum").item()

    edit = held(tiny_gpt2, REQUESTS[:1])
    assert losses(edit)[0] == pytest.approx(nll(tiny_gpt2, REQUESTS[:1]), rel=1e-4), "it begins at zero"
    assert divergence(edit) < 0.5 * divergence(free(tiny_gpt2, REQUESTS[:1]))
    with edit.applied(tiny_gpt2):
        total = nll(tiny_gpt2, REQUESTS[:1])
    total += 10.0 * divergence(edit)
    assert losses(replace(held, steps=7)(tiny_gpt2, REQUESTS[:1]))[-1] == pytest.approx(total, rel=1e-3)


def test_a_target_that_is_already_the_answer(tiny_gpt2: Model, plain: FT):
    known = replace(REQUESTS[0], target_new="Lisbon")
    learnt = replace(plain, steps=25)(tiny_gpt2, [known])
    assert losses(learnt)[-1] < 1e-2 <= min(losses(learnt)[:-1]), "it ends early"
    # Two steps of Adam at most, each of at most its learning rate.
    assert len(losses(learnt)) <= 3 and learnt.updates[0].dense().abs().max() <= 2.01 * plain.learning_rate
    with learnt.applied(tiny_gpt2):
        again = plain(tiny_gpt2, [known])
    assert len(losses(again)) == 1 and not again.updates[0].dense().any()


def test_an_edit_builds_on_those_before_it(tiny_gpt2: Model, plain: FT):
    before = tiny_gpt2.snapshot()
    with plain(tiny_gpt2, REQUESTS[:1]).applied(tiny_gpt2):
        between = tiny_gpt2.snapshot()
        second = plain(tiny_gpt2, REQUESTS[1:2])
        assert same(between, tiny_gpt2.snapshot()) and len(tiny_gpt2.edits) == 1
        assert losses(second)[0] == pytest.approx(nll(tiny_gpt2, REQUESTS[1:2]), rel=1e-4)
    assert same(before, tiny_gpt2.snapshot())


def test_it_survives_the_disk(tiny_gpt2: Model, plain: FT, tmp_path: Path):
    edit = plain(tiny_gpt2, REQUESTS[:2])
    edit.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors")
    assert torch.equal(loaded.updates[0].dense(), edit.updates[0].dense())
    assert loaded.provenance == edit.provenance
    assert loaded.provenance["hyperparameters"]["objective"] == "target"


# Requests


def test_distinct_requests():
    first, second = REQUESTS[:2]
    assert check_requests(REQUESTS) == tuple(REQUESTS)
    spaced = replace(first, target_new=" Moscow", target_true=None)
    assert check_requests([first, second, first, spaced]) == (first, second)
    elsewhere = replace(first, template="The seat of government in {} is", target_new="Rome")
    assert check_requests([first, elsewhere]) == (first, elsewhere), "another prompt is another request"


def test_bad_requests():
    with pytest.raises(ValueError, match="at least one request"):
        check_requests([])
    with pytest.raises(ValueError, match=r"'Portugal'.*'Moscow' and by 'Rome'"):
        check_requests([*REQUESTS, replace(REQUESTS[0], target_new="Rome")])
    with pytest.raises(
        ValueError, match=r"'Portugal'.*'Moscow' and by 'Rome'"
    ):  # a space at the end is no other prompt
        check_requests([REQUESTS[0], replace(REQUESTS[0], template=f"{REQUESTS[0].template} ", target_new="Rome")])


def test_duplicates_count_once(tiny_gpt2: Model, plain: FT):
    once, twice = plain(tiny_gpt2, REQUESTS[:1]), plain(tiny_gpt2, [REQUESTS[0], REQUESTS[0]])
    assert twice.requests == once.requests
    assert torch.equal(once.updates[0].dense(), twice.updates[0].dense())


# Bad input


def test_bad_hyperparameters():
    for bad, message in [
        ({"layers": ()}, "one or more different layers"),
        ({"layers": (1, 1)}, r"different layers, got \(1, 1\)"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"norm_constraint": -1e-3}, "norm_constraint must be positive"),
        ({"kl_template": "is a"}, "kl_template"),
    ]:
        with pytest.raises(ValueError, match=message):
            FT(**({"layers": (1,)} | bad))


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model, plain: FT):
    before = tiny_gpt2.snapshot()
    for changes, requests, error, message in [
        ({"layers": (1, 6)}, REQUESTS, IndexError, "layer 6 is out of range"),
        ({"layers": (-1,)}, REQUESTS, IndexError, "-1"),
        ({}, [], ValueError, "at least one request"),
        ({}, [REQUESTS[0], replace(REQUESTS[0], target_new="Rome")], ValueError, "contradictory"),
        ({"learning_rate": 3e37}, REQUESTS, ValueError, r"'The capital of Portugal is' -> 'Moscow'.*\(3e\+37\)"),
    ]:
        with pytest.raises(error, match=message):
            replace(plain, **changes)(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}
    assert not any(parameter.requires_grad for parameter in tiny_gpt2.parameters.values())
    assert all(parameter.grad is None for parameter in tiny_gpt2.parameters.values())


def test_weights_that_are_not_numbers(tiny_gpt2: Model, plain: FT):
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(4).fill_(float("nan"))
        with pytest.raises(ValueError, match="is not finite: check the model's weights"):
            plain(tiny_gpt2, REQUESTS[:1])
    finally:
        tiny_gpt2.restore_(before)


def test_a_model_without_biases(family: str, family_model: Model):
    editor = FT(layers=(1,), steps=1, bias=True)
    if family in ("llama", "qwen2"):
        with pytest.raises(ValueError, match="no b_out"):
            editor(family_model, OTHERS)
    else:
        assert [update.matrix for update in editor(family_model, OTHERS).updates] == ["W_out", "b_out"]


# Presets


def test_published_presets():
    assert preset("ft", "openai-community/gpt2-xl").fields["layers"] == [1]
    assert preset("ft", "EleutherAI/gpt-j-6B").fields["layers"] == [21]
    constraints = {"gpt2-medium": 2e-3, "gpt2-large": 1e-3, "gpt2-xl": 5e-4, "EleutherAI/gpt-j-6B": 5e-5}
    for model, constraint in constraints.items():
        editor = FTL(**preset("ft_l", model).fields)
        assert editor.layers == (0,) and editor.norm_constraint == constraint
    for method, editor in {"ft": FT, "ft_l": FTL}.items():
        for entry in json.loads((PRESETS / f"{method}.json").read_text(encoding="utf-8")).values():
            around = entry["fields"].pop("around", None)
            assert (around is None) == ("layers" in entry["fields"])
            editor(**({"layers": around} | entry["fields"]))
