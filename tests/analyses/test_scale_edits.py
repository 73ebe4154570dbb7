"""The collapse curves: what is counted and said, and edits that leave nothing to be measured."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import TINY, Analyse

from workbench.editors.ft import FT
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.figures.editors import stack_figure
from workbench.machine.intervals import Estimate, student
from workbench.models.model import Model
from workbench.runs.run import Run
from workbench.studies.stack_report import PANELS, curves, stack_table, verdict


def estimates(value: float, n: int, *, groups: int, portability: int) -> dict[str, Estimate]:
    scores = {name: Estimate(value=value, low=value, high=value, n=n) for name in ("S", "ES", "PS", "NS")}
    counts = {"top1.portability.new": portability, "perplexity": min(groups, 5), "change": groups, "seconds": groups}
    return scores | {name: Estimate(value=0.5, n=count) for name, count in counts.items()}


def test_the_table_says_which_columns_are_of_fewer_records_and_of_how_many_groups() -> None:
    found = {
        ("Unedited", 0): estimates(0.1, 40, groups=1, portability=40),
        ("A", 1): estimates(0.9, 40, groups=40, portability=40),
        ("A", 40): estimates(0.9, 40, groups=1, portability=30),
    }
    caption = stack_table(found, "Said.").caption
    assert "Said. Fewer records have: Portability 30 to 40." in caption
    assert caption.endswith("Groups of edits: Perplexity 1 to 5; ||dW||/||W|| 1 to 40; Seconds an edit 1 to 40.")


def test_edits_that_could_not_be_scored_are_not_borne() -> None:
    found = {
        ("Unedited", 0): estimates(0.1, 40, groups=1, portability=40),
        ("A", 1): estimates(0.9, 40, groups=40, portability=40),
        ("A", 40): {"perplexity": Estimate(value=math.nan, n=0), "change": Estimate(value=2.0, n=1)},
    }
    assert verdict(found) == "S is at least 80 %: A up to 1 edits (not scored with 40)."
    last = stack_table(found, "Said.").frame().iloc[-1]
    assert (last["S"], last["Perplexity"], last["Records"]) == ("-", "-", 0)


def test_the_figure_takes_editors_that_change_no_weights() -> None:
    nothing = Estimate(value=math.nan, n=0)
    found = {
        (f"E{place}", 1): estimates(0.9, 4, groups=4, portability=4) | ({"change": nothing} if place else {})
        for place in range(6)
    }
    axes = stack_figure(curves(found), [panel for panel in PANELS if panel.measure != "fluency"]).axes
    change = next(ax for ax in axes if ax.get_title(loc="left") == "||dW|| / ||W||")
    assert [line.get_label() for line in change.lines] == ["E0"]


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """FT's edits of two requests leave a model that gives NaN."""
    whole = FT.__call__

    def edit(self: Any, model: Model, requests: Any) -> WeightEdit:
        made = whole(self, model, requests)
        left, right = torch.full((model.d_mlp, 1), 1e19), torch.full((1, model.d_model), 1e19)
        return replace(made, updates=(WeightUpdate(layer=2, left=left, right=right),)) if len(requests) == 2 else made

    monkeypatch.setattr(FT, "__call__", edit)


@pytest.mark.usefixtures("quick_presets", "no_figures", "collapsing")
def test_a_collapsed_stack_is_noted_and_the_study_goes_on(
    analyse: Analyse, records: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "prose.txt").write_text("The capital of Norway is Oslo.\nPeople in Spain speak Spanish.\n")
    command = ("scale_edits.py", "--model", TINY, "--records", records, "--methods", "ft", "--edits", "1,2,3",
               "--sample", 2, "--fluency", 1, "--layer", 2, "--text", text, "--held-out", tmp_path / "prose.txt",
               "--out", tmp_path / "run")  # fmt: skip
    first = analyse(*command).printed
    run = Run.open(tmp_path / "run")
    places = [(row["edits"], row["group"]) for row in run.rows("stacks")]
    assert run.status == "complete" and places == [(1, 0), (1, 1), (2, 0), (3, 0)]
    _, _, collapsed, _ = run.rows("stacks")
    assert (collapsed["cases"], collapsed["scores"], len(collapsed["unscored"])) == ([], [], 2)
    assert all("gives NaN after" in why for why in collapsed["unscored"].values())
    said = "2 of 2 records could not be scored with 2 edits of FT kept (ValueError: "
    assert said in first and said in run.tables()["scores"].caption
    assert said in run.read_json("results.json")["headline"]
    assert said in (run.folder / "report.html").read_text(encoding="utf-8")
    table = {row[0]: row[1:] for row in run.tables()["scores"].rows}
    assert list(table) == ["Unedited", "FT, 1", "FT, 2", "FT, 3"] and (table["FT, 2"][0], table["FT, 2"][-1]) == (
        "-",
        "0",
    )
    assert analyse(*command).printed == first and len(run.rows("stacks")) == 4, "nothing is done again"

    # Means over the two groups of an edit have Student's interval.
    shown = run.read_json("results.json")["scores"]["FT, 1"]
    right = student([row["perplexity"] for row in run.rows("stacks")[:2]])
    assert (shown["perplexity"]["low"], shown["perplexity"]["high"]) == (right.low, right.high)
    assert shown["change"]["n"] == 2 and shown["change"]["low"] < shown["change"]["value"]

    # An editor that changes no weights has no norm.
    for row in run.rows("stacks")[:2]:
        run.append("stacks", row | {"method": "ike", "name": "IKE", "norms": {}})
    again = analyse(*command).printed
    table = run.tables()["scores"]
    (line,) = (dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == "IKE, 1")
    assert line["||dW||/||W||"] == "-" and line["Perplexity"] != "-"
    assert ("IKE", "1", "-") in {row[:3] for row in run.tables()["norms"].rows} and "NaN" not in again.split(
        "gives NaN"
    )[-1]
