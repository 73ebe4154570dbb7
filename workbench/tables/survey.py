"""The survey's table (Yao et al. 2305.13172, table 1): a row a score of a data set, a column an editor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.machine.intervals import Estimate, bootstrap_mean, wilson
from workbench.measuring.survey import SCORES, SurveyScores, collected
from workbench.records.facts import PORTABILITY
from workbench.tables.scores import UNEDITED
from workbench.tables.table import MISSING, Column, Row, Style, Table, shown

FAILED = "failed"
"""What stands in the column of an editor that could not be made or made no edit; the caption says why."""
_WAYS = {"forced": "teacher-forced", "generated": "generated", "excess": "forced - generated"}
_INTERVAL = "95 % intervals over records (Wilson's; of differences bootstrap percentiles)"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What was measured on one data set."""

    name: str
    rephrased_by: str
    """Where its paraphrases are from, if most of them are none (`Record`)."""
    scores: Mapping[str, Sequence[SurveyScores]]
    """By editor, those that failed left out."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an editor takes."""

    train: float
    """Seconds of training and of making it ready (statistics, contexts)."""
    seconds: Sequence[float]
    """Of each edit."""
    memory: Sequence[int]
    """Bytes that some edits took at their peak."""


Measures = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""By editor (or the unedited model), by what is asked, by how it is measured."""


@dataclass(frozen=True, kw_only=True)
class SurveyTable(Table):
    """A table that is shown with a row a score and a column an editor, the unedited model first."""

    failures: Mapping[str, str]
    """Editor -> why it has no scores."""

    def frame(self, style: Style = "interval") -> pd.DataFrame:
        """Data set, score and way, then the editors' cells, and how many records have the score."""
        return pd.DataFrame([self._line(column, style) for column in self.columns])

    def _line(self, column: Column, style: Style) -> dict[str, str]:
        label, _, data = column.label.partition(" | ")
        cells, counts = {}, set()
        for row in self.rows:
            estimate = row.estimates.get(column.metric)
            cells[row.label] = shown(estimate, column, style)
            if row.label in self.failures and cells[row.label] == MISSING:
                cells[row.label] = FAILED
            counts |= {estimate.n} if estimate is not None and data else set()
        span = "-".join(map(str, sorted({min(counts), max(counts)}))) if counts else ""
        return {"Data set": data, "Score": label, "How": column.protocol, **cells, "Records": span}


def survey_table(
    sets: Sequence[DataSet], editors: Sequence[str], costs: Mapping[str, Cost], failures: Mapping[str, str]
) -> SurveyTable:
    """The table of the editors, in that order; ValueError without a score."""
    columns: list[Column] = []
    rows: dict[str, dict[str, Estimate]] = {name: {} for name in (UNEDITED, *editors)}
    for data in sets:
        every = dict(data.scores)
        if every:
            some = max(every.values(), key=len)
            every[UNEDITED] = [one.unedited() for one in some]
        found = {name: collected(scores) for name, scores in every.items()}
        for metric in _order({metric for values in found.values() for metric in values}):
            name, _, way = metric.rpartition(".")
            columns.append(
                Column(
                    label=f"{_label(name, data.rephrased_by)} | {data.name}",
                    metric=f"{data.name}/{metric}",
                    protocol=_WAYS[way],
                )
            )
            for editor, values in found.items():
                if metric in values:
                    estimate = _difference(values[metric]) if way == "excess" else wilson(values[metric])
                    rows[editor][f"{data.name}/{metric}"] = estimate
    if not columns:
        raise ValueError("no scores to tabulate: no editor has made an edit yet")
    for editor, cost in costs.items():
        rows[editor] |= {
            "train": Estimate(value=cost.train, n=1),
            "seconds": bootstrap_mean(cost.seconds),
            "memory": Estimate(value=float(max(cost.memory, default=np.nan)), n=len(cost.memory)),
        }
    columns += [
        Column(label="To train and make ready", metric="train", protocol="s", unit="s", scale=1.0),
        Column(label="An edit", metric="seconds", protocol="s", unit="s", scale=1.0, decimals=2),
        Column(label="An edit", metric="memory", protocol="MiB, peak", unit="MiB", scale=2.0**-20),
    ]
    return SurveyTable(
        caption=_caption(sets, failures),
        columns=tuple(columns),
        rows=tuple(
            Row(label=name, estimates=some, records=max((one.n for one in some.values()), default=0))
            for name, some in rows.items()
        ),
        interval=_INTERVAL,
        failures=failures,
    )


def measures_table(
    measures: Measures, asked: Mapping[str, str], *, data: str, caption: str, interval: str, failures: Mapping[str, str]
) -> SurveyTable:
    """A row each of what is asked (key -> label) and of how it is measured, in per cent; editors in their order.

    What no editor has is left out.
    """
    found = [(key, how) for one in measures.values() for key, hows in one.items() for how in hows]
    columns = [
        Column(label=f"{label} | {data}", metric=f"{key}/{how}", protocol=how)
        for key, label in asked.items()
        for how in dict.fromkeys(how for other, how in found if other == key)
    ]
    rows = {
        name: {f"{key}/{how}": estimate for key, hows in one.items() for how, estimate in hows.items()}
        for name, one in measures.items()
    }
    return SurveyTable(
        caption=caption + "".join(f" {editor} failed: {why}." for editor, why in failures.items()),
        columns=tuple(columns),
        rows=tuple(
            Row(label=name, estimates=some, records=max((one.n for one in some.values()), default=0))
            for name, some in rows.items()
        ),
        interval=interval,
        failures=failures,
    )


def _order(metrics: set[str]) -> list[str]:
    """Score by score, the kinds of a score after it, the ways side by side."""
    kinds = {name: {metric.split(".")[1] for metric in metrics if metric.startswith(f"{name}.")} for name in SCORES}
    ordered = []
    for score in SCORES:
        named = sorted(kinds[score] - set(_WAYS), key=lambda kind: (_place(kind), kind))
        names = [score, *(f"{score}.{kind}" for kind in named)]
        if len(named) == 1:  # of one kind: portability has that one's name, locality need not
            names = names[1:] if score == "portability" else names[:1]
        ordered += [f"{name}.{way}" for name in names for way in _WAYS if f"{name}.{way}" in metrics]
    return ordered


def _place(kind: str) -> int:
    return PORTABILITY.index(kind) if kind in PORTABILITY else len(PORTABILITY)


def _label(name: str, rephrased_by: str) -> str:
    score, _, kind = name.partition(".")
    kind = rephrased_by if score == "generalization" else kind
    return f"{score.capitalize()}: {kind}" if kind else score.capitalize()


def _difference(values: Sequence[float]) -> Estimate:
    return bootstrap_mean(values, generator=np.random.default_rng(0))


def _caption(sets: Sequence[DataSet], failures: Mapping[str, str]) -> str:
    said = (
        "Scores (%) by the definitions of Yao et al. 2023 (arXiv:2305.13172), one edit at a time. Teacher-forced: the "
        "share of the answer's tokens that are the top choice, the tokens before them given; generated: the greedy "
        "continuation begins with the answer; forced - generated: by how much the first flatters, in points. Locality: "
        "the output is what it was before the edit, in the top choices at the places of the answer, and as a text. "
        f"{_INTERVAL}. Costs are those of one edit."
    )
    if sources := sorted({data.rephrased_by for data in sets} - {""}):
        said += f" {', '.join(sources)} is mostly another question than a paraphrase."
    for editor, why in failures.items():
        said += f" {editor} failed: {why}."
    return said
