"""Which editor writes facts best? All of them on the same records, one edit at a time: the paper's main table.

    python analyses/compare_editors.py                         # every editor, 200 evaluation records of atlas
    python analyses/compare_editors.py --methods rome memit --limit 500
    python analyses/compare_editors.py --model gpt2-xl --records counterfact.json --methods ft_l rome memit

Every record is edited alone: the edit is made, applied, scored and taken back, and the fingerprint of the weights is
compared with that of the untouched model. Scores are CounterFact's, teacher-forced, with bootstrap 95 % intervals over
records (Meng et al. 2022, table 4); fluency is measured on the first --fluency records only, because sampling takes
most of the time. Bold is the best of a column and each editor whose interval reaches it. The tables of the ROME and
MEMIT papers are printed beside it: other models, other records.

Then the methods of --stacked write the first --edits records as one batch, and these are scored with all of them kept;
prompts whose right answer another of these edits changes are left out. The bars of the embedded model are printed.

A run that is stopped goes on after the last record, when the same command is given again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import track

from workbench.editors.make import check_editor
from workbench.editors.registry import EDITORS
from workbench.edits.ledger import check_restored
from workbench.edits.sequence import sequence
from workbench.figures.editors import editor_figure
from workbench.machine.allocator import peak_memory
from workbench.machine.failures import FAILURES, lines
from workbench.measuring.evaluate import evaluate, score_state
from workbench.measuring.scores import FLUENCY_TOKENS, RecordScores
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.records.facts import Record
from workbench.report.elements import Paragraph, Section
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.best_in_bold import save_table_with_best
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.edit import make_editor
from workbench.studies.editor_report import BARS, BETTER, bars, comparison_table, single_summaries, stacked_summaries
from workbench.studies.locate import settled_layer
from workbench.studies.stacked_edits import change_by_layer, distinct, evaluations, score_stack, untouched
from workbench.tables.published import published_table
from workbench.tables.scores import accuracy_table, change_table, main_table
from workbench.tables.table import to_markdown
from workbench.tracing.fact import ENGINES

MEMORY_RECORDS = 3
"""Records whose edits' memory is measured: it hardly differs between them."""
PUBLISHED = ("rome_table_4", "memit_table_2")


