"""`workbench trace`: locate facts."""

from workbench.cli import options
from workbench.cli.session import analysis, console, given, load


def trace(
    model: options.Model = "atlas",
    records: options.Records = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    limit: options.FactLimit = 40,
    window: options.Window = None,
    samples: options.SamplesOrAuto = 10,
    noise: options.Noise = "s3",
    positions: options.Positions = "all",
    engine: options.Engine = "auto",
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Locate facts by causal tracing: which layer's MLPs mediate them at the subject's last token?"""
    from itertools import islice

    from workbench.records.reading import read_cases
    from workbench.studies.checked import traced
    from workbench.studies.defaults import default_records, default_window, records_path
    from workbench.studies.locate import check_tracing, locate
    from workbench.studies.replicas import chosen_workers

    check_tracing(positions, engine)
    records = records or default_records(model)
    facts = read_cases(records_path(records))
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    window = window or default_window(loaded)
    settings = given(records=records, window=window)
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with analysis(out, settings, loaded, checks=[traced(dict(islice(facts.items(), limit)))]) as page, crew as those:
        located = locate(
            page.run, loaded, facts, limit=limit, seed=seed, window=window, samples=samples, noise=noise,
            positions=positions, engine=engine, workers=those,
        )  # fmt: skip
        count = len(located.found.traces)
        if located.layer is None:
            console.print(f"{count} facts traced, but not at the last tokens of their subjects: no layer located.")
        else:
            console.print(f"Layer {located.layer} mediates {count} facts in {model}.")
