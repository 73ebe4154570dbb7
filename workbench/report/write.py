"""Write the report of a run: of a study from what its folder holds, of an analysis from its sections.

The only script is that of the causal traces to look at; without it the page shows all the rest.

A report is sections of elements. `write_report(run)` composes those of a study from what its folder holds so
far; an analysis passes its own.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.report.elements import Section
from workbench.report.page import render
from workbench.report.study import study_headline, study_sections
from workbench.runs.run import Run


def write_report(
    run: Run,
    sections: Sequence[Section] | None = None,
    *,
    title: str = "Locating and editing facts",
    headline: str | None = None,
    name: str = "report.html",
    complete: bool = False,
) -> Path:
    """Write `<name>` into the run's folder, whole or not at all; its path.

    Without `sections` (and `headline`) they are those of a study. The page says so if the run is not complete;
    `complete` says that it is, but for this page.
    """
    page = render(
        title=title,
        headline=study_headline(run) if headline is None else headline,
        sections=study_sections(run) if sections is None else sections,
        notice="" if complete else _notice(run),
        run=run,
    )
    return run.write_text(name, page)


def _notice(run: Run) -> str:
    """What a reader must know of a run that is not complete; empty for one that is."""
    status = run.status
    if status == "complete":
        return ""
    reason = run.read_json("status.json").get("reason", "")
    why = f" ({reason})" if reason else ""
    begun = "was interrupted" if status == "interrupted" else "was not finished when this page was written"
    return (
        f"This run {begun}{why}. What is shown here was finished before; "
        "the same command with the same --out goes on from there."
    )
