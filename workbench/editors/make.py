"""From the name of a method to an editor that is ready for a model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.editors.asked import Asked, asked, preset_or_defaults
from workbench.editors.editor import Editor, Setting, edited_layers
from workbench.editors.registry import EDITORS
from workbench.editors.setup.presets import Preset
from workbench.machine.processes import Workers
from workbench.models.model import Model
from workbench.records.facts import Record


def ready(model: str) -> list[str]:
    """All methods, but those that must be trained first for the model of this name."""
    return [name for name, editor in EDITORS.items() if editor.ready(model)]


def check_editor(
    model: Model, method: str, *, layer: int | None, preset_of: str | None = None, alone: bool = False
) -> None:
    """Raise what `make_editor` would raise, before anything is computed; a layer of None is yet to be located."""
    _check(model, method, layer=layer, preset_of=preset_of, alone=alone)
    EDITORS[method].check_ready(model.name)


def ask(
    model: Model,
    method: str,
    *,
    preset_of: str | None = None,
    settings: Sequence[str] = (),
    layer: int | None = None,
    layers: Sequence[int] | None = None,
) -> Asked:
    """What a user asks of a method (see `asked.asked`), and all that `check_editor` checks."""
    chosen = _preset(model, method, preset_of)
    found = asked(method, chosen, of=preset_of or model.name, settings=settings, layer=layer, layers=layers)
    for each in found.fields.get("layers", ()):
        model.hook_name("mlp_key", each)
    check_editor(model, method, layer=found.layer, preset_of=preset_of, alone=found.alone or "layers" in found.fields)
    return found


def make_editor(
    model: Model,
    method: str,
    *,
    layer: int | None,
    texts: Callable[[], Sequence[str]],
    seed: int,
    cache: Path,
    preset_of: str | None = None,
    alone: bool = False,
    records: Callable[[], Sequence[Record]] = tuple,
    workers: Workers[Model] | None = None,
    kept: Path | None = None,
    **changes: Any,
) -> Editor:
    """An editor with its preset, and prepared with what it needs of the model, such as second moments of keys.

    Methods of one layer edit `layer`. Those of several edit the layers their preset names, or, where it gives
    "around" (places relative to the located layer), those around `layer`.

    Args:
        layer: the layer that tracing located; None for an editor that does not depend on it (`Asked.located`).
        texts: gives what the second moments are taken over; they are kept in the folder `cache`.
        preset_of: the model whose preset is used, by default the model's own; a borrowed one reads the loss from
            the last layer.
        alone: edit `layer` alone, whatever the preset says.
        records: gives training records, for methods that learn from others' edits or show them.
        workers: who counts second moments, of the same model; this process unless given.
        kept: a folder of second moments that are there already (`kept_moments`), taken in place of texts.
        changes: fields of the editor that differ from the preset.

    Raises ValueError for an unknown method or no preset, IndexError for a layer out of range.
    """
    alone = alone or "layers" in changes  # the preset's places are not looked at
    _check(model, method, layer=layer, preset_of=preset_of, alone=alone)
    chosen = _preset(model, method, preset_of)
    if layer is None:
        layer = next(iter(changes.get("layers", ())), None)
    setting = Setting(
        model=model,
        located=layer,
        preset=chosen,
        alone=alone,
        texts=texts,
        cache=cache,
        seed=seed,
        records=records,
        workers=workers,
        kept=kept,
    )
    known = {"layers", "layer"} if alone else {"layers"}  # by the setting
    fields = {name: value for name, value in chosen.fields.items() if name not in known}
    return EDITORS[method].prepare(setting, {**fields, **changes})


def _check(model: Model, method: str, *, layer: int | None, preset_of: str | None, alone: bool) -> None:
    chosen = _preset(model, method, preset_of)
    if layer is not None:
        model.hook_name("mlp_key", layer)
        if not alone:
            edited_layers(chosen, layer, model)


def _preset(model: Model, method: str, preset_of: str | None) -> Preset:
    chosen = preset_or_defaults(method, preset_of or model.name)
    if preset_of is None or "loss_layer" not in chosen.fields:
        return chosen
    return replace(chosen, fields={**chosen.fields, "loss_layer": None})
