"""`workbench moments import` and `workbench moments export`: second moments of keys that are there already."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.session import console, load, told

Folder = Annotated[Path, typer.Option("--out", help="Folder to write; --text then names it.")]

moments = typer.Typer(
    no_args_is_help=True,
    help="Second moments of keys, which most editors need: those that ROME's authors publish, or a model's own, in a "
    "folder that --text of other commands takes in place of texts.",
)


def import_(
    files: Annotated[
        list[Path], typer.Argument(help="Published files, MODEL/wikipedia_stats/MODULE_float32_mom2_100000.npz.")
    ],
    out: Folder,
    model: options.Model = "atlas",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Take over the statistics that ROME's and MEMIT's authors publish; files of another model are refused."""
    from workbench.editors.shared.kept_moments import import_published, keep_moments

    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    for file in files:
        moment, source = import_published(loaded, file)
        keep_moments(loaded, {moment.layer: moment}, out, source=source)
        console.print(f"layer {moment.layer}, {moment.count:,} tokens: {out}")


def export(
    layers: Annotated[list[int], options.several("--layers", int, "The layers whose keys are counted.")],
    out: Folder,
    model: options.Model = "atlas",
    text: options.Text = None,
    seed: options.Seed = 0,
    plugin: options.Plugin = None,
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Compute second moments, or take them from the cache, and write them with where they come from."""
    from workbench.editors.shared.kept_moments import keep_moments
    from workbench.editors.shared.second_moments import second_moments
    from workbench.machine import paths
    from workbench.studies.contents import contents
    from workbench.studies.defaults import default_text
    from workbench.studies.edit import statistics_texts
    from workbench.studies.replicas import chosen_workers

    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    chosen = text or default_text(loaded)
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with crew as those:
        texts = statistics_texts(loaded, chosen, seed=seed)
        found = second_moments(loaded, layers, texts, cache=paths.CACHE, progress=True, workers=those)
    keep_moments(loaded, found, out, source={"texts": chosen, "seed": seed, **contents({"text": chosen})})
    for layer, moment in found.items():
        console.print(f"layer {layer}, {moment.count:,} tokens: {out}")


moments.command("import")(told(import_, "moments import"))
moments.command("export")(told(export, "moments export"))
