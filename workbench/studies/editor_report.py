"""Editors side by side, one edit at a time and stacked: the tables, and whether the bars are reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.machine.intervals import Estimate, bootstrap_mean
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import Summary, summarise
from workbench.runs.run import Run
from workbench.studies.ahead import shared
from workbench.studies.best_in_bold import Better
from workbench.tables.scores import main_table
from workbench.tables.table import Column, Table

BETTER: Better = {
    **dict.fromkeys(("S", "ES", "EM", "PS", "PM", "NS", "NM", "fluency"), "higher"),
    **dict.fromkeys(("edit_seconds", "edit_memory"), "lower"),
}
"""Which of two values is the better one, by metric of `comparison_table`."""

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
    """In per cent."""
    n: int
    """Records it is measured on."""

    @property
    def met(self) -> bool:
        return self.value >= self.least

    def __str__(self) -> str:
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
        most = memory[method]
        cost = {
            "edit_seconds": bootstrap_mean(
                [row["edit_seconds"] for row in some], generator=np.random.default_rng(seed)
            ),
            "edit_memory": Estimate(value=float(max(most)), n=len(most)),
        }
        found[some[0]["name"]] = replace(summary, post={**summary.post, **cost})
    return found


def stacked_summaries(run: Run, *, seed: int) -> dict[tuple[str, int], Summary]:
    """Scores of the stacks so far, by the editor's name and the number of edits."""
    latest = {row["method"]: row for row in run.rows("stacked")}  # made again after what failed was tried again
    return {
        (row["name"], row["edits"]): summarise([Evaluation.from_dict(one) for one in row["evaluations"]], seed=seed)
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
    """What was measured of `BARS`; those that this run does not measure are left out."""
    found = []
    for editor, edits, score, least in BARS:
        summary = single.get(editor) if edits == 1 else stacked.get((editor, edits))
        if summary is not None:
            estimate = summary.post[score]
            name = f"{editor} {score}" if edits == 1 else f"{editor} {score} at {edits} stacked edits"
            found.append(Bar(name=name, least=least, value=100 * estimate.value, n=estimate.n))
    return found


def told(reached: Sequence[Bar]) -> list[str]:
    """A line a bar, after one that says what a bar is; nothing where there are none."""
    meaning = (
        "A bar is the least value (in %) that was asked of an editor on the embedded model before it was measured; it "
        "is met where the mean over the records is no less, whatever the interval."
    )
    return [meaning, *(f"Bar: {bar}." for bar in reached)] if reached else []
