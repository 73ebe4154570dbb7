"""How much faster is the fast tracing engine? Both engines on the same weights, prompts and noise, in one run.

    python analyses/benchmark_tracing.py                            # atlas and a GPT-2 small with random weights
    python analyses/benchmark_tracing.py --models gpt2-xl-shape --device cuda --dtype bfloat16
    python analyses/benchmark_tracing.py --models atlas --facts 10 --repeats 3

Prompts are facts of the embedded model that have 8 to 15 tokens, spread evenly over where in the prompt the subject
stands (the earlier, the more is left to compute). The plain engine makes one batched
forward pass a cell (all noise samples of it, only the last position unembedded), as published. For each prompt and
repeat the engines run one after the other, site by site; the fast engine also runs the three sites together, in one
wavefront. Printed are mean seconds a fact, the median of the ratios of these pairs, the floating-point operations
(matrix products, as torch counts them), and the rate reached as a share of the machine's fastest square matrix product.
A second ratio tells what is left against a plain engine that batches cells, 256 rows a pass, at `resid_post`.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from workbench.cli import options
from workbench.cli.session import analysis, console, given, script, torch_dtype
from workbench.machine.progress import track
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.records.reading import read_records
from workbench.report.elements import Element, Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.benchmarking import benchmark_model, device_name, floating_point_operations, matmul_rate, seconds
from workbench.studies.defaults import default_window, records_path
from workbench.studies.locate import true_facts
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import gaussian_noise, subject_span

TOKENS = range(8, 16)
TOGETHER = "all three"


def main(
    models: options.Models = ["atlas", "gpt2-small-shape"],
    facts: Annotated[
        int | None, typer.Option("--facts", min=1, help="Prompts traced. [default: 10, of a random-weight shape 1]")
    ] = None,
    repeats: options.Repeats = 1,
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
    every = list(true_facts(read_records(records_path("atlas"))).items())
    with analysis(out, given(device=device), title="Speed of causal tracing", headline="") as page:
        page.show = lambda: show(page.run)
        for name in models:
            loaded = benchmark_model(name, device=device, dtype=torch_dtype(dtype))
            measure(page.run, loaded, name, every, facts or (1 if name.endswith("-shape") else 10))


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


def measure(run: Run, model: Model, name: str, facts: Sequence[tuple[int, Fact]], count: int) -> None:
    """Time both engines on facts that are not done yet, a row a fact; a fact that fails is kept as failed."""
    samples, repeats, known = run.settings["samples"], run.settings["repeats"], run.rows("facts")
    window, some = run.settings["window"] or default_window(model), chosen(model, facts, count)
    finished = {row["case_id"] for row in known if row["model"] == name} | run.failed(what="fact", method=name)
    left = [(number, case, fact) for number, (case, fact) in enumerate(some) if case not in finished]
    if left:
        run.append("rates", {"model": name, "rate": matmul_rate(model.device, model.dtype)})
    for number, case, fact in track(left, f"Tracing with {name}", len(left)):
        with run.keeping(case, of=count, what="fact", method=name):
            row = timed(model, fact, number, window=window, samples=samples, repeats=repeats)
            row |= {
                "window": window,
                "layers": model.n_layers,
                "d_model": model.d_model,
                "device": device_name(model.device),
            }
            run.append("facts", {"model": name, "case_id": case, **row})
    if left:
        run.append("rates", {"model": name, "rate": matmul_rate(model.device, model.dtype)})


def timed(model: Model, fact: Fact, number: int, *, window: int, samples: int, repeats: int) -> dict[str, Any]:
    """Seconds by what is restored and engine, a value a repeat; floating-point operations; the largest difference."""
    groups: dict[str, Sequence[str]] = {**{site: (site,) for site in SITES}, TOGETHER: SITES}
    (first, end), seed = subject_span(model, fact), torch.Generator().manual_seed(number)
    noise = gaussian_noise(0.1, samples, end - first, model.d_model, generator=seed)
    times: dict[str, dict[str, list[float]]] = {label: {} for label in groups}

    def trace(engine: str, sites: Sequence[str], **options: Any) -> list[torch.Tensor]:
        found = trace_fact(model, fact, noise=noise, window=window, sites=sites, engine=engine, **options)
        return [found.restored[site] for site in sites]

    def time(label: str, engine: str, **options: Any) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        taken = seconds(lambda: found.extend(trace(engine, groups[label], **options)), model.device)
        times[label].setdefault(engine if options else f"{engine} batched", []).append(taken)
        return found

    # Counting also warms up. The plain engine makes as many passes for every site, whatever is restored.
    fast = {label: floating_point_operations(partial(trace, "fast", sites)) for label, sites in groups.items()}
    plain = floating_point_operations(partial(trace, "plain", SITES[:1]))
    difference = 0.0
    for _ in range(repeats):
        for site in SITES:
            pairs = zip(time(site, "plain", batch_size=samples), time(site, "fast", batch_size=samples), strict=True)
            difference = max(difference, *((one - other).abs().max().item() for one, other in pairs))
        time(TOGETHER, "fast", batch_size=samples)
        time(SITES[0], "plain")
    times[TOGETHER]["plain"] = [sum(each) for each in zip(*(times[site]["plain"] for site in SITES), strict=True)]
    tokens = model.tokenize([fact.prompt]).ids.shape[1]
    return {"times": times, "fast_flop": fast, "plain_flop": plain, "difference": difference, "tokens": tokens}


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run) -> list[Section]:
    """Print and save a table a model; the section of the report."""
    elements: list[Element] = [
        Paragraph(
            text="Seconds a fact with the plain and with the fast engine, the floating-point operations that each "
            "needs, and the rate it reaches as a share of the machine's fastest square matrix product."
        )
    ]
    settings = run.settings
    for name in settings["models"]:
        rows = [row for row in run.rows("facts") if row["model"] == name]
        if not rows:
            continue
        rate = max(row["rate"] for row in run.rows("rates") if row["model"] == name)
        tokens = [row["tokens"] for row in rows]
        table = pd.DataFrame([shown(summed(rows, label), label, rate) for label in (*SITES, TOGETHER)])
        caption = (
            f"{name} ({rows[0]['layers']} layers x {rows[0]['d_model']}), {settings['dtype']}, {rows[0]['device']}, "
            f"{rate / 1e9:,.0f} GFLOP/s measured: {len(rows)} prompts of {min(tokens)} to {max(tokens)} "
            f"tokens, {settings['samples']} samples, windows of {rows[0]['window']}, {settings['repeats']} interleaved "
            f"runs each{', products in TF32' * (settings['precision'] == 'tf32')}. "
            f"Largest difference of a probability: {max(row['difference'] for row in rows):.1e}."
        )
        key = Path(name).name.replace("-", "_")
        run.save_table(key, table, caption=caption)
        elements.append(run.tables()[key])
        console.print(f"{table.to_string(index=False)}\n{caption}")
    return [Section(title="Speed of tracing", elements=elements)]


def summed(rows: Sequence[dict[str, Any]], label: str) -> dict[str, float]:
    """The row of the table for what is restored: means over facts and repeats, medians of the ratios of each pair."""
    times = {engine: [t for row in rows for t in row["times"][label][engine]] for engine in rows[0]["times"][label]}
    plain, fast = times["plain"], times["fast"]
    sites = len(SITES) if label == TOGETHER else 1
    found = {
        "plain": statistics.mean(plain),
        "fast": statistics.mean(fast),
        "ratio": statistics.median(slow / quick for slow, quick in zip(plain, fast, strict=True)),
        "plain_flop": sites * statistics.mean(row["plain_flop"] for row in rows),
        "fast_flop": statistics.mean(row["fast_flop"][label] for row in rows),
    }
    if batched := times.get("plain batched"):
        found["batched"] = statistics.median(slow / quick for slow, quick in zip(batched, fast, strict=True))
    return found


def shown(row: dict[str, float], label: str, rate: float) -> dict[str, str]:
    """A row of the table."""
    return {
        "Site": label,
        "Plain s": f"{row['plain']:.3f}",
        "Fast s": f"{row['fast']:.3f}",
        "Ratio": f"{row['ratio']:.1f}",
        "Ratio, plain batched": f"{row['batched']:.1f}" if "batched" in row else "-",
        "Plain GFLOP": f"{row['plain_flop'] / 1e9:,.0f}",
        "Fast GFLOP": f"{row['fast_flop'] / 1e9:,.0f}",
        "Plain rate": f"{100 * row['plain_flop'] / row['plain'] / rate:.0f} %",
        "Fast rate": f"{100 * row['fast_flop'] / row['fast'] / rate:.0f} %",
    }


if __name__ == "__main__":
    script(main)
