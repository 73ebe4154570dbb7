"""Many methods in one run, where one that cannot be made is no end: it keeps its place, and the run says why."""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from workbench.editors.editor import Editor
from workbench.editors.registry import EDITORS
from workbench.machine.failures import FAILURES, reason
from workbench.models.model import Model
from workbench.runs.run import Run
from workbench.studies.edit import make_editor

_COUNTED = {"edits": "edits", "sequences": "sequences of edits"}
"""What results.json counts: as the report calls it."""


def check_methods(methods: Iterable[str]) -> None:
    """ValueError for a name that is no method's."""
    for method in methods:
        if method not in EDITORS:
            raise ValueError(f"no editor {method!r}; there are {', '.join(EDITORS)}")


def made_editor(run: Run, model: Model, method: str, making: Mapping[str, Any]) -> Editor | None:
    """A method's editor, with what making it took noted the first time; None, kept as failed, if it cannot be made."""
    if run.failed(what="editor", method=method):
        return None
    began = time.perf_counter()
    try:
        editor = make_editor(model, method, run=run, **making)
    except (*FAILURES, FileNotFoundError) as error:
        run.fail(0, reason(error), of=1, what="editor", method=method)
        return None
    if method not in run.done("training", "method"):  # later it is read from the cache
        seconds = time.perf_counter() - began + editor.trained_seconds
        run.append("training", {"method": method, "seconds": seconds})
    return editor


def tried(run: Run) -> dict[str, str]:
    """The methods that were made or failed to be, in the order of tables, with their display names."""
    found = run.done("training", "method")
    found |= {row["method"] for row in run.rows("failures") if row["what"] == "editor"}
    return {method: EDITORS[method].method for method in EDITORS if method in found}


def whys(run: Run, without: Collection[str]) -> dict[str, str]:
    """By display name the first reason why a method could not be made, or why it lacks scores (`without`)."""
    found: dict[str, str] = {}
    for method, name in tried(run).items():
        rows = [
            row for row in run.rows("failures") if row["method"] == method or row["method"].startswith(f"{method} ")
        ]
        if rows and (rows[0]["what"] == "editor" or name in without):
            found[name] = rows[0]["reason"]
    return found


def headline(run: Run) -> str:
    """How many edits, or sequences of them, by how many methods."""
    found = run.read_json("results.json")
    done = [f"{found[kind]:,} {said}" for kind, said in _COUNTED.items() if kind in found]
    if not done:
        return "Nothing is finished yet."
    failed = f"; {len(found['failed'])} failed" if found["failed"] else ""
    return f"{done[0]} by {len(found['editors'])} methods{failed}."
