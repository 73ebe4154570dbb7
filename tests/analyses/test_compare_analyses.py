"""The two comparisons as a user runs them, on the tiny golden model, and the figures and tables they make."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import TINY, Analyse
from known_evaluations import evaluation
from known_scores import nearly
from known_traces import make_trace, trace_of
from matplotlib.text import Text
from said import numbers
from scipy.stats import binomtest

from workbench.figures.compare import layer_choice_figure, peak_figure
from workbench.machine.intervals import Estimate
from workbench.records.facts import Fact
from workbench.runs.run import Run
from workbench.studies.layer_report import sentence
from workbench.studies.tracing_methods import TracingMethod, draw_partners, method_result, peak_layers
from workbench.studies.tracing_report import method_table, tracing_headline
from workbench.tracing.trace import CausalTrace


@pytest.fixture
def compare(analyse: Analyse, records: Path):
    """Runs a comparison of the golden model with arguments; its run folder."""

    def run(script: str, out: Path, *arguments: object) -> Run:
        analyse(script, "--model", TINY, "--records", records, "--out", out, *arguments)
        return Run.open(out)

    return run


# Layers


@pytest.mark.slow
def test_compare_layers_says_what_locating_bought(compare, monkeypatch, text: Path, tmp_path: Path) -> None:
    options = ("--preset", "gpt2-xl", "--text", text, "--layers", "1,4", "--limit", 2, "--window", 3)
    run = compare("compare_layers.py", tmp_path / "run", *options)
    rows, found = run.rows("by_layer"), run.read_json("results.json")
    assert found["located"] == found["layer"] == 0  # which was not asked for: what is told of it is of its own edits
    assert {(row["method"], row["layer"], row["case_id"]) for row in rows} == {
        (method, layer, case) for method in ("rome", "ft") for layer in (0, 1, 4) for case in (0, 1)
    }
    # Each layer is the one that was asked for, also by fine-tuning, whose preset names another.
    assert all(list(row["relative_norms"]) == [str(row["layer"])] for row in rows)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for name in ("ROME", "FT"):
        one = found["methods"][name]
        assert one["S"]["random"]["value"] <= one["S"]["best"]["value"]
        assert f"{name}: editing the layer that tracing locates ({found['located']}) gives S = " in page
    assert {"facts", "layers_rome", "layers_ft"} <= run.figures().keys()

    # What was stopped in the middle goes on, with more workers too, and ends with the same.
    lines = (run.folder / "by_layer.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run.folder / "by_layer.jsonl").write_text("".join(lines[:-3]), encoding="utf-8")
    monkeypatch.setattr(Run, "save_figure", lambda *_, **__: None)  # they are there already
    again = compare("compare_layers.py", tmp_path / "run", *options, "--workers", 2)
    assert len(again.rows("by_layer")) == len(rows)
    assert nearly(again.read_json("results.json"), found)  # fewer edits are searched together


@pytest.mark.usefixtures("no_figures")
def test_effects_by_layer_are_of_the_facts_whose_scores_stand_beside(tmp_path: Path) -> None:
    weak = make_trace(clean=0.12, restored={"mlp_out": torch.zeros(7, 8)})  # traced, but not comparable
    located, traces = {0: make_trace(), 1: make_trace(clean=0.8), 2: weak}, {0: make_trace(), 1: make_trace(clean=0.8)}
    run = Run.create(tmp_path / "run", {"layers": [2, 5], "seed": 0})
    edits = {(layer, case): evaluation(case) for layer in (2, 5) for case in traces}
    script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "analyses" / "compare_layers.py"))
    of_all = SimpleNamespace(traces=located, layer=5)
    show, windows = script["show"], []
    drawn = script["layer_comparison_figure"]
    show.__globals__["layer_comparison_figure"] = lambda *of, window, **options: (
        windows.append(window) or drawn(*of, window=window, **options)
    )
    sections = show(run, SimpleNamespace(name="tiny"), of_all, traces, (2, 5), {"rome": edits})
    table = run.tables()["layers_rome"]
    # Half of 0.3 at the last subject token, and half of 0.01 a layer.
    assert [row[1].split()[0] for row in table.rows] == ["0.160", "0.175"]
    assert windows == [3]
    assert "over the same facts, of restoring the MLPs of a window of 3 layers centred there" in table.caption
    assert "1 of which the noise takes less than 0.05" in str(sections[-1])


def test_compare_layers_refuses_what_no_layer_can_be_asked_of(analyse: Analyse, records: Path, tmp_path: Path) -> None:
    common = ("compare_layers.py", "--model", TINY, "--records", records, "--out", tmp_path / "run")
    refused = analyse(*common, "--methods", "memit", code=1)
    assert refused.errors == "error: --methods is one of rome, r_rome, ft, ft_l, got 'memit'\n"
    assert "layer 6" in analyse(*common, "--preset", "gpt2-xl", "--layers", 6, code=1).errors
    assert "'1,one' is not whole numbers" in analyse(*common, "--layers", "1,one", code=2).errors
    assert "--engine is one of auto, fast, plain" in analyse(*common, "--engine", "quick", code=1).errors
    assert not (tmp_path / "run").exists()


# Ways of tracing


@pytest.mark.slow
def test_compare_tracing_on_a_model_without_planted_layers(compare, monkeypatch, tmp_path: Path) -> None:
    options = ("--windows", "1,3", "--noise", "s1,replace:m", "--window", 3, "--levels", "1,3", "--samples", "1,2")
    run = compare("compare_tracing.py", tmp_path / "run", *options)
    table = run.tables()["methods"]
    assert "Inside planted (%)" not in table.columns
    names = [row[0] for row in table.rows]
    assert names[0] == "Exact: noise s3, window 3"
    assert names[-1] == "Attribution patching"
    assert {"Window 1", "Noise s1", "Noise replace:m", "Other subject: KL", "Severed MLPs"} <= set(names)
    assert {"peaks", "agreement", "sensitivity"} <= run.figures().keys()
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "puts a fact&#39;s peak at layer" in page
    assert "planted" not in page
    rows, found = run.rows("traced"), run.read_json("results.json")
    # s1 with two samples is asked for twice, s3 with two samples too: each is traced once.
    assert len({(row["method"], row["case_id"]) for row in rows}) == len(rows)

    (run.folder / "traced.jsonl").write_text("".join(line for line in open_lines(run) if '"case_id": 1' not in line))
    monkeypatch.setattr(Run, "save_figure", lambda *_, **__: None)
    again = compare("compare_tracing.py", tmp_path / "run", *options)
    assert len(again.rows("traced")) == len(rows)
    for name, one in again.read_json("results.json")["methods"].items():
        assert one | {"seconds": 0} == found["methods"][name] | {"seconds": 0}


def open_lines(run: Run) -> list[str]:
    return (run.folder / "traced.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def peaking(effect: list[float]) -> CausalTrace:
    """A trace in which the MLPs have the effect given, by layer, at the last subject token."""
    cells = torch.zeros(5, len(effect))
    cells[2] = torch.tensor(effect)
    cells[4] = 9.0  # the last token does not count
    return trace_of(cells, window=1)


def test_peaks_inside_the_planted_layers_are_counted() -> None:
    traces = [peaking(effect) for effect in ([0, 0.4, 0, 0.1], [0.2, 0.1, 0.1, 0], [0, 0.1, 0.6, 0], [0, 0.2, 0, 0])]
    assert peak_layers(traces) == [1, 0, 2, 1]
    found = method_result(traces, planted=range(1, 3), seconds=[0.5, 9.0, 0.7])
    assert found.inside is not None
    ends = binomtest(3, 4).proportion_ci(method="wilson")
    assert (found.inside.value, found.inside.low, found.inside.high) == pytest.approx((0.75, ends.low, ends.high))
    np.testing.assert_allclose(found.peaks, [0.25, 0.5, 0.25, 0])
    assert (found.mean_peak.value, found.peak, found.seconds) == (1, 1, 0.7)
    assert found.effect.value == pytest.approx(0.2)  # mean of 0.4, 0.1, 0.1 and 0.2
    assert found.share == pytest.approx(0.2 / 0.8)
    assert method_result(traces, planted=None).inside is None
    shown = method_table({"some": found}).iloc[0]
    assert shown["Inside planted (%)"] == f"75.0 ({100 * ends.low:.1f}-{100 * ends.high:.1f})"


def test_the_headline_names_the_control_and_the_extremes() -> None:
    def one(value: float, window: int = 3) -> dict:
        inside = Estimate(value=value, low=value - 0.1, high=value + 0.1, n=50).to_dict()
        return {"facts": 50, "window": window, "inside": inside, "mean_peak": 3.0}

    methods = {"Exact": one(0.8), "Window 1": one(0.9, 1), "Noise s1": one(0.6), "Window 10": one(0.0, 10),
               "Attribution patching": one(0.2), "Control, window 3": one(0.3)}  # fmt: skip
    agreement = {"rank_correlation": one(0.6)["inside"], "same_layer": one(0.5)["inside"]}
    text = tracing_headline({"planted": [2, 3], "layers": 10, "methods": methods, "agreement": agreement})
    exact, control, best, worst, estimate = (80, 70, 90, 50), (30, 20, 40), (90, 80, 100), (60, 50, 70), (20, 10, 30)
    assert numbers(text) == [*exact, *control, *best, 1, *worst, 1, 0.6, 50, *estimate]
    assert text.index("Window 1") < text.index("Noise s1") and "Window 10" not in text
    assert "not finished" in tracing_headline({})


def test_methods_share_a_key_where_their_traces_are_the_same() -> None:
    plain = TracingMethod(name="one", window=3)
    assert plain.key == TracingMethod(name="other", window=3, noise="s3").key
    changes: list[dict[str, Any]] = [
        {"window": 1}, {"noise": "s1"}, {"noise": None}, {"samples": 3}, {"metric": "kl"}, {"severed": "mlp_out"},
        {"estimated": True}, {"sites": ("mlp_out", "attn_out")},
    ]  # fmt: skip
    keys = {dataclasses.replace(plain, **change).key for change in changes}
    assert len(keys) == len(changes)
    assert plain.key not in keys
    assert ":" not in TracingMethod(name="one", window=3, noise="replace:s3").key


def test_partners_differ_in_the_subject_and_the_answer_alone(tiny_gpt2) -> None:
    def capital(subject: str, answer: str, template: str = "The capital of {} is") -> Fact:
        return Fact(subject=subject, template=template, object=answer, relation="capital")

    facts = [capital("Portugal", "Lisbon")]
    same_answer, other_template = capital("Japan", "Lisbon"), capital("Japan", "Tokyo", "{}'s capital is")
    others = [*facts, capital("Japan", "Tokyo"), capital("Egypt", "Cairo"), same_answer, other_template]
    drawn = draw_partners(tiny_gpt2, facts, others, most=5, seed=0)
    lengths = {s: len(tiny_gpt2.tokenize([f"The capital of {s} is"]).ids[0]) for s in ("Portugal", "Japan", "Egypt")}
    fitting = [s for s in ("Japan", "Egypt") if lengths[s] == lengths["Portugal"]]
    assert sorted(fact.subject for fact in drawn) == sorted(fitting)
    assert same_answer not in drawn and other_template not in drawn
    assert len(draw_partners(tiny_gpt2, facts, others, most=1, seed=0)) == min(1, len(fitting))


def test_sentences_say_whether_a_layer_does_better() -> None:
    def difference(number: float) -> dict:
        return {"located": Estimate(value=number, low=number - 0.01, high=number + 0.01, n=9).to_dict()}

    one = {"S": {"located": {"value": 0.9}}, "against_random": difference(0.2), "against_best": difference(-0.05),
           "best_layer": 4, "near_best": [4, 5, 7], "r_squared": None}  # fmt: skip
    text = sentence("ROME", one, 3)
    against_random, against_best = (20, 19, 21), (-5, -6, -4)
    assert text.startswith("ROME") and numbers(text) == [3, 90, *against_random, *against_best, 4, 4, 5, 7, 2]
    alone = sentence("ROME", one | {"near_best": [4]}, 4)
    assert "no layer does better" in alone and numbers(alone) == [4, 90, *against_random, 4, 2]


# Figures


def drawn_text(figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_peak_figure_has_a_row_a_method_and_marks_what_is_planted() -> None:
    peaks = {"Exact": np.array([0.1, 0.7, 0.2]), "Estimate": np.array([1.0, 0.0, 0.0])}
    inside = {
        name: Estimate(value=v, low=v - 0.1, high=v + 0.1, n=10) for name, v in (("Exact", 0.7), ("Estimate", 0.2))
    }
    figure = peak_figure(peaks, inside=inside, planted=range(1, 2))
    values = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(values).ravel(), [10, 70, 20, 100, 0, 0])
    points = [data for line in figure.axes[1].lines if len(data := np.asarray(line.get_xydata())) == 1]
    np.testing.assert_allclose(np.concatenate(points), [[70, 0.5], [20, 1.5]])
    assert "Exact" in drawn_text(figure) and "planted" in drawn_text(figure)
    assert len(peak_figure(peaks).axes) == 2  # the map and its bar
    with pytest.raises(ValueError, match="at least one"):
        peak_figure({})


def test_layer_choice_figure_needs_an_editor() -> None:
    with pytest.raises(ValueError, match="at least one editor"):
        layer_choice_figure({})
