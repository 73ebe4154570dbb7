"""Groups of edits kept together in one model and scored by what it then writes, each noted in a run folder."""

import math
import shutil
import statistics
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch

from workbench.editors.editor import Editor
from workbench.editors.shared.keys import mean_keys
from workbench.edits.edit import Edit
from workbench.edits.sequence import sequence
from workbench.edits.weights import WeightEdit
from workbench.machine.failures import FAILURES
from workbench.machine.intervals import Estimate, wilson
from workbench.measuring.prefix_match import Answer, answer, questions, scores
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.going_on import complete, failing, going_on, left_out, made, sound

Groups = Mapping[tuple[int, int], Sequence[Record]]
"""(number of edits, group) -> its records."""
GroupScores = Mapping[tuple[str, int], Mapping[str, Estimate]]
"""(method, number of edits) -> its scores."""


def grouped(records: Sequence[Record], numbers: Sequence[int], most: int) -> Groups:
    """At most so many groups of each number; ValueError for a number that the file cannot fill."""
    for number in numbers:
        if not 1 <= number <= len(records):
            raise ValueError(
                f"cannot keep {number} edits together: the file has {len(records)} requests: ask for fewer (--edits)"
            )
    if most < 1:
        raise ValueError(f"--groups must be at least 1, got {most}")
    return {
        (number, group): records[group * number : (group + 1) * number]
        for number in sorted(set(numbers))
        for group in range(min(most, len(records) // number))
    }


def answer_unedited(run: Run, model: Model, records: Sequence[Record]) -> None:
    """Note what the unedited model writes; a record that it cannot take is kept as failed for all methods."""
    if any(complete(run, row) for row in run.rows("unedited")):
        return
    try:
        given = answer(model, questions(sound(run, records)))
    except FAILURES:
        for record in sound(run, records):
            with run.keeping(record.case_id, of=len(records)):
                answer(model, questions([record]))
        given = answer(model, questions(sound(run, records)))
    row = {"answers": [one.to_dict() for one in given], "left_out": left_out(records, sound(run, records))}
    run.append("unedited", row)


def edit_group(
    run: Run, model: Model, method: str, editor: Editor, place: tuple[int, int], groups: Groups
) -> Generator[Record, None, None]:
    """Make and keep a group's edits, yielding each record once it is edited; then score and note the group."""
    (edits, group), records = place, groups[place]
    folder = run.folder / "edits" / f"{method}-{edits}-{group}"

    def attempt(some: Sequence[Record]) -> Iterator[Record]:
        requests = [record.request for record in some]
        name, at_once = "", []
        with sequence(model, editor, requests, chunk=len(some) if editor.batches else 1, folder=folder) as steps:
            for edit, newest in made(steps, some):
                name = edit.method
                given = answer(model, [one for one in questions(newest) if one.score == "efficacy"])
                at_once += [one.right for one in given]
                yield from newest
            row = {"answers": [one.to_dict() for one in answer(model, questions(some))]}
            row |= {"change": change(model), "drift": drift(model, steps.edits)}
        row |= {"key": method, "method": name, "batch": editor.batches, "edits": edits, "group": group}
        row |= {"at_once": at_once}
        run.append("groups", row | {"left_out": left_out(records, some)})
        shutil.rmtree(folder)  # large, and not needed once the group is noted

    yield from going_on(run, model, records, attempt, method=failing(method, edits), folder=folder)


def change(model: Model) -> float:
    """||W' - W|| / ||W|| (Frobenius) over the matrices that the edits applied now have changed; 0 if there are none."""
    places = model.originals.items()
    if not places:
        return 0.0
    changed = sum((model.weight(*place) - old).double().square().sum().item() for place, old in places)
    return math.sqrt(changed / sum(old.double().square().sum().item() for _, old in places))


def drift(model: Model, edits: Sequence[Edit]) -> list[float]:
    """How far the edits after it, all together, move what an edit wrote: for each request but those of the last edit

        ||k^T (sum of dW after it)|| / ||k^T dW||

    over the W_out that edits change, with k the key at the subject's last token of the bare prompt, as it now is.
    A request for which nothing was written has no value.
    """
    requests = [request for edit in edits for request in edit.requests]
    owners = [index for index, edit in enumerate(edits) for _ in edit.requests]
    updates = [edit.updates if isinstance(edit, WeightEdit) else () for edit in edits]
    layers = {update.layer for some in updates for update in some}
    own, later = torch.zeros(2, len(requests), dtype=torch.float64)
    for layer in sorted(layers):
        keys = mean_keys(model, layer, requests, ("{}",)).T
        moved = torch.zeros(len(edits), len(requests), model.d_model, dtype=torch.float64)
        for index, some in enumerate(updates):
            for update in some:
                if (update.layer, update.matrix) == (layer, "W_out"):
                    moved[index] += keys @ update.left.double() @ update.right.double()
        for row, index in enumerate(owners):
            own[row] += moved[index, row].square().sum()
            later[row] += moved[index + 1 :, row].sum(dim=0).square().sum()
    return [
        (later[row] / own[row]).sqrt().item()
        for row, index in enumerate(owners)
        if index < len(edits) - 1 and own[row] > 0
    ]


def summarise(run: Run) -> GroupScores:
    """Scores of every method at every number of edits so far, all groups together; fewest edits first."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in latest(run):
        rows.setdefault((row["method"], row["edits"]), []).append(row)
    return {
        key: scores([Answer.from_dict(one) for row in rows[key] for one in row["answers"]])
        | {"at_once": wilson([float(right) for row in rows[key] for right in row["at_once"]])}
        | {"change": plain([row["change"] for row in rows[key]])}
        | {"drift": plain([value for row in rows[key] for value in row["drift"]])}
        for key in sorted(rows, key=lambda key: key[1])
    }


def latest(run: Run) -> list[dict[str, Any]]:
    """The rows of the groups; of one that was made again, after what failed was tried again, the last."""
    return list({(row["key"], row["edits"], row["group"]): row for row in run.rows("groups")}.values())


def plain(values: Sequence[float]) -> Estimate:
    """A median without an interval, NaN of no values."""
    value = statistics.median(values) if values else math.nan
    return Estimate(value=value, n=len(values))


def unedited(run: Run, groups: Groups, number: int) -> list[Answer]:
    """What the unedited model answers about the records of a number's groups."""
    covered = {record.case_id for (edits, _), records in groups.items() if edits == number for record in records}
    given = [Answer.from_dict(one) for row in run.rows("unedited")[-1:] for one in row["answers"]]
    return [one for one in given if one.question.case_id in covered]
