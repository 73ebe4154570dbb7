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

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from workbench.machine.precision import PRECISIONS, float32_products
from workbench.models.model import SITES, Model
from workbench.records.counterfact import read_records
from workbench.records.facts import Fact
from workbench.report.elements import Element, Paragraph, Section
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.benchmarking import benchmark_model, device_name, floating_point_operations, matmul_rate, seconds
from workbench.studies.defaults import default_window, records_path
from workbench.studies.locate import true_facts
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import gaussian_noise, subject_span

TOKENS = range(8, 16)
TOGETHER = "all three"


def main() -> None:
    """Measure, print the table and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["atlas", "gpt2-small-shape"])
    parser.add_argument("--facts", type=int, help="prompts traced (default 10, of a random-weight shape 1)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10, help="noise samples a fact")
    parser.add_argument("--window", type=int, help="layers restored together (default 10; atlas: 3)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of float32 products")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_tracing"))
    arguments = parser.parse_args()

    settings = vars(arguments) | {"command": "benchmark_tracing"}
    run = Run.create(settings.pop("out"), settings)
    every = true_facts(read_records(records_path("atlas")))
    elements: list[Element] = [
        Paragraph(
            text="Seconds a fact with the plain and with the fast engine, the floating-point operations that each "
            "needs, and the rate it reaches as a share of the machine's fastest square matrix product."
        )
    ]
    with run.running(), float32_products(arguments.precision):
        for name in arguments.models:
            model = benchmark_model(name, device=arguments.device, dtype=getattr(torch, arguments.dtype))
            facts = chosen(model, every, arguments.facts or (1 if name.endswith("-shape") else 10))
            window = arguments.window or default_window(model)
            rates = [matmul_rate(model.device, model.dtype)]
            rows, difference = measured(model, facts, window, arguments.samples, arguments.repeats)
            rates.append(matmul_rate(model.device, model.dtype))
            table = pd.DataFrame([shown(row, label, max(rates)) for label, row in rows.items()])
            tokens = [model.tokenize([fact.prompt]).ids.shape[1] for fact in facts]
            caption = (
                f"{name} ({model.n_layers} layers x {model.d_model}), {arguments.dtype}, {device_name(model.device)}, "
                f"{max(rates) / 1e9:,.0f} GFLOP/s measured: {len(facts)} prompts of {min(tokens)} to {max(tokens)} "
                f"tokens, {arguments.samples} samples, windows of {window}, {arguments.repeats} interleaved runs each"
                f"{', products in TF32' * (arguments.precision == 'tf32')}. "
                f"Largest difference of a probability: {difference:.1e}."
            )
            key = name.replace("-", "_")
            run.save_table(key, table, caption=caption)
            elements.append(run.tables()[key])
            Console().print(f"{table.to_string(index=False)}\n{caption}", markup=False, soft_wrap=True)
    section = Section(title="Speed of tracing", elements=elements)
    print(f"report: {write_report(run, [section], title='Speed of causal tracing', headline='')}")


def chosen(model: Model, facts: Sequence[Fact], count: int) -> list[Fact]:
    """Facts of 8 to 15 tokens, at evenly spaced quantiles of the work that the subject's place leaves to do."""
    work: list[tuple[float, Fact]] = []
    for fact in facts:
        n_pos = model.tokenize([fact.prompt]).ids.shape[1]
        if n_pos in TOKENS:
            left = n_pos - subject_span(model, fact)[0]
            work.append((left * (left + 1) / n_pos**2, fact))
    ordered = [fact for _, fact in sorted(work, key=lambda pair: pair[0])]
    return [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]


def measured(
    model: Model, facts: Sequence[Fact], window: int, samples: int, repeats: int
) -> tuple[dict[str, dict[str, float]], float]:
    """By site and for all three the row of the table; and the engines' largest difference."""
    groups: dict[str, Sequence[str]] = {**{site: (site,) for site in SITES}, TOGETHER: SITES}
    times: dict[tuple[str, str], list[float]] = {}
    flop: dict[tuple[str, str], float] = {}
    difference = 0.0
    rounds = [(number, fact, repeat) for repeat in range(repeats) for number, fact in enumerate(facts)]
    for number, fact, repeat in track(rounds, f"Tracing with {model.name}", len(rounds)):
        first, end = subject_span(model, fact)
        generator = torch.Generator().manual_seed(number)
        noise = gaussian_noise(0.1, samples, end - first, model.d_model, generator=generator)

        def trace(engine: str, sites: Sequence[str], fact=fact, noise=noise, **options) -> list[torch.Tensor]:
            found = trace_fact(model, fact, noise=noise, window=window, sites=sites, engine=engine, **options)
            return [found.restored[site] for site in sites]

        def timed(label: str, engine: str, trace=trace, **options) -> list[torch.Tensor]:
            found: list[torch.Tensor] = []
            taken = seconds(lambda: found.extend(trace(engine, groups[label], **options)), model.device)
            times.setdefault((label, engine if options else f"{engine} batched"), []).append(taken)
            return found

        if repeat == 0:  # counting also warms up
            for label, sites in groups.items():
                count = floating_point_operations(lambda sites=sites, trace=trace: trace("fast", sites))
                flop[label, "fast"] = flop.get((label, "fast"), 0.0) + count / len(facts)
            # As many passes for every site, whatever is restored.
            count = floating_point_operations(lambda trace=trace: trace("plain", SITES[:1]))
            flop["", "plain"] = flop.get(("", "plain"), 0.0) + count / len(facts)
        for site in SITES:
            pairs = zip(timed(site, "plain", batch_size=samples), timed(site, "fast", batch_size=samples), strict=True)
            difference = max(difference, *((plain - fast).abs().max().item() for plain, fast in pairs))
        timed(TOGETHER, "fast", batch_size=samples)
        timed(SITES[0], "plain")
    times[TOGETHER, "plain"] = [sum(each) for each in zip(*(times[site, "plain"] for site in SITES), strict=True)]
    rows = {}
    for label, sites in groups.items():
        plain, fast = times[label, "plain"], times[label, "fast"]
        rows[label] = {
            "plain": statistics.mean(plain),
            "fast": statistics.mean(fast),
            "ratio": statistics.median(slow / quick for slow, quick in zip(plain, fast, strict=True)),
            "plain_flop": flop["", "plain"] * len(sites),
            "fast_flop": flop[label, "fast"],
        }
        if batched := times.get((label, "plain batched")):
            rows[label]["batched"] = statistics.median(s / q for s, q in zip(batched, fast, strict=True))
    return rows, difference


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
    main()
