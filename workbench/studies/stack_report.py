"""What becomes of a model as edits are stacked: from a run's rows to the table, the curves and what they say."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.editors.registry import EDITORS
from workbench.figures.editors import Panel, stack_figure
from workbench.machine.intervals import Estimate, student
from workbench.measuring.scores import Evaluation, RecordScores
from workbench.measuring.summaries import NO_S, summarise
from workbench.records.facts import Record
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.stacked_edits import Plan, evaluations
from workbench.tables.scores import UNEDITED, fewer, span
from workbench.tables.table import Column, Row, Table, to_markdown

COLUMNS = (
    *(Column(label=score, metric=score, protocol="teacher-forced") for score in ("S", "ES", "PS", "NS")),
    Column(label="Portability", metric="top1.portability.new", protocol="teacher-forced"),
    Column(label="Fluency", metric="fluency", protocol="generated (sampled, top 5)", unit="bits x 100"),
    Column(label="Perplexity", metric="perplexity", protocol="teacher-forced", unit="", scale=1.0, decimals=2),
    Column(label="||dW||/||W||", metric="change", protocol="weights"),
    Column(label="Seconds an edit", metric="seconds", protocol="wall clock", unit="s", scale=1.0, decimals=3),
)
PANELS = (
    *(
        Panel(measure=measure, title=title, label="%", scale=100.0, limits=(-3.0, 103.0))
        for measure, title in (
            ("S", "S, overall"),
            ("ES", "ES, efficacy"),
            ("PS", "PS, paraphrase"),
            ("NS", "NS, neighborhood"),
            ("top1.portability.new", "Portability"),
        )
    ),
    Panel(measure="fluency", title="Fluency", label="Bits x 100", scale=100.0),
    Panel(measure="perplexity", title="Held-out text", label="Perplexity", log=True),
    Panel(measure="change", title="||dW|| / ||W||", label="%", scale=100.0, log=True),
)
_OF_GROUPS = ("perplexity", "change", "seconds")
"""Measures of a group of edits that are kept together; the others are of a record."""
GOOD = 0.8
"""From this S on an editor is said to bear the edits."""
HELD_OUT_GROUPS = 5
"""Groups of a number of edits whose perplexity is taken, at most."""
Summaries = Mapping[tuple[str, int], Mapping[str, Estimate]]
"""(editor, number of edits) -> its measures."""


def stacks(run: Run) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(editor, number of edits) -> the latest rows of its groups, editors in the order of the registry."""
    methods = list(EDITORS)
    latest = {(methods.index(row["method"]), row["edits"], row["group"]): row for row in run.rows("stacks")}
    order = [latest[place] for place in sorted(latest)]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in order:
        found.setdefault((row["name"], row["edits"]), []).append(row)
    return found


def summaries(run: Run, plan: Plan) -> Summaries:
    """The measures of every editor at every number of edits so far, all groups of the number together.

    Without scores where no record could be scored (`unscored`).
    """
    *_, unedited = run.rows("unedited")
    before = dict(zip(unedited["cases"], map(RecordScores.from_dict, unedited["scores"]), strict=True))
    records = {record.case_id: record for record in plan.sample}
    seed = run.settings["seed"]
    alone = _compared(records, before, before)
    found: dict[tuple[str, int], dict[str, Estimate]] = {
        (UNEDITED, 0): {**summarise(alone, seed=seed).pre, "perplexity": _over_groups([unedited["perplexity"]])}
    }
    for key, groups in stacks(run).items():
        after = {
            case: RecordScores.from_dict(scores)
            for row in groups
            for case, scores in zip(row["cases"], row["scores"], strict=True)
            if case in before
        }
        if not after and not any(row.get("unscored") for row in groups):  # all of its records have failed
            continue
        found[key] = {
            **(summarise(_compared(records, before, after), seed=seed).post if after else {}),
            "perplexity": _over_groups([row["perplexity"] for row in groups]),
            "change": _over_groups([_root_mean_square(row["norms"].values()) for row in groups]),
            "seconds": _over_groups([row["seconds"] for row in groups]),
        }
    return found


def _compared(
    records: Mapping[int, Record], before: Mapping[int, RecordScores], after: Mapping[int, RecordScores]
) -> list[Evaluation]:
    """The cases that were scored after edits, beside what they were before."""
    states = [records[case] for case in after], [before[case] for case in after], list(after.values())
    return evaluations(*states, norms={}, seconds=math.nan)


def unscored(run: Run) -> list[str]:
    """A sentence for each editor and number of edits with records that could not be scored once these were kept."""
    told = []
    for (name, edits), groups in stacks(run).items():
        whys = [why for row in groups for why in row.get("unscored", {}).values()]
        if whys:
            of = len(whys) + sum(len(row["cases"]) for row in groups)
            with_these = f"with {edits:,} edit{'s' * (edits > 1)} of {name} kept"
            told.append(f"{len(whys):,} of {of:,} records could not be scored {with_these} ({whys[0]}).")
    return told


def stack_table(found: Summaries, said: str) -> Table:
    """A row an editor and number of edits, the unedited model first; its caption says what has fewer records."""
    rows = [
        Row(
            label=f"{name}, {edits:,}" if edits else name,
            estimates=estimates,
            records=estimates["ES"].n if "ES" in estimates else 0,
        )
        for (name, edits), estimates in found.items()
    ]
    columns = [column for column in COLUMNS if any(column.metric in row.estimates for row in rows)]
    of_records = [column for column in columns if column.metric not in _OF_GROUPS]
    return Table(
        caption=f"Editors with that many edits kept in one model. {said}{fewer(of_records, rows)}{_groups(found)}",
        columns=tuple(columns),
        rows=tuple(rows),
        interval="95 % bootstrap percentile intervals over records; Student's t over groups for perplexity, change and "
        "seconds",
    )


