"""The steps of a study: what is traced after an edit is traced as before, and a record that fails is kept as failed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from workbench.edits.edit import Edit, provenance
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.reading import read_records
from workbench.report.study import study_sections
from workbench.runs.artifacts import SavedFigure
from workbench.runs.run import Run
from workbench.studies import attributed, measure
from workbench.studies import edit as editing
from workbench.studies import locate as locating
from workbench.studies.attributed import show_neurons
from workbench.studies.edit import edit_records, follow_answers
from workbench.studies.locate import locate, trace_edited, trace_path, true_facts
from workbench.studies.measure import score_edits
from workbench.tracing.lens import Lens, logit_lens
from workbench.tracing.trace import CausalTrace

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def no_location(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was located is not shown: its figures take most of the time."""
    monkeypatch.setattr(locating, "show_location", lambda *_: None)


def nothing(model: Model, requests: list) -> Edit:
    """An edit that changes nothing, so that a trace after it is the trace before it."""
    return WeightEdit(updates=(), method="none", requests=tuple(requests), provenance=provenance(model, {}))


@pytest.mark.slow
@pytest.mark.usefixtures("no_location")
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
    assert [path.stem for path in after] == ["00001", "00051"]
    for path in after:
        one, other = CausalTrace.load(run.folder / "traces" / path.name), CausalTrace.load(path)
        assert one.fact == other.fact and one.span == other.span == 2
        assert math.isclose(one.corrupted, other.corrupted, rel_tol=1e-5)
        assert math.isclose(one.total_effect, other.total_effect, rel_tol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_location")
def test_traces_are_paired_with_records_by_case_id(tiny_gpt2: Model, records: Path, tmp_path: Path) -> None:
    """Also where the records come in another order, and fewer, than when they were traced."""
    run = Run.create(tmp_path / "run", {})
    form: dict[str, Any] = {"seed": 3, "window": 2, "samples": 2, "workers": 1}
    every = [replace(record, case_id=40 - record.case_id) for record in read_records(records)]
    first = locate(run, tiny_gpt2, true_facts(every), limit=2, **form)
    assert list(first.traces) == [40, 39]
    other = [every[1], every[2], replace(every[0], case_id=70)]  # one traced record is gone, the other elsewhere
    again = locate(run, tiny_gpt2, true_facts(other), limit=3, **form)
    assert list(again.traces) == [39, 38, 70]
    for record in other:
        assert again.traces[record.case_id].fact == record.request.fact
    assert [row["case_id"] for row in run.rows("traces")] == [40, 39, 38, 70], "what was traced is not traced again"
    list(edit_records(run, tiny_gpt2, nothing, other))
    trace_edited(run, tiny_gpt2, other, again)
    for record in other:
        after = CausalTrace.load(trace_path(run, record.case_id, after=True))
        assert after.fact == record.request.fact
        # The noise is that of the trace before, by the index that it then had.
        assert math.isclose(after.corrupted, again.traces[record.case_id].corrupted, rel_tol=1e-5)


@pytest.mark.slow
def test_texts_are_sampled_of_the_first_records_also_when_one_of_them_fails(
    tiny_gpt2: Model, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chosen = Run.create(tmp_path / "run", {}), read_records(records)
    run.fail(chosen[0].case_id, "no way", of=3)
    monkeypatch.setattr(measure, "FLUENCY_TOKENS", 14)
    score_edits(run, tiny_gpt2, edit_records(run, tiny_gpt2, nothing, chosen), records=chosen, seed=0, fluency=2)
    assert {row["case_id"]: bool(row["post"]["texts"]) for row in run.rows("evaluations")} == {1: True, 2: False}


@pytest.mark.usefixtures("no_location")
def test_the_neurons_that_edits_name_are_shown_beside_the_traced_layers(
    tiny_gpt2: Model, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = read_records(records)
    run = Run.create(tmp_path / "run", {})
    located = locate(run, tiny_gpt2, true_facts(every), limit=2, seed=3, window=2, samples=2, workers=1)
    drawn: list[dict[str, Any]] = []

    def draw(kept: np.ndarray, effect: np.ndarray, half_width: np.ndarray, **options: Any) -> Figure:
        drawn.append({"kept": kept.tolist(), "effect": effect, **options})
        return Figure()

    monkeypatch.setattr(attributed, "neuron_figure", draw)

    def names(*neurons: list[tuple[int, int]]) -> Edit:
        made = provenance(tiny_gpt2, {}, optimisation=[{"neurons": each} for each in neurons])
        return WeightEdit(updates=(), method="KN", requests=(), provenance=made)

    show_neurons(run, tiny_gpt2, located, [(every[0], nothing(tiny_gpt2, []))])
    show_neurons(run, tiny_gpt2, replace(located, layer=None), [(every[0], names([(0, 1)]))])
    assert drawn == [] and "neurons" not in run.figures(), "nothing is named, or nothing was located"
    show_neurons(
        run, tiny_gpt2, located, [(every[0], names([(5, 7), (1, 3), (5, 8)])), (every[1], names([(0, 2)], []))]
    )
    (one,) = drawn
    assert one["kept"] == [[0, 1, 0, 0, 0, 2], [1, 0, 0, 0, 0, 0], [0] * 6]
    assert (one["effect"] == located.averages[1].row("last_subject").numpy()).all()
    assert one["located"] == located.layer and one["window"] == 2
    shown = {section.title: section.elements for section in study_sections(run)}["Where facts are recalled"]
    (figure,) = (each for each in shown if isinstance(each, SavedFigure))
    assert figure.caption.startswith("Knowledge neurons kept for 3 edits, by layer, beside")


def test_files_that_share_case_ids_are_all_located_in(
    tiny_gpt2: Model, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = read_records(records)[:2]
    asked = [replace(one, request=replace(one.request, template="Where is {}? Answer:")) for one in stated]
    given: list[Any] = []
    monkeypatch.setattr(locating, "find_layer", lambda model, facts, **options: given.extend(facts) or 2)
    run = Run.create(tmp_path / "run", {})
    assert locating.settled_layer(run, tiny_gpt2, [*stated, *asked], layer=None, seed=0) == 2
    assert given == [record.request.fact for record in (*stated, *asked)]


def test_the_average_path_is_over_prompts_that_go_on_after_their_subject(
    tiny_gpt2: Model, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Lens, Lens]] = []
    monkeypatch.setattr(editing, "lens_figure", lambda *lenses: drawn.append(lenses) or Figure())
    first, *others = read_records(records)
    ends = replace(first, request=replace(first.request, template="The capital of {}"))
    for every in ([ends, *others], [ends]):
        run = Run.create(tmp_path / f"run{len(every)}", {})
        follow_answers(run, tiny_gpt2, [(record, nothing(tiny_gpt2, [record.request])) for record in every])
    (average, _), (lens, _), (alone, after) = drawn
    assert average.prompt == f"Average over {len(others)} prompts"
    assert lens.prompt == alone.prompt == after.prompt == ends.request.prompt
    read = [logit_lens(tiny_gpt2, one.request, [one.request.fact.object, one.request.target_new]) for one in others]
    assert np.allclose(average.probability, np.mean([each.probability.numpy() for each in read], axis=0), atol=1e-6)
