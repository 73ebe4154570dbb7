"""How much of an edit is left when others follow? 1, 10 and 100 edits kept in one model, by every method.

    python analyses/survey_sequential.py                             # every method that is ready, on atlas
    python analyses/survey_sequential.py --model smollm2 --device cuda --sample 10 --methods rome,memit,grace
    python analyses/survey_sequential.py --model gpt2-xl --records counterfact.json --edits 1,10,100,1000

The survey's sequential form (Yao et al. 2305.13172, section 5.2): edits are made one after another, each on the model
that those before it leave, and all of them kept; methods that write a batch by their paper (MEMIT and its kin, KN,
MEND, SERAC, CaliNet) write all at once. Then the edits are asked for: retention is the reliability of those made
earlier, generalization that on paraphrases, and locality says whether outputs are what they were without any edit;
each teacher-forced and generated (workbench/measuring/survey.py).

The same sample of records is scored at every number: at small numbers they are spread over several models, at large
ones they stand anywhere among the others. One record a subject and relation is used, since others repeat or contradict
it; prompts whose right answer another of the edits changes are left out everywhere.

A method that cannot be made, or whose edits cannot be kept together, keeps its column; the caption says why. A run that
is stopped goes on after the last model that was scored, when the same command is given again; so does one with other
--methods.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.editor import Editor
from workbench.editors.make import ready
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import sequence
from workbench.figures.methods import course_figure
from workbench.machine.as_json import from_json, to_json
from workbench.machine.intervals import Estimate, wilson
from workbench.machine.progress import track
from workbench.measuring.survey import Answered, SurveyScores, collected, survey_state, surveyed_pairs
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.checked import edited, scored
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.every_method import check_methods, headline, made_editor, tried, whys
from workbench.studies.going_on import complete, failing, going_on, left_out, made, refusing, sound
from workbench.studies.locate import check_tracing, settled_layer
from workbench.studies.stacked_edits import Plan, distinct, plan_stacks
from workbench.tables.scores import UNEDITED
from workbench.tables.survey import measures_table
from workbench.tables.table import to_markdown

_MEASURES = {
    f"{score}.{way}": f"{label}, {said}"
    for score, label in (("reliability", "retention"), ("generalization", "generalization"), ("locality", "locality"))
    for way, said in (("forced", "teacher-forced"), ("generated", "generated"))
}
_DRAWN = ("reliability.forced", "reliability.generated", "locality.forced", "locality.generated")
_STATE = tuple[Answered, ...]


def main(
    model: options.Model = "atlas",
    records: options.Records = None,
    methods: options.Methods = None,
    edits: options.Kept = [1, 10, 100],
    sample: Annotated[int, typer.Option("--sample", min=1, help="Records scored at every number.")] = 30,
    plugin: options.Plugin = None,
    preset: options.Preset = None,
    layer: options.Layer = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Keep the edits, method by method and number by number, and print and save table and figure."""
    check_tracing("last_subject", engine)
    methods, records = methods or ready(model), records or default_records(model)
    check_methods(methods)
    every = read_records(records_path(records))
    plan = plan_stacks(distinct(every), edits, sample=sample, seed=seed)
    loaded = load(model, device=device, dtype=dtype)
    text = text or default_text(loaded)
    settings = given(records=records, text=text, without=["methods"])  # others go on in the same run
    stacked = {record.case_id: record for some in plan.stacks.values() for record in some}
    checks = [scored(plan.sample, surveyed_pairs), edited(list(stacked.values()))]
    title = "Edits that follow one another"
    with analysis(out, settings, loaded, title=title, headline=headline, methods=methods, checks=checks) as page:
        run = page.run
        page.show = lambda: show(run, plan)
        layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine)
        score_unedited(run, loaded, plan.sample)
        making = {"layer": layer, "preset_of": preset, "text": text, "seed": seed}
        for method in methods:
            left = unfinished(run, method, plan)
            if left and (editor := made_editor(run, loaded, method, making)):
                kept = (record for place in left for record in keep(run, loaded, method, editor, place, plan))
                for _ in track(kept, f"Keeping edits of {method}", sum(len(plan.stacks[place]) for place in left)):
                    pass


def score_unedited(run: Run, model: Model, sample: Sequence[Record]) -> None:
    """Score what is not scored yet of the sample by the model as it is; a record that fails is left out for all."""
    finished = run.done("unedited", "case_id")
    for record in sound(run, sample):
        if record.case_id not in finished:
            with run.keeping(record.case_id, of=len(sample)):
                state = survey_state(model, record)
                run.append("unedited", {"case_id": record.case_id, "answers": to_json(state)})


def unfinished(run: Run, method: str, plan: Plan) -> list[tuple[int, int]]:
    """The numbers and groups of edits that were not kept and scored yet with a method."""
    finished = {
        (row["edits"], row["group"])
        for row in run.rows("stacks")
        if row["method"] == method and complete(run, row, failing(method, row["edits"]))
    }
    return [
        place
        for place, some in plan.stacks.items()
        if place not in finished and sound(run, some, failing(method, place[0]))
    ]


