"""Results that papers print, kept in data/published, as a table to read beside one's own."""

import json
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.machine.intervals import Estimate
from workbench.machine.paths import DATA
from workbench.tables.table import Column, Row, Style, Table

PUBLISHED = DATA / "published"
"""One JSON file a table of a paper: its scores as printed, each with the number in parentheses beside it."""

_SCORES = ("S", "ES", "EM", "PS", "PM", "NS", "NM")


def published_table(name: str) -> Table:
    """A paper's table, "rome_table_4" or "memit_table_2": a row an editor and model, and a caption that says whose.

    The intervals are those printed: value minus and plus the number in parentheses. ValueError for an unknown name.
    """
    path = PUBLISHED / f"{name}.json"
    if "_table_" not in name or not path.is_file():
        known = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*_table_*.json")))
        raise ValueError(f"no published table {name!r}; there are {known}")
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(
        Row(
            label=f"{row['editor']}, {group['model']}",
            estimates={
                metric: _estimate(printed, group["records"]) for metric, printed in row.items() if metric != "editor"
            },
            records=group["records"],
        )
        for group in content["models"]
        for row in group["rows"]
    )
    protocol = "as published"
    columns = [Column(label=score, metric=score, protocol=protocol) for score in _SCORES]
    columns += [
        Column(label="Fluency", metric="fluency", protocol=protocol, unit="bits x 100"),
        Column(label="Consistency", metric="consistency", protocol=protocol, unit="x 100"),
    ]
    used = {metric for row in rows for metric in row.estimates}
    return _Printed(
        caption=f"For reference, not measured here: {content['source']}. Other models and other records than above; "
        f"{content['protocol']}. {content['notes']}",
        columns=tuple(column for column in columns if column.metric in used),
        rows=rows,
        interval="as published",
    )


def published_effects() -> tuple[pd.DataFrame, str]:
    """The average effects of causal tracing as the ROME paper prints them for GPT2-XL, and a caption that says so."""
    content = json.loads((PUBLISHED / "rome_effects.json").read_text(encoding="utf-8"))
    caption = f"For reference, not measured here: {content['source']}. {content['protocol']}."
    return pd.DataFrame(content["rows"]), caption


@dataclass(frozen=True, kw_only=True)
class _Printed(Table):
    """A table whose intervals are shown as papers print them: value ± half the width."""

    def frame(self, style: Style = "interval") -> pd.DataFrame:
        return super().frame("plus-minus" if style == "interval" else style)


def _estimate(printed: Any, records: int) -> Estimate:
    value, half = printed
    low, high = (math.nan, math.nan) if half is None else ((value - half) / 100, (value + half) / 100)
    return Estimate(value=value / 100, low=low, high=high, n=records)
