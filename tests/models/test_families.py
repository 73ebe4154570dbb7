"""Every family loads, gives Hugging Face's logits, traces alike by both engines, and does what its edits promise."""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAIN
from known_scores import scored

from workbench.editors import rome
from workbench.editors.alphaedit import AlphaEdit
from workbench.editors.emmet import EMMET
from workbench.editors.ft import FT
from workbench.editors.memit import MEMIT
from workbench.editors.pmet import PMET
from workbench.editors.search.fast_values import optimise_values
from workbench.editors.search.values import optimise_value
from workbench.editors.shared.moment import SecondMoment
from workbench.models.contribution import Contribution
from workbench.models.hooks import HOOK_NAMES
from workbench.models.hooks_check import hook_faults, ordinary_tokens
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Fact
from workbench.studies.family_checks import check_family, missed, state_at_subject
from workbench.studies.tiny_models import CONFIGS
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import gaussian_noise, subject_span

WINDOWED = ("mistral", "gemma3", "gpt_neo", "gemma2")
INDIRECT = ("gemma2", "gemma3", "olmo2", "granite")
"""W_out's output is not what they add to the residual stream."""
EVERY_TIME = ("gemma2", "opt")
"""The others are slow together."""
TOWER = Fact(subject="Eiffel Tower", template="In Paris the {} stands in", object="Rome")
REQUEST = EditRequest(template="In Paris the {} stands in", subject="Eiffel Tower", target_new="Rome")


@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=[] if each == "gemma2" else pytest.mark.slow) for each in CONFIGS]
)
def test_what_must_hold_of_every_family(family: str, checkpoints: dict[str, Path]) -> None:
    found = check_family(checkpoints[family])
    assert found.faults() == []
    assert (found.fast is None) == (family in PLAIN)
    assert found.effect > 0.02  # nats, so that equal traces say something


# Tracing ---------------------------------------------------------------------------------------------------


def noise_for(model: Model) -> torch.Tensor:
    first, end = subject_span(model, TOWER)
    return gaussian_noise(0.5, 2, end - first, model.d_model, generator=torch.Generator().manual_seed(0))


def test_the_engine_auto_warns_once_and_traces_plainly_where_the_blocks_are_not_known(
    checkpoints: dict[str, Path],
) -> None:
    model = load_model(str(checkpoints["bloom"]), device="cpu")
    with pytest.warns(UserWarning, match="cannot be run part by part.*tracing by the plain engine") as told:
        found = trace_fact(model, TOWER, noise=noise_for(model), window=2)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    plain = trace_fact(model, TOWER, noise=noise_for(model), window=2, engine="plain", skip_before_subject=True)
    assert all(torch.equal(found.restored[site], plain.restored[site]) for site in plain.restored)
    with pytest.raises(ValueError, match="use the plain engine"):
        trace_fact(model, TOWER, noise=noise_for(model), engine="fast")


def test_the_engine_auto_is_fast_where_it_can_be(checkpoints: dict[str, Path]) -> None:
    model = load_model(str(checkpoints["gemma3"]), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto = trace_fact(model, TOWER, noise=noise_for(model), window=2)
    fast = trace_fact(model, TOWER, noise=noise_for(model), window=2, engine="fast")
    assert all(torch.equal(auto.restored[site], fast.restored[site]) for site in fast.restored)


# Editing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma2", *(pytest.param(f, marks=pytest.mark.slow) for f in WINDOWED[:-1])])
@pytest.mark.parametrize("site", ["mlp_write", pytest.param("resid_post", marks=pytest.mark.slow)])
def test_values_found_together_are_those_found_alone(family: str, site: str, checkpoints: dict[str, Path]) -> None:
    """Also where prompts are longer than the window, and where a norm stands behind W_out."""
    model = load_model(str(checkpoints[family]), device="cpu")
    options: dict[str, Any] = {
        "site": site, "layer": 0, "steps": 6, "learning_rate": 0.3, "weight_decay": 0.1, "clamp": 1.0,
        "kl_weight": 0.06, "kl_template": "{} is a",
    }  # fmt: skip
    templates = (REQUEST.template, f"They say that {REQUEST.template}")
    (found,) = optimise_values(model, [REQUEST], [templates], **options)
    alone = optimise_value(model, REQUEST, templates, **options)
    torch.testing.assert_close(found.delta, alone.delta, atol=1e-4, rtol=1e-3)
    assert [loss.total for loss in found.losses] == pytest.approx([loss.total for loss in alone.losses], abs=1e-4)


def moments(model: Model, layers: tuple[int, ...]) -> dict[int, SecondMoment]:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(300, model.d_mlp, generator=generator, dtype=torch.float64)
    return {layer: SecondMoment(layer=layer, count=300, matrix=keys.T @ keys / 300) for layer in layers}


SPREAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "MEMIT": (MEMIT, {"moment_weight": 1e-5}),
    "EMMET": (EMMET, {}),
    "PMET": (PMET, {"moment_weight": 1e-5}),
    "AlphaEdit": (AlphaEdit, {"null_threshold": 1e6, "ridge": 1e-4}),
}


