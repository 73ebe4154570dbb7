"""Each cell, caption and file form of a table says what the hand-made summaries hold."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from workbench.machine.intervals import Estimate
from workbench.measuring.scores import KINDS
from workbench.measuring.summaries import Summary
from workbench.tables.scores import UNEDITED, accuracy_table, change_table, generation_table, main_table
from workbench.tables.table import Style, to_csv, to_latex, to_markdown

NOTHING = Estimate(value=math.nan, n=0)


def _estimate(value: float, width: float = 0.02, n: int = 100) -> Estimate:
    return Estimate(value=value, low=value - width / 2, high=value + width / 2, n=n)


def _summary(
    post: Mapping[str, Estimate] | None = None, *, es: float = 0.98, n: int = 100, pre_es: float = 0.2
) -> Summary:
    scores = ("S", "PS", "PM", "NS", "NM")
    accuracies = {
        f"{protocol}.{kind}.{answer}": _estimate(0.4, n=n)
        for protocol in ("top1", "generated")
        for kind in KINDS
        for answer in ("new", "true")
    }
    before = {score: _estimate(0.5, n=n) for score in scores} | accuracies | {"fluency": _estimate(6.2, n=n)}
    before |= {"ES": _estimate(pre_es, n=n), "EM": _estimate(-0.6, n=n)}
    after = before | {"ES": Estimate(value=es, low=es - 0.028, high=0.998, n=n), "EM": _estimate(0.9, n=n)}
    after |= {"kl": _estimate(0.0123, 0.001, n=n), "relative_norm.3": _estimate(0.01, 0.001, n=n)}
    return Summary(n=n, level=0.95, resamples=1000, pre=before, post={**after, **(post or {})})


def _cells(frame: pd.DataFrame, column: str) -> list[Any]:
    return frame[column].to_list()


def test_main_table_has_a_row_an_editor_below_the_unedited_model() -> None:
    frame = main_table({"ROME": _summary(), "FT": _summary(es=0.7)}).frame()
    assert list(frame.columns) == ["Editor", "S", "ES", "EM", "PS", "PM", "NS", "NM", "Fluency", "Records"]
    assert _cells(frame, "Editor") == [UNEDITED, "ROME", "FT"]
    assert _cells(frame, "ES") == ["20.0 (19.0-21.0)", "98.0 (95.2-99.8)", "70.0 (67.2-99.8)"]
    assert _cells(frame, "EM")[0] == "-60.0 (-61.0 to -59.0)"
    assert _cells(frame, "Fluency")[0] == "620.0 (619.0-621.0)"
    assert _cells(frame, "Records") == [100, 100, 100]


def test_what_was_not_sampled_is_neither_shown_nor_told() -> None:
    table = main_table({"ROME": _summary()}, fluency=False)
    assert "Fluency" not in table.frame().columns and "Fluency" not in table.caption


@pytest.mark.parametrize(
    ("style", "shown"), [("interval", "98.0 (95.2-99.8)"), ("plus-minus", "98.0 ± 2.3"), ("value", "98.0")]
)
def test_styles(style: Style, shown: str) -> None:
    assert _cells(main_table({"ROME": _summary()}).frame(style), "ES")[1] == shown


def test_missing_values_are_dashes_and_their_records_are_counted() -> None:
    one = Estimate(value=1.0, n=1)
    table = main_table({"ROME": _summary({"PS": NOTHING, "NS": one, "NM": _estimate(-0.0001, 0.0, n=63)})})
    frame = table.frame()
    assert _cells(frame, "PS")[1] == "-"
    assert _cells(frame, "NS")[1] == "100.0"  # one record has no interval
    assert _cells(frame, "NM")[1] == "0.0 (0.0-0.0)"  # no negative zero
    assert "Fewer records have: PS 0 to 100; NS 1 to 100; NM 63 to 100." in table.caption


def test_captions_name_protocol_records_and_interval() -> None:
    summaries = {"ROME": _summary(), "FT": _summary(n=80)}
    for table, protocol in (
        (main_table(summaries), "teacher-forced"),
        (generation_table(summaries), "generated"),
        (accuracy_table(summaries), "teacher-forced"),
        (change_table(summaries), "teacher-forced"),
    ):
        assert protocol in table.caption
        assert "80 to 100 records" in table.caption
        assert "95 % bootstrap percentile intervals over records (1,000 resamples)" in table.caption


def test_generation_table_expects_the_true_target_on_neighborhood_prompts() -> None:
    post = {"generated.neighborhood.true": _estimate(0.9), "generated.rewrite.new": _estimate(0.8)}
    post["generated.portability.new_if_known"] = _estimate(0.3, n=40)
    frame = generation_table({"ROME": _summary(post)}).frame("value")
    assert list(frame.columns[1:6]) == [kind.capitalize() for kind in KINDS]
    assert _cells(frame, "Neighborhood")[1] == "90.0"
    assert _cells(frame, "Rewrite")[1] == "80.0"
    assert _cells(frame, "Old answer: rewrite")[0] == "40.0"
    assert _cells(frame, "Portability, if known") == ["-", "30.0"]


def test_change_table_has_a_column_a_layer_and_no_unedited_row() -> None:
    frame = change_table({"A": _summary(), "B": _summary({"relative_norm.10": _estimate(0.5)})}).frame("value")
    assert list(frame.columns[1:4]) == [
        "KL (nats)",
        "||dW||/||W|| (%), layer 3",
        "||dW||/||W|| (%), layer 10",
    ]
    assert frame.iloc[:, 1:4].to_numpy().tolist() == [
        ["0.0123", "1.00", "-"],
        ["0.0123", "1.00", "50.00"],
    ]


def test_a_start_that_differs_by_rounding_is_the_same() -> None:
    """As in a run that goes on, which scores in other batches."""
    rounded = _summary(pre_es=0.02)
    pre = {metric: replace(one, value=one.value * (1 + 1e-6)) for metric, one in rounded.pre.items()}
    table = main_table({"ROME": _summary(pre_es=0.02), "FT": replace(rounded, pre=pre)})
    assert [row.label for row in table.rows] == [UNEDITED, "ROME", "FT"]


def test_a_table_of_few_records_says_why_it_has_no_intervals() -> None:
    assert ", none of fewer than 10." in main_table({"ROME": _summary(n=6)}).caption
    assert "none of fewer" not in main_table({"ROME": _summary(n=10)}).caption


def test_an_editor_that_started_elsewhere_has_its_own_unedited_row() -> None:
    frame = main_table({"ROME": _summary(), "FT": _summary(), "MEMIT": _summary(pre_es=0.3)}).frame()
    assert _cells(frame, "Editor") == [UNEDITED, "ROME", "FT", "Unedited (before MEMIT)", "MEMIT"]


def test_markdown() -> None:
    text = to_markdown(main_table({"RO|ME": _summary()}), "value")
    caption, blank, header, rule, *rows = text.splitlines()
    assert caption.startswith("CounterFact scores (%), teacher-forced")
    assert blank == ""
    assert header == "| Editor | S | ES | EM | PS | PM | NS | NM | Fluency | Records |"
    assert rule == "| --- |" + " ---: |" * 9
    assert rows[0] == "| Unedited | 50.0 | 20.0 | -60.0 | 50.0 | 50.0 | 50.0 | 50.0 | 620.0 | 100 |"
    assert rows[1].startswith("| RO\\|ME | 50.0 | 98.0 | 90.0 |")


def test_latex_is_escaped_booktabs() -> None:
    text = to_latex(main_table({r"R_O&M\E": _summary()}), "plus-minus", label="tab:scores")
    assert r"R\_O\&M\textbackslash{}E & 50.0 $\pm$ 1.0 & 98.0 $\pm$ 2.3" in text
    assert r"\caption{CounterFact scores (\%), teacher-forced" in text
    assert r"\label{tab:scores}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrrrrrr}"):
        assert text.count(rule) == 1
    assert text.count("{") == text.count("}")
    rows = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
    assert all(row.count("&") - row.count(r"\&") == 9 for row in rows if row.endswith(r"\\"))
    assert r"\textbar{}\textbar{}dW" in to_latex(change_table({"ROME": _summary()}))


def test_csv_holds_the_numbers_with_their_protocol() -> None:
    text = to_csv(main_table({"ROME, r": _summary({"PS": NOTHING})}))
    lines = {(line["editor"], line["column"]): line for line in pd.read_csv(io.StringIO(text)).to_dict("records")}
    es = lines["ROME, r", "ES"]
    assert (es["value"], es["low"], es["high"]) == pytest.approx((98.0, 95.2, 99.8))
    assert (es["n"], es["records"], es["unit"], es["protocol"]) == (100, 100, "%", "teacher-forced")
    assert es["interval"].startswith("95 % bootstrap percentile")
    missing = lines["ROME, r", "PS"]
    assert math.isnan(missing["value"])
    assert missing["n"] == 0
    assert lines["Unedited", "Fluency"]["protocol"] == "generated (sampled, top 5)"


def test_summaries_that_cannot_share_a_table() -> None:
    with pytest.raises(ValueError, match="no summaries to tabulate"):
        main_table({})
    other = Summary(n=1, level=0.9, resamples=1000, pre={}, post={})
    with pytest.raises(ValueError, match=r"\(level, resamples\) differ: \[\(0.9, 1000\), \(0.95, 1000\)\]"):
        main_table({"A": _summary(), "B": other})
