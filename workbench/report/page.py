"""Sections -> HTML, through the template beside this file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workbench.report.elements import Section, Traces
from workbench.runs.run import Run

_FOLDER = Path(__file__).parent


def render(*, title: str, headline: str, sections: Sequence[Section], notice: str = "", run: Run | None = None) -> str:
    """The page; all text is escaped, and no script can run but that of causal traces.

    Args:
        headline: A sentence or two that say what was found.
        notice: What a reader must know first, in a box; none if empty.
        run: Its settings and versions close the page, its model and date stand under the title.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = {block.script_source for part in sections for block in part.blocks if isinstance(block, Traces)}
    facts = {} if run is None else run.read_json("environment.json")
    return environment.get_template("report.html.j2").render(
        title=title,
        headline=headline,
        notice=notice,
        sections=sections,
        script_source=next(iter(sources), ""),
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        settings=[] if run is None else list(_flat(run.settings)),
        environment=list(_flat(facts)),
        model="" if run is None else str(run.settings.get("model", "")),
        date=str(facts.get("date", ""))[:10],
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as lines (dotted name, text)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
