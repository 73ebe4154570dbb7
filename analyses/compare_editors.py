"""Which editor writes facts best? All of them on the same records, one edit at a time: the paper's main table.

    python analyses/compare_editors.py                         # every editor, 200 evaluation records of atlas
    python analyses/compare_editors.py --methods rome,memit --limit 500
    python analyses/compare_editors.py --model gpt2-xl --records counterfact.json --methods ft_l,rome,memit

Every record is edited alone: the edit is made, applied, scored and taken back, and the fingerprint of the weights is
compared with that of the untouched model. Scores are CounterFact's, teacher-forced, with bootstrap 95 % intervals over
records (Meng et al. 2022, table 4); fluency is measured on the first --fluency records only, because sampling takes
most of the time. Bold is the best of a column and each editor whose interval reaches it. The tables of the ROME and
MEMIT papers are printed beside it: other models, other records.

Then the methods of --stacked write the first --edits records as one batch, and these are scored with all of them kept;
prompts whose right answer another of these edits changes are left out. The bars of the embedded model are printed.

A run that is stopped goes on after the last record, when the same command is given again.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.make import check_editor, ready
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.figures.editors import editor_figure
from workbench.machine.allocator import peak_memory
from workbench.machine.failures import FAILURES
from workbench.machine.progress import track
from workbench.measuring.evaluate import evaluate, score_state
from workbench.measuring.scores import FLUENCY_TOKENS, RecordScores
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.ahead import Ahead
from workbench.studies.best_in_bold import save_table_with_best
from workbench.studies.checked import scored
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.edit import make_editor
from workbench.studies.editor_report import (
    BARS,
    BETTER,
    bars,
    comparison_table,
    single_summaries,
    stacked_summaries,
    told,
)
from workbench.studies.going_on import sound
from workbench.studies.locate import check_tracing, settled_layer, stating_facts
from workbench.studies.one_batch import edit_stacked
from workbench.studies.stacked_edits import distinct
from workbench.tables.published import published_table
from workbench.tables.scores import accuracy_table, change_table, main_table
from workbench.tables.table import to_markdown

MEMORY_RECORDS = 3
"""Records whose edits' memory is measured: it hardly differs between them."""
PUBLISHED = ("rome_table_4", "memit_table_2")


