"""Which of the editors does what? Every method on several data sets, scored as the survey of editing scores it.

    python analyses/survey_table.py                           # every method, 200 records of atlas, stated and asked
    python analyses/survey_table.py --model smollm2 --limit 100
    python analyses/survey_table.py --model gpt2-xl --records counterfact.json,zsre_mend_eval.json --methods rome,memit

Rows are scores of a data set, columns the methods (Yao et al. 2305.13172, table 1): reliability, generalization,
locality, and portability by kind, each teacher-forced, generated, and by how much the first is more. Every record is
edited alone: the edit is made, applied, scored and taken back, and the fingerprint of the weights is compared with that
of the untouched model. Below stand what a method takes: seconds to train and make ready, seconds and MiB an edit.

A method that has no preset for the model, cannot be made, or makes no edit keeps its column; the caption says why.
Scores for which a data set has no prompts are left out. The survey's own numbers (GPT-J, T5-XL) do not stand beside:
they could not be checked against their source.

A run that is stopped goes on after the last record, when the same command is given again; so does one with other
--methods, or with a --limit that takes in more records.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.editor import Editor
from workbench.editors.registry import EDITORS
from workbench.edits.edit import Edit
from workbench.machine.allocator import peak_memory
from workbench.machine.as_json import from_json, to_json
from workbench.machine.failures import FAILURES
from workbench.machine.processes import Workers
from workbench.measuring.survey import Answered, SurveyScores, survey_scores, survey_state, surveyed_pairs
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.ahead import shared
from workbench.studies.alone import each_alone, each_unedited
from workbench.studies.checked import scored
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.every_method import check_methods, headline, made_editor, tried, whys
from workbench.studies.going_on import sound
from workbench.studies.locate import check_tracing, settled_layer
from workbench.studies.replicas import chosen_workers
from workbench.tables.survey import Cost, DataSet, survey_table
from workbench.tables.table import to_markdown

MEMORY_RECORDS = 2
"""Records whose edits' memory is measured, by method: it hardly differs between them."""
_STATE = tuple[Answered, ...]
_Row = Mapping[str, Any]


