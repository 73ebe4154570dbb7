"""The view of causal traces: what its HTML holds, and which traces of a run a report shows."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from known_traces import EVIL, N_LAYERS, TOKENS, make_trace, save_traces

from workbench.records.facts import Fact
from workbench.report.study import TRACES
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.tracing.averages import average_effects
from workbench.tracing.trace import trace_view


class Scripts(HTMLParser):
    """The texts of the scripts in a page, with their types."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, str]] = []
        self.inside = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        if self.inside:
            self.found.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            kind, text = self.found[-1]
            self.found[-1] = (kind, text + data)


def payload(source: str) -> dict[str, Any]:
    (kind, text), (script, _) = Scripts(source).found
    assert (kind, script) == ("application/json", None)
    return json.loads(text)


# What the fragment holds ----------------------------------------------------------------------------------------


def test_data_are_the_trace_to_four_digits() -> None:
    values = torch.full((len(TOKENS), N_LAYERS), 0.123456789)
    values[0, 0], values[1, 1] = math.nan, 1.23456789e-5
    data = payload(trace_view([make_trace(restored={"mlp_out": values})], planted=range(2, 5)))
    (trace,) = data["traces"]
    assert trace["sites"]["mlp_out"][0][:2] == [None, 0.1235] and trace["sites"]["mlp_out"][1][1] == 1.235e-5
    assert trace["tokens"] == list(TOKENS) and trace["subject"] == [1, 4] and trace["window"] == 3
    assert data["planted"] == [2, 5] and data["labels"] == {"mlp_out": "MLP"}


def test_no_text_leaves_its_place() -> None:
    fact = Fact(subject=EVIL, template="{} is", object=EVIL)
    trace = make_trace(fact=fact, tokens=(EVIL, *TOKENS[1:]), answer=EVIL)
    source = trace_view([trace], after=[trace])
    (held,) = payload(source)["traces"]
    assert held["prompt"] == fact.prompt and held["tokens"][0] == EVIL and held["after"]["answer"] == EVIL
    assert "<script>window" not in source


def test_a_fragment_asks_for_nothing() -> None:
    source = trace_view([make_trace()])
    words = ("http:", "https:", "url(", "@import", "import(", "fetch(", "src=", "eval")
    assert [word for word in words if word in source] == []


def test_bad_input_is_refused() -> None:
    trace = make_trace()
    with pytest.raises(ValueError, match="at least one trace"):
        trace_view([])
    with pytest.raises(ValueError, match="got 2 for 1 traces"):
        trace_view([trace], after=[None, None])
    with pytest.raises(ValueError, match=r"window must be the same.*3 and 5"):
        trace_view([trace], after=[make_trace(window=5)])
    with pytest.raises(ValueError, match="sites and layers"):
        trace_view([trace], after=[make_trace(restored={"mlp_out": trace.restored["mlp_out"]})])


def test_a_notebook_shows_averages_as_shaded_cells() -> None:
    average = average_effects([make_trace()] * 2, "mlp_out")
    source = average._repr_html_()
    assert "mlp_out over 2 facts" in source and "background-color" in source
    assert f"{average.row('last_subject').max():.3f}" in source and "nan" not in source


# In a report ----------------------------------------------------------------------------------------------------


def test_a_report_holds_some_traces_and_says_how_many(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    save_traces(run, TRACES + 5, after=(1, TRACES + 2))
    source = write_report(run).read_text(encoding="utf-8")
    traces = payload(source)["traces"]
    assert len(traces) == TRACES and f"{TRACES} of the {TRACES + 5} facts traced" in source
    assert [index for index, trace in enumerate(traces) if "after" in trace] == [1, TRACES - 1]
    assert "2 facts were traced again after an edit" in source


def test_a_damaged_trace_does_not_spoil_the_report(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    save_traces(run, 2)
    (run.folder / "traces" / "00000.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="leaves out a trace.*00000"):
        source = write_report(run).read_text(encoding="utf-8")
    assert len(payload(source)["traces"]) == 1 and "1 of the 2 facts traced" in source


def test_a_notebook_shows_the_same_view() -> None:
    trace = make_trace()
    assert trace._repr_html_() == trace_view([trace])
