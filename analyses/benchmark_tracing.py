"""How much faster is the fast tracing engine? Each way on the same weights, prompts and noise, in one run.

    python analyses/benchmark_tracing.py                            # atlas and a GPT-2 small with random weights
    python analyses/benchmark_tracing.py --models gpt2-xl-shape --device cuda --dtype bfloat16
    python analyses/benchmark_tracing.py --models smollm2 --facts 1 --cells 20 --growth-facts 1,10,20
    python analyses/benchmark_tracing.py --models atlas --facts 10 --repeats 3 --no-growth

Prompts are facts that have 8 to 15 tokens, spread evenly over where in the prompt the subject stands (the earlier,
the more is left to compute). Cell by cell there are two ways: as the papers' code does it, a forward pass of one clean
and all noisy rows for each cell, with the logits of every position; and the plain engine, a pass of the noisy rows,
only the last position unembedded. Both are timed on --cells cells of a site, evenly spread, and scaled to all. For each
prompt and repeat the ways run one after the other, site by site; the fast engine also runs the three sites together,
in one wavefront. Printed are mean seconds a fact, the median of the ratios of these pairs, the floating-point
operations (matrix products, as torch counts them), the rate reached as a share of the machine's fastest square matrix
product, how often the device is told to do something (kernels of a GPU; on a processor calls of torch's operators), and
the most memory that tensors take. A second ratio tells what is left against a plain engine that batches cells, 256 rows
a pass, at `resid_post`.

How it grows: seconds against the number of facts (the MLPs at the last subject token, which locate a layer), tokens
and layers (hidden states at every token), with the exponent of a law fitted to each. Fewer layers than the model has
are layers of its sizes with random weights.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from workbench.cli import options
from workbench.cli.session import analysis, console, given, script, torch_dtype
from workbench.figures.growth import growth_figure
from workbench.machine.progress import track
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.records.reading import read_records
from workbench.report.elements import Element, Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.benchmarking import benchmark_model, device_name, matmul_rate
from workbench.studies.defaults import benchmark_records, default_window, records_path
from workbench.studies.locate import true_facts
from workbench.studies.speed_table import against_float32, shown, summed
from workbench.studies.tracing_growth import AXES, ENGINES, exponent, grow, growth_table
from workbench.studies.tracing_speed import TOGETHER, timed, to_float32
from workbench.tracing.noise import subject_span

TOKENS = range(8, 16)


def main(
    models: options.Models = ["atlas", "gpt2-small-shape"],
    facts: Annotated[
        int | None, typer.Option("--facts", min=1, help="Prompts traced. [default: 10, of a random-weight shape 1]")
    ] = None,
    repeats: options.Repeats = 1,
    cells: Annotated[
        int, typer.Option("--cells", min=1, help="Cells of a site that are timed cell by cell, and scaled to all.")
    ] = 24,
    growth: Annotated[bool, typer.Option("--growth/--no-growth", help="Whether it is measured how time grows.")] = True,
    growth_facts: Annotated[list[int], options.several("--growth-facts", int, "Facts.")] = [1, 10, 100],
    growth_tokens: Annotated[list[int], options.several("--growth-tokens", int, "Tokens.")] = [8, 16, 32, 64],
    growth_layers: Annotated[
        list[int] | None, options.several("--growth-layers", int, "Layers. [default: a quarter, half, all]")
    ] = None,
    growth_samples: Annotated[int, typer.Option("--growth-samples", min=1, help="Noise samples over sizes.")] = 1,
    growth_cells: Annotated[int, typer.Option("--growth-cells", min=1, help="As --cells, over sizes.")] = 4,
    samples: options.Samples = 10,
    window: options.Window = None,
    out: options.Out = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Measure, print the table and write the report."""
    with analysis(out, given(device=device), title="Speed of causal tracing", headline="") as page:
        page.show = lambda: show(page.run)
        for name in models:
            loaded = benchmark_model(name, device=device, dtype=torch_dtype(dtype))
            every = list(true_facts(read_records(records_path(benchmark_records(name)))).items())
            exact = precision == dtype == "float32"
            reference = None if exact else benchmark_model(name, device=device)
            measure(page.run, loaded, reference, name, every, facts or (1 if name.endswith("-shape") else 10))
            if growth:
                measure_growth(page.run, loaded, name, [fact for _, fact in every])


def chosen(model: Model, facts: Sequence[tuple[int, Fact]], count: int) -> list[tuple[int, Fact]]:
    """Facts of 8 to 15 tokens, at evenly spaced quantiles of the work that the subject's place leaves to do."""
    work: list[tuple[float, tuple[int, Fact]]] = []
    for case, fact in facts:
        n_pos = model.tokenize([fact.prompt]).ids.shape[1]
        if n_pos in TOKENS:
            left = n_pos - subject_span(model, fact)[0]
            work.append((left * (left + 1) / n_pos**2, (case, fact)))
    if not work:
        raise ValueError(f"no fact has {TOKENS[0]} to {TOKENS[-1]} tokens in {model.name}: choose another model")
    ordered = [each for _, each in sorted(work, key=lambda pair: pair[0])]
    return [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]