def main(
    model: options.Model = "atlas",
    records: options.SeveralRecords = None,
    methods: options.Methods = None,
    limit: options.Limit = 200,
    preset: options.Preset = None,
    layer: options.Layer = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    together: options.Together = 1,
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Edit and score, method by method on every data set, then print and save the table."""
    check_tracing("last_subject", engine)
    methods, own = methods or list(EDITORS), default_records(model)
    records = records or [own, f"{own}_questions"]
    named = {Path(name).stem: read_records(records_path(name)) for name in records}
    if len(named) < len(records):
        raise ValueError(f"--records are told apart by their names without folders, got {', '.join(records)}")
    sets = {name: every[:limit] for name, every in named.items()}
    check_methods(methods)
    loaded = load(model, device=device, dtype=dtype)
    text = text or default_text(loaded)
    settings = given(records=records, text=text, without=["methods", "limit"])  # others go on in the same run
    title = "Every method, every data set: the survey's table"
    checks = [scored(some, surveyed_pairs, method=name) for name, some in sets.items()]
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with (
        analysis(out, settings, loaded, title=title, headline=headline, methods=methods, checks=checks) as page,
        crew as those,
    ):
        run = page.run
        page.show = lambda: show(run, sets)
        facts = [record for every in named.values() for record in every]
        layer = settled_layer(run, loaded, facts, layer=layer, seed=seed, engine=engine)
        for name, some in sets.items():
            score_unedited(run, loaded, name, some, those)
        making = {"layer": layer, "preset_of": preset, "text": text, "seed": seed}
        asked, edited = run.rows("unedited"), run.rows("edited")
        for method in methods:
            left = {name: unfinished(run, asked, edited, method, name, some) for name, some in sets.items()}
            if any(left.values()) and (editor := made_editor(run, loaded, method, making)):
                for name, some in left.items():
                    edit_each(run, loaded, method, editor, name, some, len(sets[name]), together, those)


def unfinished(
    run: Run, asked: Sequence[_Row], edited: Sequence[_Row], method: str, name: str, records: Sequence[Record]
) -> list[Record]:
    """The records of a data set that are scored unedited, and neither edited with a method nor failed."""
    before = {row["case_id"] for row in asked if row["records"] == name}
    finished = {row["case_id"] for row in edited if (row["records"], row["method"]) == (name, method)}
    some = sound(run, records, f"{method} on {name}")
    return [record for record in some if record.case_id in before and record.case_id not in finished]


def score_unedited(
    run: Run, model: Model, name: str, records: Sequence[Record], workers: Workers[Model] | None
) -> None:
    """Score what is not scored yet of a data set by the model as it is; a record that fails is left out for all."""
    finished = {row["case_id"] for row in run.rows("unedited") if row["records"] == name} | run.failed(method=name)
    left = [record for record in records if record.case_id not in finished]
    form: dict[str, Any] = {"title": f"Asking {name}", "of": len(records), "method": name}
    for record, state in each_unedited(run, model, left, survey_state, workers=workers, **form):
        run.append("unedited", {"records": name, "case_id": record.case_id, "answers": to_json(state)})


def edit_each(
    run: Run,
    model: Model,
    method: str,
    editor: Editor,
    name: str,
    records: Sequence[Record],
    of: int,
    together: int,
    workers: Workers[Model] | None,
) -> None:
    """Edit and score what is left of the `of` records of a data set, one at a time."""
    before = states(run.rows("unedited"), name)
    measured = [row for row in run.rows("memory") if row["method"] == method]
    for record in records[: MEMORY_RECORDS - len(measured)]:  # first, so that what is made once is no part of an edit
        with suppress(*FAILURES):  # the record is kept as failed below
            _, size = peak_memory(lambda each=record: editor(model, [each.request]), model.device)
            run.append("memory", {"method": method, "bytes": size})
    edited = each_alone(
        run,
        model,
        editor,
        records,
        partial(answered, before),
        title=f"Editing {name} with {method}",
        of=of,
        method=f"{method} on {name}",
        together=together,
        workers=workers,
    )
    for record, seconds, answers in edited:
        row = {"records": name, "method": method, "case_id": record.case_id}
        run.append("edited", row | {"seconds": seconds, "together": together, "answers": answers})


def answered(before: Mapping[int, _STATE], model: Model, edit: Edit, record: Record) -> Any:
    """What the model makes of a record with its edit, as JSON values."""
    return to_json(survey_scores(model, edit, record, before=before[record.case_id]).after)


# What came of it ---------------------------------------------------------------------------------------


def states(rows: Sequence[_Row], name: str, method: str | None = None) -> dict[int, _STATE]:
    """By case what the model makes of a data set's records, unedited or edited with a method."""
    return {
        row["case_id"]: from_json(_STATE, row["answers"])
        for row in rows
        if row["records"] == name and row.get("method") == method
    }


def show(run: Run, sets: Mapping[str, Sequence[Record]]) -> list[Section]:
    """Print and save the table; the sections of the report."""
    asked, edited, names = run.rows("unedited"), run.rows("edited"), tried(run)
    data = []
    for name, records in sets.items():
        before = states(asked, name)
        after = {names[method]: states(edited, name, method) for method in names}
        scores = {
            editor: [SurveyScores(case_id=case, before=before[case], after=state) for case, state in some.items()]
            for editor, some in after.items()
            if some
        }
        rephrased = next((record.rephrased_by for record in records if record.rephrased_by), "")
        data.append(DataSet(name=name, rephrased_by=rephrased, scores=scores))
    costs = {
        names[row["method"]]: Cost(
            train=row["seconds"],
            seconds=[one["seconds"] for one in edited if one["method"] == row["method"]],
            memory=[one["bytes"] for one in run.rows("memory") if one["method"] == row["method"]],
        )
        for row in run.rows("training")
    }
    failed = whys(run, without=[name for name in names.values() if any(name not in one.scores for one in data)])
    if not any(one.scores for one in data):
        return []
    table = survey_table(data, list(names.values()), costs, failed)
    if several := shared(max(row["together"] for row in edited)):
        table = replace(table, caption=f"{table.caption} Seconds of an edit are wall clock{several}.")
    run.save_table("survey", table)
    print(to_markdown(table))
    checked = f"The weights were bit for bit those of the untouched model after each of {len(edited):,} edits."
    run.note(edits=len(edited), editors=list(names.values()), failed=failed, identical=checked)
    print(checked)
    return [Section(title="The table", elements=[Paragraph(text=checked), run.tables()["survey"]])]


if __name__ == "__main__":
    script(main)
