"""How many edits does a model bear? Each editor with 1, 10, 32, 100, 316 and 1,000 edits kept: the collapse curves.

    python analyses/scale_edits.py                                # the embedded model, every editor
    python analyses/scale_edits.py --methods rome memit --edits 1 10 100 1000 --sample 100
    python analyses/scale_edits.py --model gpt2-xl --records counterfact.json --text wikitext --held-out prose.txt

Of all records one a subject and relation is used, since others repeat or contradict it. A fixed sample of them is
scored with more and more edits kept beside them: at small numbers in several groups, so that always the same records
and prompts are scored. Prompts whose right answer another of the edits changes are left out everywhere. FT, FT-L,
MEMIT, EMMET, PMET and AlphaEdit write all edits as one batch (or --chunk after --chunk), ROME and r-ROME one after
another.

Measured are ES, PS, NS and S and portability (teacher-forced), the fluency of sampled text, perplexity, and
||dW|| / ||W|| of all updates together by layer. The perplexity is that of the embedded model on statements that it was
not trained on, of facts that no edit changes; for another model give a text with --held-out.

A run that is stopped goes on after the last edit that was saved, when the same command is given again.
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from workbench.atlas.world import World
from workbench.editors.make import check_editor
from workbench.editors.registry import EDITORS
from workbench.editors.rome import ROME
from workbench.edits.ledger import check_restored
from workbench.edits.sequence import sequence
from workbench.figures.editors import stack_figure
from workbench.measuring.perplexity import perplexity
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.records.facts import EditRequest, Record
from workbench.records.texts import read_texts
from workbench.report.elements import Paragraph, Section
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.defaults import RECORDS, default_records, default_text
from workbench.studies.edit import make_editor
from workbench.studies.locate import settled_layer
from workbench.studies.stack_report import PANELS, by_layer, curves, stack_table, summaries, verdict
from workbench.studies.stacked_edits import (
    Plan,
    change_by_layer,
    distinct,
    held_out_statements,
    plan_stacks,
    score_stack,
)
from workbench.tables.table import to_markdown
from workbench.tracing.fact import ENGINES

HELD_OUT = 300
"""Texts over which the perplexity is taken, at most."""
HELD_OUT_GROUPS = 5
"""Groups of a number of edits whose perplexity is taken, at most."""


def main() -> None:
    """Stack the edits, editor by editor, score, and write table, figure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", help="a CounterFact file, or 'atlas' or 'smollm2' for all of its records")
    parser.add_argument("--methods", nargs="+", choices=list(EDITORS), default=list(EDITORS))
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 10, 32, 100, 316, 1000], help="kept together")
    parser.add_argument("--chunk", type=int, help="requests that batch editors write at once (default: all)")
    parser.add_argument("--sample", type=int, default=50, help="records scored at every number")
    parser.add_argument("--fluency", type=int, default=20, help="records of these whose fluency is measured")
    parser.add_argument("--held-out", help="a file of text for the perplexity (default: by the model)")
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--layer", type=int, help="default: the one located by tracing the records' facts")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what traces for it")
    parser.add_argument("--text", help="for second moments: a file, 'wikitext', 'self', 'atlas' (default: by model)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/scale_edits"))
    arguments = parser.parse_args()

    arguments.records = arguments.records or default_records(arguments.model)
    files = [arguments.records]
    if arguments.records in RECORDS:
        folder = RECORDS[arguments.records]
        files = [folder / f"records_{part}.json" for part in ("train", "evaluation")]
    records = [r for file in files for r in read_records(file) if r.request.target_true is not None]
    plan = plan_stacks(distinct(records), arguments.edits, sample=arguments.sample, seed=arguments.seed)
    model = load_model(arguments.model, device=arguments.device)
    for method in arguments.methods:
        check_editor(model, method, layer=arguments.layer, preset_of=arguments.preset)
    settings = vars(arguments) | {"command": "scale_edits", "text": arguments.text or default_text(model)}
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    held_out = held_out_texts(arguments.held_out, model, plan, arguments.seed)
    sections: list[Section] = []
    try:
        with run.running():
            layer = settled_layer(
                run, model, records, layer=arguments.layer, seed=arguments.seed, engine=arguments.engine
            )
            if not run.rows("unedited"):
                run.append("unedited", measured(model, plan.sample, held_out, settings["fluency"], arguments.seed))
            done = {(row["method"], row["edits"], row["group"]) for row in run.rows("stacks")}
            for method in arguments.methods:
                left = [place for place in plan.stacks if (method, *place) not in done]
                if left:
                    options = {"layer": layer, "preset_of": arguments.preset, "seed": arguments.seed}
                    editor = make_editor(model, method, text=settings["text"], **options)
                    made = (one for place in left for one in stack(run, model, method, editor, place, plan, held_out))
                    for _ in track(made, f"Stacking {method}", sum(len(plan.stacks[place]) for place in left)):
                        pass
            sections = show(run, plan, held_out)
    finally:
        if not sections and run.rows("stacks"):
            sections = show(run, plan, held_out)
        title = "How many edits does a model bear?"
        print(f"report: {write_report(run, sections, title=title, headline=headline(run))}")


