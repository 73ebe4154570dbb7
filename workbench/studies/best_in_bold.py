"""Tables that set the best of each column in bold."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from workbench.machine.failures import sentence
from workbench.machine.intervals import Estimate
from workbench.machine.jsonl import dumps
from workbench.runs.artifacts import SavedTable
from workbench.runs.run import Run
from workbench.tables.table import Style, Table, to_latex, to_markdown

Better = Mapping[str, Literal["higher", "lower"]]
"""By metric, which of two values is the better one."""

_CAPTION = "Bold: the best of a column, and each row whose interval reaches it"
_BOLD = re.compile(r"\*\*(.+?)\*\*")


def best_cells(table: Table, better: Better, *, among: Sequence[str]) -> set[tuple[str, str]]:
    """(label of the row, metric) of the best values of some rows, and of those whose interval reaches the best one.

    A value without an interval reaches the best one only if it equals it; one that is missing never does.
    """
    found: set[tuple[str, str]] = set()
    rows = [row for row in table.rows if row.label in among]
    for metric, way in better.items():
        known = {row.label: row.estimates[metric] for row in rows if _known(row.estimates.get(metric))}
        if not known:
            continue
        values = [estimate.value for estimate in known.values()]
        best = max(values) if way == "higher" else min(values)
        found |= {(label, metric) for label, one in known.items() if one.value == best or one.low <= best <= one.high}
    return found


def save_table_with_best(run: Run, name: str, table: Table, better: Better, *, among: Sequence[str]) -> str:
    """Save a table as `Run.save_table` does, in Markdown and LaTeX with the best cells in bold; the Markdown.

    The caption says what bold means. CSV and JSON hold the plain cells, and JSON, which reports are made of, where
    the best are.
    """
    table = replace(table, caption=f"{table.caption} {_CAPTION}.")
    run.save_table(name, table)
    marked = _Marked(
        caption=table.caption + sentence(run.rows("failures")),
        columns=table.columns,
        rows=table.rows,
        interval=table.interval,
        cells=frozenset(best_cells(table, better, among=among)),
    )
    places = {column.metric: number for number, column in enumerate(table.columns, start=1)}  # after the editors
    rows = {row.label: number for number, row in enumerate(table.rows)}
    best = ((rows[label], places[metric]) for label, metric in marked.cells)
    shown = replace(SavedTable.of(replace(table, caption=marked.caption)), best=tuple(sorted(best)))
    run.write_text(f"tables/{name}.json", dumps(shown.to_dict()))
    markdown = to_markdown(marked)
    run.write_text(f"tables/{name}.md", markdown)
    latex = _BOLD.sub(r"\\textbf{\1}", to_latex(marked, label=f"tab:{Path(name).name}"))
    run.write_text(f"tables/{name}.tex", latex)
    return markdown


@dataclass(frozen=True, kw_only=True)
class _Marked(Table):
    """A table that shows some values between pairs of asterisks."""

    cells: frozenset[tuple[str, str]]
    """(label of the row, metric)."""

    def frame(self, style: Style = "interval") -> pd.DataFrame:
        frame = super().frame(style)
        places = {column.metric: column.label for column in self.columns}
        for number, row in enumerate(self.rows):
            for metric, head in places.items():
                if (row.label, metric) in self.cells:
                    value, space, interval = str(frame.at[number, head]).partition(" ")
                    frame.at[number, head] = f"**{value}**{space}{interval}"
        return frame


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and not math.isnan(estimate.value)
