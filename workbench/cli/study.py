"""`workbench study`: the whole flow."""

from workbench.cli import options
from workbench.cli.session import analysis, given, load


def study(
    model: options.Model = "atlas",
    records: options.Records = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    limit: options.Limit = 100,
    traces: options.Traces = 30,
    window: options.Window = None,
    samples: options.SamplesOrAuto = 10,
    noise: options.Noise = "s3",
    positions: options.Positions = "all",
    engine: options.Engine = "auto",
    method: options.Method = "rome",
    preset: options.Preset = None,
    layer: options.Layer = None,
    layers: options.Layers = None,
    changes: options.Changes = None,
    text: options.Text = None,
    together: options.Together = 16,
    fluency: options.Fluency = 15,
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
    """The whole flow: locate facts, rewrite them at the layer that mediates them, measure what that did, report.

    On the embedded model this takes a few minutes. Interrupted with Ctrl-C, it goes on where it stopped when called
    again with the same settings.
    """
    from itertools import islice

    from workbench.editors.make import ask
    from workbench.records.reading import read_records
    from workbench.studies.attributed import show_neurons
    from workbench.studies.checked import scored, traced
    from workbench.studies.defaults import default_records, default_text, default_window, records_path
    from workbench.studies.edit import edit_records, follow_answers, load_edits, make_editor
    from workbench.studies.locate import check_tracing, locate, trace_edited, true_facts
    from workbench.studies.measure import score_edits
    from workbench.studies.replicas import chosen_workers

    check_tracing(positions, engine, layer_needed=layer is None and not layers)
    records = records or default_records(model)
    every = read_records(records_path(records))
    chosen, facts = every[:limit], true_facts(every)
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    window = window or default_window(loaded)
    wanted = ask(loaded, method, preset_of=preset, settings=changes or (), layer=layer, layers=layers)
    text = text or default_text(loaded)
    settings = given(records=records, window=window, text=text)
    checks = [traced(dict(islice(facts.items(), traces))), scored(chosen, fluency=fluency)]
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with analysis(out, settings, loaded, methods=[method], checks=checks) as page, crew as those:
        run = page.run
        located = locate(
            run, loaded, facts, limit=traces, seed=seed, window=window, samples=samples,
            noise=noise, positions=positions, engine=engine, workers=those,
        )  # fmt: skip
        layer = located.layer if wanted.located else wanted.layer
        if layer is None and wanted.located:
            raise ValueError("every prompt traced ends with its subject, so no layer was located: give --layer")
        editor = make_editor(
            loaded,
            method,
            preset_of=preset,
            layer=layer,
            text=text,
            seed=seed,
            run=run,
            alone=wanted.alone,
            workers=those,
            **wanted.fields,
        )
        edits = edit_records(run, loaded, editor, chosen, together=together, workers=those)
        score_edits(run, loaded, edits, records=chosen, seed=seed, fluency=fluency, workers=those)
        trace_edited(run, loaded, chosen, located)
        show_neurons(run, loaded, located, load_edits(run, chosen))
        follow_answers(run, loaded, load_edits(run, chosen))
