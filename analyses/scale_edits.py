"""How many edits does a model bear? Each editor with 1, 10, 32, 100, 316 and 1,000 edits kept: the collapse curves.

    python analyses/scale_edits.py                                # the embedded model, every editor
    python analyses/scale_edits.py --methods rome,memit --edits 1,10,100,1000 --sample 100
    python analyses/scale_edits.py --model gpt2-xl --records counterfact.json --text wikitext --held-out prose.txt

Of all records one a subject and relation is used, since others repeat or contradict it. A fixed sample of them is
scored with more and more edits kept beside them: at small numbers in several groups, so that always the same records
and prompts are scored. Prompts whose right answer another of the edits changes are left out everywhere. ROME and r-ROME
make one edit after another, all other methods are given all requests at once (or --chunk after --chunk), also those
that survey_sequential.py gives one after another (FT, LoRA, KE).

Measured are ES, PS, NS and S and portability (teacher-forced), the fluency of sampled text, perplexity, and
||dW|| / ||W|| of all updates together by layer. The perplexity is that of the embedded model on statements that it was
not trained on, of facts that no edit changes; for another model give a text with --held-out.

A record that the model cannot be asked about once edits are kept (a collapsed one gives NaN) is told with its reason,
and the study goes on.

A run that is stopped goes on after the last edit that was saved, when the same command is given again.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from workbench.atlas.world import World
from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.make import check_editor, ready
from workbench.editors.rome import ROME
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import sequence
from workbench.machine.allocator import out_of_memory
from workbench.machine.failures import FAILURES, reason
from workbench.machine.progress import track
from workbench.measuring.perplexity import perplexity
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records, stating_facts
from workbench.records.texts import read_texts
from workbench.runs.run import Run
from workbench.studies.checked import edited, scored
from workbench.studies.defaults import RECORDS, default_records, default_text, records_path
from workbench.studies.edit import make_editor
from workbench.studies.going_on import complete, failing, going_on, left_out, made, sound
from workbench.studies.locate import check_tracing, settled_layer
from workbench.studies.stack_report import HELD_OUT_GROUPS, headline, show
from workbench.studies.stacked_edits import (
    Plan,
    change_by_layer,
    distinct,
    held_out_statements,
    plan_stacks,
    score_stack,
)

HELD_OUT = 300
"""Texts over which the perplexity is taken, at most."""


def main(
    model: options.Model = "atlas",
    records: Annotated[
        str | None,
        typer.Option("--records", help="A CounterFact file, or 'atlas' or 'smollm2' for all of its records."),
    ] = None,
    methods: options.Methods = None,
    edits: options.Kept = [1, 10, 32, 100, 316, 1000],
    chunk: Annotated[
        int | None, typer.Option("--chunk", min=1, help="Requests that batch editors write at once. [default: all]")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Records scored at every number.")] = 50,
    fluency: options.Fluency = 20,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="A file of text for the perplexity. [default: by the model]")
    ] = None,
    preset: options.Preset = None,
    layer: options.Layer = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Stack the edits, editor by editor, score, and write table, figure and report."""
    check_tracing("last_subject", engine)
    methods, records = methods or ready(model), records or default_records(model)
    folder = RECORDS.get(records)
    files = [folder / f"records_{part}.json" for part in ("train", "evaluation")] if folder else [records_path(records)]
    every = stating_facts([record for file in files for record in read_records(file)], ", ".join(map(str, files)))
    plan = plan_stacks(distinct(every), edits, sample=sample, seed=seed)
    loaded = load(model, device=device, dtype=dtype)
    for method in methods:
        check_editor(loaded, method, layer=layer, preset_of=preset)
    text = text or default_text(loaded)
    prose = held_out_texts(held_out, loaded, plan, seed)
    settings = given(records=records, text=text, without=["methods"])  # others go on in the same run
    stacked = {record.case_id: record for some in plan.stacks.values() for record in some}
    checks = [scored(plan.sample, fluency=fluency), edited(list(stacked.values()))]
    title = "How many edits does a model bear?"
    with analysis(out, settings, loaded, title=title, headline=headline, methods=methods, checks=checks) as page:
        run = page.run
        page.show = lambda: show(run, plan, texts=len(prose))
        layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine)
        if not any(complete(run, row) for row in run.rows("unedited")):
            run.append("unedited", unedited(run, loaded, plan, prose))
        finished = {
            (row["method"], row["edits"], row["group"])
            for row in run.rows("stacks")
            if complete(run, row, failing(row["method"], row["edits"]))
        }
        for method in methods:
            left = [
                place
                for place, stacked in plan.stacks.items()
                if (method, *place) not in finished and sound(run, stacked, failing(method, place[0]))
            ]
            if left:
                editor = make_editor(loaded, method, layer=layer, preset_of=preset, text=text, seed=seed, run=run)
                made = (one for place in left for one in stack(run, loaded, method, editor, place, plan, prose))
                for _ in track(made, f"Stacking {method}", sum(len(plan.stacks[place]) for place in left)):
                    pass


