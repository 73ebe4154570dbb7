"""Editors side by side, one edit at a time and stacked: tables, figure, report, and whether the bars are reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.figures.editors import editor_figure
from workbench.machine.intervals import Estimate, bootstrap_mean
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import NO_S, Summary, summarise
from workbench.models.model import Model
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.ahead import shared
from workbench.studies.best_in_bold import Better, save_table_with_best
from workbench.tables.published import published_table
from workbench.tables.scores import accuracy_table, change_table, main_table
from workbench.tables.table import Column, Table, to_markdown

PUBLISHED = ("rome_table_4", "memit_table_2")
"""Tables printed beside what was measured."""

BETTER: Better = {
    **dict.fromkeys(("S", "ES", "EM", "PS", "PM", "NS", "NM"), "higher"),
    **dict.fromkeys(("edit_seconds", "edit_memory"), "lower"),
}
"""Which of two values is the better one, by metric of `comparison_table`. Neither is of fluency: texts that repeat
themselves have a low entropy, those of a model that is broken a high one."""

BARS = (
    ("ROME", 1, "S", 85.0),
    ("MEMIT", 1, "S", 85.0),
    ("MEMIT", 80, "ES", 95.0),
    ("MEMIT", 80, "PS", 80.0),
    ("MEMIT", 80, "NS", 70.0),
)
"""(editor, edits kept together, score, the least that it is to reach in per cent) on the embedded model."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number that is to be reached, and what was measured."""

    name: str
    least: float
    """In per cent."""
    value: float
    """In per cent; NaN where it was not measured."""
    n: int
    """Records it is measured on."""
    lacking: str = ""
    """Why it was not measured."""

    @property
    def met(self) -> bool:
        return self.value >= self.least

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.name} >= {self.least:g}: not measured{self.lacking}"
        verdict = "met" if self.met else "MISSED"
        return f"{self.name} >= {self.least:g}: {self.value:.1f} ({self.n} records), {verdict}"


def single_summaries(run: Run, *, seed: int) -> dict[str, Summary]:
    """Scores of each editor so far, by its name, with the seconds and the memory of an edit."""
    rows: dict[str, list[dict]] = {}
    for row in run.rows("evaluations"):
        rows.setdefault(row["method"], []).append(row)
    memory: dict[str, list[float]] = {}
    for row in run.rows("memory"):
        memory.setdefault(row["method"], []).append(row["bytes"])
    found = {}
    for method, some in rows.items():
        summary = summarise([Evaluation.from_dict(row) for row in some], seed=seed)
        most = memory.get(method, [])
        cost = {
            "edit_seconds": bootstrap_mean(
                [row["edit_seconds"] for row in some], generator=np.random.default_rng(seed)
            ),
            "edit_memory": Estimate(value=float(max(most, default=math.nan)), n=len(most)),
        }
        found[some[0]["name"]] = replace(summary, post={**summary.post, **cost})
    return found


def stacked_summaries(run: Run, *, seed: int) -> dict[tuple[str, int], Summary]:
    """Scores of the stacks so far, by the editor's name and the number of edits asked for; `n` of them were made."""
    latest = {row["method"]: row for row in run.rows("stacked")}  # made again after what failed was tried again
    return {
        (row["name"], row["edits"] + len(row["left_out"])): summarise(
            [Evaluation.from_dict(one) for one in row["evaluations"]], seed=seed
        )
        for row in latest.values()
    }


def comparison_table(summaries: Mapping[str, Summary], *, device: str, together: int) -> Table:
    """The main table of Meng et al. 2022 with the time and the memory of an edit, searched with so many others."""
    table = main_table(summaries)
    measured = max(summary.post["edit_memory"].n for summary in summaries.values())
    counted = "torch.cuda.max_memory_allocated" if device == "cuda" else "torch's profiler of allocations"
    costs = (
        Column(label="Seconds", metric="edit_seconds", protocol="wall clock", unit="s", scale=1.0, decimals=2),
        Column(label="Peak MiB", metric="edit_memory", protocol=counted, unit="MiB", scale=2.0**-20, decimals=1),
    )
    said = (
        f" Each edit is made on the unedited model and taken back. Seconds: mean wall clock of making one"
        f"{shared(together)}. Peak MiB: most that tensors took at one time beyond the model and the statistics, in "
        f"{measured} edits ({counted}). "
        "Consistency needs reference texts, which these records have not."
    )
    return replace(table, caption=table.caption + said, columns=(*table.columns, *costs))


def bars(single: Mapping[str, Summary], stacked: Mapping[tuple[str, int], Summary]) -> list[Bar]:
    """What was measured of `BARS`; those that this run does not ask for are left out."""
    found = []
    for editor, edits, score, least in BARS:
        summary = single.get(editor) if edits == 1 else stacked.get((editor, edits))
        if summary is not None:
            estimate = summary.post[score]
            name = f"{editor} {score}" if edits == 1 else f"{editor} {score} at {edits} stacked edits"
            bar = Bar(name=name, least=least, value=100 * estimate.value, n=estimate.n)
            if summary.n < edits:  # fewer edits together are easier to bear
                bar = replace(bar, value=math.nan, lacking=f": {summary.n} of {edits} edits were made")
            found.append(bar)
    return found


def told(reached: Sequence[Bar]) -> list[str]:
    """A line a bar, after one that says what a bar is; nothing where there are none."""
    meaning = (
        "A bar is the least value (in %) that was asked of an editor on the embedded model before it was measured; it "
        "is met where the mean over the records is no less, whatever the interval."
    )
    return [meaning, *(f"Bar: {bar}." for bar in reached)] if reached else []


# The report ---------------------------------------------------------------------------------------------------


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
            f"{name}, {one.n}": {score: one.post[score].to_dict() for score in ("S", "ES", "PS", "NS")}
            for (name, _), one in stacked.items()
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
        named = {f"{name}, {one.n} edits": one for (name, _), one in stacked.items()}
        table = main_table(named, fluency=False)  # which is not sampled here
        said = (
            "Edits written as one batch and all of them kept, scored on the same records. Prompts whose right answer "
            f"another of these edits changes are left out. {table.caption}"
        )
        table = replace(table, caption=said)
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
    s = {name: of["S"]["value"] for name, of in scores.items() if of["S"]["value"] is not None}
    if not s:
        return NO_S
    ranked = sorted(s, key=lambda name: -s[name])
    return "S, one edit at a time: " + ", ".join(f"{name} {100 * s[name]:.1f}" for name in ranked)
