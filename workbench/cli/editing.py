"""`workbench edit` and `workbench evaluate`: rewrite facts, and score what that did."""

import warnings
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import options
from workbench.cli.session import analysis, console, given, load

if TYPE_CHECKING:
    from workbench.edits.edit import Edit
    from workbench.records.facts import Record


def edit(
    model: options.Model = "atlas",
    records: options.Records = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    limit: options.Limit = 100,
    method: options.Method = "rome",
    preset: options.Preset = None,
    layer: options.Layer = None,
    layers: options.Layers = None,
    changes: options.Changes = None,
    located: Annotated[
        Path | None, typer.Option("--trace", help="Folder of a `workbench trace` run, whose located layer is edited.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help='One request: "{} stands in the city of".')] = "",
    subject: Annotated[str, typer.Option("--subject", help="Its subject: 'Eiffel Tower'.")] = "",
    target: Annotated[str, typer.Option("--target", help="Its new answer: 'Rome'.")] = "",
    text: options.Text = None,
    together: options.Together = 16,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=2,
            help="Requests that are written as one edit, by methods that can (MEMIT of 100). [default: one a record]",
        ),
    ] = None,
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
    """Rewrite facts: one edit a record, saved as edits/CASE.safetensors; or one request, tried and shown.

    With --batch one edit for so many records, saved as edits/batch-FIRST_CASE.safetensors.
    """
    from workbench.editors.make import ask
    from workbench.machine.progress import track
    from workbench.records.reading import read_records
    from workbench.studies.batches import check_batches, edit_batches
    from workbench.studies.checked import edited
    from workbench.studies.defaults import default_records, default_text, records_path
    from workbench.studies.edit import edit_records, make_editor, show_edit
    from workbench.studies.locate import check_tracing, settled_layer
    from workbench.studies.replicas import chosen_workers

    one = {"--prompt": prompt, "--subject": subject, "--target": target}
    if any(one.values()) and not all(one.values()):
        missing = ", ".join(name for name, value in one.items() if not value)
        raise ValueError(f"one request needs --prompt, --subject and --target: {missing} is missing")
    if batch is not None:
        if prompt:
            raise ValueError(f"--batch {batch} is of the records of a file: one request is written as one edit")
        check_batches(method)
    check_tracing("last_subject", engine)
    layer = _settled(layer, layers, located)
    settled = bool(prompt) and (layer is not None or bool(layers))  # no records are edited, nor located over
    if settled and records is not None:
        warnings.warn(f"--records {records} are not read: the request and its layer are given", stacklevel=2)
    records = None if settled else records or default_records(model)
    every = [] if records is None else read_records(records_path(records))
    chosen = [_request(prompt, subject, target)] if prompt else every[:limit]
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    wanted = ask(loaded, method, preset_of=preset, settings=changes or (), layer=layer, layers=layers)
    text = text or default_text(loaded)
    settings = given(records=records, limit=len(chosen), layer=layer, text=text, without=["located"])
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with (
        analysis(out, settings, loaded, report=False, methods=[method], checks=[edited(chosen)]) as page,
        crew as those,
    ):
        run = page.run
        if wanted.located or layer is not None:
            layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine, workers=those)
        else:
            layer = wanted.layer
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
        count, doing = 0, f"Editing with {method}"
        if batch is None:
            edits = edit_records(run, loaded, editor, chosen, together=together, workers=those)
            for record, made in track(edits, doing, len(chosen)):
                count += 1
                if prompt:
                    show_edit(console, loaded, record, made)
        else:
            batches = edit_batches(run, loaded, editor, chosen, size=batch, workers=those)
            count = sum(1 for _ in track(batches, doing, ceil(len(chosen) / batch)))
        told = ", ".join(map(str, editor.layers))
        where = f" at layer{'s' * (len(editor.layers) > 1)} {told}" if told else ""
        console.print(f"{count} edits{where}: {run.folder / 'edits'}")


def evaluate(
    edits: Annotated[Path, typer.Argument(help="Folder of a `workbench edit` run over records.")],
    out: options.Out = None,
    seed: options.Seed = 0,
    fluency: options.AnyFluency = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    precision: options.Precision = "float32",
) -> None:
    """Score the edits of a `workbench edit` run: efficacy, paraphrase, neighborhood, portability, fluency."""
    from workbench.records.reading import read_records
    from workbench.runs.run import Run
    from workbench.studies.batches import load_batches, saved_batches
    from workbench.studies.checked import scored
    from workbench.studies.defaults import records_path
    from workbench.studies.edit import edit_path, load_edits
    from workbench.studies.measure import score_edits
    from workbench.studies.replicas import chosen_workers

    made = Run.open(edits)
    if made.settings.get("command") != "edit" or made.settings.get("prompt"):
        raise ValueError(f"'{edits}' is not a run of `workbench edit` over records; make one with `workbench edit`")
    named = records_path(made.settings["records"])
    if not Path(named).exists():
        raise FileNotFoundError(f"'{named}', the records of '{edits}', is not there: call this where they were edited")
    every = read_records(named)
    asked = every[: made.settings["limit"]]
    size = made.settings.get("batch")
    if size is None:
        chosen = [record for record in every if edit_path(made, record).exists()]
    else:
        chosen = saved_batches(made, asked, size=size)
    if 0 < len(chosen) < len(asked) and made.status != "complete":
        warnings.warn(f"'{edits}' was stopped: {len(chosen)} of its {len(asked)} records are edited", stacklevel=2)
    if not chosen:
        raise ValueError(f"'{edits}' holds no edits; run `workbench edit --out {edits}` to the end")
    loaded = load(made.settings["model"], device=device, dtype=made.settings["dtype"], device_map=device_map)
    made.check_model(loaded.fingerprint())
    settings = dict(made.settings) | given(edits=str(edits))
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with analysis(out, settings, loaded, checks=[scored(chosen, fluency=fluency)]) as page, crew as those:
        run = page.run
        own = [row for row in run.rows("failures") if not row.get("edited_in")]
        run.retry()
        for row in made.rows("failures"):  # what could not be edited is missing here too, until it is edited
            run.append("failures", row | {"edited_in": str(edits)})
        for row in own:
            run.append("failures", row)
        pairs = load_edits(made, chosen) if size is None else load_batches(made, chosen, size=size)
        score_edits(run, loaded, _readable(pairs, edits), records=chosen, seed=seed, fluency=fluency, workers=those)


def _readable(pairs: Iterator[tuple["Record", "Edit"]], edits: Path) -> Iterator[tuple["Record", "Edit"]]:
    try:
        yield from pairs
    except ValueError as error:
        raise ValueError(f"{error}; `workbench edit --out {edits}`, called as it was, makes it again") from error


def _request(prompt: str, subject: str, target: str) -> "Record":
    from workbench.records.facts import EditRequest, Record

    return Record(case_id=0, request=EditRequest(template=prompt, subject=subject, target_new=target))


def _settled(layer: int | None, layers: list[int] | None, folder: Path | None) -> int | None:
    """The layer given, or the one that a run has located, if one is named."""
    if folder is None:
        return layer
    if layer is not None or layers:
        raise ValueError(f"--trace {folder} says which layer is edited: leave --layer and --layers out")
    return _located_layer(folder)


def _located_layer(folder: Path) -> int:
    from workbench.runs.run import Run

    layer = Run.open(folder).read_json("results.json").get("layer")
    if layer is None:
        raise ValueError(
            f"'{folder}' has located no layer: run `workbench trace --out {folder}` to the end, with the last subject "
            "tokens among its --positions"
        )
    return layer