def held_out_texts(name: str | None, model: Model, plan: Plan, seed: int) -> list[str]:
    """The texts of the perplexity; none for a model other than the embedded one unless a file is named."""
    if name is not None:
        return read_texts(name, limit=HELD_OUT)
    if model.name != "atlas":
        return []
    requests = dict.fromkeys(record.request for stack in plan.stacks.values() for record in stack)
    return held_out_statements(World.load(), list(requests), seed=seed, limit=HELD_OUT)


def unedited(run: Run, model: Model, plan: Plan, held_out: Sequence[str]) -> dict[str, Any]:
    """The sample in the unedited model; a record that cannot be scored is kept as failed for all."""
    measure = partial(measured, run, model, plan)
    try:
        found = measure(sound(run, plan.sample), held_out)
    except FAILURES:
        for record in sound(run, plan.sample):
            with run.keeping(record.case_id, of=len(plan.sample)):
                measure([record], [])
        found = measure(sound(run, plan.sample), held_out)
    return found | {"left_out": left_out(plan.sample, sound(run, plan.sample))}


def stack(
    run: Run, model: Model, method: str, editor: Any, place: tuple[int, int], plan: Plan, held_out: Sequence[str]
) -> Iterator[Record]:
    """Make and keep a group's edits, yielding each record once it is edited; then measure and note the group."""
    (edits, group), records, weights = place, plan.stacks[place], state_fingerprint(model)
    folder = run.folder / "edits" / f"{method}-{edits}-{group}"

    def attempt(some: Sequence[Record]) -> Iterator[Record]:
        chunk = 1 if isinstance(editor, ROME) else run.settings["chunk"] or len(some)
        fresh, name, began = not folder.exists(), "", time.perf_counter()
        with sequence(model, editor, [record.request for record in some], chunk=chunk, folder=folder) as steps:
            for edit, newest in made(steps, some):
                name = edit.method
                yield from newest
            seconds = (time.perf_counter() - began) / len(some)
            scored = sound(run, plan.scored(edits, group), failing(method, edits))
            row = as_far_as_it_goes(run, model, plan, scored, held_out if group < HELD_OUT_GROUPS else [])
            row |= {"norms": {str(layer): norm for layer, norm in change_by_layer(model).items()}}
        row |= {"method": method, "name": name, "edits": edits, "group": group, "left_out": left_out(records, some)}
        run.append("stacks", row | {"seconds": seconds if fresh else None})
        shutil.rmtree(folder)  # large, and not needed once the group is noted

    yield from going_on(run, model, records, attempt, method=failing(method, edits), folder=folder)
    check_restored(model, weights, after=f"a stack of {edits} edits with {method}")


def as_far_as_it_goes(
    run: Run, model: Model, plan: Plan, records: Sequence[Record], held_out: Sequence[str]
) -> dict[str, Any]:
    """`measured`, without the records that cannot be scored with the edits kept: these are "unscored", with why."""
    try:
        return measured(run, model, plan, records, held_out)
    except FAILURES as error:
        if out_of_memory(error):  # which says nothing of the edits: the run ends, and can go on
            raise
    scores: list[dict[str, Any]] = []
    unscored: dict[int, str] = {}
    for record in records:
        try:
            scores += measured(run, model, plan, [record], [])["scores"]
        except FAILURES as error:
            if out_of_memory(error):
                raise
            unscored[record.case_id] = reason(error)
    cases = [record.case_id for record in records if record.case_id not in unscored]
    return measured(run, model, plan, [], held_out) | {"cases": cases, "scores": scores, "unscored": unscored}


def measured(run: Run, model: Model, plan: Plan, records: Sequence[Record], held_out: Sequence[str]) -> dict[str, Any]:
    """Scores of the records and perplexity of the text in the model as it is."""
    sampled = {record.case_id for record in plan.sample[: run.settings["fluency"]]}
    scores = score_stack(model, records, sampled=sampled, seed=run.settings["seed"])
    asked_otherwise = any(edit.redirects for edit in model.edits)  # which says nothing of text that is not asked
    return {
        "cases": [record.case_id for record in records],
        "scores": [one.to_dict() for one in scores],
        "perplexity": perplexity(model, held_out) if held_out and not asked_otherwise else None,
        "left_out": [],
    }


if __name__ == "__main__":
    script(main)
