"""Sections -> HTML, through the template beside this file."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from workbench.report.elements import Examples, Paragraph, Section, Traces
from workbench.report.once import said_once
from workbench.runs.artifacts import SavedFigure, SavedTable
from workbench.runs.run import Run

_KINDS = {
    "paragraph": Paragraph,
    "figure": SavedFigure,
    "table": SavedTable,
    "examples": Examples,
    "traces": Traces,
}
"""What the template calls the elements."""


def render(*, title: str, headline: str, sections: Sequence[Section], notice: str = "", run: Run | None = None) -> str:
    """The page; all text is escaped, and no script can run but that of causal traces.

    Args:
        headline: A sentence or two that say what was found.
        notice: What a reader must know first, in a box; none if empty.
        run: Its settings and versions close the page, its model and date stand under the title.
    """
    environment = Environment(
        loader=PackageLoader("workbench.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests |= {name: partial(_is_a, kind) for name, kind in _KINDS.items()}
    environment.filters |= {"data_url": _data_url, "numeric": numeric, "cells": cells}
    sources = {element.script_source for part in sections for element in part.elements if isinstance(element, Traces)}
    facts = {} if run is None else run.read_json("environment.json")
    return environment.get_template("report.html.j2").render(
        title=title,
        headline=headline,
        notice=notice,
        sections=said_once(sections, headline),
        script_source=next(iter(sources), ""),
        style=Markup(files("workbench.report").joinpath("report.css").read_text(encoding="utf-8")),
        settings=[] if run is None else list(_flat(run.settings)),
        environment=list(_flat(facts)),
        model="" if run is None else str(run.settings.get("model", "")),
        date=str(facts.get("date", ""))[:10],
    )


def numeric(table: SavedTable) -> list[bool]:
    """By column, whether all its cells begin as numbers do, so that it is set to the right."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    return [bool(cells) and all(map(_is_number, cells)) for cells in columns]


def cells(table: SavedTable) -> list[list[tuple[str, str, bool]]]:
    """Rows of (value, interval, bold): `98.0 (95.1-99.8)` is shown on two lines, so that wide tables fit."""
    numbers, best = numeric(table), set(table.best)
    return [
        [
            (*(_split(cell) if number else (cell, "")), (row, column) in best)
            for column, (cell, number) in enumerate(zip(shown, numbers, strict=True))
        ]
        for row, shown in enumerate(table.rows)
    ]


def _is_a(kind: type, element: object) -> bool:
    return isinstance(element, kind)


def _data_url(png: Path) -> str:
    """The image in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _split(cell: str) -> tuple[str, str]:
    value, bracket, rest = cell.partition(" (")
    return value, bracket.strip() + rest


def _is_number(cell: str) -> bool:
    return cell in ("-", "") or cell.lstrip("-+").replace(",", "")[:1].isdigit()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as lines (dotted name, text)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