def held_out_texts(name: str | None, model: Model, plan: Plan, seed: int) -> list[str]:
    """The texts of the perplexity; none for a model other than the embedded one unless a file is named."""
    if name is not None:
        return read_texts(name, limit=HELD_OUT)
    if model.name != "atlas":
        return []
    requests = dict.fromkeys(request for stack in plan.stacks.values() for request in stack)
    return held_out_statements(World.load(), list(requests), seed=seed, limit=HELD_OUT)


def stack(
    run: Run, model: Model, method: str, editor: Any, place: tuple[int, int], plan: Plan, held_out: Sequence[str]
) -> Iterator[EditRequest]:
    """Make and keep a group's edits, yielding each request once it is edited; then measure and note the group."""
    (edits, group), requests, weights = place, plan.stacks[place], model.fingerprint()
    chunk = 1 if isinstance(editor, ROME) else run.settings["chunk"] or len(requests)
    folder = run.folder / "edits" / f"{method}-{edits}-{group}"
    fresh, name, done = not folder.exists(), "", 0
    began = time.perf_counter()
    with sequence(model, editor, requests, chunk=chunk, folder=folder) as steps:
        for edit in steps:
            name = edit.method
            yield from requests[done : steps.done]
            done = steps.done
        seconds = (time.perf_counter() - began) / len(requests)
        texts_of = run.settings["fluency"] - (edits * group if edits < len(plan.sample) else 0)
        texts = held_out if group < HELD_OUT_GROUPS else []
        row = measured(model, plan.scored(edits, group), texts, max(0, texts_of), run.settings["seed"])
        row |= {"norms": {str(layer): norm for layer, norm in change_by_layer(model).items()}}
    check_restored(model, weights, after=f"a stack of {edits} edits with {method}")
    row |= {"method": method, "name": name, "edits": edits, "group": group, "seconds": seconds if fresh else None}
    run.append("stacks", row)
    shutil.rmtree(folder)  # large, and not needed once the group is noted


def measured(
    model: Model, records: Sequence[Record], held_out: Sequence[str], texts_of: int, seed: int
) -> dict[str, Any]:
    """Scores of the records and perplexity of the text in the model as it is."""
    scores = score_stack(model, records, texts_of=texts_of, seed=seed)
    return {
        "cases": [record.case_id for record in records],
        "scores": [one.to_dict() for one in scores],
        "perplexity": perplexity(model, held_out) if held_out else None,
    }


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run, plan: Plan, held_out: Sequence[str]) -> list[Section]:
    """Print and save the tables and figures; the sections of the report."""
    found = summaries(run, plan)
    kept = sum(len(record.neighborhood_prompts) for record in plan.sample)
    probes = sum(len(record.portability_prompts) for record in plan.sample)
    said = (
        f"The same {len(plan.sample)} records with their {kept} neighborhood and {probes} portability prompts at every "
        "number of edits, in several groups at small numbers; prompts whose right answer another edit changes are left "
        f"out. Fluency over {run.settings['fluency']} of the records. Perplexity over {len(held_out)} held-out texts. "
        "||dW||/||W||: root mean square over the edited layers. 95 % bootstrap intervals over records (perplexity, "
        "change and seconds: over groups)."
    )
    table = stack_table(found, plan, said)
    run.save_table("scores", table)
    print(to_markdown(table))
    frame = curves(found)
    measures = set(frame.dropna(subset=["value"])["measure"])
    drawn = [panel for panel in PANELS if panel.measure in measures]
    heading = f"{len(plan.sample)} records scored with more and more edits kept; bands are 95 % bootstrap intervals"
    run.save_figure("collapse", stack_figure(frame, drawn, heading=heading), caption=table.caption)
    norms = by_layer(run)
    run.save_table("norms", norms, caption="||dW||/||W|| (%) by layer of all updates together, mean over groups.")
    print(norms.to_string(index=False))
    run.note(
        scores={f"{name}, {edits}": {m: e.to_dict() for m, e in one.items()} for (name, edits), one in found.items()},
        headline=verdict(found),
    )
    print(verdict(found))
    saved, figures = run.tables(), run.figures()
    return [
        Section(
            title="The collapse curves",
            elements=[
                Paragraph(text=verdict(found)),
                figures["collapse"],
                saved["scores"],
                saved["norms"],
            ],
        )
    ]


def headline(run: Run) -> str:
    """What the curves say, in a sentence."""
    return run.read_json("results.json").get("headline", "Nothing is finished yet.")


if __name__ == "__main__":
    main()
