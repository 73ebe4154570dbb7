"""Many edits written as one batch, and their records scored with all of them kept."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import sequence
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.edit import make_editor
from workbench.studies.going_on import complete, going_on, left_out, made, refusing
from workbench.studies.stacked_edits import change_by_layer, evaluations, score_stack, untouched


def edit_stacked(run: Run, model: Model, method: str, records: Sequence[Record], making: dict[str, Any]) -> None:
    """Write the records' requests as one batch and score each with all of them kept."""
    failing = f"{method}, all at once"
    if any(row["method"] == method and complete(run, row, failing) for row in run.rows("stacked")):
        return
    editor, folder = make_editor(model, method, run=run, **making), run.folder / "edits" / f"{method}-{len(records)}"

    def attempt(some: Sequence[Record]) -> Iterator[None]:
        requests = [record.request for record in some]
        asked = untouched(some, requests)
        with refusing(some, lambda record: score_stack(model, [record])):
            before = score_stack(model, asked)
        began = time.perf_counter()
        with sequence(model, editor, requests, chunk=len(requests), folder=folder) as steps:
            edits = [edit for edit, _ in made(steps, some)]
            seconds, norms = time.perf_counter() - began, change_by_layer(model)
            with refusing(some, lambda record: score_stack(model, [record])):  # a collapsed model gives NaN
                after = score_stack(model, asked)
        found = evaluations(asked, before, after, norms=norms, seconds=seconds)
        row = {"method": method, "name": edits[0].method, "edits": len(some), "seconds": seconds}
        row |= {"left_out": left_out(records, some)}
        run.append("stacked", row | {"evaluations": [one.to_dict() for one in found]})
        yield

    weights = state_fingerprint(model)
    list(going_on(run, model, records, attempt, method=failing, folder=folder))
    check_restored(model, weights, after=f"a stack of {len(records)} edits with {method}")
