"""What follows from an edit, and how far does it reach? Implications and scope of edits, by method.

    python analyses/implications.py                       # every method that is ready, 100 records of atlas
    python analyses/implications.py --model smollm2 --device cuda --limit 60
    python analyses/implications.py --records knowedit.json --model gpt2-xl --methods ft_l,rome,memit

Every record is edited alone, and asked for what the edit implies: the same prompt, paraphrases, the reversed relation,
two hops, the subject by another name, what logic says, a prompt that denies the new object, and neighbors, which are to
stay as they were; each teacher-forced and generated. Then how likely the new object becomes farther and farther from
the edit: after the same prompt, a paraphrase, another relation of the subject, another subject, and unrelated prompts.
What counts is defined in workbench/measuring/implications.py. Prompts are those of the records; kinds that a data set
has not (other names are asked for by KnowEdit and the survey's files alone) are named once, and left out.

Denied is the request's own prompt where one word does it: "{} is located in the city of" becomes "{} is not located in
the city of", and "can" becomes "cannot"; other templates, and questions, have no such prompt. The answer that follows
is any but the new object.

A method that cannot be made, or makes no edit, keeps its row; the caption says why. A run that is stopped goes on after
the last record, when the same command is given again; so does one with other --methods, or with a --limit that takes in
more records.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.make import ready
from workbench.edits.edit import Edit
from workbench.figures.methods import asked_figure, course_figure
from workbench.machine.as_json import from_json, to_json
from workbench.machine.intervals import Estimate, bootstrap_mean, wilson
from workbench.machine.processes import Workers
from workbench.measuring.implications import DISTANCES, IMPLICATIONS, REACH, Probed, followed, probe, probes, reach
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.alone import each_alone, each_unedited
from workbench.studies.checked import scored
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.every_method import check_methods, headline, made_editor, tried, whys
from workbench.studies.going_on import sound
from workbench.studies.locate import check_tracing, settled_layer
from workbench.studies.replicas import chosen_workers
from workbench.tables.scores import UNEDITED
from workbench.tables.survey import measures_table
from workbench.tables.table import to_markdown

_STATE = tuple[Probed, ...]
_States = Mapping[int, _STATE]


def main(
    model: options.Model = "atlas",
    records: options.Records = None,
    methods: options.Methods = None,
    limit: options.Limit = 100,
    plugin: options.Plugin = None,
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
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Edit and ask, method by method, then print and save tables and figures."""
    check_tracing("last_subject", engine)
    methods, records = methods or ready(model), records or default_records(model)
    check_methods(methods)
    every = read_records(records_path(records))
    loaded = load(model, device=device, dtype=dtype)
    text = text or default_text(loaded)
    settings = given(records=records, text=text, without=["methods", "limit"])  # others go on in the same run
    checks = [scored(every[:limit], asks)]
    title = "What follows from an edit?"
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with (
        analysis(out, settings, loaded, title=title, headline=headline, methods=methods, checks=checks) as page,
        crew as those,
    ):
        run = page.run
        page.show = lambda: show(run, every[:limit])
        layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine)
        ask_unedited(run, loaded, every[:limit], every, those)
        making = {"layer": layer, "preset_of": preset, "text": text, "seed": seed}
        for method in methods:
            left = unfinished(run, method, every[:limit])
            if left and (editor := made_editor(run, loaded, method, making)):
                edited = each_alone(
                    run,
                    loaded,
                    editor,
                    left,
                    partial(answered, every),
                    title=f"Editing with {method}",
                    of=len(every[:limit]),
                    method=method,
                    together=together,
                    workers=those,
                )
                for record, _, state in edited:
                    run.append("edited", {"method": method, "case_id": record.case_id, "state": state})


def asks(record: Record) -> list[tuple[str, str]]:
    """The prompts of a record, without those that others lend it, with each of their answers."""
    return [(prompt, target) for _, _, prompt, targets in probes(record, ()) for target in targets]


def ask_unedited(
    run: Run, model: Model, records: Sequence[Record], every: Sequence[Record], workers: Workers[Model] | None
) -> None:
    """Ask the model as it is what is not asked yet; a record that fails is left out for all methods."""
    finished = run.done("unedited", "case_id")
    left = [record for record in sound(run, records) if record.case_id not in finished]
    title, ask = "Asking the unedited model", partial(asked, every)
    for record, state in each_unedited(run, model, left, ask, title=title, of=len(records), workers=workers):
        run.append("unedited", {"case_id": record.case_id, "state": state})


def asked(every: Sequence[Record], model: Model, record: Record) -> Any:
    """What the model makes of a record as it is, as JSON values."""
    return to_json(probe(model, record, every))


def unfinished(run: Run, method: str, records: Sequence[Record]) -> list[Record]:
    """The records that were asked unedited, and neither edited with a method nor failed."""
    asked = run.done("unedited", "case_id")
    finished = {row["case_id"] for row in run.rows("edited") if row["method"] == method}
    return [one for one in sound(run, records, method) if one.case_id in asked and one.case_id not in finished]


