"""Editors side by side, stacked and timed: the parts, and the three analyses on the golden model."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command import TINY, Analyse
from conftest import load_hf
from known_evaluations import evaluation
from known_records import capital
from known_scores import nearly

from workbench.atlas.world import World
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.figures.editors import Panel, editor_figure, stack_figure
from workbench.machine.intervals import Estimate, bootstrap_mean
from workbench.measuring.evaluate import score_state
from workbench.measuring.metrics import harmonic_mean
from workbench.measuring.perplexity import perplexity
from workbench.measuring.summaries import Summary
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Probe
from workbench.records.reading import read_records
from workbench.runs.run import Run
from workbench.studies import editor_report
from workbench.studies.best_in_bold import best_cells, save_table_with_best
from workbench.studies.stacked_edits import (
    change_by_layer,
    distinct,
    held_out_statements,
    plan_stacks,
    score_stack,
    untouched,
)
from workbench.tables.published import published_table
from workbench.tables.table import Column, Row, Table

# Perplexity ------------------------------------------------------------------------------------------


def test_perplexity_is_hugging_faces_loss(tiny_gpt2: Model) -> None:
    text = "The capital of Portugal is Lisbon."
    ids = tiny_gpt2.tokenize([text]).ids
    with torch.no_grad():
        loss = load_hf(TINY)(ids, labels=ids).loss
    assert perplexity(tiny_gpt2, [text]) == pytest.approx(loss.exp().item(), rel=1e-5)


def test_perplexity_weighs_tokens_alike_however_they_are_batched(tiny_gpt2: Model) -> None:
    texts = [
        "The capital of Portugal is Lisbon.",
        "Lisbon",
        "People in Japan speak Japanese, and people in Egypt Arabic.",
    ]
    together = perplexity(tiny_gpt2, texts)
    assert perplexity(tiny_gpt2, texts, batch_size=1) == pytest.approx(together, rel=1e-5)
    counts = [tiny_gpt2.tokenize([text]).ids.shape[1] - 1 for text in texts]
    sums = [n * math.log(perplexity(tiny_gpt2, [text])) for n, text in zip(counts, texts, strict=True) if n]
    assert math.log(together) == pytest.approx(sum(sums) / sum(counts), rel=1e-5)


@pytest.mark.parametrize("texts", ["The capital of Portugal is Lisbon.", [], ["a\ud800b"]])
def test_what_is_no_list_of_texts_has_no_perplexity(tiny_gpt2: Model, texts: Any) -> None:
    with pytest.raises(ValueError, match=r"expected (a list of one or more texts|texts without lone surrogates)"):
        perplexity(tiny_gpt2, texts)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(tiny_gpt2: Model) -> None:
    before = tiny_gpt2.snapshot()
    try:
        with torch.no_grad():
            for name, parameter in tiny_gpt2.parameters.items():
                if "ln_f" in name:
                    parameter.zero_()
        vocabulary = tiny_gpt2.logits(tiny_gpt2.tokenize(["a"])).shape[-1]
        assert perplexity(tiny_gpt2, ["The capital of Portugal is Lisbon."]) == pytest.approx(vocabulary, rel=1e-5)
    finally:
        tiny_gpt2.restore_(before)
    with pytest.raises(ValueError, match="nothing to predict in 1 texts"):
        perplexity(tiny_gpt2, ["a"])


# Published results, and the best in bold ---------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("rome_table_4", 14), ("memit_table_2", 5)])
def test_published_scores_are_whole(name: str, rows: int) -> None:
    table = published_table(name)
    assert len(table.rows) == rows
    for row in table.rows:
        parts = torch.tensor([row.estimates[score].value for score in ("ES", "PS", "NS")]).double().numpy()
        assert harmonic_mean(parts) == pytest.approx(row.estimates["S"].value, abs=0.0011)  # printed to a tenth
    assert "not measured here" in table.caption and "arXiv:22" in table.caption


def test_published_scores_are_shown_as_printed() -> None:
    frame = published_table("rome_table_4").frame().set_index("Editor")
    assert frame.loc["ROME, GPT2-XL", "PS"] == "96.4 ± 0.3"
    assert frame.loc["ROME, GPT2-XL", "S"] == "89.2"
    assert frame.loc["FT, GPT-J", "NM"] == "-50.7 ± 1.3"
    with pytest.raises(ValueError, match="no published table 'rome'; there are memit_table_2, rome_table_4"):
        published_table("rome")


def estimate(value: float, low: float = math.nan, high: float = math.nan) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=10)


def two_columns() -> Table:
    columns = (
        Column(label="S", metric="S", protocol="p"),
        Column(label="Seconds", metric="seconds", protocol="p", unit="s", scale=1.0),
    )
    rows = (
        Row(label="Unedited", estimates={"S": estimate(0.99)}, records=10),
        Row(label="A_1", estimates={"S": estimate(0.8, 0.7, 0.85), "seconds": estimate(2.0)}, records=10),
        Row(label="B", estimates={"S": estimate(0.9, 0.85, 0.95), "seconds": estimate(1.0)}, records=10),
        Row(label="C", estimates={"S": estimate(0.88, 0.8, 0.9), "seconds": estimate(math.nan)}, records=10),
    )
    return Table(caption="What.", columns=columns, rows=rows, interval="none")


def test_the_best_and_those_whose_interval_reaches_it() -> None:
    better: Any = {"S": "higher", "seconds": "lower", "absent": "lower"}
    found = best_cells(two_columns(), better, among=["A_1", "B", "C"])
    assert found == {("B", "S"), ("C", "S"), ("B", "seconds")}
    assert ("Unedited", "S") in best_cells(two_columns(), better, among=["Unedited", "B"])


def test_the_best_is_bold_where_there_is_bold(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    markdown = save_table_with_best(run, "scores", two_columns(), {"S": "higher"}, among=["A_1", "B", "C"])
    assert "| B | **90.0** (85.0-95.0) | 1.0 | 10 |" in markdown and "| A_1 | 80.0 (70.0-85.0) |" in markdown
    assert (run.folder / "tables" / "scores.md").read_text() == markdown
    latex = (run.folder / "tables" / "scores.tex").read_text()
    assert r"C & \textbf{88.0} (80.0-90.0) & - & 10 \\" in latex and r"A\_1 &" in latex and "**" not in latex
    saved = run.tables()["scores"]
    assert saved.rows[2] == ("B", "90.0 (85.0-95.0)", "1.0", "10") and saved.caption.endswith("interval reaches it.")
    assert saved.best == ((2, 1), (3, 1))  # B and C, for the report
    assert "*" not in (run.folder / "tables" / "scores.csv").read_text()


# Stacks ------------------------------------------------------------------------------------------------


def test_of_one_subject_and_relation_the_first_record_is_kept() -> None:
    records = [
        capital(1, "Japan", "Old", "Rome"),
        capital(2, "Japan", "Old", "Paris"),
        capital(3, "Egypt", "Old", "Rome"),
    ]
    assert [record.case_id for record in distinct(records)] == [1, 3]
    other = replace(records[1], request=replace(records[1].request, relation="currency"))
    assert len(distinct([*records, other])) == 3


def test_prompts_whose_answer_other_edits_change_are_left_out() -> None:
    record = capital(
        1,
        "Japan",
        "Old",
        "Rome",
        neighborhood_prompts=("The capital of Oman is", "In Romania, the capital is", "The capital of Niger is"),
        portability_prompts=(
            Probe(prompt="What they speak in Japan's capital is", targets_new=("Italian",)),
            Probe(prompt="The river of Japan's capital is", targets_new=("Tiber",)),
        ),
    )
    speech = EditRequest(template="{} speaks", subject="Rome", target_new="Dutch", target_true="Italian", relation="s")
    requests = [
        record.request,
        capital(2, "Oman", "Old", "Oslo").request,
        capital(3, "Nigeria", "Old", "Oslo").request,
        speech,
    ]
    (left,) = untouched([record], requests)
    assert left.neighborhood_prompts == ("In Romania, the capital is", "The capital of Niger is")
    assert [probe.targets_new for probe in left.portability_prompts] == [("Tiber",)]
    elsewhere = replace(requests[1], relation="currency")
    assert len(untouched([record], [record.request, elsewhere])[0].neighborhood_prompts) == 3
    own = replace(record, neighborhood_prompts=("Japan's largest city is",))  # which no other request changes
    assert untouched([own], requests)[0].neighborhood_prompts == own.neighborhood_prompts


def test_every_number_of_edits_scores_the_same_records() -> None:
    records = [
        capital(i, f"Land{i}", "Old", "Rome", neighborhood_prompts=(f"The capital of Isle{i} is",)) for i in range(12)
    ]
    plan = plan_stacks(records, [1, 4, 10, 99], sample=6, seed=0)
    sample = {record.case_id for record in plan.sample}
    assert len(sample) == 6
    assert list(plan.stacks) == [*((1, group) for group in range(6)), (4, 0), (4, 1), (10, 0), (12, 0)]
    for (number, group), stacked in plan.stacks.items():
        cases = {record.case_id for record in stacked}
        assert len(cases) == len(stacked) == number
        assert {record.case_id for record in plan.scored(number, group)} <= cases
    for number in (1, 4, 10, 12):
        scored = [record.case_id for place in plan.stacks if place[0] == number for record in plan.scored(*place)]
        assert sorted(scored) == sorted(sample)
    assert plan_stacks(records, [4], sample=6, seed=0).stacks == plan_stacks(records, [4], sample=6, seed=0).stacks
    with pytest.raises(ValueError, match="needs records and positive numbers"):
        plan_stacks(records, [0], sample=6, seed=0)


def test_the_sample_keeps_neighbors() -> None:
    records = [
        capital(i, f"Land{i}", "Old", "Rome", neighborhood_prompts=(f"The capital of Land{i + 1} is",))
        for i in range(9)
    ]
    plan = plan_stacks(records, [9], sample=5, seed=0)
    assert [record.case_id for record in plan.sample] == [8]  # its neighbor alone is edited by no one


def test_stacked_scores_are_the_single_ones(tiny_gpt2: Model, records: Path) -> None:
    some = read_records(records)
    found = score_stack(tiny_gpt2, some, sampled={0, 1}, seed=3)
    for record, one in zip(some, found, strict=True):
        alone = score_state(tiny_gpt2, record, generate=False, fluency_tokens=None)
        assert nearly(one.prompts, alone.prompts) and not nearly(one.prompts, found[record.case_id - 1].prompts)
    assert [len(one.texts) for one in found] == [1, 1, 0]
    assert found[0].texts[0].startswith(some[0].generation_prompts[0])
    (alone,) = score_stack(tiny_gpt2, some[1:2], sampled={1}, seed=3)
    assert alone.texts == found[1].texts  # whatever others it is sampled with
    assert not math.isnan(found[1].fluency) and math.isnan(found[2].fluency)


def test_change_by_layer_is_that_of_all_edits_together(tiny_gpt2: Model) -> None:
    def edit(layer: int, size: float) -> WeightEdit:
        generator = torch.Generator().manual_seed(layer)
        left = size * torch.randn(tiny_gpt2.d_mlp, 1, generator=generator)
        right = torch.randn(1, tiny_gpt2.d_model, generator=generator)
        update = WeightUpdate(layer=layer, left=left, right=right)
        return WeightEdit(updates=(update,), method="test", requests=(), provenance={})

    one, twice, other = edit(1, 0.01), edit(1, 0.02), edit(3, 0.01)
    with one.applied(tiny_gpt2), twice.applied(tiny_gpt2), other.applied(tiny_gpt2):
        found, alone = change_by_layer(tiny_gpt2), one.norms(tiny_gpt2)[1]
        assert found[1] == pytest.approx(3 * alone, rel=1e-3)
        assert found[3] == pytest.approx(other.norms(tiny_gpt2)[3], rel=1e-3)
    assert change_by_layer(tiny_gpt2) == {}


def test_held_out_statements_tell_what_no_edit_changes() -> None:
    world = World.load()
    edited = [
        EditRequest(template="{} is", subject=subject, target_new="x", relation=relation)
        for subject in world.subjects[:-3]
        for relation in world.facts[subject]
    ]
    texts = held_out_statements(world, edited, seed=0, limit=1000)
    left = world.subjects[-3:]
    wordings = sum(len(world.templates(s, r, held_out=True)) for s in left for r in world.facts[s])
    assert len(texts) == wordings > 0
    assert all(any(subject in text for subject in left) for text in texts)
    stated = {f"{fill} {world.facts[s][r]}." for s in left for r in world.facts[s] for fill in told(world, s, r)}
    assert not any(text.endswith(one) for text in texts for one in stated)
    assert len(held_out_statements(world, edited, seed=0, limit=2)) == 2


def told(world: World, subject: str, relation: str) -> list[str]:
    return [template.replace("{}", subject) for template in world.templates(subject, relation)]


# What is said and drawn --------------------------------------------------------------------------------


def summary(value: float, n: int = 10) -> Summary:
    post = {score: Estimate(value=value, low=value - 0.1, high=value, n=n) for score in ("S", "ES", "PS", "NS")}
    return Summary(n=n, level=0.95, resamples=10, pre=post, post=post)


def test_bars_are_told_with_what_was_measured() -> None:
    found = editor_report.bars({"ROME": summary(0.9), "FT": summary(0.1)}, {("MEMIT", 80): summary(0.75, n=80)})
    assert [str(bar) for bar in found] == [
        "ROME S >= 85: 90.0 (10 records), met",
        "MEMIT ES at 80 stacked edits >= 95: 75.0 (80 records), MISSED",
        "MEMIT PS at 80 stacked edits >= 80: 75.0 (80 records), MISSED",
        "MEMIT NS at 80 stacked edits >= 70: 75.0 (80 records), met",
    ]
    meaning, first, *_ = editor_report.told(found)
    assert "is met where the mean over the records is no less" in meaning
    assert first == "Bar: ROME S >= 85: 90.0 (10 records), met."
    assert editor_report.bars({}, {("MEMIT", 10): summary(0.75)}) == editor_report.told([]) == []


def test_a_mean_has_an_interval_from_ten_values_on() -> None:
    """Percentiles of a bootstrap of fewer cover much less than they say: of two values half."""
    few, more = bootstrap_mean([1.0, 3.0, 2.0] * 3), bootstrap_mean([1.0, 3.0, 2.0, 2.0] * 3)
    assert (few.value, few.n) == (2.0, 9) and math.isnan(few.low) and math.isnan(few.high)
    assert more.value == 2.0 and 1.0 <= more.low < 2.0 < more.high <= 3.0


def test_the_figure_of_editors_has_a_row_each() -> None:
    ax = editor_figure({"ROME": summary(0.9), "FT": summary(0.4)}, bars={"ROME": 85.0}).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Unedited", "ROME", "FT"]
    points = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1 and line.get_markersize() == 8]  # type: ignore[index]
    assert points == pytest.approx([90.0, 90.0, 40.0])
    with pytest.raises(ValueError, match="needs at least one editor"):
        editor_figure({})


def test_the_curves_have_a_panel_each_measure() -> None:
    rows = [("Unedited", 0, 0.2), ("A", 100, 0.5), ("A", 1, 0.9), ("B", 1, 0.8)]
    frame = pd.DataFrame(
        {"editor": name, "edits": edits, "measure": "S", "value": value, "low": value, "high": value}
        for name, edits, value in rows
    )
    panels = [Panel(measure="S", title="S", label="%", scale=100.0), Panel(measure="none", title="Empty", label="")]
    drawn, empty = stack_figure(frame, panels).axes
    assert drawn.get_title(loc="left") == "S" and drawn.get_xscale() == "log" and not empty.lines
    lines = {str(line.get_label()): line for line in drawn.lines}
    assert list(lines["A"].get_xdata()) == [1, 100] and list(lines["A"].get_ydata()) == [90, 50]  # type: ignore[arg-type]
    assert lines["Unedited"].get_ydata()[0] == 20.0  # type: ignore[index]
    with pytest.raises(ValueError, match="at least one number of edits"):
        stack_figure(frame.loc[frame["edits"] == 0], panels)


def stacked(editors: int, *, width: float) -> pd.DataFrame:
    """A share that all editors have half of at 1, 316 and 1,000 edits, with intervals so wide."""
    places = [(f"E{number}", edits) for number in range(editors) for edits in (1, 316, 1000)]
    interval = {"measure": "S", "value": 0.5, "low": 0.5 - width / 2, "high": 0.5 + width / 2}
    return pd.DataFrame({"editor": name, "edits": edits, **interval} for name, edits in places)


def test_curves_have_bands_where_these_can_be_read() -> None:
    share = [Panel(measure="S", title="S", label="%", scale=100.0, limits=(0.0, 100.0))]
    banded = stack_figure(stacked(2, width=0.2), share, heading="h")
    assert len(banded.axes[0].collections) == 2 and banded.legends
    vague = stack_figure(stacked(2, width=0.9), share).axes[0]
    assert not vague.collections and vague.get_title(loc="left") == "S, no bands"
    many = stack_figure(stacked(8, width=0.2), share, heading="h")
    assert not many.axes[0].collections and not many.legends
    names = {text.get_text(): text.get_position()[1] for text in many.axes[0].texts}
    assert sorted(names) == [f"E{number}" for number in range(8)]
    heights = sorted(names.values())
    assert min(after - before for before, after in pairwise(heights)) > 0.06


def test_ticks_of_numbers_of_edits_do_not_touch() -> None:
    figure = stack_figure(stacked(1, width=0.0), [Panel(measure="S", title=name, label="") for name in "abcd"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "", "1,000"]
    wide = stack_figure(stacked(1, width=0.0), [Panel(measure="S", title="a", label="")])
    assert [label.get_text() for label in wide.axes[0].get_xticklabels()] == ["1", "316", "1,000"]


def test_an_editor_whose_memory_was_not_measured_is_compared_all_the_same(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"seed": 0})
    run.append("evaluations", evaluation(0).to_dict() | {"method": "kn", "name": "KN", "edit_seconds": 1.0})
    memory = editor_report.single_summaries(run, seed=0)["KN"].post["edit_memory"]
    assert math.isnan(memory.value) and memory.n == 0


# The analyses ------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("quick_presets", "no_figures")


def test_compare_editors_scores_and_resumes(analyse: Analyse, records: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["compare_editors.py", "--model", TINY, "--records", records, "--methods", "rome,memit",
                 "--limit", 2, "--fluency", 1, "--layer", 2, "--text", text, "--out", out]  # fmt: skip
    first = analyse(*arguments).printed
    run = Run.open(out)
    assert run.status == "complete" and len(run.rows("evaluations")) == 4 and len(run.rows("memory")) == 4
    assert all(row["bytes"] > 0 for row in run.rows("memory")) and len(run.rows("stacked")) == 1
    assert [row[0] for row in run.tables()["scores"].rows] == ["Unedited", "ROME", "MEMIT"]
    assert run.tables()["stacked"].rows[1][0] == "MEMIT, 3 edits"
    assert {"scores.tex", "scores.md", "scores.csv"} <= {path.name for path in (out / "tables").iterdir()}
    assert "untouched model after every edit: ROME 2, MEMIT 2." in first
    assert "| ROME, GPT2-XL | 89.2 |" in first and "not measured here" in first
    assert "Fewer records have: Fluency 1" in run.tables()["scores"].caption
    again = analyse(*arguments).printed
    assert again == first and len(run.rows("evaluations")) == 4
    # Stopped before the last records: these are done again, here or by several, and no others.
    lines = (out / "evaluations.jsonl").read_text().splitlines(keepends=True)
    every, timed = run.rows("evaluations"), {"seconds": 0, "edit_seconds": 0}  # fewer are searched and scored together
    for kept, workers in ((3, 1), (2, 2)):
        (out / "evaluations.jsonl").write_text("".join(lines[:kept]))
        analyse(*arguments, "--workers", workers)
        again = run.rows("evaluations")
        for old, new in zip(every, again, strict=True):
            assert nearly({**old, **timed}, {**new, **timed})
            assert not nearly({**old, **timed}, {**new, **timed, "case_id": 9})


@pytest.mark.slow
def test_scale_edits_stacks_and_resumes(analyse: Analyse, records: Path, text: Path, tmp_path: Path) -> None:
    out, held_out = tmp_path / "run", tmp_path / "held_out.txt"
    held_out.write_text("The capital of Norway is Oslo.\nPeople in Spain speak Spanish.\n")
    arguments = ["scale_edits.py", "--model", TINY, "--records", records, "--methods", "ft,rome,memit",
                 "--edits", "1,3", "--sample", 2, "--fluency", 1, "--layer", 2, "--text", text, "--held-out", held_out,
                 "--out", out]  # fmt: skip
    first = analyse(*arguments).printed
    run = Run.open(out)
    rows = run.rows("stacks")
    places = [(1, 0), (1, 1), (3, 0)]
    assert [(row["method"], row["edits"], row["group"]) for row in rows] == [
        (method, *place) for method in ("ft", "rome", "memit") for place in places
    ]
    assert not list((out / "edits").iterdir())
    assert [sorted(row["norms"]) for row in rows[::3]] == [["2"], ["2"], ["1", "2"]]
    assert all(row["perplexity"] > 1 for row in rows)
    table = {row[0]: row[1:] for row in run.tables()["scores"].rows}
    assert list(table) == ["Unedited", "FT, 1", "FT, 3", "ROME, 1", "ROME, 3", "MEMIT, 1", "MEMIT, 3"]
    assert "S is at least 80 %:" in first and "collapse" in run.figures()
    kept = (out / "stacks.jsonl").read_text().splitlines(keepends=True)
    ours = run.rows("stacks")[-1:]
    (out / "stacks.jsonl").write_text("".join(kept[:-1]))
    analyse(*arguments)
    ours += run.rows("stacks")[-1:]
    assert {**ours[0], "seconds": 0} == {**ours[1], "seconds": 0}


@pytest.mark.slow
def test_benchmark_editing_compares_equal_searches(analyse: Analyse, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["benchmark_editing.py", "--models", TINY, "--requests", 2, "--plain", 1, "--repeats", 1,
                 "--records", 3, "--alone", 2, "--tokens", 300, "--out", out]  # fmt: skip
    printed = analyse(*arguments).printed
    run = Run.open(out)
    rome, memit = run.rows("edits")
    assert max(rome["difference"], memit["difference"]) < 1e-4
    assert (memit["fast"]["requests"], memit["plain"]["requests"]) == (2, 1)
    assert 0 < memit["fast"]["values"] < memit["fast"]["whole"]
    (each,), (scoring,) = run.rows("each"), run.rows("scoring")
    assert each["difference"] < 1e-3 and (each["records"], each["timed_alone"]) == (3, 2)
    assert scoring["difference"] < 1e-4 and [row[1] for row in run.tables()["many"].rows] == [
        "ROME edits",
        "Scores before and after",
    ]
    (moments,) = run.rows("moments")
    assert moments["tokens"] == 300 and moments["layers"] == [2, 3, 4]
    assert "Ratio" in printed and analyse(*arguments).printed == printed
