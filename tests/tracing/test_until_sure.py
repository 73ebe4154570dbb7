"""Samples are added until the lead is known, and are those that a fixed number of them has."""

from dataclasses import replace

import pytest
import torch
from known_traces import FACT, make_trace

from workbench.models.model import Model
from workbench.tracing.noise import NoiseRule
from workbench.tracing.sweep import trace_facts
from workbench.tracing.trace import CausalTrace
from workbench.tracing.until_sure import FEWEST, MOST, reached_most, trace_sampled


def drawn(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 16, generator=torch.Generator().manual_seed(0))


def noisy(noise: torch.Tensor) -> CausalTrace:
    """The last layer leads by what the samples' noise says on average."""
    trace = make_trace(samples=len(noise))
    restored = {site: each.clone() for site, each in trace.restored.items()}
    restored["mlp_out"][:, -1] = 1.0 + 0.1 * noise[:, 0, 0].mean()
    return replace(trace, restored=restored)


def test_a_lead_without_noise_needs_the_fewest() -> None:
    assert trace_sampled("auto", drawn, lambda noise: make_trace(samples=len(noise))).samples == FEWEST


def test_samples_are_added_until_the_interval_is_narrow_and_no_more_than_the_most() -> None:
    counts = [trace_sampled("auto", drawn, noisy, tolerance=width).samples for width in (0.2, 0.05, 1e-9)]
    assert FEWEST <= counts[0] < counts[1] < counts[2] == MOST
    assert [reached_most(make_trace(samples=count)) for count in counts] == [False, False, True]
    whole = noisy(drawn(counts[1]))
    found = trace_sampled("auto", drawn, noisy, tolerance=0.05)
    assert torch.allclose(found.restored["mlp_out"], whole.restored["mlp_out"], atol=1e-6)


def test_the_most_are_taken_only_where_fewer_were_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def narrow_at_the_most(blocks: list[CausalTrace]) -> float:
        looked.append(sum(one.samples for one in blocks))
        return 0.0 if looked[-1] == MOST else 1.0

    monkeypatch.setattr("workbench.tracing.until_sure._half_width", narrow_at_the_most)
    assert reached_most(trace_sampled("auto", drawn, noisy))
    assert looked[-1] < MOST  # so that who has the most was not sure


def test_a_generator_that_draws_otherwise_of_more_is_followed() -> None:
    def otherwise(count: int) -> torch.Tensor:
        return drawn(count) + count

    found = trace_sampled("auto", otherwise, noisy, tolerance=0.2)
    whole = noisy(otherwise(found.samples))
    assert torch.allclose(found.restored["mlp_out"], whole.restored["mlp_out"], atol=1e-5)


@pytest.mark.parametrize("samples", [0, "many"])
def test_other_numbers_are_refused(tiny_gpt2: Model, samples: int | str) -> None:
    with pytest.raises(ValueError, match="at least 1, or 'auto'"):
        next(trace_facts(tiny_gpt2, [FACT], seed=0, samples=samples))


def test_a_fact_has_the_trace_of_the_number_that_it_needed(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tracing.known_traces.known_answers", lambda _, facts: [0] * len(facts))
    form = {"seed": 3, "noise_rule": NoiseRule.parse("0.5"), "window": 3, "sites": ("mlp_out",)}
    (found,) = trace_facts(tiny_gpt2, [FACT], samples="auto", positions="last_subject", **form)
    assert found.trace is not None and found.trace.samples >= FEWEST
    (fixed,) = trace_facts(tiny_gpt2, [FACT], samples=found.trace.samples, positions="last_subject", **form)
    assert fixed.trace is not None
    assert torch.allclose(found.trace.restored["mlp_out"], fixed.trace.restored["mlp_out"], atol=1e-6)
    assert found.trace.corrupted == pytest.approx(fixed.trace.corrupted, abs=1e-6)
