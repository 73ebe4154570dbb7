"""`workbench train`: fit the network of an editor that learns from others' edits."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.session import console, load


def train(
    method: Annotated[str, typer.Argument(help="The editor: one that must be trained, such as mend.")],
    model: options.Model = "atlas",
    records: Annotated[
        list[str] | None,
        options.several(
            "--records",
            str,
            "Files of records; or atlas, atlas_questions, smollm2, smollm2_questions for their training records. "
            "[default: those that the preset names, else the model's]",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Model whose recipe is used. [default: --model's]")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps at most. [default: the recipe's]")] = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file written. [default: trained/METHOD_MODEL.safetensors in the cache]"),
    ] = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
) -> None:
    """Train an editor's network on the model's training records; stopped, the same command goes on.

    What is written are the tensors with their recipe, the records' digest, the seconds and the curve.
    """
    from workbench.editors.registry import EDITORS
    from workbench.editors.setup.presets import preset as preset_of
    from workbench.editors.training.network import own_path
    from workbench.editors.training.trained import TrainedEditor
    from workbench.machine import paths
    from workbench.records.reading import read_records
    from workbench.studies.defaults import default_records, records_path

    trainable = [name for name, editor in EDITORS.items() if issubclass(editor, TrainedEditor)]
    if method not in trainable:
        raise ValueError(f"{method!r} is no method that is trained; those are {', '.join(trainable)}")
    editor = EDITORS[method]
    assert issubclass(editor, TrainedEditor)
    found = preset_of(method, preset or model)
    fields = {**found.training, "seed": seed}
    recipe = editor.recipes(**(fields if steps is None else {**fields, "steps": steps}))
    loaded = load(model, device=device, dtype="float32")
    names = records or found.trained_on or [default_records(loaded.name)]
    learned = [record for name in names for record in read_records(records_path(name, "train"))]
    path = out or own_path(method, loaded.name)
    checkpoint = paths.CACHE / "training" / f"{path.stem}.pt"
    network = editor.fit(loaded, learned, recipe, checkpoint=checkpoint, progress=True)
    network.save(path)
    checkpoint.unlink(missing_ok=True)
    for step, loss, validation in network.provenance["curve"]:
        shown = "" if loss is None else f", training loss {loss:.4f}"
        console.print(f"step {step}: validation {validation:.4f}{shown}")
    console.print(f"{method} for {loaded.name}, {network.provenance['seconds']:.0f} s: {path}")
