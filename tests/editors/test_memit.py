"""MEMIT: the published code's numbers, its closed form, the spread over layers, and what it does with bad input."""

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

from workbench.editors.memit import MEMIT
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.shared.keys import mean_keys, regularised_solve, subject_states
from workbench.editors.shared.moment import SecondMoment, factorise
from workbench.editors.shared.subject import at_subject, in_contexts
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.models.tokens import TextTokenizer
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "memit.json").read_text(encoding="utf-8"))
HPARAMS = REFERENCE["memit_hparams"]
REQUESTS = [
    EditRequest(
        template=entry["prompt"],
        subject=entry["subject"],
        target_new=entry["target_new"]["str"],
        target_true=entry["target_true"]["str"],
    )
    for entry in REFERENCE["requests"]
]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "memit.safetensors")


@pytest.fixture(scope="module")
def moments() -> dict[int, SecondMoment]:
    found = load_file(GOLDEN / "rome.safetensors")
    return {
        layer: SecondMoment(layer=layer, matrix=found[f"second_moment.{layer}"], count=37_512) for layer in range(6)
    }


@pytest.fixture(scope="module")
def editor(moments: dict[int, SecondMoment]) -> MEMIT:
    return MEMIT(
        layers=HPARAMS["layers"],
        second_moments=moments,
        contexts=tuple(context for group in REFERENCE["memit_context_templates"] for context in group),
        steps=HPARAMS["v_num_grad_steps"],
        learning_rate=HPARAMS["v_lr"],
        weight_decay=HPARAMS["v_weight_decay"],
        clamp=HPARAMS["clamp_norm_factor"],
        kl_weight=HPARAMS["kl_factor"],
        loss_layer=HPARAMS["v_loss_layer"],
        moment_weight=float(HPARAMS["mom2_update_weight"]),
    )


def test_each_alone_checks_requests_as_together(tiny_gpt2: Model, editor: MEMIT, monkeypatch: pytest.MonkeyPatch):
    assert editor.each(tiny_gpt2, []) == []

    def refuse(self: Any, text: str) -> None:
        raise ValueError("unknown here")

    monkeypatch.setattr(TextTokenizer, "check_known", refuse)
    for write in (editor, editor.each):
        with pytest.raises(ValueError, match="unknown here"):
            write(tiny_gpt2, REQUESTS)


@pytest.fixture(scope="module")
def published(tiny_gpt2: Model, editor: MEMIT) -> WeightEdit:
    """The golden edit; the model must come out of it as it went in."""
    before = tiny_gpt2.snapshot()
    edit = editor(tiny_gpt2, REQUESTS)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == [] and tiny_gpt2.originals == {}
    return edit


@pytest.fixture(scope="module")
def plain(moments: dict[int, SecondMoment]) -> MEMIT:
    """Quick, and with a clear effect."""
    return MEMIT(layers=(1, 2, 3), second_moments=moments, steps=4, weight_decay=0.01, moment_weight=1.0)


def part(edit: WeightEdit, first: int, end: int) -> WeightEdit:
    return replace(edit, updates=edit.updates[first:end])


def states(model: Model, site: str, layer: int, requests: Sequence[EditRequest]) -> torch.Tensor:
    name = model.hook_name(site, layer)
    return subject_states(model, name, [r.template for r in requests], [r.subject for r in requests])


def identity(model: Model, layers: Sequence[int]) -> dict[int, SecondMoment]:
    return {layer: SecondMoment(layer=layer, matrix=torch.eye(model.d_mlp), count=1) for layer in layers}


# The published code


def test_golden_updates(published: WeightEdit, golden: dict[str, torch.Tensor]):
    assert published.method == "MEMIT" and published.requests == tuple(REQUESTS)
    assert [(update.layer, update.matrix) for update in published.updates] == [(n, "W_out") for n in (1, 2, 3)]
    for update in published.updates:
        assert update.left.shape == (256, 6) and update.right.shape == (6, 64)
        expected = golden[f"memit.delta.{update.layer}"]
        assert (update.dense() - expected).norm() / expected.norm() < 1e-3


