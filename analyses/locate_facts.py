"""Where is a fact recalled? Heat maps of single facts in the layout of Meng et al. (2022), figure 1, and averages.

    python analyses/locate_facts.py                                   # 40 facts of the embedded model
    python analyses/locate_facts.py --model gpt2-xl --records known_1000.json --limit 100
    python analyses/locate_facts.py --severed mlp_out                 # without the way through later MLPs (figure 3)
    python analyses/locate_facts.py --prompt "{} is located in the city of" --subject Colosseum --object Rome

Writes figures (PNG, PDF), tables and a report into --out; a run that was interrupted goes on where it stopped.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Mapping
from itertools import islice
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load, one_of, script
from workbench.records.facts import Fact
from workbench.records.reading import read_cases
from workbench.studies.checked import traced
from workbench.studies.defaults import default_records, default_window, records_path
from workbench.studies.locate import check_tracing, locate
from workbench.studies.replicas import chosen_workers
from workbench.tracing.trace import CausalTrace

OWN = -1
"""The `case_id` of a fact given by hand: no record has it."""


def main(
    model: options.Model = "atlas",
    records: options.Records = None,
    limit: options.FactLimit = 40,
    prompt: Annotated[str, typer.Option("--prompt", help="A single fact instead: its template with {}.")] = "",
    subject: Annotated[str, typer.Option("--subject", help="Its subject.")] = "",
    answer: Annotated[str, typer.Option("--object", help="Its answer.")] = "",
    window: options.Window = None,
    samples: options.SamplesOrAuto = 10,
    noise: options.Noise = "s3",
    span: Annotated[int, typer.Option("--span", min=1, help="Tokens restored together.")] = 1,
    severed: Annotated[
        str | None, typer.Option("--severed", help="Modules of later layers kept corrupted: mlp_out or attn_out.")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="What is measured: probability or kl.")] = "probability",
    positions: options.Positions = "all",
    engine: options.Engine = "auto",
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Trace, print the mediating layer, and write the report."""
    check_tracing(positions, engine)
    one_of("--severed", severed, (None, "mlp_out", "attn_out"))
    one_of("--metric", metric, ("probability", "kl"))
    records = records or default_records(model)
    facts = read_cases(records_path(records))
    if prompt or subject or answer:
        if not (prompt and subject and answer):
            raise ValueError("a single fact needs --prompt, --subject and --object")
        # The other facts stay in the set, so that the noise has their subjects' scale.
        facts, limit = {OWN: Fact(subject=subject, template=prompt, object=answer)} | facts, 1
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    window = window or default_window(loaded)
    settings = given(records=records, limit=limit, window=window)
    checks = [traced(dict(islice(facts.items(), limit)))]
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with analysis(out, settings, loaded, title="Where facts are recalled", checks=checks) as page, crew as those:
        located = locate(
            page.run, loaded, facts, limit=limit, seed=seed, window=window, samples=samples, noise=noise, span=span,
            severed=severed, metric=metric, positions=positions, engine=engine, workers=those,
        )  # fmt: skip
        known, skipped = len(located.traces), len(located.found.skipped)
        seconds = page.run.read_json("results.json")["seconds_tracing"]
        print(f"{known} facts traced, {skipped} not known; {told(located.traces)} samples, {seconds:.0f} s in all")
        found = "none, the last subject tokens were not traced" if located.layer is None else located.layer
        print(f"mediating layer: {found}")


def told(traces: Mapping[int, CausalTrace]) -> str:
    """The number of noise samples, or from which to which where facts needed different ones."""
    used = sorted({trace.samples for trace in traces.values()})
    return f"{used[0]} to {used[-1]}" if used[1:] else str(used[0])


if __name__ == "__main__":
    script(main)
