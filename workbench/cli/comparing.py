"""`workbench compare`: which editor writes facts best?"""

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load


def compare(
    model: options.Model = "atlas",
    records: options.Records = None,
    methods: options.Methods = None,
    limit: options.Limit = 200,
    fluency: options.Fluency = 50,
    stacked: Annotated[
        list[str], options.several("--stacked", str, "Editors whose edits are also written as one batch, or none.")
    ] = ["memit"],
    edits: Annotated[int, typer.Option("--edits", min=1, help="How many in that batch.")] = 80,
    preset: options.Preset = None,
    layer: options.Layer = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    together: options.Together = 16,
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Which editor writes facts best? Several on the same records, one edit at a time, with tables and a report.

    The script analyses/compare_editors.py says more of it, and goes on in the same run.
    """
    from workbench.editors.make import check_editor, ready
    from workbench.records.reading import read_records, stating_facts
    from workbench.studies.checked import scored
    from workbench.studies.defaults import default_records, default_text, records_path
    from workbench.studies.edit_alone import edit_alone, unedited
    from workbench.studies.editor_report import headline, show
    from workbench.studies.locate import check_tracing, settled_layer
    from workbench.studies.one_batch import edit_stacked
    from workbench.studies.replicas import chosen_workers
    from workbench.studies.stacked_edits import distinct

    check_tracing("last_subject", engine)
    methods, stacked = methods or ready(model), [method for method in stacked if method != "none"]
    records = records or default_records(model)
    every = stating_facts(read_records(records_path(records)), records)
    loaded = load(model, device=device, dtype=dtype)
    for method in dict.fromkeys([*methods, *stacked]):
        check_editor(loaded, method, layer=layer, preset_of=preset)
    text = text or default_text(loaded)
    settings = given(
        records=records, text=text, stacked=stacked, without=["methods", "limit"]
    )  # others go on in the same run
    checks, title = [scored(every[:limit], fluency=fluency)], "Which editor writes facts best?"
    checks += [scored(distinct(every)[:edits])] if stacked else []
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with (
        analysis(
            out, settings, loaded, title=title, headline=headline, methods=[*methods, *stacked], checks=checks
        ) as page,
        crew as those,
    ):
        run = page.run
        page.show = lambda: show(run, loaded)
        layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine)
        for method in dict.fromkeys([*methods, *stacked]):  # around the located layer there may be none below
            check_editor(loaded, method, layer=layer, preset_of=preset)
        making = {"layer": layer, "preset_of": preset, "text": text, "seed": seed}
        before = unedited(run, loaded, every[:limit])
        for method in methods:
            edit_alone(run, loaded, method, every[:limit], before, making, together, those)
        for method in stacked:
            edit_stacked(run, loaded, method, distinct(every)[:edits], making)