def keep(run: Run, model: Model, method: str, editor: Editor, place: tuple[int, int], plan: Plan) -> Iterator[Record]:
    """Make and keep a group's edits, yielding each record once it is edited; then score those of the sample."""
    (edits, group), records, weights = place, plan.stacks[place], state_fingerprint(model)
    there = failing(method, edits)

    def attempt(some: Sequence[Record]) -> Iterator[Record]:
        chunk, began = len(some) if editor.batches else 1, time.perf_counter()
        with sequence(model, editor, [record.request for record in some], chunk=chunk) as steps:
            for _, newest in made(steps, some):
                yield from newest
            seconds = time.perf_counter() - began
            scored = sound(run, plan.scored(edits, group), there)
            with refusing(scored, lambda record: survey_state(model, record)):
                states = {record.case_id: survey_state(model, record) for record in scored}
        row = {"method": method, "edits": edits, "group": group, "batch": editor.batches, "seconds": seconds}
        row |= {"left_out": left_out(records, some)}
        run.append("stacks", row | {"states": to_json(states)})

    yield from going_on(run, model, records, attempt, method=there)
    check_restored(model, weights, after=f"{edits} edits kept with {method}")


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run, plan: Plan) -> list[Section]:
    """Print and save table and figure; the sections of the report."""
    before = {row["case_id"]: from_json(_STATE, row["answers"]) for row in run.rows("unedited")}
    stacks = {(row["method"], row["edits"], row["group"]): row for row in run.rows("stacks")}  # the latest of each
    if not stacks:
        return []
    numbers, names = sorted({number for number, _ in plan.stacks}), tried(run)
    found: dict[str, dict[str, dict[str, Estimate]]] = {name: {} for name in names.values()}
    for method, name in names.items():
        for number in numbers:
            states = {
                int(case): from_json(_STATE, state)
                for (made_by, edits, _), row in stacks.items()
                if (made_by, edits) == (method, number)
                for case, state in row["states"].items()
            }
            scores = [SurveyScores(case_id=c, before=before[c], after=s) for c, s in states.items() if c in before]
            if scores:
                found[name][str(number)] = measured(scores)
    alone = measured([SurveyScores(case_id=case, before=one, after=one) for case, one in before.items()])
    measures = {UNEDITED: {str(number): alone for number in numbers}, **found}
    failed = whys(run, without=[name for name, one in found.items() if len(one) < len(numbers)])
    data, labels = Path(run.settings["records"]).stem, {str(n): f"{n:,} edit{'s' * (n > 1)}" for n in numbers}
    table = measures_table(measures, labels, data=data, caption=caption(plan), interval=_INTERVAL, failures=failed)
    run.save_table("sequential", table)
    print(to_markdown(table))
    lines = {_MEASURES[name] for name in _DRAWN}
    drawn = {
        name: {number: {how: e for how, e in hows.items() if how in lines} for number, hows in one.items()}
        for name, one in measures.items()
    }
    heading = f"{len(plan.sample)} records of {data} with more and more edits kept; 95 % intervals over records"
    run.save_figure("sequential", course_figure(drawn, labels, heading=heading), caption=table.caption)
    checked = f"The weights were bit for bit those of the untouched model after each of {len(stacks):,} sequences."
    run.note(sequences=len(stacks), editors=list(names.values()), failed=failed, identical=checked)
    print(checked)
    elements = [Paragraph(text=checked), run.figures()["sequential"], run.tables()["sequential"]]
    return [Section(title="Retention and locality", elements=elements)]


_INTERVAL = "Wilson 95 % intervals over records"


def measured(scores: Sequence[SurveyScores]) -> dict[str, Estimate]:
    """The measures that the records have."""
    values = collected(scores)
    return {said: wilson(values[name]) for name, said in _MEASURES.items() if name in values}


def caption(plan: Plan) -> str:
    """How it was measured, and of what."""
    paraphrases = sum(len(one.paraphrase_prompts) for one in plan.sample)
    prompts = sum(len(one.neighborhood_prompts) + len(one.locality_prompts) for one in plan.sample)
    groups = [number for number, _ in plan.stacks]
    models = ", ".join(f"{groups.count(number)} of {number:,}" for number in dict.fromkeys(groups))
    batching = "methods that batch write each model's edits at once"
    return (
        f"Scores (%) by the definitions of Yao et al. 2023 (arXiv:2305.13172) with so many edits kept together, made "
        f"one after another ({batching}). Retention: reliability once all are made. Teacher-forced: the share of the "
        "answer's tokens that are the top choice, the tokens before them given; generated: the greedy continuation "
        "begins with the answer. Locality: the output is that of the model without any edit. The same "
        f"{len(plan.sample)} records, with {paraphrases} paraphrases and {prompts} prompts of locality, at every "
        f"number of edits, spread over sequences: {models}. {_INTERVAL}; that edits kept together "
        "share a model is not in them."
    )


if __name__ == "__main__":
    script(main)