def _groups(found: Summaries) -> str:
    """A sentence on how many groups of edits the means over groups are of."""
    told = []
    for column in (column for column in COLUMNS if column.metric in _OF_GROUPS):
        of = [
            estimates[column.metric].n
            for (_, edits), estimates in found.items()
            if edits and column.metric in estimates
        ]
        if any(of):
            told.append(f"{column.label} {span([n for n in of if n])}")
    return f" Groups of edits: {'; '.join(told)}." if told else ""


def curves(found: Summaries) -> pd.DataFrame:
    """The measures of `PANELS`, tidy, as `stack_figure` takes them."""
    return pd.DataFrame(
        {"editor": name, "edits": edits, "measure": panel.measure, "value": one.value, "low": one.low, "high": one.high}
        for (name, edits), estimates in found.items()
        for panel in PANELS
        if (one := estimates.get(panel.measure)) is not None
    )


def by_layer(run: Run) -> pd.DataFrame:
    """||dW|| / ||W|| in per cent: a row an editor and number of edits, a column a layer."""
    rows = {key: [row["norms"] for row in groups] for key, groups in stacks(run).items()}
    layers = sorted({int(layer) for groups in rows.values() for norms in groups for layer in norms})
    return pd.DataFrame(
        {
            "Editor": name,
            "Edits": edits,
            **{
                f"Layer {layer}": 100 * sum(norms.get(str(layer), math.nan) for norms in groups) / len(groups)
                for layer in layers
            },
        }
        for (name, edits), groups in rows.items()
    )


def verdict(found: Summaries) -> str:
    """How many edits each editor bears with S of at least 80 %, and its S with the most."""
    said = []
    for name in dict.fromkeys(name for name, edits in found if edits):
        scores = {edits: found[name, edits].get("S") for one, edits in found if one == name}
        good = [edits for edits, score in scores.items() if score and score.value >= GOOD]
        most, last = max(scores.items())
        if last and math.isnan(last.value):
            continue
        borne = f"up to {max(good):,} edits" if good else "with no number of edits"
        said.append(f"{name} {borne} ({f'S {100 * last.value:.1f}' if last else 'not scored'} with {most:,})")
    if not said:
        return NO_S
    return f"S is at least {100 * GOOD:g} %: " + ", ".join(said) + "."


def _over_groups(values: Sequence[float | None]) -> Estimate:
    """Mean over groups with Student's interval, of one group none; what was not measured is left out."""
    with np.errstate(over="ignore", invalid="ignore"):  # a collapsed model's perplexity squared fits into no float
        return student([value for value in values if value is not None and not math.isnan(value)])


def _root_mean_square(norms: Collection[float]) -> float:
    """Over the edited layers; NaN of edits that change no weights."""
    return math.sqrt(sum(norm * norm for norm in norms) / len(norms)) if norms else math.nan


# The report ---------------------------------------------------------------------------------------------------


def show(run: Run, plan: Plan, *, texts: int) -> list[Section]:
    """Print and save the tables and figures, with so many held-out texts; the sections of the report."""
    if not run.rows("stacks"):
        return []
    found = summaries(run, plan)
    kept = sum(len(record.neighborhood_prompts) for record in plan.sample)
    probes = sum(len(record.portability_prompts) for record in plan.sample)
    said = (
        f"The same {len(plan.sample)} records with their {kept} neighborhood and {probes} portability prompts at every "
        "number of edits, in several groups at small numbers; prompts whose right answer another edit changes are left "
        f"out. Fluency over {run.settings['fluency']} of the records. Perplexity over {texts} held-out texts, "
        f"of the first {HELD_OUT_GROUPS} groups of a number at most. ||dW||/||W||: root mean square over the edited "
        "layers. 95 % intervals: bootstrap over records; of perplexity, change and seconds Student's t over groups, "
        "none for one group."
    )
    lost = unscored(run)
    told = " ".join([verdict(found), *lost])
    table = stack_table(found, " ".join([said, *lost]))
    run.save_table("scores", table)
    print(to_markdown(table))
    frame = curves(found)
    measures = set(frame.loc[np.isfinite(frame["value"]), "measure"])
    drawn = [panel for panel in PANELS if panel.measure in measures]
    heading = f"{len(plan.sample)} records scored with more and more edits kept"
    run.save_figure("collapse", stack_figure(frame, drawn, heading=heading), caption=table.caption)
    norms = by_layer(run)
    run.save_table("norms", norms, caption="||dW||/||W|| (%) by layer of all updates together, mean over groups.")
    print(norms.to_string(index=False, na_rep="-"))
    run.note(
        scores={f"{name}, {edits}": {m: e.to_dict() for m, e in one.items()} for (name, edits), one in found.items()},
        headline=told,
    )
    print(told)
    saved, figures = run.tables(), run.figures()
    return [
        Section(
            title="The collapse curves",
            elements=[Paragraph(text=told), figures["collapse"], saved["scores"], saved["norms"]],
        )
    ]


def headline(run: Run) -> str:
    """What the curves say, in a sentence."""
    return run.read_json("results.json").get("headline", "Nothing is finished yet.")
