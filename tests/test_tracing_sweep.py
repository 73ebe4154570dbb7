"""Tracing many facts: what is skipped, stopping and resuming, the noise of each fact."""

import json
from pathlib import Path

import pytest
import torch

from workbench.facts import Fact
from workbench.tracing import TraceSet, knows, trace_facts

REFERENCE = json.loads((Path(__file__).parent / "golden" / "rome.json").read_text())
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
    assert [knows(tiny_gpt2, fact) for fact in some_facts()] == [True, False, True, True]
    calls = []
    results = list(quick_sweep(tiny_gpt2, progress=lambda finished, total: calls.append((finished, total))))
    assert [result.index for result in results] == [0, 1, 2, 3]
    found = TraceSet.collect(results)
    assert found.skipped == (UNKNOWN,)
    assert [trace.fact.subject for trace in found.traces] == ["Portugal", "Iceland", "Argentina"]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


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


def test_noise_depends_on_seed_and_index(tiny_gpt2):
    same = [published_fact(0)] * 2

    def corrupted(seed):
        results = trace_facts(tiny_gpt2, same, seed=seed, samples=2, sites=["mlp_out"])
        return [trace.corrupted for trace in TraceSet.collect(results).traces]

    assert corrupted(0) == corrupted(0)
    assert len({*corrupted(0), *corrupted(1)}) == 4


def test_noise_std_overrides_the_multiplier(tiny_gpt2):
    for options in ({"noise_std": 0.0}, {"noise_multiplier": 0.0}):
        result = next(quick_sweep(tiny_gpt2, **options))
        assert result.trace is not None
        assert result.trace.total_effect == pytest.approx(0, abs=1e-6)


def test_an_object_that_merges_with_the_prompt_is_not_known(tiny_gpt2):
    # The prompt's own last token is a space, which is part of the object's token " Spanish" in the whole text.
    fact = Fact(subject="Spain", template="People in {} speak ", object="Spanish")
    assert not knows(tiny_gpt2, fact)


def test_no_facts(tiny_gpt2):
    with pytest.raises(ValueError, match="tracing needs at least one fact, got none"):
        trace_facts(tiny_gpt2, [], seed=0)