@pytest.mark.slow
@pytest.mark.parametrize("layers", [pytest.param((1,), marks=pytest.mark.slow), (0, 1)], ids=str)
@pytest.mark.parametrize(
    "method", ["MEMIT", *(pytest.param(m, marks=pytest.mark.slow) for m in ("PMET", "EMMET", "AlphaEdit"))]
)
@pytest.mark.parametrize("family", ["gemma2", *(pytest.param(f, marks=pytest.mark.slow) for f in INDIRECT[1:])])
def test_methods_that_spread_a_change_keep_their_promise(
    family: str, method: str, layers: tuple[int, ...], checkpoints: dict[str, Path]
) -> None:
    """The state at the subject's last token is the one that the last optimisation found."""
    model = load_model(str(checkpoints[family]), device="cpu")
    editor, options = SPREAD[method]
    optimisation = {"steps": 8, "learning_rate": 0.3, "weight_decay": 0.01, "clamp": 1.0, "kl_weight": 0.06}
    edit = editor(layers=layers, second_moments=moments(model, layers), **optimisation, **options)(model, [REQUEST])
    assert len(edit.updates) == len(layers) and all(update.right.norm() > 0.1 for update in edit.updates)
    (promised,) = edit.provenance["optimisation"]
    before = state_at_subject(model, "mlp_write", 1, REQUEST)
    with edit.applied(model):
        written = state_at_subject(model, "mlp_write", 1, REQUEST) - before
        resid = state_at_subject(model, "resid_post", 1, REQUEST)
    if method == "PMET":  # what it adds to attention is not written, so only the MLP's output is as promised
        assert written.norm().item() == pytest.approx(promised["delta_norm"], rel=0.01)
        return
    earlier = edit.updates[:-1] if family != "granite" else ()  # what the last optimisation saw
    with replace(edit, updates=earlier).applied(model) if earlier else nullcontext():
        assert missed(model, 1, resid, REQUEST, promised["nll"]) < 0.01


@pytest.mark.parametrize("family", ["granite", *(pytest.param(f, marks=pytest.mark.slow) for f in INDIRECT[:-1])])
def test_fine_tuning_keeps_its_promise(family: str, checkpoints: dict[str, Path]) -> None:
    """One more pass, made on the edited model, begins at the loss that the pass after the last would have shown."""
    model = load_model(str(checkpoints[family]), device="cpu")
    two = FT(layers=(1,), steps=2, learning_rate=1e-2)(model, [REQUEST])
    one = FT(layers=(1,), steps=1, learning_rate=1e-2)(model, [REQUEST])
    with one.applied(model):
        said = -scored(model, [REQUEST.prompt], [REQUEST.target_new])[0].mean().item()
    first, second = two.provenance["optimisation"]["losses"]
    assert second < first - 0.01
    assert said == pytest.approx(second, abs=1e-4)


