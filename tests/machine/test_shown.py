"""Values are shown in one short line, and in notebooks as small tables whose text is escaped."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from known_edits import random_edit
from known_kinds import Prefixes, Steers
from known_records import RECORDS
from known_traces import make_trace

import workbench
from workbench.editors.emmet import EMMET
from workbench.editors.rome import ROME, RROME
from workbench.editors.shared.moment import SecondMoment
from workbench.edits.weights import WeightEdit
from workbench.machine.shown import Shown, html_table, short
from workbench.measuring.scores import KINDS, Evaluation, PromptScores, RecordScores
from workbench.measuring.summaries import summarise
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Fact, Record
from workbench.tracing.averages import average_effects
from workbench.tracing.sweep import TraceSet

HOSTILE = EditRequest(template="<b>{}</b> is", subject="<script>", target_new="&new")


def scored(p_new: float) -> RecordScores:
    asked = PromptScores(
        prompt="<b>", targets_new=("new",), targets_true=("old",), p_new=p_new, p_true=0.4, top_new=p_new > 0.5,
        top_true=False, generated="<script>new",
    )  # fmt: skip
    return RecordScores(prompts={kind: (asked,) * (kind != "portability") for kind in KINDS}, texts=("long " * 90,))


def evaluation() -> Evaluation:
    return Evaluation(case_id=3, pre=scored(0.1), post=scored(0.9), kl=0.1, relative_norms={1: 0.2}, seconds=1.0)


def values(model: Model) -> Iterator[Any]:
    """One of each that users meet."""
    moment = SecondMoment(layer=1, matrix=torch.eye(1536), count=12345)
    contexts = ("{}", *(f"text {index} {{}}" for index in range(20)))
    yield ROME(layer=1, second_moment=moment, contexts=contexts, steps=30)
    yield RROME(layer=1, second_moment=torch.eye(200), contexts=contexts)
    yield EMMET(layers=(1, 2), second_moments={1: moment, 2: moment}, contexts=contexts)
    edit = random_edit(model, 0, (1, "W_out"), (2, "W_in"), (2, "W_out"))
    yield dataclasses.replace(edit, requests=(HOSTILE,) * 80, provenance={"hyperparameters": {"steps": 3}})
    yield Steers()(model, [HOSTILE])
    yield Prefixes()(model, [HOSTILE])
    yield from (Record(case_id=7, request=HOSTILE, paraphrase_prompts=("<i>",) * 9), RECORDS[0])
    yield evaluation()
    yield summarise([evaluation()])
    trace = make_trace()
    yield from (trace, average_effects([trace], "resid_post"), TraceSet(traces=(trace,) * 30, skipped=(trace.fact,)))
    yield moment


def test_values_are_shown_in_one_short_line(tiny_gpt2: Model) -> None:
    lines = [repr(value) for value in values(tiny_gpt2)]
    assert not [line for line in lines if len(line) > 220 or "\n" in line or "tensor(" in line]
    rome, rrome, emmet, edit, steering, prefix, *_ = lines
    assert rome == (
        "ROME(layer=1, second_moment=<layer 1: 1536 x 1536 over 12,345 keys>, contexts=<21 of str>, steps=30)"
    )
    assert rrome == "RROME(layer=1, second_moment=<200 x 200 float32>, contexts=<21 of str>)"
    assert emmet.startswith("EMMET(layers=(1, 2), second_moments={1: <layer 1: 1536 x 1536 over 12,345 keys>, 2: ")
    asked = "'<b><script></b> is' -> '&new'"
    assert edit == f"WeightEdit(random: {asked} and 79 more; W_out of layers 1, 2, W_in of layer 2)"
    assert steering == f"Steering(Steering: {asked}; changes activations)"
    assert prefix == f"Prefix(Prefix: {asked}; changes what is asked, or who answers)"
    assert "Evaluation(record 3: ES 0.0 -> 100.0, PS 0.0 -> 100.0, NS 100.0 -> 0.0)" in lines
    assert any(line.startswith("Summary(1 records: S 0.0, ES 100.0") for line in lines)
    assert "TraceSet(30 traces, 1 facts skipped)" in lines
    assert "Record(7: '<b><script></b> is' -> '&new'; 9 paraphrase prompts)" in lines


def test_notebooks_show_tables_of_escaped_text(tiny_gpt2: Model) -> None:
    shown = [value._repr_html_() for value in values(tiny_gpt2) if not isinstance(value, SecondMoment)]
    rome, *_, record, _, scores, summary = shown[:10]
    assert not [html for html in shown[:10] if "<script>" in html or "<b>" in html]
    assert all("<table>" in html or "<div" in html or "<style" in html for html in shown)
    assert "1536 x 1536 over 12,345 keys" in rome and "default" in rome
    assert "&lt;script&gt;" in record and record.count("&lt;i&gt;") == 9
    assert "rewrite" in scores and "S" in summary and "intervals" in summary
    assert html_table("<", [("<&",)], head=("<",)).count("&lt;") == 3


@pytest.mark.slow
def test_whatever_holds_tensors_is_shown_shortly() -> None:
    """Of all classes of the package, so that none is forgotten."""
    long = []
    for module in pkgutil.walk_packages(workbench.__path__, "workbench."):
        if module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.name:
                held = [str(field.type) for field in dataclasses.fields(kind) if field.repr]
                if any("Tensor" in one or "ndarray" in one for one in held) and not kind.__name__.startswith("_"):
                    long += [kind] if not issubclass(kind, Shown) else []
    assert not long


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (torch.zeros(3, 4), "<3 x 4 float32>"),
        (torch.tensor(1.0).numpy(), "<scalar float32>"),
        ("a" * 70, repr("a" * 56 + " ...")),
        ((1, 2, 3, 4, 5), "(1, 2, 3, 4, 5)"),
        (("a",), "('a',)"),
        (["a"] * 1200, "<1,200 of str>"),
        ({3: torch.ones(2)}, "{3: <2 float32>}"),
        ({n: n for n in range(9)}, "<9 by int>"),
        (None, "None"),
        (short, "<function>"),
    ],
)
def test_short(value: Any, line: str) -> None:
    assert short(value) == line


def test_a_fact_is_shown_whole() -> None:
    fact = Fact(subject="It", template="{} is", object="so")
    assert repr(fact) == "Fact(subject='It', template='{} is', object='so', relation='', separator=None)"
    assert isinstance(WeightEdit(updates=(), method="", requests=(), provenance={}), Shown)
