"""Tracing one fact: published numbers, identities, bad input."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

import workbench
from workbench.models.loading import load_model
from workbench.models.model import SITES
from workbench.records.facts import Fact
from workbench.records.reading import read_records
from workbench.studies.defaults import records_path
from workbench.studies.locate import true_facts
from workbench.tracing.attribution import attribute_fact
from workbench.tracing.fact import trace_alike, trace_fact
from workbench.tracing.known import answer_token, as_asked, known_answer, known_answers, top_tokens
from workbench.tracing.lens import logit_lens
from workbench.tracing.noise import embedding_noise_std, gaussian_noise, subject_span
from workbench.tracing.sweep import trace_facts
from workbench.tracing.trace import restored_layers

REFERENCE = json.loads((GOLDEN / "rome.json").read_text())
WORLD = json.loads((GOLDEN / "tiny-gpt2" / "world.json").read_text())
PUBLISHED_SITES = {"resid_post": "hidden", "mlp_out": "mlp", "attn_out": "attn"}

PORTUGAL = Fact(subject="Portugal", template="The capital of {} is", object="Lisbon", relation="capital")


def published_fact(case: int) -> Fact:
    request = REFERENCE["rome"][case]["request"]
    return Fact(subject=request["subject"], template=request["prompt"], object=request["target_true"]["str"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_for(model, fact, *, std=0.4, samples=3, seed=0):
    first, end = subject_span(model, fact)
    return gaussian_noise(std, samples, end - first, model.d_model, generator=seeded(seed))


@pytest.fixture
def broken(tiny_gpt2):
    """The model with a NaN in the last layer's MLP, mended afterwards."""
    before = tiny_gpt2.snapshot()
    with torch.no_grad():
        tiny_gpt2.weight(tiny_gpt2.n_layers - 1)[0, 0] = float("nan")
    yield tiny_gpt2
    tiny_gpt2.restore_(before)


# Published numbers