@pytest.mark.parametrize("uneven", [0.0, 1.0])
def test_behind_a_norm_what_is_added_comes_as_near_as_it_can(uneven: float) -> None:
    """No output of this size in another direction is nearer; with uneven gains dividing by them is far worse."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)
    gains = signs * (uneven * torch.randn(16, generator=generator, dtype=torch.float64)).exp()
    contribution = Contribution(norm=lambda x: gains * x / x.square().mean(dim=-1, keepdim=True).sqrt(), multiplier=0.5)
    output, wanted = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)
    wanted = 0.2 * wanted * contribution(output).norm() / wanted.norm()

    def missed(changed: torch.Tensor) -> torch.Tensor:
        return (contribution(changed) - contribution(output) - wanted).norm(dim=-1)

    changed = output + contribution.needed(output, wanted)
    torch.testing.assert_close(changed.norm(dim=-1), output.norm(dim=-1))
    for size in (1e-3, 1e-1, 1.0):
        others = changed + size * torch.randn(200, 3, 16, generator=generator, dtype=torch.float64)
        assert (missed(changed) <= missed(others) + 1e-9).all()
    divided = (contribution(output) + wanted) / gains
    assert (missed(divided).sum() > 1.5 * missed(changed).sum()) == bool(uneven)


def test_a_multiplier_is_undone_exactly() -> None:
    contribution = Contribution(norm=None, multiplier=0.25)
    output, wanted = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        contribution(output + contribution.needed(output, wanted)), contribution(output) + wanted
    )


# What a hook means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY_TIME)
def test_hooks_mean_what_editors_take_them_for(family: str, checkpoints: dict[str, Path]) -> None:
    assert load_model(str(checkpoints[family]), device="cpu").once(hook_faults) == {}


@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=[] if each in EVERY_TIME else pytest.mark.slow) for each in CONFIGS]
)
def test_keys_come_from_the_input_of_the_mlp_alone(family: str, checkpoints: dict[str, Path]) -> None:
    model = load_model(str(checkpoints[family]), device="cpu")
    tokens, inputs, keys = ordinary_tokens(model, 8), model.hook_name("mlp_in", 1), model.hook_name("mlp_key", 1)
    seen = model.activations(tokens, [inputs, keys])
    assert seen[inputs].shape[-1] == model.d_model and (seen[keys][0, 0] - seen[keys][0, 1]).abs().max() > 0.01
    alike = model.activations(tokens, [keys], hooks=[(inputs, lambda states, hook: states[:, :1].expand_as(states))])
    torch.testing.assert_close(alike[keys], seen[keys][:, :1].expand_as(seen[keys]), atol=1e-5, rtol=1e-5)


def test_a_norm_that_is_not_known_of_is_found_and_refused(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(checkpoints["gemma2"]), device="cpu")
    monkeypatch.setattr("workbench.models.weights.of_mlp", lambda block: Contribution(norm=None, multiplier=1.0))
    assert "what the MLP adds" in model.once(hook_faults)["resid_post"]
    with pytest.raises(ValueError, match="MEMIT cannot keep what it promises: in layer 0 of"):
        MEMIT(layers=(1,), second_moments=moments(model, (1,)))(model, [REQUEST])


@pytest.mark.slow
def test_an_edit_behind_the_norm_misses_what_it_promises(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As editors worked once; the hook's meaning is checked first, and without that check the promise is missed."""
    monkeypatch.setitem(HOOK_NAMES, "mlp_write", HOOK_NAMES["mlp_out"])
    with pytest.raises(ValueError, match="ROME cannot keep what it promises"):
        check_family(checkpoints["gemma2"])
    monkeypatch.setattr(rome, "check_hooks", lambda *arguments: None)
    assert "promise" in check_family(checkpoints["gemma2"]).faults()


def test_a_key_that_w_out_does_not_multiply_is_found_and_refused(checkpoints: dict[str, Path]) -> None:
    model = load_model(str(checkpoints["llama"]), device="cpu")
    out: Any = model.bridge.blocks[2].mlp.out.original_component
    out.register_forward_hook(lambda module, arguments, output: 1.2 * output)
    assert "in layer 2 of" in model.once(hook_faults)["mlp_write"]
    with pytest.raises(ValueError, match=r"FT cannot keep what it promises.*mlp_write is not mlp_key @ W_out \+ b_out"):
        FT(layers=(2,))(model, [REQUEST])
