"""ROME: the published code's numbers, its closed form, and what it does with bad input."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_scores import scored
from safetensors.torch import load_file

from workbench.editors.registry import EDITORS
from workbench.editors.rome import ROME
from workbench.editors.search.values import OptimisedValue, optimise_value
from workbench.editors.setup.contexts import sample_contexts
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.shared.moment import SecondMoment
from workbench.editors.shared.subject import at_subject, in_contexts
from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "rome.json").read_text(encoding="utf-8"))
HPARAMS = REFERENCE["rome_hparams"]
REQUESTS = [
    EditRequest(
        template=entry["request"]["prompt"],
        subject=entry["request"]["subject"],
        target_new=entry["request"]["target_new"]["str"],
        target_true=entry["request"]["target_true"]["str"],
    )
    for entry in REFERENCE["rome"]
]
SETTINGS = {
    "steps": HPARAMS["v_num_grad_steps"],
    "learning_rate": HPARAMS["v_lr"],
    "weight_decay": HPARAMS["v_weight_decay"],
    "clamp": float(HPARAMS["clamp_norm_factor"]),
    "kl_weight": HPARAMS["kl_factor"],
}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "rome.safetensors")


@pytest.fixture(scope="module")
def editor(golden: dict[str, torch.Tensor]) -> ROME:
    return ROME(
        layer=HPARAMS["layers"][0],
        second_moment=golden["second_moment.2"],
        contexts=tuple(REFERENCE["rome_context_templates"]),
        loss_layer=HPARAMS["v_loss_layer"],
        **SETTINGS,
    )


@pytest.fixture(scope="module")
def plain() -> ROME:
    """Quick, and with a clear effect."""
    return ROME(layer=2, second_moment=None, steps=5, weight_decay=0.05)


def bare_key_and_output(model: Model, request: EditRequest, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    names = [model.hook_name("mlp_key", layer), model.hook_name("mlp_out", layer)]
    states = at_subject(model, names, [request.template], request.subject)
    return states[names[0]][0], states[names[1]][0]


def value_of(model: Model, request: EditRequest, editor: ROME) -> OptimisedValue:
    return optimise_value(
        model,
        request,
        in_contexts(request.template, editor.contexts),
        site="mlp_out",
        layer=editor.layer,
        steps=editor.steps,
        learning_rate=editor.learning_rate,
        weight_decay=editor.weight_decay,
        clamp=editor.clamp,
        kl_weight=editor.kl_weight,
        kl_template=editor.kl_template,
        loss_layer=editor.loss_layer,
    )


# The published code


@pytest.mark.parametrize("index", range(3))
def test_golden_rank_one_update(tiny_gpt2: Model, editor: ROME, golden: dict[str, torch.Tensor], index: int):
    before = tiny_gpt2.snapshot()
    edit = editor(tiny_gpt2, [REQUESTS[index]])
    assert same(before, tiny_gpt2.snapshot())
    (update,) = edit.updates
    assert (update.layer, update.matrix) == (2, "W_out")
    expected = torch.outer(golden[f"rome.{index}.left"], golden[f"rome.{index}.right"])
    assert (update.dense() - expected).norm() / expected.norm() < 1e-3
    assert update.left.norm().item() == pytest.approx(1.0, abs=1e-5)

    entry = REFERENCE["rome"][index]
    terms = [float(term) for term in entry["last_loss_line"].split(" = ")[1].split(" avg")[0].split(" + ")]
    (final,) = edit.provenance["optimisation"]
    assert [final["nll"], final["kl"], final["weight_decay"]] == pytest.approx(terms, abs=1.5e-3)
    assert final["evaluations"] == entry["steps"]
    with edit.applied(tiny_gpt2) as edited:
        (log_probs,) = scored(edited, [REQUESTS[index].prompt], [REQUESTS[index].target_new])
    assert log_probs[0].exp().item() == pytest.approx(entry["p_new_post"], abs=1e-2)


# The closed form


@pytest.mark.parametrize("index", range(3))
def test_the_edited_layer_maps_the_key_to_the_value(tiny_gpt2: Model, editor: ROME, index: int):
    request = REQUESTS[index]
    value = value_of(tiny_gpt2, request, editor)
    key, output = bare_key_and_output(tiny_gpt2, request, 2)
    bias = output - key @ tiny_gpt2.weight(2)
    with editor(tiny_gpt2, [request]).applied(tiny_gpt2):
        torch.testing.assert_close(key @ tiny_gpt2.weight(2) + bias, value.initial + value.delta, rtol=1e-4, atol=1e-4)
        _, now = bare_key_and_output(tiny_gpt2, request, 2)
    torch.testing.assert_close(now, value.initial + value.delta, rtol=1e-4, atol=1e-4)


def test_every_family_maps_the_key_to_the_value(family_model: Model):
    request = EditRequest(template="The {} stands in", subject="Eiffel Tower", target_new="Rome")
    editor = ROME(layer=1, second_moment=None, contexts=("{}", "Steve Jobs says. {}"), steps=8, learning_rate=0.05)
    before, value = family_model.snapshot(), value_of(family_model, request, editor)
    edit = editor(family_model, [request])
    assert same(before, family_model.snapshot())
    with edit.applied(family_model):
        _, now = bare_key_and_output(family_model, request, 1)
        torch.testing.assert_close(now, value.initial + value.delta, rtol=1e-4, atol=1e-4)
        (after,) = scored(family_model, [request.prompt], ["Rome"])
    assert same(before, family_model.snapshot())
    (log_probs,) = scored(family_model, [request.prompt], ["Rome"])
    assert after.mean() > log_probs.mean()


def test_r_rome_maps_the_mean_key_to_the_value(tiny_gpt2: Model, editor: ROME):
    request = REQUESTS[0]
    corrected = replace(editor, key_denominator="mean")
    names = [tiny_gpt2.hook_name("mlp_key", 2), tiny_gpt2.hook_name("mlp_out", 2)]
    templates = in_contexts(request.template, editor.contexts)
    states = at_subject(tiny_gpt2, names, templates, request.subject)
    key, output = states[names[0]].mean(dim=0), states[names[1]].mean(dim=0)
    value = value_of(tiny_gpt2, request, corrected)
    (update,) = corrected(tiny_gpt2, [request]).updates
    torch.testing.assert_close(output + key @ update.dense(), value.initial + value.delta, rtol=1e-4, atol=1e-4)
    (published,) = editor(tiny_gpt2, [request]).updates
    torch.testing.assert_close(update.left, published.left)
    assert not torch.allclose(update.right, published.right, rtol=1e-3)


def test_with_the_bare_context_alone_both_denominators_agree(tiny_gpt2: Model, plain: ROME):
    ours = plain(tiny_gpt2, REQUESTS[:1]).updates[0]
    theirs = replace(plain, key_denominator="mean")(tiny_gpt2, REQUESTS[:1]).updates[0]
    torch.testing.assert_close(ours.dense(), theirs.dense())


def test_without_a_second_moment_u_is_the_normalised_key(tiny_gpt2: Model, plain: ROME):
    key, _ = bare_key_and_output(tiny_gpt2, REQUESTS[0], 2)
    (update,) = plain(tiny_gpt2, REQUESTS[:1]).updates
    torch.testing.assert_close(update.left[:, 0], key / key.norm())
    identity = torch.eye(tiny_gpt2.d_mlp)
    (with_identity,) = replace(plain, second_moment=identity)(tiny_gpt2, REQUESTS[:1]).updates
    torch.testing.assert_close(with_identity.left, update.left)


def test_no_step_makes_no_change(tiny_gpt2: Model, plain: ROME):
    edit = replace(plain, steps=1)(tiny_gpt2, REQUESTS[:1])
    torch.testing.assert_close(edit.updates[0].dense(), torch.zeros(256, 64), rtol=0, atol=1e-6)


def test_the_change_is_clamped(tiny_gpt2: Model, plain: ROME):
    value = value_of(tiny_gpt2, REQUESTS[0], replace(plain, clamp=0.5))
    assert (value.delta.norm() / value.initial.norm()).item() == pytest.approx(0.5, rel=1e-5)


def test_the_loss_falls_and_its_terms_begin_at_zero(tiny_gpt2: Model, plain: ROME):
    value = value_of(tiny_gpt2, REQUESTS[0], plain)
    assert len(value.losses) == plain.steps
    assert value.losses[0].kl == pytest.approx(0, abs=1e-6) and value.losses[0].weight_decay == 0
    assert value.losses[-1].total < value.losses[0].total
    (log_probs,) = scored(tiny_gpt2, [REQUESTS[0].prompt], [REQUESTS[0].target_new])
    assert value.losses[0].nll == pytest.approx(-log_probs.mean().item(), rel=1e-4)


def test_it_ends_early_when_the_loss_is_small(tiny_gpt2: Model, plain: ROME):
    known = replace(REQUESTS[2], target_new="Spanish")
    value = value_of(tiny_gpt2, known, plain)
    assert len(value.losses) == 1 and value.losses[0].total < 5e-2
    assert not value.delta.any()


def test_the_edited_model_says_the_target(tiny_gpt2: Model, plain: ROME):
    request = REQUESTS[2]
    edit = replace(plain, steps=20, weight_decay=0.01)(tiny_gpt2, [request])
    with edit.applied(tiny_gpt2) as edited:
        (new,) = scored(edited, [request.prompt], [request.target_new])
        (true,) = scored(edited, [request.prompt], [str(request.target_true)])
    assert new.sum() > true.sum()


def test_a_leading_space_of_the_target_is_not_doubled(tiny_gpt2: Model, plain: ROME):
    ours = plain(tiny_gpt2, REQUESTS[:1]).updates[0]
    theirs = plain(tiny_gpt2, [replace(REQUESTS[0], target_new=" Moscow")]).updates[0]
    assert torch.equal(ours.dense(), theirs.dense())


def test_a_target_of_several_tokens_counts_each(tiny_gpt2: Model, plain: ROME):
    request = replace(REQUESTS[0], target_new="Moscow is the capital")
    value = value_of(tiny_gpt2, request, plain)
    (log_probs,) = scored(tiny_gpt2, [request.prompt], [request.target_new])
    assert len(log_probs) > 1
    assert value.losses[0].nll == pytest.approx(-log_probs.mean().item(), rel=1e-4)


def test_the_loss_may_be_read_from_an_earlier_layer(tiny_gpt2: Model, plain: ROME):
    last = value_of(tiny_gpt2, REQUESTS[0], replace(plain, loss_layer=5))
    none = value_of(tiny_gpt2, REQUESTS[0], plain)
    assert torch.equal(last.delta, none.delta)
    early = value_of(tiny_gpt2, REQUESTS[0], replace(plain, loss_layer=3))
    # The same by hand: the final norm and the unembedding on the residual stream after layer 3.
    request, name = REQUESTS[0], tiny_gpt2.hook_name("resid_post", 3)
    tokens = tiny_gpt2.tokenize([request.prompt + " " + request.target_new])
    first = int(tiny_gpt2.tokenize([request.prompt]).lasts[0])
    resid = tiny_gpt2.activations(tokens, [name])[name]
    hf = tiny_gpt2.bridge.original_model
    norm, embeddings = hf.get_submodule("transformer.ln_f"), tiny_gpt2.parameters["transformer.wte.weight"]
    log_probs = (norm(resid[0, first:-1]) @ embeddings.T).log_softmax(dim=-1)
    expected = -log_probs.gather(1, tokens.ids[0, first + 1 :, None]).mean().item()
    assert early.losses[0].nll == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="loss_layer 1 lies below"):
        value_of(tiny_gpt2, REQUESTS[0], replace(plain, loss_layer=1))
    with pytest.raises(IndexError, match="9"):
        value_of(tiny_gpt2, REQUESTS[0], replace(plain, loss_layer=9))


# Several requests, provenance


def test_requests_are_made_one_after_another(tiny_gpt2: Model, plain: ROME):
    before = tiny_gpt2.snapshot()
    together = plain(tiny_gpt2, REQUESTS)
    assert same(before, tiny_gpt2.snapshot())
    assert len(together.updates) == 3 and together.requests == tuple(REQUESTS)
    alone: list[Edit] = []
    for request in REQUESTS:
        alone.append(plain(tiny_gpt2, [request]))
        alone[-1].apply_(tiny_gpt2)
    kept = tiny_gpt2.snapshot()
    for edit in alone:
        edit.revert_(tiny_gpt2)
    with together.applied(tiny_gpt2):
        assert same(kept, tiny_gpt2.snapshot())
    assert same(before, tiny_gpt2.snapshot())


def test_provenance_survives_the_disk(tiny_gpt2: Model, editor: ROME, golden: dict[str, torch.Tensor], tmp_path):
    counted = SecondMoment(layer=2, matrix=golden["second_moment.2"], count=37_512)
    edit = replace(editor, second_moment=counted, steps=2)(tiny_gpt2, REQUESTS[:2])
    assert edit.method == "ROME"
    assert edit.provenance["fingerprint"] == tiny_gpt2.fingerprint()
    assert edit.provenance["versions"].keys() == {"torch", "transformers", "transformer-lens"}
    settings = edit.provenance["hyperparameters"]
    assert settings["second_moment"]["tokens"] == 37_512 and len(settings["second_moment"]["sha256"]) == 64
    assert settings["contexts"] == REFERENCE["rome_context_templates"]
    assert settings["key_denominator"] == "prompt"
    edit.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors")
    assert loaded.provenance == edit.provenance and loaded.requests == edit.requests


def test_it_is_known_by_its_name():
    assert EDITORS["rome"] is ROME


# Bad input


def test_bad_hyperparameters():
    good = {"layer": 2, "second_moment": None}
    for bad, message in [
        ({"contexts": ()}, "bare"),
        ({"contexts": ("So {}",)}, "bare"),
        ({"contexts": ("{}", "So")}, "exactly one {}"),
        ({"steps": 0}, "steps"),
        ({"kl_template": "is a"}, "kl_template"),
    ]:
        with pytest.raises(ValueError, match=message):
            ROME(**(good | bad))
    with pytest.raises(ValueError, match="of layer 3"):
        ROME(layer=2, second_moment=SecondMoment(layer=3, matrix=torch.eye(4), count=1))


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model, plain: ROME):
    before = tiny_gpt2.snapshot()
    d_mlp = tiny_gpt2.d_mlp
    singular = torch.ones(d_mlp, d_mlp)
    for changes, error, message in [
        ({"layer": 6}, IndexError, "0 to 5"),
        ({"layer": -1}, IndexError, "-1"),
        ({"second_moment": torch.eye(12)}, ValueError, "12 x 12"),
        ({"second_moment": singular}, ValueError, "singular"),
        ({"second_moment": torch.full((d_mlp, d_mlp), float("nan"))}, ValueError, "not finite"),
    ]:
        with pytest.raises(error, match=message):
            replace(plain, **changes)(tiny_gpt2, REQUESTS)
    with pytest.raises(ValueError, match="at least one request"):
        plain(tiny_gpt2, [])
    with pytest.raises(ValueError):
        plain(tiny_gpt2, [REQUESTS[0], replace(REQUESTS[0], target_new=" ")])
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}


def test_weights_that_are_not_numbers(tiny_gpt2: Model, plain: ROME):
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(4).fill_(float("nan"))
        with pytest.raises(ValueError, match="diverged at step 0"):
            plain(tiny_gpt2, REQUESTS[:1])
    finally:
        tiny_gpt2.restore_(before)


# Contexts and presets


def test_sampled_contexts(tiny_gpt2: Model):
    def sample(seed: int) -> tuple[str, ...]:
        generator = torch.Generator().manual_seed(seed)
        return sample_contexts(tiny_gpt2, lengths=((5, 3), (10, 2)), generator=generator)

    contexts = sample(0)
    assert contexts[0] == "{}" and 1 < len(contexts) <= 6
    assert all(context.count("{}") == 1 and context.endswith(". {}") for context in contexts[1:])
    assert contexts == sample(0) != sample(1)
    for context in contexts[1:]:
        assert len(tiny_gpt2.tokenizer(context[:-4])["input_ids"]) <= 10
    ROME(layer=2, second_moment=None, contexts=contexts, steps=1)(tiny_gpt2, REQUESTS[:1])
    with pytest.raises(ValueError, match="at least 2 tokens"):
        sample_contexts(tiny_gpt2, lengths=((1, 3),), generator=torch.Generator())


def test_sampled_contexts_of_given_beginnings(tiny_gpt2: Model):
    """In turn, each with its own tokens counted among those of the text."""
    beginnings = ("The", "Therefore", "I")
    contexts = sample_contexts(
        tiny_gpt2, lengths=((8, 4),), beginnings=beginnings, generator=torch.Generator().manual_seed(0)
    )
    assert contexts[0] == "{}" and len(contexts) == 5
    for context, start in zip(contexts[1:], [*beginnings, "The"], strict=True):
        assert context.startswith(start) and context.endswith(". {}")
        assert len(tiny_gpt2.tokenizer(context[:-4])["input_ids"]) <= 8
    assert contexts[1] != contexts[4]
    with pytest.raises(ValueError, match=f"at least {len(tiny_gpt2.tokenizer('Therefore')['input_ids']) + 1} tokens"):
        sample_contexts(tiny_gpt2, lengths=((1, 3),), beginnings=beginnings, generator=torch.Generator())


def test_published_presets():
    layers = {"gpt2-medium": 8, "gpt2-large": 12, "gpt2-xl": 17, "EleutherAI/gpt-j-6B": 5}
    for model, layer in layers.items():
        fields = preset("rome", model).fields
        assert fields["layer"] == layer
        assert fields["clamp"] == (3 if model == "gpt2-medium" else 4)
        ROME(second_moment=None, **fields)
    assert preset("rome", "openai-community/gpt2-xl") == preset("ROME", "gpt2-xl")
    assert preset("rome", "atlas").fields["layer"] is None
    for entry in json.loads((PRESETS / "rome.json").read_text(encoding="utf-8")).values():
        ROME(second_moment=None, **(entry["fields"] | {"layer": 0}))


def test_unknown_presets():
    with pytest.raises(ValueError, match="gpt-j-6b, gpt2-large"):
        preset("rome", "bert-base")
    with pytest.raises(ValueError, match=r"there are some for .*rome"):
        preset("alchemy", "gpt2-xl")
