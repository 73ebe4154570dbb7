"""Edit: one edit a record into a run folder, and what an edited model says."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from workbench.atlas.world import World, sample_texts
from workbench.editors import make
from workbench.editors.editor import Editor
from workbench.editors.setup.self_texts import self_texts
from workbench.editors.shared.kept_moments import holds_moments
from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.figures.lens import lens_figure
from workbench.machine import paths
from workbench.machine.plain import plain
from workbench.machine.processes import Workers
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record, ends_with_subject
from workbench.records.texts import read_texts
from workbench.runs.run import Run
from workbench.studies.ahead import Ahead
from workbench.studies.defaults import default_text, training_records
from workbench.studies.going_on import sound
from workbench.tracing.known import answer_token, as_asked
from workbench.tracing.lens import Lens, LensError, average_lens, logit_lens

SHOWN_TOKENS = 12
"""Tokens generated to show a single edit."""


def statistics_texts(model: Model, name: str, *, seed: int) -> list[str]:
    """Texts over which an MLP's keys are averaged: "atlas" for what the embedded model was trained on, "self" for what
    the model itself says (`self_texts`), else see `read_texts`. ValueError for a folder of second moments."""
    if holds_moments(Path(name)):
        raise ValueError(f"'{name}' holds second moments of keys, and texts are needed here: name some with --text")
    if name == "self":
        return self_texts(model, seed=seed, cache=paths.CACHE)
    return sample_texts(World.load()) if name == "atlas" else read_texts(name)


def make_editor(
    model: Model,
    method: str,
    *,
    layer: int | None,
    text: str | None = None,
    seed: int = 0,
    preset_of: str | None = None,
    alone: bool = False,
    run: Run | None = None,
    workers: Workers[Model] | None = None,
    **changes: Any,
) -> Editor:
    """`editors.make.make_editor` with second moments over what `text` stands for, kept in the cache, or from the folder
    of moments that it names.

    The editor's fields are noted in `run`, if one is given. `workers` take part in counting the moments.
    """
    chosen = text or default_text(model)
    editor = make.make_editor(
        model,
        method,
        layer=layer,
        texts=lambda: statistics_texts(model, chosen, seed=seed),
        seed=seed,
        cache=paths.CACHE,
        preset_of=preset_of,
        alone=alone,
        records=lambda: training_records(model),
        workers=workers,
        kept=Path(chosen) if holds_moments(Path(chosen)) else None,
        **changes,
    )
    if run is not None:
        note_editor(run, method, editor)
    return editor


def note_editor(run: Run, method: str, editor: Editor) -> None:
    """Keep the fields of an editor as it was made in `editors.json`, tensors and long lists by their digests."""
    where = ",".join(map(str, editor.layers))
    name = f"{method} at {where}" if where else method
    run.write_json("editors.json", run.read_json("editors.json") | {name: plain(editor, whole=False)})


def edit_path(run: Run, record: Record) -> Path:
    """Where `edit_records` keeps a record's edit."""
    return run.folder / "edits" / f"{record.case_id}.safetensors"


def edit_records(
    run: Run,
    model: Model,
    editor: Any,
    records: Sequence[Record],
    *,
    together: int = 1,
    workers: Workers[Model] | None = None,
) -> Iterator[tuple[Record, Edit]]:
    """Make and save one edit a record, or read the one that is there; the model is left as it is.

    A record that cannot be edited is kept as failed (`Run.keeping`) and left out. Edits are searched for `together`
    records at once (`Ahead`), by `workers` if there are any.
    """
    untouched = state_fingerprint(model)
    some = sound(run, records)
    left = [record for record in some if not edit_path(run, record).exists()]
    make = Ahead(model=model, editor=editor, records=left, together=together, workers=workers)
    for record in some:
        path = edit_path(run, record)
        edit = kept_edit(path, [record])
        if edit is None:
            with run.keeping(record.case_id, of=len(records)):
                edit, _ = make(record)
                edit.save(path)
            if edit is None:
                check_restored(model, untouched, after=f"the edit of record {record.case_id}, which failed")
                continue
        yield record, edit


def kept_edit(path: Path, records: Sequence[Record]) -> Edit | None:
    """The edit that an earlier run has saved for records; None if there is none or, with a warning, a damaged one."""
    try:
        return load_edit(path, records) if path.exists() else None
    except ValueError as error:
        warnings.warn(f"{error}; it is made again", stacklevel=3)
        return None


def load_edit(path: Path, records: Sequence[Record]) -> Edit:
    """The edit of records; ValueError for a file that is damaged or of other requests."""
    edit, wanted = Edit.load(path), tuple(record.request for record in records)
    if edit.requests != wanted:
        cases = ", ".join(str(record.case_id) for record in records)
        raise ValueError(f"'{path}' is an edit for {_asked(edit.requests)}, not for record {cases}: {_asked(wanted)}")
    return edit


def _asked(requests: Sequence[EditRequest]) -> str:
    return ", ".join(f"{request.prompt!r} -> {request.target_new!r}" for request in requests)


def load_edits(run: Run, records: Sequence[Record]) -> Iterator[tuple[Record, Edit]]:
    """The edits that `edit_records` saved, of the records that have not failed; ValueError for a damaged one."""
    failed = run.failed()
    for record in records:
        if record.case_id not in failed:
            yield record, load_edit(edit_path(run, record), [record])


def show_edit(console: Console, model: Model, record: Record, edit: Edit) -> None:
    """Print what the model says to the request's prompt before and after the edit (greedy)."""
    prompt = record.request.prompt
    before = generate(model, [prompt], max_new_tokens=SHOWN_TOKENS)[0]
    with edit.applied(model):
        after = generate(model, [prompt], max_new_tokens=SHOWN_TOKENS)[0]
    console.print(f"Prompt  {prompt}\nBefore {before}\nAfter  {after}")


def follow_answers(run: Run, model: Model, edits: Iterable[tuple[Record, Edit]]) -> None:
    """The logit lens on every edited prompt before and after its edit: the first one, and the average, as figures.

    Records without a true target are left out, those whose answers begin with no token of their own, and edits of what
    is asked, which change nothing of how the model itself comes to an answer; of the average prompts that end with
    their subject too, whose last token is the subject's. A warning where the lens cannot read the model.
    """
    read: list[tuple[Lens, Lens]] = []
    apart = []
    for record, edit in edits:
        request = record.request
        if request.target_true is None or edit.redirects:
            continue
        answers = [request.target_true, request.target_new]
        request = as_asked(model, request, *answers)
        if None not in (answer_token(model, request.prompt, answer, request.separator) for answer in answers):
            try:
                before = logit_lens(model, request, answers)
            except LensError as error:
                warnings.warn(f"the path to the answer is not shown: {error}", stacklevel=2)
                return
            with edit.applied(model):
                read.append((before, logit_lens(model, request, answers)))
            if not ends_with_subject(request.template):
                apart.append(read[-1])
    figures = {"lens_1": read[0]} if read else {}
    if apart:
        what = {"prompt": f"Average over {len(apart)} prompts", "targets": ("old answer", "new answer")}
        befores, afters = zip(*apart, strict=True)
        figures = {"lens_average": (average_lens(befores, **what), average_lens(afters, **what)), **figures}
    for name, (before, after) in figures.items():
        caption = "Mean probability and geometric mean rank." if name == "lens_average" else f"“{before.prompt}”."
        run.save_figure(name, lens_figure(before, after), caption=f"Logit lens before and after the edit. {caption}")
