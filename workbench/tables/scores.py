"""Summaries of editors -> tables: a row an editor, the unedited model first."""

import math
from collections.abc import Collection, Mapping, Sequence

from workbench.machine.intervals import FEWEST
from workbench.measuring.scores import FLUENCY_TOP_K, KINDS
from workbench.measuring.summaries import Summary
from workbench.tables.table import Column, Row, Table

UNEDITED = "Unedited"
"""Name of the row of the model before the edits."""

_TEACHER_FORCED = "teacher-forced"
_GENERATED = "generated (greedy)"


def main_table(summaries: Mapping[str, Summary], *, fluency: bool = True) -> Table:
    """CounterFact's scores by editor, in the columns of Meng et al. 2022, table 4."""
    scores = [
        Column(label=name, metric=name, protocol=_TEACHER_FORCED) for name in ("S", "ES", "EM", "PS", "PM", "NS", "NM")
    ]
    sampled = Column(
        label="Fluency",
        metric="fluency",
        protocol=f"generated (sampled, top {FLUENCY_TOP_K})",
        unit="bits x 100",
    )
    what = (
        "CounterFact scores (%), teacher-forced: success (ES, PS, NS) and magnitude (EM, PM, NM) on rewrite, "
        "paraphrase and neighborhood prompts; S is the harmonic mean of the successes."
    )
    if fluency:
        what += f" Fluency: n-gram entropy (bits x 100) of generated text, sampled from the top {FLUENCY_TOP_K} tokens."
    return _table(summaries, [*scores, *([sampled] if fluency else [])], what)


def generation_table(summaries: Mapping[str, Summary]) -> Table:
    """Share of greedy generations that begin with the expected target, by kind of prompt."""
    columns = [
        *_accuracy_columns("generated", _GENERATED),
        Column(
            label="Portability, if known",
            metric="generated.portability.new_if_known",
            protocol=_GENERATED,
        ),
        Column(label="Old answer: rewrite", metric="generated.rewrite.true", protocol=_GENERATED),
        Column(label="Old answer: portability", metric="generated.portability.true", protocol=_GENERATED),
        Column(label="Old answer: reversion", metric="generated.reversion.true", protocol=_GENERATED),
    ]
    what = (
        "Generation accuracy (%), generated: the greedy continuation begins with the expected target (the "
        "true one on neighborhood prompts, else the new one). 'Old answer': with the true one; in the "
        "unedited row, what the model knows. 'If known': over the prompts whose old answer it gave unedited."
    )
    return _table(summaries, columns, what)


def accuracy_table(summaries: Mapping[str, Summary]) -> Table:
    """Share of prompts whose expected target is the model's top choice token by token."""
    what = (
        "Top-1 accuracy (%), teacher-forced: every token of the expected target (the true one on "
        "neighborhood prompts, else the new one) is the model's top choice."
    )
    return _table(summaries, _accuracy_columns("top1", _TEACHER_FORCED), what)


def change_table(summaries: Mapping[str, Summary]) -> Table:
    """How much the edits change: KL on neighborhood prompts, and weights by layer."""
    norms = {key for summary in summaries.values() for key in summary.post if key.startswith("relative_norm.")}
    layers = sorted(int(key.removeprefix("relative_norm.")) for key in norms)
    columns = [
        Column(label="KL (nats)", metric="kl", protocol=_TEACHER_FORCED, unit="nats", scale=1.0, decimals=4),
        *(
            Column(
                label=f"||dW||/||W|| (%), layer {layer}",
                metric=f"relative_norm.{layer}",
                protocol="weights",
                decimals=2,
            )
            for layer in layers
        ),
    ]
    what = (
        "Size of the change: KL(before || after) of the next token on neighborhood prompts, teacher-forced; "
        "Frobenius norm of the weight update over that of the weights."
    )
    return _table(summaries, columns, what, before=False)


def _accuracy_columns(protocol: str, described: str) -> list[Column]:
    return [
        Column(
            label=kind.capitalize(),
            metric=f"{protocol}.{kind}.{'true' if kind == 'neighborhood' else 'new'}",
            protocol=described,
        )
        for kind in KINDS
    ]


def _table(summaries: Mapping[str, Summary], columns: list[Column], what: str, *, before: bool = True) -> Table:
    if not summaries:
        raise ValueError("no summaries to tabulate: give at least one editor's")
    kinds = {(summary.level, summary.resamples) for summary in summaries.values()}
    if len(kinds) > 1:
        raise ValueError(f"the summaries' (level, resamples) differ: {sorted(kinds)}; summarise them alike")
    level, resamples = kinds.pop()
    interval = f"{100 * level:g} % bootstrap percentile intervals over records ({resamples:,} resamples)"
    rows = _rows(summaries, before)
    records = span({row.records for row in rows})
    counts = {row.estimates[column.metric].n for row in rows for column in columns if column.metric in row.estimates}
    if any(0 < count < FEWEST for count in counts):
        interval += f", none of fewer than {FEWEST}"
    caption = f"{what} {records} records; {interval}.{fewer(columns, rows)}"
    return Table(caption=caption, columns=tuple(columns), rows=rows, interval=interval)


def _rows(summaries: Mapping[str, Summary], before: bool) -> tuple[Row, ...]:
    """A row an editor; above the first one the unedited model, and again above one that started from other
    scores (other records or another model), so that no row is compared with a start that is not its own."""
    rows: list[Row] = []
    start: Summary | None = None
    for name, summary in summaries.items():
        if before and (start is None or not _alike(start, summary)):
            label = UNEDITED if start is None else f"{UNEDITED} (before {name})"
            rows.append(Row(label=label, estimates=summary.pre, records=summary.n))
            start = summary
        rows.append(Row(label=name, estimates=summary.post, records=summary.n))
    return tuple(rows)


def _alike(one: Summary, other: Summary) -> bool:
    """Whether two start from the same scores within rounding: a run that goes on computes them in other batches."""
    return (one.n, one.pre.keys()) == (other.n, other.pre.keys()) and all(
        each.n == other.pre[metric].n
        and (math.isnan(each.value) or math.isclose(each.value, other.pre[metric].value, rel_tol=1e-4, abs_tol=1e-5))
        for metric, each in one.pre.items()
    )


def fewer(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A sentence on the columns that count fewer records than the table has."""
    told = []
    for column in columns:
        counted = [row for row in rows if column.metric in row.estimates]
        if any(row.estimates[column.metric].n < row.records for row in counted):
            told.append(f"{column.label} {span({row.estimates[column.metric].n for row in counted})}")
    return f" Fewer records have: {'; '.join(told)}." if told else ""


def span(counts: Collection[int]) -> str:
    """`5`, or `1 to 5` where the counts differ."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