def test_golden_targets(tiny_gpt2: Model, published: WeightEdit, golden: dict[str, torch.Tensor]):
    # At the last layer the whole of what is still missing is written.
    with part(published, 0, 2).applied(tiny_gpt2):
        z = states(tiny_gpt2, "resid_post", 3, REQUESTS) + published.updates[-1].right.double()
    expected = golden["memit.z"].double()
    assert ((z - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-3


def test_golden_likelihoods(tiny_gpt2: Model, published: WeightEdit):
    prompts = [request.prompt for request in REQUESTS]
    with published.applied(tiny_gpt2) as edited:
        new = scored(edited, prompts, [request.target_new for request in REQUESTS])
        true = scored(edited, prompts, [str(request.target_true) for request in REQUESTS])
    expected = torch.tensor(REFERENCE["mean_nll_post_memit_[new,true]"])
    ours = torch.tensor([[-a.mean().item(), -b.mean().item()] for a, b in zip(new, true, strict=True)])
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=2e-3)


# Keys and the solve


def test_keys_are_half_bare_half_the_mean_of_the_others(tiny_gpt2: Model, editor: MEMIT):
    name = tiny_gpt2.hook_name("mlp_key", 2)
    keys = mean_keys(tiny_gpt2, 2, REQUESTS, editor.contexts)
    assert keys.shape == (256, 6) and keys.dtype == torch.float64
    for column, request in enumerate(REQUESTS):
        rows = at_subject(tiny_gpt2, [name], in_contexts(request.template, editor.contexts), request.subject)[name]
        expected = 0.5 * rows[0] + 0.1 * rows[1:].sum(dim=0)
        torch.testing.assert_close(keys[:, column].float(), expected, rtol=1e-4, atol=1e-5)


def test_states_do_not_depend_on_the_batch(tiny_gpt2: Model):
    name = tiny_gpt2.hook_name("resid_post", 3)
    templates, subjects = [r.template for r in REQUESTS], [r.subject for r in REQUESTS]
    together = subject_states(tiny_gpt2, name, templates, subjects)
    split = subject_states(tiny_gpt2, name, templates, subjects, batch_size=4)
    torch.testing.assert_close(together, split, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.1, 50.0])
def test_the_solve_is_the_dense_one(moments: dict[int, SecondMoment], weight: float):
    generator = torch.Generator().manual_seed(0)
    matrix = moments[2].matrix.double()
    keys = torch.randn(256, 5, dtype=torch.float64, generator=generator)
    dense = torch.linalg.solve(weight * matrix + keys @ keys.T, keys)
    ours = regularised_solve(factorise(matrix, 2), keys, weight, 2)
    assert (ours - dense).norm() / dense.norm() < 1e-6
    exact = regularised_solve(factorise(matrix, 2), keys, 0.0, 2)
    torch.testing.assert_close(keys.T @ exact, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-8)


# The spread over layers


def test_each_layer_writes_its_share_of_what_is_missing_then(tiny_gpt2: Model, plain: MEMIT):
    edit = plain(tiny_gpt2, REQUESTS[:3])
    with part(edit, 0, 2).applied(tiny_gpt2):
        z = states(tiny_gpt2, "resid_post", 3, edit.requests) + edit.updates[-1].right.double()
    for index, update in enumerate(edit.updates):
        with part(edit, 0, index).applied(tiny_gpt2):
            missing = z - states(tiny_gpt2, "resid_post", 3, edit.requests)
            keys = mean_keys(tiny_gpt2, update.layer, edit.requests, plain.contexts)
        matrix = plain.second_moments[update.layer].matrix.double()
        torch.testing.assert_close(update.right.double() * (3 - index), missing, rtol=1e-4, atol=1e-5)
        expected = torch.linalg.solve(matrix + keys @ keys.T, keys)
        assert (update.left.double() - expected).norm() / expected.norm() < 1e-4


def test_one_layer_without_regularisation_reaches_the_target(family_model: Model):
    requests = [
        EditRequest(template="The {} stands in", subject="Eiffel Tower", target_new="Rome"),
        EditRequest(template="{} founded", subject="Steve Jobs", target_new="Iceland"),
    ]
    editor = MEMIT(
        layers=(1,), second_moments=identity(family_model, [1]), steps=4, learning_rate=0.05, moment_weight=1e-6
    )
    before, start = family_model.snapshot(), states(family_model, "resid_post", 1, requests)
    edit = editor(family_model, requests)
    assert same(before, family_model.snapshot())
    z = start + edit.updates[0].right.double()
    assert (z - start).norm(dim=1).min() > 1e-2
    with edit.applied(family_model):
        torch.testing.assert_close(states(family_model, "resid_post", 1, requests), z, rtol=1e-3, atol=1e-3)
    assert same(before, family_model.snapshot())


def test_every_request_of_a_batch_has_its_effect(tiny_gpt2: Model, plain: MEMIT):
    editor = replace(plain, layers=(1, 2), steps=20, clamp=2.0)
    prompts = [request.prompt for request in REQUESTS]

    def likelihoods() -> tuple[torch.Tensor, torch.Tensor]:
        new = scored(tiny_gpt2, prompts, [request.target_new for request in REQUESTS])
        true = scored(tiny_gpt2, prompts, [str(request.target_true) for request in REQUESTS])
        return torch.stack([each.mean() for each in new]), torch.stack([each.mean() for each in true])

    new, true = likelihoods()
    with editor(tiny_gpt2, REQUESTS).applied(tiny_gpt2):
        new_now, true_now = likelihoods()
    assert (new_now > new + 0.2).all() and (true_now < true - 0.2).all()
    assert (new_now - new).mean() > 1.5


def test_on_top_of_another_edit(tiny_gpt2: Model, plain: MEMIT):
    before = tiny_gpt2.snapshot()
    first = plain(tiny_gpt2, REQUESTS[:2])
    with first.applied(tiny_gpt2):
        under = tiny_gpt2.snapshot()
        second = plain(tiny_gpt2, REQUESTS[2:4])
        assert same(under, tiny_gpt2.snapshot()) and tiny_gpt2.edits == [first]
        assert second.provenance["fingerprint"] != first.provenance["fingerprint"]
    assert same(before, tiny_gpt2.snapshot())


