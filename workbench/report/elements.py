"""What a report is made of: sections of paragraphs, examples, causal traces, and the figures and tables of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from workbench.runs.artifacts import SavedFigure, SavedTable
from workbench.tracing.trace import CausalTrace, trace_view
from workbench.tracing.view import script_source


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Plain text; whatever looks like markup is shown as it is."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ExamplePrompt:
    """One prompt of a record and the model's continuation before and after its edit."""

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
    prompts: Sequence[ExamplePrompt]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Some records in full."""

    examples: Sequence[Example]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Causal traces as heat maps to point at, see `trace_view`."""

    traces: Sequence[CausalTrace]
    after: Sequence[CausalTrace | None]
    """For each trace that of the same prompt after an edit, or None."""
    caption: str
    planted: range | None = None
    """The layers that the model was trained to recall in."""

    @property
    def html(self) -> Markup:
        """The view, which is markup."""
        return Markup(trace_view(self.traces, after=self.after, planted=self.planted))

    @property
    def script_source(self) -> str:
        """What the page's Content-Security-Policy must allow."""
        return script_source()


Element = Paragraph | SavedFigure | SavedTable | Examples | Traces


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    elements: Sequence[Element]

    @property
    def anchor(self) -> str:
        """The title as the section's id."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split()) or "section"
