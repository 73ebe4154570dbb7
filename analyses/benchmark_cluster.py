"""How much faster do two workers of a Ray cluster trace than one? The same facts and noise, in one run.

    python analyses/benchmark_cluster.py --model smollm2            # on two idle cores
    python analyses/benchmark_cluster.py --model atlas --facts 40 --repeats 3 --positions all

Traced are facts that the model knows, at all three sites (at the last subject token unless --positions says otherwise),
by this process with one thread, by one worker of a Ray cluster that is started here, and by two; each worker has one
thread and a replica of the model. The time that Ray and the replicas take to start is told apart. Printed are the
seconds of the sweeps, their ratio, and the largest difference of a probability from this process's.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import statistics
import time
from collections.abc import Sequence
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from workbench.cli import options
from workbench.cli.session import analysis, console, given, load, script
from workbench.machine.processes import Processes, Workers
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.records.reading import read_records
from workbench.report.elements import Section
from workbench.runs.run import Run
from workbench.studies.defaults import default_records, default_window, records_path
from workbench.studies.locate import check_tracing, true_facts
from workbench.studies.replicas import Replicas
from workbench.tracing.known import known_answers
from workbench.tracing.sweep import TraceSet, trace_facts

HERE = "this process"


def main(
    model: options.Model = "smollm2",
    facts: Annotated[int, typer.Option("--facts", min=2, help="Facts traced in a sweep.")] = 24,
    workers: Annotated[int, typer.Option("--workers", min=2, help="Workers that are compared with one.")] = 2,
    repeats: options.Repeats = 1,
    samples: options.Samples = 10,
    positions: options.Positions = "last_subject",
    out: options.Out = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    dtype: options.Dtype = "float32",
) -> None:
    """Measure, print the table and write the report."""
    check_tracing(positions, "fast")
    torch.set_num_threads(1)
    loaded = load(model, device="cpu", dtype=dtype)
    every = list(true_facts(read_records(records_path(default_records(model)))).values())[: 4 * facts]
    known = [fact for fact, answer in zip(every, known_answers(loaded, every), strict=True) if answer is not None]
    with analysis(out, given(workers=workers), title="Speed of a cluster", headline="") as page:
        page.show = lambda: show(page.run)
        done = len(page.run.rows("sweeps")) // 3
        for _ in range(done, repeats):
            measure(page.run, loaded, known[:facts], workers, samples=samples, positions=positions)


def measure(run: Run, model: Model, facts: Sequence[Fact], workers: int, **form: Any) -> None:
    """One sweep by each, noted together."""
    alone, seconds = _sweep(model, facts, Processes(state=model), **form)
    rows = [{"workers": HERE, "facts": len(facts), "starting": 0.0, "seconds": seconds, "difference": 0.0}]
    for count in (1, workers):
        began = time.perf_counter()
        there = Replicas(model, workers=count)
        try:
            there.wait()
            starting = time.perf_counter() - began
            _sweep(model, [facts[0]] * 2 * count, there, **form)  # a first pass takes longer than others
            found, seconds = _sweep(model, facts, there, **form)
        finally:
            there.close()
        rows.append({"workers": str(count), "facts": len(facts), "starting": starting, "seconds": seconds,
                     "difference": _difference(alone, found)})  # fmt: skip
    for row in rows:
        run.append("sweeps", row)


def _sweep(model: Model, facts: Sequence[Fact], who: Workers[Model], **form: Any) -> tuple[TraceSet, float]:
    began = time.perf_counter()
    results = trace_facts(model, facts, seed=0, window=default_window(model), workers=who, **form)
    return TraceSet.collect(results), time.perf_counter() - began


def _difference(some: TraceSet, others: TraceSet) -> float:
    pairs = zip(some.traces, others.traces, strict=True)
    return max(
        (one.restored[site] - other.restored[site]).abs().max().item() for one, other in pairs for site in one.restored
    )


def show(run: Run) -> list[Section]:
    """The table of the sweeps so far, printed and saved."""
    rows = run.frame("sweeps")
    times = {who: list(group["seconds"]) for who, group in rows.groupby("workers", sort=False)}
    one = times["1"]
    table = pd.DataFrame(
        [
            {
                "Workers": who,
                "Facts": rows["facts"].iloc[0],
                "Seconds": round(statistics.median(each), 2),
                "Times as fast as one worker": round(
                    statistics.median(a / b for a, b in zip(one, each, strict=True)), 2
                ),
                "Seconds to start": round(statistics.median(rows.loc[rows["workers"] == who, "starting"].tolist()), 1),
                "Largest difference": f"{rows[rows['workers'] == who]['difference'].max():.1e}",
            }
            for who, each in times.items()
        ]
    )
    caption = f"Sweeps of {run.settings['model']}, one thread a worker; medians of {len(one)} repeats."
    run.save_table("cluster", table, caption=caption)
    console.print(table.to_string(index=False))
    return [Section(title="Speed of a cluster", elements=[run.tables()["cluster"]])]


if __name__ == "__main__":
    script(main)
