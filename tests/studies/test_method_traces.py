"""Ways of tracing are compared on the same facts, which are told apart by their `case_id`; one that fails is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench.machine.failures import lines
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.runs.run import Run
from workbench.studies.method_traces import choose_facts, results, trace, traces
from workbench.studies.tracing_methods import TracingMethod, draw_partners
from workbench.studies.tracing_report import method_table
from workbench.tracing.noise import subject_span

PORTUGAL, JAPAN, EGYPT = (
    Fact(subject=subject, template="The capital of {} is", object=capital)
    for subject, capital in (("Portugal", "Lisbon"), ("Japan", "Tokyo"), ("Egypt", "Cairo"))
)
LONG = replace(JAPAN, template="Paris " * 300 + "{} is")
NOISE = TracingMethod(name="Noise", window=2, samples=2, positions="last_subject")
ESTIMATE = replace(NOISE, name="Estimate", estimated=True)
SUBJECT = replace(NOISE, name="Other subject", noise=None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"seed": 0})


@pytest.mark.parametrize("method", [NOISE, ESTIMATE, SUBJECT], ids=lambda method: method.name)
def test_a_fact_that_fails_is_kept_and_the_others_are_traced(tiny_gpt2: Model, run: Run, method: TracingMethod) -> None:
    facts = {30: PORTUGAL, 20: LONG, 10: JAPAN}
    trace(run, tiny_gpt2, method, facts, [EGYPT])
    assert [(row["case_id"], row["what"]) for row in run.rows("failures")] == [(20, "fact")]
    assert "1 of 3 facts failed" in lines(run.rows("failures"))[0]
    assert [row["case_id"] for row in run.rows("traced")] == [30, 10]
    assert method is SUBJECT or [one.fact for one in traces(run, method, facts).values()] == [PORTUGAL, JAPAN]
    trace(run, tiny_gpt2, method, facts, [EGYPT])
    assert len(run.rows("failures")) == 1 and len(run.rows("traced")) == 2, "nothing is done again unless asked"
    run.retry()
    trace(run, tiny_gpt2, method, facts | {20: EGYPT}, [EGYPT])
    assert [row["case_id"] for row in run.rows("traced")] == [30, 10, 20]


def test_all_ways_are_read_on_the_facts_that_failed_in_none(tiny_gpt2: Model, run: Run) -> None:
    facts = {3: PORTUGAL, 1: JAPAN, 2: EGYPT}
    trace(run, tiny_gpt2, NOISE, facts)
    run.fail(1, "no way", of=3, what="fact")
    trace(run, tiny_gpt2, ESTIMATE, facts)
    assert [row["case_id"] for row in run.rows("traced") if row["method"] == ESTIMATE.key] == [3, 2]
    found = results(run, [NOISE, ESTIMATE, SUBJECT], facts, planted=None)
    assert {name: one.facts for name, one in found.items()} == {"Noise": 2, "Estimate": 2}


def test_what_was_traced_is_found_by_its_case_in_any_order(tiny_gpt2: Model, run: Run) -> None:
    trace(run, tiny_gpt2, NOISE, {3: PORTUGAL, 1: JAPAN, 2: EGYPT}, only=[3, 1])
    found = traces(run, NOISE, {2: EGYPT, 1: JAPAN, 3: PORTUGAL})
    assert {case: one.fact for case, one in found.items()} == {1: JAPAN, 3: PORTUGAL}


def test_prompts_that_end_with_their_subject_are_left_out(tiny_gpt2: Model, tmp_path: Path) -> None:
    ending = replace(JAPAN, template="The capital of the country of {}")
    file = tmp_path / "facts.json"
    known = [
        {"known_id": case, "relation_id": "P36", "attribute": fact.object, "subject": fact.subject}
        | {"prompt": fact.prompt, "template": fact.template}
        for case, fact in ((4, ending), (5, EGYPT))
    ]
    file.write_text(json.dumps(known), encoding="utf-8")
    with pytest.warns(UserWarning, match="1 prompts end with their subject"):
        facts, _ = choose_facts(tiny_gpt2, str(file), 1, 0)
    assert [fact.subject for fact in facts.values()] == ["Egypt"]


def test_noise_that_takes_nothing_leaves_no_share(tiny_gpt2: Model, run: Run) -> None:
    nothing = replace(NOISE, noise="s0")
    trace(run, tiny_gpt2, nothing, {3: PORTUGAL})
    found = results(run, [nothing], {3: PORTUGAL}, planted=None)
    assert math.isnan(found["Noise"].share) and method_table(found)["Of total (%)"].tolist() == ["-"]


def test_the_noise_is_that_of_the_facts_place(tiny_gpt2: Model, run: Run) -> None:
    """A trace is the same whether or not the facts before it were traced in this go."""
    facts = {3: PORTUGAL, 1: JAPAN, 2: EGYPT}
    trace(run, tiny_gpt2, NOISE, facts, only=[3])
    trace(run, tiny_gpt2, NOISE, facts)
    whole = NOISE.trace(tiny_gpt2, list(facts.values()), partners=(), seed=0, done=())
    for one, other in zip(traces(run, NOISE, facts).values(), whole, strict=True):
        assert other.trace is not None and torch.equal(one.restored["mlp_out"], other.trace.restored["mlp_out"])


def test_what_the_model_cannot_take_has_no_partner_and_is_none(tiny_gpt2: Model) -> None:
    with pytest.raises(ValueError, match="a text has"):
        subject_span(tiny_gpt2, LONG)
    assert draw_partners(tiny_gpt2, [LONG], [replace(LONG, subject="Egypt", object="Cairo")], most=5, seed=0) == []
