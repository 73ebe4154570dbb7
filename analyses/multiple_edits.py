"""Many edits in one model: are the first ones still there when the last is written? FT, ROME, MEMIT at 10 and at 80.

    python analyses/multiple_edits.py                           # data/atlas/course_80.json on the embedded model
    python analyses/multiple_edits.py --methods rome,r_rome,memit,emmet --edits 10,40,80
    python analyses/multiple_edits.py --model gpt2-xl --requests requests.json --text wikitext --groups 1

The requests stand in a file as the course has it (NTU Machine Learning 2025, homework 8), see
workbench/records/course.py. For N edits the file is cut into groups of N, in order; a group's edits are made on the
unedited model and all of them kept, and then every prompt of the group is continued greedily and counts if it begins
with the answer: the new one on the request's own prompt (efficacy), on paraphrases and on portability prompts, the old
one on neighborhood prompts. MEMIT, EMMET, PMET and AlphaEdit write a group as one batch; ROME, r-ROME, FT and FT-L
one request after another, each on the weights that the one before leaves, as the course does.

A run that is stopped goes on after the last edit that it made, when the same command is given again; with other
methods or numbers of edits it goes on too, and its table has all that it holds.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import math
from collections.abc import Mapping
from typing import Annotated

import pandas as pd
import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.make import check_editor
from workbench.editors.shared.requests import check_requests
from workbench.machine.intervals import Estimate
from workbench.machine.progress import track
from workbench.measuring.prefix_match import SCORES, questions, scores, share
from workbench.records.course import read_requests
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.checked import scored
from workbench.studies.defaults import default_records, default_text, requests_path
from workbench.studies.edit import make_editor
from workbench.studies.edit_groups import (
    Groups,
    GroupScores,
    answer_unedited,
    edit_group,
    grouped,
    latest,
    summarise,
    unedited,
)
from workbench.studies.going_on import complete, failing, sound
from workbench.studies.locate import check_tracing, settled_layer
from workbench.tables.scores import UNEDITED
from workbench.tables.table import Column, Row, Table, to_markdown

GOOD, FAILED = 0.8, 0.5
"""From the first `overall` on edits are called good, below the second failing."""
TAUGHT = (("ROME", min, "good"), ("ROME", max, "failing"), ("MEMIT", min, "good"), ("MEMIT", max, "good"))
"""What the course teaches: a method, at which of the numbers of edits, and what they are."""
EXAMPLES = 3
"""Records whose continuations the report shows."""


def main(
    model: options.Model = "atlas",
    requests: Annotated[
        str | None, typer.Option("--requests", help="A request file, 'atlas' or 'smollm2'. [default: by the model]")
    ] = None,
    methods: options.SomeMethods = ["ft", "rome", "memit"],
    edits: options.Kept = [10, 80],
    groups: Annotated[int, typer.Option("--groups", min=1, help="Of that many edits, as far as the file goes.")] = 8,
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
    """Edit and score every group for every method, then write table and report."""
    check_tracing("last_subject", engine)
    requests = requests or default_records(model)
    records = read_requests(requests_path(requests))
    grouped(records, edits, groups)  # an error comes before anything is made
    check_requests([record.request for record in records])
    loaded = load(model, device=device, dtype=dtype)
    for method in methods:
        check_editor(loaded, method, layer=layer, preset_of=preset)
    text = text or default_text(loaded)
    settings = given(requests=requests, text=text, without=["methods", "edits"])  # others go on in the run
    checks = [scored(records, lambda record: [(one.prompt, None) for one in questions([record])])]
    with analysis(
        out, settings, loaded, title="Many edits in one model", headline=headline, methods=methods, checks=checks
    ) as page:
        run = page.run
        places = grouped(records, [*edits, *(row["edits"] for row in run.rows("groups"))], groups)
        page.show = lambda: show(run, places)
        layer = settled_layer(run, loaded, records, layer=layer, seed=seed, engine=engine)
        answer_unedited(run, loaded, records)
        finished = {
            (row["key"], row["edits"], row["group"])
            for row in run.rows("groups")
            if complete(run, row, failing(row["key"], row["edits"]))
        }
        for method in methods:
            left = [
                place
                for place, group in places.items()
                if place[0] in edits
                and (method, *place) not in finished
                and sound(run, group, failing(method, place[0]))
            ]
            if left:
                editor = make_editor(loaded, method, layer=layer, preset_of=preset, text=text, seed=seed, run=run)
                edited = (each for place in left for each in edit_group(run, loaded, method, editor, place, places))
                for _ in track(edited, f"Editing with {method}", sum(number for number, _ in left)):
                    pass


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run, groups: Groups) -> list[Section]:
    """The scores as a table, printed too, what they say, and some continuations."""
    if not (summary := summarise(run)):
        return []
    table = score_table(run, groups, summary)
    run.save_table("scores", table)
    print(to_markdown(table))
    most = max(number for _, number in summary)
    caption = (
        f"What is written after the prompts of the first {EXAMPLES} requests, unedited and with {most} edits kept: "
        "the request's own prompt and the first of each other kind."
    )
    run.save_table("examples", examples(run, groups, most), caption=caption)
    before = unedited(run, groups, most)
    known = ", ".join(
        f"{shown(share([one for one in before if one.question.score == score], old=True))} of the {score} prompts"
        for score in SCORES
    )
    saved = run.tables()
    print(verdict(summary))
    run.note(verdict=verdict(summary), scores={f"{name}, {n}": found for (name, n), found in summary.items()})
    return [
        Section(
            title="Scores",
            elements=[
                Paragraph(text=verdict(summary)),
                saved["scores"],
                *(Paragraph(text=text) for text in reasons(summary, scores(before))),
                Paragraph(text=f"Unedited, the model gives the old answer to {known}."),
                Paragraph(
                    text="How many edits a model bears depends on the model, on the file and on the preset: what is "
                    "found here is about these. analyses/scale_edits.py goes on to more edits."
                ),
            ],
        ),
        Section(title="Examples", elements=[saved["examples"]]),
    ]


def score_table(run: Run, groups: Groups, summary: GroupScores) -> Table:
    """A row a method and number of edits; the unedited model above those that are scored on other records."""
    rows, start, generated = [], set(), "generated (greedy)"
    for (name, number), found in summary.items():
        before = unedited(run, groups, number)
        if (covered := {one.question.case_id for one in before}) != start:
            label = UNEDITED if not start else f"{UNEDITED} (before {number} edits)"
            rows.append(Row(label=label, estimates=scores(before), records=len(covered)))
            start = covered
        rows.append(Row(label=f"{name}, {number}", estimates=found, records=found["efficacy"].n))
    numbers = [number for number, _ in groups]
    counts = ", ".join(f"{numbers.count(number)} of {number}" for number in dict.fromkeys(numbers))
    labels = {score.capitalize(): score for score in SCORES} | {"Overall": "overall", "At once": "at_once"}
    columns = [Column(label=label, metric=metric, protocol=generated) for label, metric in labels.items()]
    for label, metric in {"Drift": "drift", "||dW||/||W||": "change"}.items():
        columns.append(Column(label=label, metric=metric, protocol="weights"))
    interval = "Wilson 95 % intervals over records"
    caption = (
        "Prompts (%) whose greedy continuation begins with the right answer, with so many edits kept together. Groups "
        f"of edits, each on the unedited model: {counts}. Overall: harmonic mean of the first three scores. At once: "
        "efficacy of each edit when it was made, before later ones. Drift: how far all later edits together move what "
        "an edit wrote at its subject's key, in % of its size (median). ||dW||/||W||: change of the edited matrices, "
        f"in % of their norm. {interval}; that those edited together share a model is not in them."
    )
    return Table(caption=caption, columns=tuple(columns), rows=tuple(rows), interval=interval)


def examples(run: Run, groups: Groups, number: int) -> pd.DataFrame:
    """The first question of each kind of some records, with what each method's model writes."""
    written = {UNEDITED: {one.question.prompt: one.generated for one in unedited(run, groups, number)}}
    for row in latest(run):
        if (row["edits"], row["group"]) == (number, 0):
            written[f"{row['method']}, {number}"] = {one["prompt"]: one["generated"] for one in row["answers"]}
    lines = []
    for record in groups[number, 0][:EXAMPLES]:
        first = {one.score: one for one in reversed(questions([record]))}
        for score in (score for score in SCORES if score in first):
            line = {"Kind": score, "Prompt": first[score].prompt, "Right": " / ".join(first[score].new)}
            texts = {name: by_prompt.get(first[score].prompt, "-").strip() for name, by_prompt in written.items()}
            lines.append(line | texts)
    return pd.DataFrame(lines)