def test_a_target_that_is_the_answer_already_changes_nothing(tiny_gpt2: Model, plain: MEMIT):
    edit = plain(tiny_gpt2, [replace(REQUESTS[0], target_new="Lisbon")])
    assert edit.provenance["optimisation"][0]["evaluations"] == 1
    for update in edit.updates:
        torch.testing.assert_close(update.dense(), torch.zeros(256, 64), rtol=0, atol=1e-5)


# Provenance, presets


def test_provenance_survives_the_disk(tiny_gpt2: Model, plain: MEMIT, tmp_path: Path):
    edit = replace(plain, steps=2)(tiny_gpt2, REQUESTS[:2])
    assert edit.provenance["fingerprint"] == tiny_gpt2.fingerprint()
    settings = edit.provenance["hyperparameters"]
    assert settings["layers"] == [1, 2, 3] and settings["moment_weight"] == 1.0
    assert settings["second_moments"].keys() == {"1", "2", "3"}
    assert settings["second_moments"]["2"]["tokens"] == 37_512
    hashes = {moment["sha256"] for moment in settings["second_moments"].values()}
    assert len(hashes) == 3
    assert [entry["evaluations"] for entry in edit.provenance["optimisation"]] == [2, 2]
    edit.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors")
    assert loaded.provenance == edit.provenance and loaded.requests == edit.requests
    assert torch.equal(loaded.updates[1].dense(), edit.updates[1].dense())


def test_published_presets():
    layers = {"gpt2-xl": (13, 17, 20_000), "EleutherAI/gpt-j-6B": (3, 8, 15_000), "llama-2-7b": (4, 8, 15_000)}
    for model, (first, last, weight) in layers.items():
        editor = MEMIT(second_moments={}, **preset("memit", model).fields)
        assert editor.layers == tuple(range(first, last + 1)) and editor.moment_weight == weight
    assert preset("memit", "gpt2-xl").context_lengths == ((10, 5),)
    assert preset("memit", "gpt2-xl").context_beginnings == ("The", "Therefore", "Because", "I", "You")
    for entry in json.loads((PRESETS / "memit.json").read_text(encoding="utf-8")).values():
        options = {name: value for name, value in entry["fields"].items() if name not in ("layers", "around")}
        MEMIT(layers=(0,), second_moments={}, **options)


# Bad input


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": (1, 1)}, "ascending"),
        ({"contexts": ("So {}",)}, "bare"),
        ({"steps": 0}, "steps"),
        ({"kl_template": "is a"}, "kl_template"),
        ({"moment_weight": 0.0}, "moment_weight"),
    ],
)
def test_bad_hyperparameters(plain: MEMIT, bad: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(plain, **bad)


def test_bad_layers_and_moments_leave_the_model_alone(tiny_gpt2: Model, plain: MEMIT):
    before = tiny_gpt2.snapshot()

    def moments(matrix: torch.Tensor) -> dict[int, SecondMoment]:
        return {**plain.second_moments, 2: SecondMoment(layer=2, matrix=matrix, count=1)}

    for changes, error, message in [
        ({"layers": (5, 6)}, IndexError, "0 to 5"),
        ({"layers": (-1, 2)}, IndexError, "-1"),
        ({"second_moments": {1: plain.second_moments[1]}}, ValueError, r"layer 2 has no second moment.*\[1\]"),
        ({"second_moments": {**plain.second_moments, 2: plain.second_moments[1]}}, ValueError, "layer 2 has no"),
        ({"second_moments": moments(torch.eye(12))}, ValueError, "12 x 12"),
        ({"second_moments": moments(torch.ones(256, 256))}, ValueError, "layer 2 is singular"),
        ({"second_moments": moments(torch.full((256, 256), float("nan")))}, ValueError, "not finite"),
    ]:
        with pytest.raises(error, match=message):
            replace(plain, **changes)(tiny_gpt2, REQUESTS[:2])
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []


def test_bad_requests(tiny_gpt2: Model, plain: MEMIT):
    with pytest.raises(ValueError, match="at least one request"):
        plain(tiny_gpt2, [])
    with pytest.raises(ValueError, match=r"contradict.*Portugal"):
        plain(tiny_gpt2, [REQUESTS[0], replace(REQUESTS[0], target_new="Rome")])


def test_a_request_given_twice_counts_once(tiny_gpt2: Model, plain: MEMIT):
    once = plain(tiny_gpt2, REQUESTS[:1])
    twice = plain(tiny_gpt2, [REQUESTS[0], REQUESTS[0]])
    assert twice.requests == once.requests == (REQUESTS[0],)
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(once.updates, twice.updates, strict=True))


def test_weights_that_are_not_numbers(tiny_gpt2: Model, plain: MEMIT):
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(4).fill_(float("nan"))
        with pytest.raises(ValueError, match="diverged at step 0"):
            plain(tiny_gpt2, REQUESTS[:1])
    finally:
        tiny_gpt2.restore_(before)