def main(
    model: options.Model = "atlas",
    records: options.Records = None,
    methods: options.Methods = None,
    limit: options.Limit = 200,
    fluency: options.Fluency = 50,
    stacked: Annotated[
        list[str], options.several("--stacked", str, "Editors whose edits are also written as one batch, or none.")
    ] = ["memit"],
    edits: Annotated[int, typer.Option("--edits", min=1, help="How many in that batch.")] = 80,
    preset: options.Preset = None,
    layer: options.Layer = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    together: options.Together = 1,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Edit and score, method by method, then print and save the tables."""
    check_tracing("last_subject", engine)
    methods, stacked = methods or ready(model), [method for method in stacked if method != "none"]
    records = records or default_records(model)
    every = stating_facts(read_records(records_path(records)))
    loaded = load(model, device=device, dtype=dtype)
    for method in dict.fromkeys([*methods, *stacked]):
        check_editor(loaded, method, layer=layer, preset_of=preset)
    text = text or default_text(loaded)
    settings = given(records=records, text=text, stacked=stacked, without=["methods"])  # others go on in the same run
    checks, title = [scored(every[:limit], fluency=fluency)], "Which editor writes facts best?"
    checks += [scored(distinct(every)[:edits])] if stacked else []
    with analysis(out, settings, loaded, title=title, headline=headline, checks=checks) as page:
        run = page.run
        page.show = lambda: show(run, loaded)
        layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine)
        for method in dict.fromkeys([*methods, *stacked]):  # around the located layer there may be none below
            check_editor(loaded, method, layer=layer, preset_of=preset)
        making = {"layer": layer, "preset_of": preset, "text": text, "seed": seed}
        before: dict[int, RecordScores] = {}
        for method in methods:
            edit_alone(run, loaded, method, every[:limit], before, making, together)
        for method in stacked:
            edit_stacked(run, loaded, method, distinct(every)[:edits], making)


def edit_alone(
    run: Run,
    model: Model,
    method: str,
    records: Sequence[Record],
    before: dict[int, RecordScores],
    making: dict[str, Any],
    together: int,
) -> None:
    """Edit and score each record that is not done yet, one at a time; `before` keeps the unedited scores."""
    finished = {row["case_id"] for row in run.rows("evaluations") if row["method"] == method}
    left = [record for record in sound(run, records, method) if record.case_id not in finished]
    if not left:
        return
    editor, weights = make_editor(model, method, run=run, **making), state_fingerprint(model)
    sampled = {record.case_id for record in records[: run.settings["fluency"]]}
    with suppress(*FAILURES):  # the record is kept as failed below
        editor(model, [left[0].request])  # what an editor prepares once, for all its edits, is no part of an edit
    measured = {row["case_id"] for row in run.rows("memory") if row["method"] == method}
    for record in records[:MEMORY_RECORDS]:
        if record.case_id in measured:
            continue
        with suppress(*FAILURES):
            _, size = peak_memory(lambda each=record: editor(model, [each.request]), model.device)
            run.append("memory", {"method": method, "case_id": record.case_id, "bytes": size})
    make = Ahead(model=model, editor=editor, records=left, together=together)
    for record in track(left, f"Editing with {method}", len(left)):
        scoring = {
            "generate": False,
            "fluency_tokens": FLUENCY_TOKENS if record.case_id in sampled else None,
            "seed": run.settings["seed"],
        }
        with run.keeping(record.case_id, of=len(records), method=method):
            if record.case_id not in before:
                before[record.case_id] = score_state(model, record, **scoring)
            edit, seconds = make(record)
            scored = evaluate(model, edit, record, pre=before[record.case_id], **scoring)
            row = {"method": method, "name": edit.method, "edit_seconds": seconds, "together": together}
            run.append("evaluations", scored.to_dict() | row | {"request": asdict(record.request)})
        check_restored(model, weights, after=f"the edit of record {record.case_id} with {method}")


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run, model: Model) -> list[Section]:
    """Print and save the tables, the figure and the bars; the sections of the report."""
    if not run.rows("evaluations"):
        return []
    seed = run.settings["seed"]
    single, stacked = single_summaries(run, seed=seed), stacked_summaries(run, seed=seed)
    together = max(row.get("together", 1) for row in run.rows("evaluations"))
    table = comparison_table(single, device=model.device.type, together=together)
    print(save_table_with_best(run, "scores", table, BETTER, among=list(single)))
    run.save_table("accuracy", accuracy_table(single))
    run.save_table("change", change_table(single))
    asked = {editor: least for editor, number, score, least in BARS if number == 1} if model.name == "atlas" else {}
    run.save_figure(
        "scores",
        editor_figure(single, bars=asked),
        caption="Scores by editor, one edit at a time, with bootstrap 95 % intervals over records.",
    )
    for name in PUBLISHED:
        run.save_table(name, published_table(name))
        print(to_markdown(published_table(name)))
    reached = bars(single, stacked) if model.name == "atlas" else []
    checked = ", ".join(f"{name} {summary.n}" for name, summary in single.items())
    identical = f"The weights were bit for bit those of the untouched model after every edit: {checked}."
    run.note(
        bars=[str(bar) for bar in reached],
        identical=identical,
        scores={name: {score: one.post[score].to_dict() for score in BETTER} for name, one in single.items()},
        stacked={
            f"{name}, {edits}": {score: one.post[score].to_dict() for score in ("S", "ES", "PS", "NS")}
            for (name, edits), one in stacked.items()
        },
    )
    sections = [
        Section(
            title="One edit at a time",
            elements=[
                Paragraph(text=identical),
                *(Paragraph(text=line) for line in told(reached)),
                run.tables()["scores"],
                run.figures()["scores"],
                run.tables()["accuracy"],
                run.tables()["change"],
            ],
        )
    ]
    if stacked:
        table = main_table({f"{name}, {edits} edits": one for (name, edits), one in stacked.items()})
        said = (
            "Edits written as one batch and all of them kept, scored on the same records. Prompts whose right answer "
            f"another of these edits changes are left out. {table.caption}"
        )
        table = replace(table, caption=said, columns=table.columns[:-1])  # fluency is not sampled here
        run.save_table("stacked", table)
        print(to_markdown(table))
        sections.append(Section(title="Many edits at once", elements=[run.tables()["stacked"]]))
    sections.append(Section(title="As published", elements=[run.tables()[name] for name in PUBLISHED]))
    for line in told(reached):
        print(line)
    print(identical)
    return sections


def headline(run: Run) -> str:
    """The editors' S, the best first."""
    scores = run.read_json("results.json").get("scores", {})
    if not scores:
        return "Nothing is finished yet."
    ranked = sorted(scores, key=lambda name: -(scores[name]["S"]["value"] or 0))
    return "S, one edit at a time: " + ", ".join(f"{name} {100 * scores[name]['S']['value']:.1f}" for name in ranked)


if __name__ == "__main__":
    script(main)
