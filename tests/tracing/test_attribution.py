"""Attribution patching is the derivative of exact restoration; agreement of the two; their figures."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from drawn import outside
from known_traces import trace_of

from workbench.figures.tracing import attribution_figure, sensitivity_figure
from workbench.models.loading import load_model
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.tracing.attribution import agreement, attribute_fact
from workbench.tracing.averages import average_effects
from workbench.tracing.corruption import Corruption
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import gaussian_noise, subject_span
from workbench.tracing.sweep import trace_facts
from workbench.tracing.trace import CausalTrace, restored_layers

PORTUGAL = Fact(subject="Portugal", template="The capital of {} is", object="Lisbon", relation="capital")
ICELAND = Fact(subject="Iceland", template="People in {} speak", object="Icelandic", relation="language")


def noise_for(model, fact, *, std=0.4, samples=3):
    first, end = subject_span(model, fact)
    return gaussian_noise(std, samples, end - first, model.d_model, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def precise() -> Model:
    """The golden model in double precision, for finite differences."""
    return load_model(str(GOLDEN / "tiny-gpt2"), device="cpu", dtype=torch.float64)


def derivative(model, fact, noise, site, layers, pos, measure, *, step):
    """By central differences: what is measured when `step` of the way to the clean states is gone, mean of samples."""
    tokens, rows = model.tokenize([fact.prompt]), model.tokenize([fact.prompt] * len(noise))
    corruption = Corruption(first=subject_span(model, fact)[0], noise=noise)
    names = [model.hook_name(site, layer) for layer in layers]
    clean, corrupted = model.activations(tokens, names), {}

    def run(size):
        def corrupt(embeddings, hook):
            return corruption(embeddings)

        def move(name, states, hook):
            if size is None:
                corrupted[name] = states.clone()
                return states
            states = states.clone()
            states[:, pos] = corrupted[name][:, pos] + size * (clean[name] - corrupted[name])[:, pos]
            return states

        hooks = [(model.hook_name("embed"), corrupt), *((name, functools.partial(move, name)) for name in names)]
        with torch.no_grad():
            return measure(model.logits(rows, hooks=hooks)[:, -1].double()).mean()

    run(None)
    return ((run(step) - run(-step)) / (2 * step)).item()


def answer_probability(model, fact):
    answer = int(model.logits(model.tokenize([fact.prompt]))[0, -1].argmax())
    return lambda logits: logits.softmax(dim=-1)[:, answer]


# The estimate


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("layer", "pos"), [(0, 3), (2, 5), (4, 5), (5, 6)])
def test_equals_the_derivative_of_exact_restoration(precise, site, layer, pos):
    noise = noise_for(precise, PORTUGAL)
    trace = attribute_fact(precise, PORTUGAL, noise=noise, sites=[site], window=3)
    layers = restored_layers(layer, 1 if site == "resid_post" else 3, precise.n_layers)
    each = [
        derivative(precise, PORTUGAL, noise, site, [one], pos, answer_probability(precise, PORTUGAL), step=1e-4)
        for one in layers
    ]
    assert trace.indirect_effect(site)[pos, layer].item() == pytest.approx(sum(each), rel=1e-4, abs=1e-6)


def test_equals_the_derivative_in_every_family(family_model):
    noise = noise_for(family_model, PORTUGAL, std=0.3, samples=2)
    last = family_model.n_layers - 1
    trace = attribute_fact(family_model, PORTUGAL, noise=noise, sites=["resid_post"], metric="logit_difference", foil=7)
    answer = trace.answer_id
    for layer, pos in ((0, trace.subject[1] - 1), (last, -1)):
        exact = derivative(
            family_model, PORTUGAL, noise, "resid_post", [layer], pos,
            lambda logits: logits[:, answer] - logits[:, 7], step=0.01,
        )  # fmt: skip
        assert trace.indirect_effect("resid_post")[pos, layer].item() == pytest.approx(exact, rel=0.01, abs=2e-3)
    assert trace.indirect_effect("resid_post")[:-1, last].abs().max() < 1e-5  # nothing reads them


@pytest.mark.parametrize("metric", ["probability", "kl", "logit_difference"])
def test_small_noise_is_first_order(precise, metric):
    foil = 7 if metric == "logit_difference" else None
    noise = noise_for(precise, PORTUGAL, std=1e-3)
    exact, estimate = (
        function(precise, PORTUGAL, noise=noise, window=1, metric=metric, foil=foil)
        for function in (trace_fact, attribute_fact)
    )
    assert estimate.clean == pytest.approx(exact.clean, abs=1e-5)
    assert estimate.corrupted == pytest.approx(exact.corrupted, abs=1e-5)
    assert (estimate.tokens, estimate.subject, estimate.answer, estimate.foil) == (
        exact.tokens, exact.subject, exact.answer, exact.foil,
    )  # fmt: skip
    if metric != "kl":  # whose first derivative vanishes at the clean run
        for site in SITES:
            scale = exact.indirect_effect(site).abs().max()
            difference = exact.indirect_effect(site) - estimate.indirect_effect(site)
            assert difference.abs().max() < 0.05 * scale


def test_zero_noise_gives_zero(tiny_gpt2):
    trace = attribute_fact(tiny_gpt2, PORTUGAL, noise=noise_for(tiny_gpt2, PORTUGAL, std=0.0), window=3)
    assert trace.total_effect == pytest.approx(0, abs=1e-6)
    for site in SITES:
        assert trace.indirect_effect(site).abs().max() < 1e-5


def test_a_windows_effect_is_the_sum_of_its_layers(tiny_gpt2):
    noise = noise_for(tiny_gpt2, PORTUGAL)
    wide, single = (attribute_fact(tiny_gpt2, PORTUGAL, noise=noise, window=window) for window in (4, 1))
    for site in ("mlp_out", "attn_out"):
        for layer in range(tiny_gpt2.n_layers):
            layers = list(restored_layers(layer, 4, tiny_gpt2.n_layers))
            summed = single.indirect_effect(site)[:, layers].sum(dim=1)
            torch.testing.assert_close(wide.indirect_effect(site)[:, layer], summed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(wide.restored["resid_post"], single.restored["resid_post"])


def test_noise_in_place_of_the_embeddings(tiny_gpt2):
    noise = noise_for(tiny_gpt2, PORTUGAL, std=0.1)
    exact, estimate = (
        function(tiny_gpt2, PORTUGAL, noise=noise, replace=True, sites=["mlp_out"])
        for function in (trace_fact, attribute_fact)
    )
    assert estimate.corrupted == pytest.approx(exact.corrupted, abs=1e-5)


def test_a_method_of_trace_facts_that_leaves_the_model_as_it_was(tiny_gpt2):
    before = tiny_gpt2.fingerprint()
    results = trace_facts(tiny_gpt2, [PORTUGAL, ICELAND], seed=0, samples=2, window=3, method=attribute_fact)
    assert all(result.trace is not None and set(result.trace.restored) == set(SITES) for result in results)
    assert tiny_gpt2.fingerprint() == before
    assert not any(parameter.grad is not None for parameter in tiny_gpt2.parameters.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1 layer, got 0"),
        ({"sites": ["mlp"]}, "sites must be some of resid_post, mlp_out, attn_out, got 'mlp'"),
        ({"sites": []}, "got none"),
        ({"metric": "logit_difference"}, "needs a foil"),
        ({"noise": torch.zeros(10, 2, 64)}, r"must be \[samples, 3 subject tokens, 64\], got \[10, 2, 64\]"),
        ({"noise": torch.zeros(0, 3, 64)}, r"got \[0, 3, 64\]"),
    ],
)
def test_bad_arguments_are_named(tiny_gpt2, options, message):
    with pytest.raises(ValueError, match=message):
        attribute_fact(tiny_gpt2, PORTUGAL, **{"noise": torch.zeros(10, 3, 64), **options})


def test_nan_is_refused(tiny_gpt2):
    before = tiny_gpt2.snapshot()
    try:
        with torch.no_grad():
            tiny_gpt2.weight(5)[0, 0] = float("nan")
        with pytest.raises(ValueError, match="NaN probabilities for 'The capital of Portugal is'"):
            attribute_fact(tiny_gpt2, PORTUGAL, noise=noise_for(tiny_gpt2, PORTUGAL))
    finally:
        tiny_gpt2.restore_(before)


# Agreement


def made(effect: torch.Tensor, *, window: int = 4, corrupted: float = 0.1, prompt: str = "The {} is") -> CausalTrace:
    """A trace of four tokens, the subject [1, 3), with the effect of `mlp_out` given, [pos, layer]."""
    fact = Fact(subject="Big Ben", template=prompt, object="x")
    return trace_of(effect, corrupted=corrupted, window=window, fact=fact)


def random_effect(seed: int) -> torch.Tensor:
    return torch.rand(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_agreement_of_known_effects():
    effects = [random_effect(seed) for seed in range(3)]
    exact = [made(effect) for effect in effects]
    same = agreement(exact, exact, "mlp_out")
    assert (same.spearman.value, same.pearson.value, same.same_layer.value) == pytest.approx((1, 1, 1))
    assert same.same_layer.low < 1 and same.facts == 3
    monotone = agreement(exact, [made(effect**5) for effect in effects], "mlp_out")
    assert monotone.spearman.value == pytest.approx(1)
    assert 0.5 < monotone.pearson.value < 0.99
    reverse = agreement(exact, [made(-effect) for effect in effects], "mlp_out")
    assert (reverse.spearman.value, reverse.pearson.value) == pytest.approx((-1, -1))


def test_cells_before_the_subject_do_not_count():
    effect = random_effect(0)
    other = effect.clone()
    other[0] = 9 - 9 * effect[0]
    assert agreement([made(effect)], [made(other)], "mlp_out").spearman.value == pytest.approx(1)


def test_intervals_are_student_t_over_facts():
    effects = [random_effect(seed) for seed in range(3)]
    exact = [made(effect) for effect in effects]
    estimated = [made(effects[0]), made(effects[1]), made(-effects[2])]
    found = agreement(exact, estimated, "mlp_out").spearman
    half = 4.302653 * np.std([1, 1, -1], ddof=1) / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half), rel=1e-5)
    one = agreement(exact[:1], estimated[:1], "mlp_out").spearman
    assert one.value == pytest.approx(1) and np.isnan([one.low, one.high]).all()


@pytest.mark.parametrize(
    ("window", "distance", "share"), [(4, 2, 1.0), (4, 3, 0.0), (5, 2, 1.0), (1, 0, 1.0), (1, 1, 0.0)]
)
def test_peaks_agree_within_half_a_window(window, distance, share):
    one, other = torch.zeros(2, 4, 8).unbind()
    one[2, 3] = other[2, 3 + distance] = 0.5
    found = agreement([made(one, window=window)], [made(other, window=window)], "mlp_out")
    assert found.same_layer.value == share


def test_facts_without_effect_have_no_correlation():
    flat, effect = made(torch.zeros(4, 8)), made(random_effect(0))
    found = agreement([flat, effect], [effect, effect], "mlp_out")
    assert (found.facts, found.spearman.n, found.pearson.n) == (2, 1, 1)
    assert np.isnan(agreement([flat], [flat], "mlp_out").spearman.value)


def test_agreement_refuses_what_it_cannot_compare():
    trace = made(random_effect(0))
    with pytest.raises(ValueError, match="one estimate an exact trace, got 0 for 0"):
        agreement([], [], "mlp_out")
    with pytest.raises(ValueError, match="got 2 for 1"):
        agreement([trace], [trace, trace], "mlp_out")
    for other in (made(random_effect(0), window=3), made(random_effect(0), prompt="{}")):
        with pytest.raises(ValueError, match="one prompt and setting"):
            agreement([trace], [other], "mlp_out")
    with pytest.raises(ValueError, match="'attn_out' was not traced"):
        agreement([trace], [trace], "attn_out")


# Figures


def with_all_sites(trace: CausalTrace, seed: int) -> CausalTrace:
    restored = {site: trace.corrupted + random_effect(seed + k) for k, site in enumerate(SITES)}
    return dataclasses.replace(trace, restored=restored)


def test_attribution_figure_shows_every_cell_from_the_subject_on():
    exact = [with_all_sites(made(random_effect(0)), seed) for seed in range(4)]
    estimated = [with_all_sites(made(random_effect(0)), seed + 1) for seed in range(4)]
    figure = attribution_figure(exact, estimated)
    assert outside(figure) == []
    for ax, site in zip(figure.axes, SITES, strict=True):
        points = np.concatenate([np.asarray(collection.get_offsets()) for collection in ax.collections])
        expected = np.stack([[t.indirect_effect(site)[1:].flatten() for t in each] for each in (exact, estimated)])
        assert points.shape == (4 * 3 * 8, 2)
        np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(expected[0].flatten()), atol=1e-6)
        np.testing.assert_allclose(np.sort(points[:, 1]), np.sort(expected[1].flatten()), atol=1e-6)
        found = agreement(exact, estimated, site).spearman
        assert f"r_s = {found.value:.2f} ±" in ax.get_title(loc="left")
    with pytest.raises(ValueError, match="at least one pair"):
        attribution_figure([], [])


def test_sensitivity_figure_shows_peak_and_layer_by_noise():
    def average(height: float, layer: int):
        effects = torch.zeros(2, 4, 8)
        effects[:, 2, layer] = torch.tensor([height - 0.05, height + 0.05])
        return average_effects([made(effect) for effect in effects], "mlp_out")

    averages = {
        (level, n): average(0.1 * level + 0.01 * n, int(level) + n) for level in (1.0, 2.0, 3.0) for n in (1, 4)
    }
    figure = sensitivity_figure(averages, planted=range(2, 5))
    assert outside(figure) == []
    peak, layer = figure.axes
    for index, samples in enumerate((1, 4)):
        np.testing.assert_allclose(
            np.asarray(peak.lines[index].get_ydata(), dtype=float),
            [0.1 * n + 0.01 * samples for n in (1, 2, 3)],
            rtol=1e-5,
        )
        shown = np.asarray(layer.lines[index].get_ydata(), dtype=float)
        np.testing.assert_allclose(shown, np.array([1, 2, 3]) + samples, atol=0.11)
    assert "MLP (window of 4 layers) restored, 2 facts; planted layers shaded" in figure.get_suptitle()
    with pytest.raises(ValueError, match="averages of one site, got none"):
        sensitivity_figure({})
