"""The steps of a study: what is traced after an edit is traced as before, and a record that fails is kept as failed."""

import math
from dataclasses import replace
from pathlib import Path

from workbench.edits.edit import Edit, provenance
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.runs.run import Run
from workbench.studies.edit import edit_records
from workbench.studies.locate import locate, trace_edited, true_facts
from workbench.tracing.trace import CausalTrace


def nothing(model: Model, requests: list) -> Edit:
    """An edit that changes nothing, so that a trace after it is the trace before it."""
    return WeightEdit(updates=(), method="none", requests=tuple(requests), provenance=provenance(model, {}))


def test_a_trace_after_an_edit_has_the_noise_of_the_one_before(tiny_gpt2: Model, records: Path, tmp_path: Path) -> None:
    first, *others = read_records(records)
    unknown = replace(first, case_id=50, request=replace(first.request, subject="Peru", target_true=None))
    same = replace(others[0], case_id=51)
    every = [unknown, first, same, *others]  # one states no fact, two state the same
    run = Run.create(tmp_path / "run", {})
    facts = true_facts(every)
    located = locate(run, tiny_gpt2, facts, limit=4, seed=3, window=2, samples=2, workers=1, span=2)
    edited = [every[0], *every[2:4]]  # fewer than were traced, in other places
    list(edit_records(run, tiny_gpt2, nothing, edited))
    trace_edited(run, tiny_gpt2, edited, located)
    after = sorted((run.folder / "traces_after").glob("*.safetensors"))
    assert [path.stem for path in after] == ["00001", "00002"]
    for path in after:
        one, other = CausalTrace.load(run.folder / "traces" / path.name), CausalTrace.load(path)
        assert one.fact == other.fact and one.span == other.span == 2
        assert math.isclose(one.corrupted, other.corrupted, rel_tol=1e-5)
        assert math.isclose(one.total_effect, other.total_effect, rel_tol=1e-5)
