"""What a report is made of: sections of paragraphs, figures, tables, examples and causal traces to look at."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from workbench.runs.artifacts import SavedTable
from workbench.tracing.trace import CausalTrace, trace_view
from workbench.tracing.view import script_source


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Plain text; whatever looks like markup is shown as it is."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A PNG with its caption, held in the page itself."""

    path: Path
    """The PNG."""
    caption: str
    kind: str = "figure"

    @property
    def source(self) -> str:
        """The image as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; a column whose cells all begin as numbers do is set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "table"

    @classmethod
    def of(cls, saved: SavedTable) -> "Table":
        """A table that a run has saved."""
        return cls(columns=saved.columns, rows=saved.rows, caption=saved.caption)

    @property
    def cells(self) -> list[list[tuple[str, str]]]:
        """Rows of (value, interval): `98.0 (95.1-99.8)` is shown on two lines, so that wide tables fit."""
        return [
            [_split(cell) if number else (cell, "") for cell, number in zip(row, self.numeric, strict=True)]
            for row in self.rows
        ]

    @property
    def numeric(self) -> list[bool]:
        """By column, whether it holds numbers."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        return [bool(cells) and all(_is_number(cell) for cell in cells) for cells in columns]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One prompt and the model's continuation before and after an edit."""

    label: str
    """What the prompt tests, as `paraphrase`."""
    prompt: str
    before: str
    after: str
    wanted: str
    """What a good edit makes the model say."""
    right: bool | None
    """Whether the continuation after the edit is that; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One edit and what became of its prompts."""

    title: str
    """The request, as `The capital of France is: Paris → Rome`."""
    answers: Sequence[Answer]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Some records in full."""

    examples: Sequence[Example]
    caption: str = ""
    kind: str = "examples"


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Causal traces as heat maps to point at, see `trace_view`."""

    traces: Sequence[CausalTrace]
    after: Sequence[CausalTrace | None]
    """For each trace that of the same prompt after an edit, or None."""
    caption: str
    planted: range | None = None
    """The layers that the model was trained to recall in."""
    kind: str = "traces"

    @property
    def html(self) -> Markup:
        """The view, which is markup."""
        return Markup(trace_view(self.traces, after=self.after, planted=self.planted))

    @property
    def script_source(self) -> str:
        """What the page's Content-Security-Policy must allow."""
        return script_source()


Block = Paragraph | Figure | Table | Examples | Traces


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The title as the section's id."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split()) or "section"


def _split(cell: str) -> tuple[str, str]:
    value, bracket, rest = cell.partition(" (")
    return value, bracket.strip() + rest


def _is_number(cell: str) -> bool:
    return cell in ("-", "") or cell.lstrip("-+").replace(",", "")[:1].isdigit()
