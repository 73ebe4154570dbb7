"""Tracing many facts: what is skipped, stopping and resuming, each fact's noise, corruption by another subject."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import GOLDEN

from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.tracing.asked import shape_of
from workbench.tracing.fact import trace_alike, trace_fact
from workbench.tracing.known import NOT_KNOWN, answer_token, known_answer
from workbench.tracing.noise import NoiseRule, embedding_noise_std, fact_generator, gaussian_noise, subject_span
from workbench.tracing.replacement import NO_PARTNER, pair_facts, subject_embeddings, trace_pairs
from workbench.tracing.sweep import TraceSet, trace_facts
from workbench.tracing.trace import CausalTrace

REFERENCE = json.loads((GOLDEN / "rome.json").read_text())
UNKNOWN = Fact(subject="Portugal", template="The capital of {} is", object="Thai")


def published_fact(case: int) -> Fact:
    request = REFERENCE["rome"][case]["request"]
    return Fact(subject=request["subject"], template=request["prompt"], object=request["target_true"]["str"])


def some_facts() -> list[Fact]:
    known = [published_fact(case) for case in range(3)]
    return [known[0], UNKNOWN, known[1], known[2]]


def quick_sweep(model, **options):
    return trace_facts(model, some_facts(), seed=1, samples=2, sites=["mlp_out"], window=3, **options)


def test_facts_the_model_does_not_know_are_skipped_and_counted(tiny_gpt2):
    assert [known_answer(tiny_gpt2, fact) is None for fact in some_facts()] == [False, True, False, False]
    calls = []
    results = list(quick_sweep(tiny_gpt2, progress=lambda finished, total: calls.append((finished, total))))
    assert [result.index for result in results] == [0, 1, 2, 3]
    found = TraceSet.collect(results)
    assert found.skipped == (UNKNOWN,)
    assert found.reasons == (NOT_KNOWN,)
    assert [trace.fact.subject for trace in found.traces] == ["Portugal", "Iceland", "Argentina"]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.slow
def test_a_resumed_sweep_equals_an_uninterrupted_one(tiny_gpt2):
    whole = list(quick_sweep(tiny_gpt2))
    sweep = quick_sweep(tiny_gpt2)
    started = [next(sweep), next(sweep)]
    calls = []
    resumed = quick_sweep(
        tiny_gpt2, done={result.index for result in started}, progress=lambda *call: calls.append(call)
    )
    both = TraceSet.collect([*resumed, *started])
    assert calls == [(3, 4), (4, 4)]
    for one, other in zip(both.traces, TraceSet.collect(whole).traces, strict=True):
        assert one.fact == other.fact
        assert torch.equal(one.restored["mlp_out"], other.restored["mlp_out"])


def test_workers_trace_what_one_process_does(tiny_gpt2):
    alone, shared = list(quick_sweep(tiny_gpt2)), list(quick_sweep(tiny_gpt2, workers=2))
    assert [result.index for result in shared] == [0, 1, 2, 3]
    assert [result.reason for result in shared] == ["", NOT_KNOWN, "", ""]
    for one, other in zip(TraceSet.collect(alone).traces, TraceSet.collect(shared).traces, strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(one.restored["mlp_out"], other.restored["mlp_out"], atol=1e-6, rtol=0)


LIKE = [
    Fact(subject=subject, template="The capital of {} is", object=object_)
    for subject, object_ in (("France", "Paris"), ("Spain", "Madrid"), ("Peru", "Lima"), ("Chile", "Santiago"))
]


@pytest.mark.parametrize(
    "form",
    [{}, {"positions": "last_subject"}, {"severed": "attn_out", "span": 2}, {"metric": "logit_difference"}],
    ids=str,
)
def test_facts_of_like_shape_are_traced_together_as_alone(family_model: Model, form: dict[str, Any]) -> None:
    facts = [fact for fact in LIKE if shape_of(family_model, fact) == shape_of(family_model, LIKE[0])]
    assert len(facts) > 1
    spans = [subject_span(family_model, fact) for fact in facts]
    generator = torch.Generator().manual_seed(0)
    noises = [gaussian_noise(0.5, 2, end - first, family_model.d_model, generator=generator) for first, end in spans]
    foils = list(range(5, 5 + len(facts)))
    form = {"window": 2, **form}
    many = trace_alike(family_model, facts, noises=noises, foils=foils, **form)
    for fact, noise, foil, trace in zip(facts, noises, foils, many, strict=True):
        alone = trace_fact(family_model, fact, noise=noise, foil=foil, engine="fast", **form)
        assert (trace.fact, trace.tokens, trace.answer, trace.foil) == (fact, alone.tokens, alone.answer, alone.foil)
        assert (trace.clean, trace.corrupted) == pytest.approx((alone.clean, alone.corrupted), abs=1e-5)
        for site, values in alone.restored.items():
            torch.testing.assert_close(trace.restored[site], values, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert len({trace.corrupted for trace in many}) == len(many)


def test_what_is_not_alike_is_not_traced_together(tiny_gpt2: Model) -> None:
    facts = [published_fact(0), Fact(subject="France", template="People who live in {} speak", object="French")]
    noises = [torch.zeros(2, end - first, 64) for first, end in (subject_span(tiny_gpt2, fact) for fact in facts)]
    with pytest.raises(ValueError, match="as many tokens and their subjects begin at the same one"):
        trace_alike(tiny_gpt2, facts, noises=noises)


def test_a_sweep_together_gives_what_one_by_one_does(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a fact that the model does not know, and results from before."""
    facts = [*some_facts(), *LIKE, published_fact(0)]
    sizes: list[int] = []

    def watched(model: Model, asked: Sequence[Fact], **options: Any) -> list[CausalTrace]:
        sizes.append(len(asked))
        return trace_alike(model, asked, **options)

    monkeypatch.setattr("workbench.tracing.known_traces.trace_alike", watched)
    monkeypatch.setattr("workbench.tracing.known_traces.KnownFacts._answer", lambda *_: 1 if _[2] != 1 else None)
    options: dict[str, Any] = {"seed": 1, "samples": 2, "window": 3, "done": {2}, "keep_failures": True}
    alone = list(trace_facts(tiny_gpt2, facts, **options))
    assert not sizes
    calls: list[tuple[int, int]] = []
    together = list(trace_facts(tiny_gpt2, facts, together=3, progress=lambda *call: calls.append(call), **options))
    assert max(sizes) > 1 and calls == [(number, len(facts)) for number in range(2, len(facts) + 1)]
    assert [each.index for each in together] == [each.index for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.reason == other.reason
        if one.trace is not None and other.trace is not None:
            for site, values in other.trace.restored.items():
                torch.testing.assert_close(one.trace.restored[site], values, atol=1e-6, rtol=1e-5)
    assert sum(each.trace is not None for each in together) == len(facts) - 2


def test_facts_that_fail_together_are_traced_one_by_one(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> list[CausalTrace]:
        raise RuntimeError("no room")

    monkeypatch.setattr("workbench.tracing.known_traces.trace_alike", none)
    same = [published_fact(0)] * 3
    assert len(TraceSet.collect(trace_facts(tiny_gpt2, same, seed=0, samples=2, together=3)).traces) == 3


@pytest.mark.slow
def test_workers_see_an_edited_model(tiny_gpt2):
    # Nothing is loaded again: a fork sees the weights as they are.
    def clean(**options):
        return TraceSet.collect(quick_sweep(tiny_gpt2, **options)).traces[0].clean

    before, kept = clean(), tiny_gpt2.snapshot()
    try:
        with torch.no_grad():
            tiny_gpt2.weight(1).mul_(1.01)
        alone, shared = clean(), clean(workers=2)
    finally:
        tiny_gpt2.restore_(kept)
    assert shared == pytest.approx(alone, abs=1e-6)
    assert shared != pytest.approx(before, abs=1e-6)


def test_noise_depends_on_seed_and_index(tiny_gpt2):
    same = [published_fact(0)] * 2

    def corrupted(seed):
        results = trace_facts(tiny_gpt2, same, seed=seed, samples=2, sites=["mlp_out"])
        return [trace.corrupted for trace in TraceSet.collect(results).traces]

    assert corrupted(0) == corrupted(0)
    assert len({*corrupted(0), *corrupted(1)}) == 4


def test_the_default_noise_is_the_published_one(tiny_gpt2):
    std = 3 * embedding_noise_std(tiny_gpt2, some_facts())
    for result in quick_sweep(tiny_gpt2):
        if result.trace is None:
            continue
        first, end = subject_span(tiny_gpt2, result.fact)
        generator = fact_generator(1, result.index)
        noise = gaussian_noise(std, 2, end - first, tiny_gpt2.d_model, generator=generator)
        single = trace_fact(tiny_gpt2, result.fact, noise=noise, sites=["mlp_out"], window=3)
        assert torch.equal(single.restored["mlp_out"], result.trace.restored["mlp_out"])


@pytest.mark.parametrize("text", ["s0", "0", "us0", "u0", "m0"])
def test_zero_noise_gives_zero_effect(tiny_gpt2, text):
    result = next(quick_sweep(tiny_gpt2, noise_rule=NoiseRule.parse(text)))
    assert result.trace is not None
    assert result.trace.total_effect == pytest.approx(0, abs=1e-6)
    assert result.trace.indirect_effect("mlp_out").abs().max() < 1e-6


def test_fitted_noise_is_taken_as_it_is(tiny_gpt2):
    fitted = NoiseRule().fit(tiny_gpt2, some_facts())
    whole, one = next(quick_sweep(tiny_gpt2)), next(
        trace_facts(
            tiny_gpt2, some_facts()[:1], seed=1, samples=2, sites=["mlp_out"], window=3, noise_rule=fitted
        )
    )  # fmt: skip
    assert whole.trace is not None and one.trace is not None
    assert torch.equal(whole.trace.restored["mlp_out"], one.trace.restored["mlp_out"])


@pytest.mark.parametrize("text", ["u0.4", "m", "replace:s3", "replace:m"])
def test_every_rule_takes_the_answer_away(tiny_gpt2, text):
    found = TraceSet.collect(quick_sweep(tiny_gpt2, noise_rule=NoiseRule.parse(text)))
    assert sum(trace.total_effect for trace in found.traces) / len(found.traces) > 0.1


def test_options_reach_the_tracing_of_a_fact(tiny_gpt2):
    foils = [10, 11, 12, 13]
    results = trace_facts(
        tiny_gpt2, some_facts(), seed=0, samples=2, foils=foils, metric="logit_difference",
        sites=["resid_post"], span=2, severed="mlp_out", window=1,
    )  # fmt: skip
    traces = TraceSet.collect(results).traces
    expected = tuple(tiny_gpt2.token_strings(torch.tensor([10, 12, 13])))
    assert tuple(trace.foil for trace in traces) == expected
    assert {(t.metric, t.span, t.severed, t.window) for t in traces} == {("logit_difference", 2, "mlp_out", 1)}


def test_one_foil_a_fact(tiny_gpt2):
    with pytest.raises(ValueError, match="one foil a fact, got 1 for 4 facts"):
        trace_facts(tiny_gpt2, some_facts(), seed=0, foils=[3], metric="logit_difference")


def test_an_object_that_merges_with_the_prompt_is_not_known(tiny_gpt2):
    fact = Fact(subject="Spain", template="People in {} speak Span", object="ish", separator="")
    assert known_answer(tiny_gpt2, fact) is None
    spaced = replace(fact, template="People in {} speak ", object="Spanish", separator=None)
    assert known_answer(tiny_gpt2, spaced) == known_answer(tiny_gpt2, replace(spaced, template="People in {} speak"))


def test_no_facts(tiny_gpt2):
    with pytest.raises(ValueError, match="tracing needs at least one fact, got none"):
        trace_facts(tiny_gpt2, [], seed=0)


# Corruption by another subject


def language(subject: str, answer: str) -> Fact:
    return Fact(subject=subject, template="The language spoken in {} is", object=answer, relation="language")


GERMANY, ROMANIA = language("Germany", "German"), language("Romania", "Romanian")  # two tokens each
HUNGARY = language("Hungary", "Hungarian")  # four tokens
PAIRED = [GERMANY, UNKNOWN, HUNGARY, ROMANIA]


def test_partners_differ_in_subject_and_answer_alone(tiny_gpt2):
    pairs = pair_facts(tiny_gpt2, PAIRED, seed=0)
    assert [pair.partner for pair in pairs] == [ROMANIA, None, None, GERMANY]
    assert [pair.reason for pair in pairs] == ["", NOT_KNOWN, NO_PARTNER, ""]
    answers = [answer_token(tiny_gpt2, fact.prompt, fact.object) for fact in (ROMANIA, GERMANY)]
    assert [pairs[0].foil, pairs[3].foil] == answers


def test_partners_have_another_relation_template_or_answer_refused(tiny_gpt2):
    other_template = Fact(subject="Romania", template="People in {} speak", object="Romanian", relation="language")
    other_relation = Fact(subject="Romania", template=GERMANY.template, object="Romanian", relation="tongue")
    for other in (other_template, other_relation, GERMANY):
        assert pair_facts(tiny_gpt2, [GERMANY, other], seed=0)[0].reason == NO_PARTNER


def test_partners_are_drawn_by_the_seed(tiny_gpt2):
    facts = [language(*pair) for pair in (("Germany", "German"), ("Romania", "Romanian"), ("China", "Chinese"))]
    drawn = [pair_facts(tiny_gpt2, facts, seed=seed)[0].partner for seed in range(6)]
    assert {fact.subject for fact in drawn if fact is not None} == {"Romania", "China"}
    assert drawn == [pair_facts(tiny_gpt2, facts, seed=seed)[0].partner for seed in range(6)]


@pytest.mark.parametrize("metric", ["probability", "logit_difference", "kl"])
def test_the_corrupted_run_is_the_partners_prompt(tiny_gpt2, metric):
    results = list(trace_pairs(tiny_gpt2, PAIRED, seed=0, metric=metric, sites=["resid_post"]))
    assert [result.reason for result in results] == ["", NOT_KNOWN, NO_PARTNER, ""]
    trace = results[0].trace
    assert trace is not None
    own, partners = (
        tiny_gpt2.logits(tiny_gpt2.tokenize([fact.prompt]))[0, -1].log_softmax(dim=-1) for fact in (GERMANY, ROMANIA)
    )
    answer, foil = own.argmax(), partners.argmax()
    expected = {
        "probability": (own[answer].exp(), partners[answer].exp()),
        "logit_difference": (own[answer] - own[foil], partners[answer] - partners[foil]),
        "kl": (0.0, -(own.exp() * (own - partners)).sum()),
    }[metric]
    assert (trace.clean, trace.corrupted) == pytest.approx(tuple(map(float, expected)), abs=1e-4)
    assert trace.restored["resid_post"][-1, -1] == pytest.approx(trace.clean, abs=1e-4)
    if metric == "logit_difference":
        assert trace.clean > 0 > trace.corrupted  # each prompt's answer is the other's foil


def test_a_fact_in_its_own_place_changes_nothing(tiny_gpt2):
    noise = subject_embeddings(tiny_gpt2, GERMANY)
    trace = trace_fact(tiny_gpt2, GERMANY, noise=noise, replace=True, sites=["mlp_out"])
    assert trace.total_effect == pytest.approx(0, abs=1e-6)
    assert trace.indirect_effect("mlp_out").abs().max() < 1e-6


def test_resumed_pairs_equal_uninterrupted_ones(tiny_gpt2):
    options = {"seed": 3, "sites": ["mlp_out"], "window": 3}
    whole = list(trace_pairs(tiny_gpt2, PAIRED, **options))
    (resumed,) = trace_pairs(tiny_gpt2, PAIRED, done={0, 1, 2}, **options)
    assert resumed.index == 3 and resumed.trace is not None and whole[3].trace is not None
    assert torch.equal(resumed.trace.restored["mlp_out"], whole[3].trace.restored["mlp_out"])
    with pytest.raises(ValueError, match="at least one fact"):
        trace_pairs(tiny_gpt2, [], seed=0)
