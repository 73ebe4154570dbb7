"""Estimates in rows and columns -> DataFrame, Markdown, LaTeX, CSV."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from workbench.machine.intervals import Estimate
from workbench.machine.shown import Shown, html_table
from workbench.tables.markup import csv, escaped, latex, markdown

Style = Literal["interval", "plus-minus", "value"]
"""`98.0 (95.1-99.8)`, `98.0 ± 1.2` (half the interval's width) or `98.0`."""

MISSING = "-"
"""Shown where no record has the metric."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: one metric, how it is measured and how it is shown."""

    label: str
    metric: str
    """Key of `Summary.pre` and `Summary.post`."""
    protocol: str
    """How it is measured."""
    unit: str = "%"
    scale: float = 100.0
    """What the metric is multiplied by to have that unit."""
    decimals: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: one editor, or the model before its edits."""

    label: str
    estimates: Mapping[str, Estimate]
    """By metric."""
    records: int


@dataclass(frozen=True, kw_only=True)
class Table(Shown):
    """Estimates in rows and columns, with a caption that says how they were measured."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    interval: str
    """Kind of the intervals."""

    def frame(self, style: Style = "interval") -> pd.DataFrame:
        """What is shown: an `Editor` column, then the columns as text, then the number of records."""
        columns = {
            column.label: [shown(row.estimates.get(column.metric), column, style) for row in self.rows]
            for column in self.columns
        }
        names, records = [row.label for row in self.rows], [row.records for row in self.rows]
        return pd.DataFrame({"Editor": names, **columns, "Records": records})

    def _repr_html_(self) -> str:
        """The rows as they are shown, for notebooks."""
        frame = self.frame()
        return html_table(self.caption, frame.to_numpy().tolist(), head=list(frame.columns))

    def numbers(self) -> pd.DataFrame:
        """One line a cell, unrounded: value, low and high in the shown unit, records, protocol, interval."""
        lines = []
        for row in self.rows:
            for column in self.columns:
                cell = row.estimates.get(column.metric, _NOTHING)
                lines.append(
                    {"editor": row.label, "column": column.label, "metric": column.metric}
                    | {key: getattr(cell, key) * column.scale for key in ("value", "low", "high")}
                    | {"n": cell.n, "records": row.records, "unit": column.unit}
                    | {"protocol": column.protocol, "interval": self.interval}
                )
        return pd.DataFrame(lines)


_NOTHING = Estimate(value=math.nan, n=0)


def to_markdown(table: Table, style: Style = "interval") -> str:
    """The caption, then a pipe table."""
    frame = table.frame(style)
    return markdown(frame, caption=escaped(table.caption), align=_align(frame))


def to_latex(table: Table, style: Style = "interval", *, label: str | None = None) -> str:
    """A booktabs table environment; all text is escaped."""
    frame = table.frame(style)
    return latex(frame, caption=table.caption, align=_align(frame), label=label)


def to_csv(table: Table) -> str:
    """`Table.numbers` as CSV: for a program; an empty field is a missing value."""
    return csv(table.numbers(), float_format="%.6g")


def _align(frame: pd.DataFrame) -> str:
    """Names to the left, numbers to the right."""
    return "l" + "r" * (len(frame.columns) - 1)


def shown(estimate: Estimate | None, column: Column, style: Style) -> str:
    """An estimate as the text of a cell."""
    if estimate is None or math.isnan(estimate.value):
        return MISSING
    half = (estimate.high - estimate.low) / 2
    value, low, high, half = (
        _number(part * column.scale, column.decimals) for part in (estimate.value, estimate.low, estimate.high, half)
    )
    if style == "value" or math.isnan(estimate.low):
        return value
    if style == "plus-minus":
        return f"{value} ± {half}"
    # With a minus sign about, a hyphen between the ends could be read as one.
    between = " to " if low.startswith("-") or high.startswith("-") else "-"
    return f"{value} ({low}{between}{high})"


def plus_minus(value: float, half: float, decimals: int = 3) -> str:
    """A value with half of its interval; alone where it has none."""
    return f"{value:.{decimals}f}" + (f" ± {half:.{decimals}f}" if math.isfinite(half) else "")


def with_half(estimate: Estimate, decimals: int) -> str:
    """`plus_minus` of an estimate with a symmetric interval."""
    return plus_minus(estimate.value, (estimate.high - estimate.low) / 2, decimals)


def _number(value: float, decimals: int) -> str:
    """Rounded; a negative zero is zero."""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text