@pytest.mark.parametrize("engine", ["fast", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", range(3))
def test_equals_the_published_code(tiny_gpt2, case, engine):
    published, numbers = REFERENCE["traces"][case], load_file(GOLDEN / "rome.safetensors")
    trace = trace_fact(
        tiny_gpt2,
        published_fact(case),
        noise=numbers[f"trace.{case}.noise"],
        window=published["window"],
        engine=engine,
    )
    assert trace.tokens == tuple(published["input_tokens"])
    assert list(trace.subject) == published["subject_range"]
    assert trace.answer == published["answer"]
    assert trace.clean == pytest.approx(published["high_score"], abs=1e-5)
    assert trace.corrupted == pytest.approx(published["low_score"], abs=1e-5)
    for site, name in PUBLISHED_SITES.items():
        torch.testing.assert_close(trace.restored[site], numbers[f"trace.{case}.{name}"], atol=1e-5, rtol=0)


def test_noise_std_equals_the_published_code(tiny_gpt2):
    facts = [
        Fact(subject=subject, template=WORLD["templates"][relation][0], object=object_, relation=relation)
        for subject, relation, object_ in WORLD["facts"]
    ]
    expected = REFERENCE["noise_std_of_subject_embeddings"]
    assert embedding_noise_std(tiny_gpt2, facts) == pytest.approx(expected, abs=1e-9)
    assert REFERENCE["noise_level"] == pytest.approx(3 * expected)


# Identities


@pytest.mark.parametrize("template", ["The capital of {} is", "{}'s capital city is", "People in {} speak"])
def test_zero_noise_gives_zero_effect(tiny_gpt2, template):
    fact = Fact(subject="Iceland", template=template, object="x")
    trace = trace_fact(tiny_gpt2, fact, noise=noise_for(tiny_gpt2, fact, std=0.0), window=3)
    assert trace.total_effect == pytest.approx(0, abs=1e-6)
    for site in SITES:
        assert trace.indirect_effect(site).abs().max() < 1e-6


def test_the_last_hidden_state_carries_the_answer(tiny_gpt2):
    trace = trace_fact(tiny_gpt2, PORTUGAL, noise=noise_for(tiny_gpt2, PORTUGAL), sites=["resid_post"])
    assert trace.restored["resid_post"][-1, -1] == pytest.approx(trace.clean, abs=1e-6)
    others = trace.restored["resid_post"][:-1, -1]
    torch.testing.assert_close(others, torch.full_like(others, trace.corrupted), atol=1e-6, rtol=0)


def test_restoring_before_the_subject_changes_nothing(tiny_gpt2):
    noise = noise_for(tiny_gpt2, PORTUGAL)
    trace = trace_fact(tiny_gpt2, PORTUGAL, noise=noise, window=3, engine="plain")
    assert trace.total_effect > 0.5
    short = trace_fact(tiny_gpt2, PORTUGAL, noise=noise, window=3, engine="plain", skip_before_subject=True)
    for site in SITES:
        assert trace.indirect_effect(site)[: trace.subject[0]].abs().max() < 1e-6
        assert not short.indirect_effect(site)[: trace.subject[0]].any()
        torch.testing.assert_close(short.restored[site], trace.restored[site], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_batching_does_not_change_a_trace(tiny_gpt2):
    noise = noise_for(tiny_gpt2, PORTUGAL)
    one, many = (
        trace_fact(tiny_gpt2, PORTUGAL, noise=noise, sites=["mlp_out"], window=4, engine="plain", batch_size=size)
        for size in (7, 1000)
    )
    torch.testing.assert_close(one.restored["mlp_out"], many.restored["mlp_out"], atol=1e-6, rtol=0)


def test_samples_are_averaged(tiny_gpt2):
    noise = noise_for(tiny_gpt2, PORTUGAL, samples=2)
    both, *each = (trace_fact(tiny_gpt2, PORTUGAL, noise=n, window=3) for n in (noise, noise[:1], noise[1:]))
    assert both.corrupted == pytest.approx((each[0].corrupted + each[1].corrupted) / 2, abs=1e-6)
    mean = (each[0].restored["mlp_out"] + each[1].restored["mlp_out"]) / 2
    torch.testing.assert_close(both.restored["mlp_out"], mean, atol=1e-6, rtol=0)


def test_a_window_over_all_layers_is_the_same_in_every_column(tiny_gpt2):
    noise, window = noise_for(tiny_gpt2, PORTUGAL), 2 * tiny_gpt2.n_layers
    trace = trace_fact(tiny_gpt2, PORTUGAL, noise=noise, sites=["mlp_out"], window=window)
    columns = trace.restored["mlp_out"]
    torch.testing.assert_close(columns, columns[:, :1].expand_as(columns), atol=1e-6, rtol=0)


def test_identities_hold_in_every_family(family_model):
    noise = noise_for(family_model, PORTUGAL, std=1.0, samples=2)
    trace = trace_fact(family_model, PORTUGAL, noise=noise, window=1)
    assert trace.corrupted != pytest.approx(trace.clean, rel=1e-3)
    assert trace.restored["resid_post"][-1, -1] == pytest.approx(trace.clean, rel=1e-4)
    first, end = trace.subject
    assert "".join(trace.tokens[first:end]).strip() == "Portugal"
    still = trace_fact(family_model, PORTUGAL, noise=noise * 0, window=1)
    for site in SITES:
        before, scale = trace.indirect_effect(site)[:first], trace.clean
        assert before.abs().max() < 1e-4 * scale
        assert still.indirect_effect(site).abs().max() < 1e-4 * scale


def test_tracing_leaves_the_model_as_it_was(tiny_gpt2):
    before = tiny_gpt2.fingerprint()
    trace_fact(tiny_gpt2, PORTUGAL, noise=noise_for(tiny_gpt2, PORTUGAL), sites=["attn_out"])
    assert tiny_gpt2.fingerprint() == before


@pytest.mark.parametrize(
    ("layer", "window", "expected"),
    [
        (3, 1, [3]),
        (3, 3, [2, 3, 4]),
        (3, 4, [1, 2, 3, 4]),
        (0, 3, [0, 1]),
        (5, 4, [3, 4, 5]),
        (5, 10, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_restored_layers_as_published(layer, window, expected):
    assert list(restored_layers(layer, window, 6)) == expected
    assert expected == list(range(max(0, layer - window // 2), min(6, layer - (-window // 2))))


def test_noise_has_the_asked_deviation_and_follows_its_generator():
    noise = gaussian_noise(0.5, 20, 10, 100, generator=seeded())
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(noise, gaussian_noise(0.5, 20, 10, 100, generator=seeded()))
    assert not gaussian_noise(0.0, 1, 1, 4, generator=seeded()).any()


# Shapes of prompts


def test_prompt_that_is_its_subject(tiny_gpt2):
    fact = Fact(subject="Portugal", template="{}", object="x")
    trace = trace_fact(tiny_gpt2, fact, noise=noise_for(tiny_gpt2, fact), sites=["resid_post"])
    assert trace.subject == (0, len(trace.tokens))
    assert trace.restored["resid_post"][-1, -1] == pytest.approx(trace.clean, abs=1e-6)


def test_prompt_of_one_token(tiny_gpt2):
    fact = Fact(subject="I", template="{}", object="x")
    trace = trace_fact(tiny_gpt2, fact, noise=noise_for(tiny_gpt2, fact, std=2.0), window=3)
    assert len(trace.tokens) == 1
    # There is no other token to carry the answer, so any restored hidden state gives the clean run.
    torch.testing.assert_close(
        trace.restored["resid_post"], torch.full((1, tiny_gpt2.n_layers), trace.clean), atol=1e-6, rtol=0
    )


# Bad input


def test_subject_not_in_prompt():
    with pytest.raises(ValueError, match="exactly one"):
        Fact(subject="Portugal", template="The capital of Spain is", object="Madrid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": -3}, "window must be at least 1, got -3"),
        ({"sites": ["mlp"]}, "sites must be some of resid_post, mlp_out, attn_out, got 'mlp'"),
        ({"sites": []}, "got none"),
        ({"span": 0}, "span must be at least 1, got 0"),
        ({"severed": "mlp"}, "severed must be mlp_out, attn_out or None, got 'mlp'"),
        ({"engine": "quick"}, "engine must be one of auto, fast, plain, got 'quick'"),
        ({"metric": "odds"}, "metric must be one of probability, logit_difference, kl, got 'odds'"),
        ({"metric": "logit_difference"}, "needs a foil"),
        ({"memory": 0.0}, "memory must be a positive number of GiB, got 0"),
        ({"engine": "plain", "batch_size": 0}, "batch_size must be at least 1 row, got 0"),
        ({"noise": torch.zeros(10, 2, 64)}, r"must be \[samples, 3 subject tokens, 64\], got \[10, 2, 64\]"),
        ({"noise": torch.zeros(0, 3, 64)}, r"got \[0, 3, 64\]"),
    ],
)
def test_bad_arguments_are_named(tiny_gpt2, options, message):
    with pytest.raises(ValueError, match=message):
        trace_fact(tiny_gpt2, PORTUGAL, **{"noise": torch.zeros(10, 3, 64), **options})


@pytest.mark.parametrize(("std", "samples"), [(-1.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, 0)])
def test_bad_noise_is_refused(std, samples):
    with pytest.raises(ValueError, match="noise needs"):
        gaussian_noise(std, samples, 3, 64, generator=seeded())


def test_nan_weights_are_said(broken):
    with pytest.raises(ValueError, match="NaN probabilities for 'The capital of Portugal is'"):
        trace_fact(broken, PORTUGAL, noise=noise_for(broken, PORTUGAL))
    with pytest.raises(ValueError, match="NaN probabilities"):
        list(trace_facts(broken, [PORTUGAL], seed=0))


def test_nan_embeddings_are_said(tiny_gpt2):
    before = tiny_gpt2.snapshot()
    embedding = next(value for name, value in tiny_gpt2.parameters.items() if name.endswith("wte.weight"))
    try:
        with torch.no_grad():
            embedding.fill_(float("nan"))
        with pytest.raises(ValueError, match="embeddings that are NaN"):
            embedding_noise_std(tiny_gpt2, [PORTUGAL])
    finally:
        tiny_gpt2.restore_(before)


def test_no_facts(tiny_gpt2):
    with pytest.raises(ValueError, match="needs at least one fact"):
        embedding_noise_std(tiny_gpt2, [])


# Spaces at a prompt's end


def test_a_space_at_the_end_of_a_prompt_is_left_to_the_answer():
    model = load_model("atlas", device="cpu")
    plain = next(fact for fact in true_facts(read_records(records_path("atlas"))).values() if known_answer(model, fact))
    spaced = replace(plain, template=f"{plain.template} ")
    facts = [replace(plain, template=f"{plain.template}  "), spaced, plain]
    assert answer_token(model, spaced.prompt, plain.object) is None
    assert len(set(known_answers(model, facts))) == 1 and None not in known_answers(model, facts)
    assert top_tokens(model, [spaced.prompt]) != known_answers(model, [plain])
    noise = noise_for(model, plain, samples=2)
    form = {"window": 2, "sites": ["mlp_out"], "positions": "last_subject"}
    every = [
        *(trace_fact(model, fact, noise=noise, engine=one, **form) for fact in facts for one in ("fast", "plain")),
        *trace_alike(model, facts, noises=[noise] * 3, **form),
        workbench.trace(model, spaced.prompt, spaced.subject, samples=2, **form),
    ]
    assert [trace.fact.template for trace in every[:6:2]] == [fact.template for fact in facts]
    assert {(trace.tokens, trace.answer) for trace in every} == {(every[-1].tokens, f" {plain.object.split()[0]}")}
    for trace in every[:-1]:
        torch.testing.assert_close(trace.restored["mlp_out"], every[0].restored["mlp_out"], atol=1e-5, rtol=0)
    guess, answer = attribute_fact(model, spaced, noise=noise, **form), logit_lens(model, spaced, [plain.object])
    assert torch.equal(guess.restored["mlp_out"], attribute_fact(model, plain, noise=noise, **form).restored["mlp_out"])
    assert torch.equal(answer.rank, logit_lens(model, plain, [plain.object]).rank)


def test_a_space_that_is_a_token_apart_from_the_answer_stays(tiny_gpt2):
    spaced = replace(PORTUGAL, template=f"{PORTUGAL.template} ")
    assert as_asked(tiny_gpt2, spaced) == spaced
    (answer,) = known_answers(tiny_gpt2, [spaced])
    assert answer == answer_token(tiny_gpt2, spaced.prompt, "Lisbon") != known_answers(tiny_gpt2, [PORTUGAL])[0]
    assert trace_fact(tiny_gpt2, spaced, noise=noise_for(tiny_gpt2, spaced)).tokens[-1] == " "