def answered(every: Sequence[Record], model: Model, edit: Edit, record: Record) -> Any:
    """What the model makes of a record with its edit, as JSON values."""
    with edit.applied(model):
        return asked(every, model, record)


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run, records: Sequence[Record]) -> list[Section]:
    """Print and save tables and figures; the sections of the report."""
    before = states(run.rows("unedited"))
    if not before:
        return []
    rows, names = run.rows("edited"), tried(run)
    after = {name: states(row for row in rows if row["method"] == method) for method, name in names.items()}
    failed = whys(run, without=[name for name, some in after.items() if not some])
    every: dict[str, _States] = {UNEDITED: before, **after}
    follows = {name: implied(before, some) for name, some in every.items()}
    reaches = {name: reached(some) for name, some in every.items()}
    rephrased = next((f" ({record.rephrased_by})" for record in records if record.rephrased_by), "")
    data = Path(run.settings["records"]).stem
    asked, distances = dict(IMPLICATIONS), dict(DISTANCES)
    for labels in (asked, distances):
        labels["paraphrase"] += rephrased
    heading = f"{len(before)} records of {data}, one edit at a time; 95 % intervals over records"
    for name, measures, labels, said in (
        ("implications", follows, asked, _FOLLOWS),
        ("scope", reaches, distances, _REACHES),
    ):
        caption = f"{said} {counted(before, labels)}"
        table = measures_table(measures, labels, data=data, caption=caption, interval=_INTERVAL, failures=failed)
        run.save_table(name, table)
        print(to_markdown(table))
        drawn = asked_figure if name == "implications" else course_figure
        run.save_figure(name, drawn(measures, labels, heading=heading), caption=table.caption)
    checked = f"The weights were bit for bit those of the untouched model after each of {len(rows):,} edits."
    run.note(edits=len(rows), editors=list(names.values()), failed=failed, identical=checked)
    print(checked)
    titles = {"implications": "Which implications follow", "scope": "How far an edit reaches"}
    return [
        Section(title=title, elements=[Paragraph(text=checked), run.figures()[name], run.tables()[name]])
        for name, title in titles.items()
    ]


_INTERVAL = "95 % intervals over records (Wilson's; of probabilities bootstrap percentiles)"
_FOLLOWS = (
    "How often what an edit implies follows (%), one edit at a time. Teacher-forced: the share of the answer's tokens "
    "that are the top choice, the tokens before them given; generated: the greedy continuation begins with the answer. "
    "Negated prompt: 100 % less that of the new object, which the prompt denies. Neighbors: the output is what it was, "
    "in the top choices at the places of the answer, and as a text. Reversed: other answers that were right still are, "
    f"so compare with the unedited model. {_INTERVAL}."
)
_REACHES = (
    "How likely the new object is farther and farther from the edit (%), one edit at a time. p(new): geometric mean of "
    "the probabilities of its tokens, teacher-forced; p(new) of new + old: its part of the probability of both "
    "objects; generated: the greedy continuation begins with it. Another relation: prompts of other records about the "
    "subject; another subject: neighbors, which had the same object; unrelated: prompts of other records that share "
    f"neither subject nor relation nor object. {_INTERVAL}."
)


def states(rows: Iterable[Mapping[str, Any]]) -> dict[int, _STATE]:
    """By case what a model makes of the prompts."""
    return {row["case_id"]: from_json(_STATE, row["state"]) for row in rows}


def implied(before: _States, after: _States) -> dict[str, dict[str, Estimate]]:
    """By kind how often it follows, over the records that have it."""
    some = [followed(before[case], state) for case, state in after.items()]
    return {
        kind: {
            how: wilson([one[kind][way] for one in some if kind in one])
            for way, how in enumerate(("teacher-forced", "generated"))
        }
        for kind in IMPLICATIONS
        if any(kind in one for one in some)
    }


def reached(after: _States) -> dict[str, dict[str, Estimate]]:
    """By distance how likely the new object is, over the records that have such prompts."""
    some = [reach(state) for state in after.values()]
    return {
        kind: {
            how: (wilson if name == "says" else bootstrap_mean)([one[kind][name] for one in some if kind in one])
            for name, how in REACH.items()
        }
        for kind in DISTANCES
        if any(kind in one for one in some)
    }


def counted(before: _States, labels: Mapping[str, str]) -> str:
    """How many records and prompts there are of each kind, and which kinds there are not."""
    kinds = {kind: [sum(one.answered.score == kind for one in state) for state in before.values()] for kind in labels}
    said = [
        f"{labels[kind].lower()} {sum(map(bool, some)):,}, {sum(some):,}" for kind, some in kinds.items() if any(some)
    ]
    lacking = [labels[kind].lower() for kind, some in kinds.items() if not any(some)]
    left = f" Left out, as the records have no prompts for it: {', '.join(lacking)}." if lacking else ""
    return f"Records, prompts: {'; '.join(said)}.{left}"


if __name__ == "__main__":
    script(main)
