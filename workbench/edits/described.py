"""An edit in words: one line, and a small table for notebooks."""

from collections.abc import Sequence
from typing import Any

from workbench.machine.shown import html_table, short
from workbench.records.facts import EditRequest


def line(edit: Any) -> str:
    """Kind, method, what was asked for and what it changes."""
    return f"{type(edit).__name__}({edit.method}: {'; '.join([*_asked(edit.requests), changes(edit)])})"


def table(edit: Any) -> str:
    """The same as HTML, with the model and the hyperparameters that it was made with."""
    made = edit.provenance
    rows = [(f"{request.prompt} →", told(request)) for request in edit.requests[:10]]
    rows += [("", f"and {len(edit.requests) - 10} more")] if len(edit.requests) > 10 else []
    rows += [("changes", changes(edit))]
    rows += [(name, made[name]) for name in ("model", "dtype") if name in made]
    rows += [(name, short(value)) for name, value in made.get("hyperparameters", {}).items()]
    return html_table(f"{edit.method} edit", rows)


def changes(edit: Any) -> str:
    """Which matrices of which layers, or what else."""
    if edit.redirects:
        return "changes what is asked, or who answers"
    if not edit.places:
        return "changes activations"
    by_matrix: dict[str, list[int]] = {}
    for layer, matrix in sorted(edit.places):
        by_matrix.setdefault(matrix, []).append(layer)
    parts = [
        f"{matrix} of layer{'s' * (len(some) > 1)} {', '.join(map(str, some))}" for matrix, some in by_matrix.items()
    ]
    return ", ".join(parts)


def told(request: EditRequest) -> str:
    """The new answer, and the one before it where that is known."""
    old = "" if request.target_true is None else f" (was {request.target_true!r})"
    return f"{request.target_new!r}{old}"


def _asked(requests: Sequence[EditRequest]) -> list[str]:
    if not requests:
        return []
    more = f" and {len(requests) - 1:,} more" if len(requests) > 1 else ""
    return [f"{requests[0].prompt!r} -> {requests[0].target_new!r}{more}"]
