"""What is said of the facts traced: of how many samples, and what the effect at their last subject token is part of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from known_traces import make_trace

from workbench.models.model import SITES, Model
from workbench.report.study import study_headline
from workbench.runs.run import Run
from workbench.studies.located import Located, show_location
from workbench.tracing.averages import average_effects, mediating_layer
from workbench.tracing.noise import Noise, NoiseRule
from workbench.tracing.sweep import TraceSet
from workbench.tracing.trace import CausalTrace
from workbench.tracing.until_sure import MOST

pytestmark = pytest.mark.usefixtures("no_figures")


def shown(model: Model, folder: Path, *traces: CausalTrace, samples: Any = 10) -> Run:
    """The run that shows these traces."""
    cases = dict(enumerate(traces))
    averages = tuple(average_effects(traces, site) for site in SITES)
    located = Located(
        found=TraceSet(traces=traces, skipped=()),
        traces=cases,
        averages=averages,
        layer=mediating_layer(traces) if averages[0].counts["last_subject"] else None,
        facts={case: trace.fact for case, trace in cases.items()},
        noise=Noise(rule=NoiseRule(), size=0.1, d_model=model.d_model),
        samples=samples,
        seed=0,
        form={},
    )
    run = Run.create(folder, {})
    show_location(run, model, located)
    return run


def test_the_share_regained_is_of_the_facts_whose_effect_is_averaged(tiny_gpt2: Model, tmp_path: Path) -> None:
    whole = make_trace()  # 0.8 in total; at most 0.15 + 0.035 of it by the MLPs at the last subject token
    at_end = make_trace(subject=(4, 7), clean=0.2)  # 0.1 in total, and no last subject token
    run = shown(tiny_gpt2, tmp_path / "run", whole, at_end)
    found = run.read_json("results.json")
    assert found["total_effect"] == pytest.approx(0.45)
    assert found["peak_total_effect"] == pytest.approx(0.8)
    assert found["peak_effect"] == pytest.approx(0.185)
    assert "it regains 23 % of what the noise takes" in study_headline(run)


def test_facts_not_traced_at_the_last_subject_token_count_for_no_share(tiny_gpt2: Model, tmp_path: Path) -> None:
    rows = {site: torch.full((1, 8), 0.3) for site in SITES}
    elsewhere = make_trace(positions=(5,), clean=0.2, restored=rows)
    one = shown(tiny_gpt2, tmp_path / "one", make_trace(), elsewhere)
    none = shown(tiny_gpt2, tmp_path / "none", elsewhere)
    assert one.read_json("results.json")["peak_total_effect"] == pytest.approx(0.8)
    assert none.read_json("results.json")["peak_total_effect"] is None


def test_facts_that_reach_the_most_samples_are_told_apart(tiny_gpt2: Model, tmp_path: Path) -> None:
    traces = [make_trace(samples=count) for count in (6, MOST, 12, MOST)]
    run = shown(tiny_gpt2, tmp_path / "run", *traces, samples="auto")
    caption = run.tables()["average_effects"].caption
    assert "nominal 95 % interval" in caption and "6 to 60, 34.5 on average" in caption
    assert "2 of the facts reached 60 samples without it" in caption
    assert run.read_json("results.json")["samples_used"] == {"fewest": 6, "most": 60, "mean": 34.5, "capped": 2}
    few = shown(tiny_gpt2, tmp_path / "few", make_trace(samples=6), samples="auto")
    assert "none of the facts reached 60" in few.tables()["average_effects"].caption