def main() -> None:
    """Edit and score, method by method, then print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", help="a CounterFact file, 'atlas' or 'smollm2' (default: by the model)")
    parser.add_argument("--methods", nargs="+", choices=list(EDITORS), default=list(EDITORS))
    parser.add_argument("--limit", type=int, default=200, help="records edited")
    parser.add_argument("--fluency", type=int, default=50, help="records of these whose fluency is measured")
    parser.add_argument("--stacked", nargs="*", choices=list(EDITORS), default=["memit"], help="written as one batch")
    parser.add_argument("--edits", type=int, default=80, help="how many in that batch")
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--layer", type=int, help="default: the one located by tracing the records' facts")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what traces for it")
    parser.add_argument("--text", help="for second moments: a file, 'wikitext', 'self', 'atlas' (default: by model)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry", action="store_true", help="try again what failed in an earlier run")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_editors"))
    arguments = parser.parse_args()

    arguments.records = arguments.records or default_records(arguments.model)
    every = [r for r in read_records(records_path(arguments.records)) if r.request.target_true is not None]
    records = every[: arguments.limit]
    model = load_model(arguments.model, device=arguments.device)
    for method in {*arguments.methods, *arguments.stacked}:
        check_editor(model, method, layer=arguments.layer, preset_of=arguments.preset)
    settings = vars(arguments) | {"command": "compare_editors", "text": arguments.text or default_text(model)}
    retry = settings.pop("retry")
    settings.pop("methods")  # others go on in the same folder
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    if retry:
        run.retry()
    sections: list[Section] = []
    try:
        with run.running():
            layer = settled_layer(
                run, model, records, layer=arguments.layer, seed=arguments.seed, engine=arguments.engine
            )
            options = {"layer": layer, "preset_of": arguments.preset, "seed": arguments.seed}
            before: dict[int, RecordScores] = {}
            for method in arguments.methods:
                edit_alone(run, model, method, records, before, options)
            for method in arguments.stacked:
                edit_stacked(run, model, method, distinct(every)[: arguments.edits], options)
            sections = show(run, model)
    finally:
        if not sections and run.rows("evaluations"):
            sections = show(run, model)
        print(f"report: {write_report(run, sections, title='Which editor writes facts best?', headline=headline(run))}")
    if failed := lines(run.rows("failures")):
        print(*failed, sep="\n", file=sys.stderr)
        sys.exit(3)


def edit_alone(
    run: Run,
    model: Model,
    method: str,
    records: Sequence[Record],
    before: dict[int, RecordScores],
    options: dict[str, Any],
) -> None:
    """Edit and score each record that is not done yet, one at a time; `before` keeps the unedited scores."""
    finished = {row["case_id"] for row in run.rows("evaluations") if row["method"] == method}
    finished |= run.failed(method=method)
    left = [(number, record) for number, record in enumerate(records) if record.case_id not in finished]
    if not left:
        return
    editor, seed = make_editor(model, method, text=run.settings["text"], **options), options["seed"]
    weights = model.fingerprint()
    with suppress(*FAILURES):  # the record is kept as failed below
        editor(model, [left[0][1].request])  # what an editor prepares once, for all its edits, is no part of an edit
    measured = {row["case_id"] for row in run.rows("memory") if row["method"] == method}
    for record in records[:MEMORY_RECORDS]:
        if record.case_id in measured:
            continue
        with suppress(*FAILURES):
            _, size = peak_memory(lambda each=record: editor(model, [each.request]), model.device)
            run.append("memory", {"method": method, "case_id": record.case_id, "bytes": size})
    for number, record in track(left, f"Editing with {method}", len(left)):
        scoring = {
            "generate": False,
            "fluency_tokens": FLUENCY_TOKENS if number < run.settings["fluency"] else None,
            "seed": seed,
        }
        with run.keeping(record.case_id, of=len(records), method=method):
            if record.case_id not in before:
                before[record.case_id] = score_state(model, record, **scoring)
            began = time.perf_counter()
            edit = editor(model, [record.request])
            seconds = time.perf_counter() - began
            scored = evaluate(model, edit, record, pre=before[record.case_id], **scoring)
            row = {"method": method, "name": edit.method, "edit_seconds": seconds, "request": asdict(record.request)}
            run.append("evaluations", scored.to_dict() | row)
        check_restored(model, weights, after=f"the edit of record {record.case_id} with {method}")


def edit_stacked(run: Run, model: Model, method: str, records: Sequence[Record], options: dict[str, Any]) -> None:
    """Write all the records' requests as one batch and score each with all of them kept."""
    if any(row["method"] == method for row in run.rows("stacked")):
        return
    editor, requests = (
        make_editor(model, method, text=run.settings["text"], **options),
        [record.request for record in records],
    )
    asked = [untouched(record, requests) for record in records]
    before, weights = score_stack(model, asked), model.fingerprint()
    began = time.perf_counter()
    folder = run.folder / "edits" / f"{method}-{len(records)}"
    with sequence(model, editor, requests, chunk=len(requests), folder=folder) as steps:
        edits = list(steps)
        seconds, norms = time.perf_counter() - began, change_by_layer(model)
        after = score_stack(model, asked)
    check_restored(model, weights, after=f"a stack of {len(records)} edits with {method}")
    found = evaluations(asked, before, after, norms=norms, seconds=seconds)
    row = {"method": method, "name": edits[0].method, "edits": len(records), "seconds": seconds}
    run.append("stacked", row | {"evaluations": [one.to_dict() for one in found]})


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run, model: Model) -> list[Section]:
    """Print and save the tables, the figure and the bars; the sections of the report."""
    seed = run.settings["seed"]
    single, stacked = single_summaries(run, seed=seed), stacked_summaries(run, seed=seed)
    table = comparison_table(single, device=model.device.type)
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
                *(Paragraph(text=f"Bar: {bar}.") for bar in reached),
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
    for bar in reached:
        print(f"bar: {bar}")
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
    main()
