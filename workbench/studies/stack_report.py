"""What becomes of a model as edits are stacked: from a run's rows to the table, the curves and what they say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.editors.registry import EDITORS
from workbench.figures.editors import Panel
from workbench.machine.intervals import Estimate, bootstrap_mean
from workbench.measuring.scores import Evaluation, RecordScores
from workbench.measuring.summaries import NO_S, summarise
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.stacked_edits import Plan, evaluations
from workbench.tables.scores import UNEDITED
from workbench.tables.table import Column, Row, Table

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
GOOD = 0.8
"""From this S on an editor is said to bear the edits."""
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
    """The measures of every editor at every number of edits so far, all groups of the number together."""
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
        if not after:  # all of its records have failed
            continue
        summary = summarise(_compared(records, before, after), seed=seed)
        norms = [math.sqrt(sum(n * n for n in row["norms"].values()) / len(row["norms"])) for row in groups]
        found[key] = {
            **summary.post,
            "perplexity": _over_groups([row["perplexity"] for row in groups]),
            "change": _over_groups(norms),
            "seconds": _over_groups([row["seconds"] for row in groups]),
        }
    return found


def _compared(
    records: Mapping[int, Record], before: Mapping[int, RecordScores], after: Mapping[int, RecordScores]
) -> list[Evaluation]:
    """The cases that were scored after edits, beside what they were before."""
    states = [records[case] for case in after], [before[case] for case in after], list(after.values())
    return evaluations(*states, norms={}, seconds=math.nan)


def stack_table(found: Summaries, said: str) -> Table:
    """A row an editor and number of edits, the unedited model first."""
    rows = [
        Row(label=f"{name}, {edits:,}" if edits else name, estimates=estimates, records=estimates["ES"].n)
        for (name, edits), estimates in found.items()
    ]
    return Table(
        caption=f"Editors with that many edits kept in one model. {said}",
        columns=tuple(column for column in COLUMNS if any(column.metric in row.estimates for row in rows)),
        rows=tuple(rows),
        interval="95 % bootstrap percentile intervals over records",
    )


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
        scores = {edits: found[name, edits]["S"].value for one, edits in found if one == name}
        good = [edits for edits, value in scores.items() if value >= GOOD]
        most = max(scores)
        if math.isnan(scores[most]):
            continue
        borne = f"up to {max(good):,} edits" if good else "with no number of edits"
        said.append(f"{name} {borne} (S {100 * scores[most]:.1f} with {most:,})")
    if not said:
        return NO_S
    return f"S is at least {100 * GOOD:g} %: " + ", ".join(said) + "."


def _over_groups(values: Sequence[float | None]) -> Estimate:
    """Mean over groups, with an interval where there are several; what was not measured is left out."""
    return bootstrap_mean([math.nan if value is None else value for value in values])