def headline(run: Run) -> str:
    """What the numbers say of what the course teaches."""
    return run.read_json("results.json").get("verdict", "Nothing is finished yet.")


def verdict(summary: GroupScores) -> str:
    """Whether the numbers are what the course teaches, claim by claim."""
    numbers = {number for name, number in summary if name in {one for one, *_ in TAUGHT}}
    if len(numbers) < 2 or any((name, which(numbers)) not in summary for name, which, _ in TAUGHT):
        return "The course's claims are of ROME and MEMIT with few and with many edits: this run has not all of these."
    said, differ = [], 0
    for name, which, taught in TAUGHT:
        overall = summary[name, which(numbers)]["overall"]
        fate = "good" if overall.value >= GOOD else "failing" if overall.value < FAILED else "in between"
        differ += fate != taught
        as_taught = "as taught" if fate == taught else f"taught: {taught}"
        said.append(f"{name} at {which(numbers)} edits {shown(overall)} ({fate}; {as_taught})")
    claim = "ROME good at few edits and failing when many are stacked, MEMIT holding"
    fit = "do not show all of" if differ else "show"
    return (
        f"These numbers {fit} what the course teaches, {claim}. Overall score: {', '.join(said)}; good is from "
        f"{GOOD:.0%}, failing below {FAILED:.0%}."
    )


def reasons(summary: GroupScores, before: Mapping[str, Estimate]) -> list[str]:
    """What became of each method's edits when the most were kept, a sentence or two each."""
    most, said = max(number for _, number in summary), []
    for (name, number), found in summary.items():
        if number != most:
            continue
        undone = found["at_once"].value - found["efficacy"].value
        fate = "later edits undo earlier ones" if undone > 0.1 else "later edits hardly undo earlier ones"
        stacked = (
            f" work when they are made and {shown(found['efficacy'])} at the end, so {fate}; these move what an edit "
            f"wrote by {shown(found['drift'])} of its size (median)."
        )
        said.append(
            f"{name}, {number} edits: {shown(found['at_once'])}"
            f"{' work, all written at once.' if math.isnan(found['drift'].value) else stacked} Neighbors keep their "
            f"answer on {shown(found['neighborhood'])} of the prompts (unedited: {shown(before['neighborhood'])}). The "
            f"edited matrices change by {shown(found['change'])} of their norm."
        )
    return said


def shown(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} %"


if __name__ == "__main__":
    script(main)