def measure(
    run: Run, model: Model, reference: Model | None, name: str, facts: Sequence[tuple[int, Fact]], count: int
) -> None:
    """Time both engines on facts that are not done yet, a row a fact; a fact that fails is kept as failed. `reference`
    is the model in float32, where it is timed in another precision."""
    samples, repeats, known = run.settings["samples"], run.settings["repeats"], run.rows("facts")
    window, some = run.settings["window"] or default_window(model), chosen(model, facts, count)
    finished = {row["case_id"] for row in known if row["model"] == name} | run.failed(what="fact", method=name)
    left = [(number, case, fact) for number, (case, fact) in enumerate(some) if case not in finished]
    if left:
        run.append("rates", {"model": name, "rate": matmul_rate(model.device, model.dtype)})
    for number, case, fact in track(left, f"Tracing with {name}", len(left)):
        with run.keeping(case, of=count, what="fact", method=name):
            row = timed(
                model, fact, number, window=window, samples=samples, repeats=repeats, cells=run.settings["cells"]
            )
            if reference is not None:
                row["to_float32"] = to_float32(model, reference, fact, number, window=window, samples=samples)
            row |= {
                "window": window,
                "layers": model.n_layers,
                "d_model": model.d_model,
                "device": device_name(model.device),
            }
            run.append("facts", {"model": name, "case_id": case, **row})
    if left:
        run.append("rates", {"model": name, "rate": matmul_rate(model.device, model.dtype)})


def measure_growth(run: Run, model: Model, name: str, facts: Sequence[Fact]) -> None:
    """Time every size that is not timed yet, a row each."""
    settings = run.settings
    layers = settings["growth_layers"] or sorted({max(1, model.n_layers // part) for part in (4, 2, 1)})
    asked = {"facts": settings["growth_facts"], "tokens": settings["growth_tokens"], "layers": layers}
    if max(asked["facts"]) > len(facts):
        raise ValueError(f"there are {len(facts)} facts for {name}: lower --growth-facts")
    done = {(row["axis"], row["asked"]) for row in run.rows("growth") if row["model"] == name}
    left = {axis: [size for size in sizes if (axis, size) not in done] for axis, sizes in asked.items()}
    window = settings["window"] or default_window(model)
    rows = grow(model, facts, left, window=window, samples=settings["growth_samples"], cells=settings["growth_cells"])
    for row in track(rows, f"Growth with {name}", sum(map(len, left.values()))):
        run.append("growth", {"model": name, **row})


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run) -> list[Section]:
    """Print and save a table a model; the section of the report."""
    elements: list[Element] = [
        Paragraph(
            text="Seconds a fact as published, with the plain and with the fast engine, the floating-point operations "
            "that each needs, and the rate it reaches as a share of the machine's fastest square matrix product."
        )
    ]
    settings = run.settings
    for name in settings["models"]:
        rows = [row for row in run.rows("facts") if row["model"] == name]
        if not rows:
            continue
        rate = max(row["rate"] for row in run.rows("rates") if row["model"] == name)
        tokens, (some, all_cells) = sorted({row["tokens"] for row in rows}), rows[0]["cells"]
        sizes = f"{tokens[0]} to {tokens[-1]}" if len(tokens) > 1 else f"{tokens[0]}"
        table = pd.DataFrame([shown(summed(rows, label), label, rate) for label in (*SITES, TOGETHER)])
        caption = (
            f"{name} ({rows[0]['layers']} layers x {rows[0]['d_model']}), {settings['dtype']}, {rows[0]['device']}, "
            f"{rate / 1e9:,.0f} GFLOP/s measured: {len(rows)} prompt{'s' * (len(rows) > 1)} of {sizes} tokens, "
            f"{settings['samples']} samples, windows of {rows[0]['window']}, {settings['repeats']} interleaved "
            f"run{'s' * (settings['repeats'] > 1)} each{', products in TF32' * (settings['precision'] == 'tf32')}. "
            f"Cell by cell (published, plain) {some} of {all_cells} cells a site are timed and scaled to all. "
            f"Launches: {'calls of operators' if 'CPU' in rows[0]['device'] else 'kernels and graphs'} a fact. MiB: "
            "most that tensors take at one time beyond the model. Largest difference of a probability: "
            f"{max(row['difference'] for row in rows):.1e}.{against_float32(rows)}"
        )
        key = Path(name).name.replace("-", "_")
        run.save_table(key, table, caption=caption)
        elements.append(run.tables()[key])
        console.print(f"{table.to_string(index=False)}\n{caption}")
        elements += show_growth(run, name, key)
    return [Section(title="Speed of tracing", elements=elements)]


def show_growth(run: Run, name: str, key: str) -> list[Element]:
    """The table and the figure of how the time grows; nothing where it was not measured."""
    rows = [row for row in run.rows("growth") if row["model"] == name]
    if not rows:
        return []
    settings, label = run.settings, f"{key}_growth"
    caption = (
        f"{name}: seconds by size, and the exponent k of seconds ~ size^k fitted to them. Facts: the MLPs at the last "
        f"subject token; tokens and layers: hidden states at every token of one prompt. {settings['growth_samples']} "
        f"noise samples. Published and plain are timed on {settings['growth_cells']} cells of a fact, of 10 facts at "
        "most, and scaled to all."
    )
    run.save_table(label, growth_table(rows), caption=caption)
    console.print(f"{growth_table(rows).to_string(index=False)}\n{caption}")
    by_axis: dict[str, dict[str, dict[int, float]]] = {}
    for axis in AXES:
        some = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["size"])
        if some:
            by_axis[axis] = {engine: {row["size"]: row["seconds"][engine] for row in some} for engine in ENGINES}
    exponents = {
        axis: {engine: exponent(list(one), list(one.values())) for engine, one in by_engine.items()}
        for axis, by_engine in by_axis.items()
    }
    run.save_figure(label, growth_figure(by_axis, exponents), caption=f"{name}: time against facts, tokens and layers.")
    return [run.figures()[label], run.tables()[label]]


if __name__ == "__main__":
    script(main)
