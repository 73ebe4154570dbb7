"""An editor ready for a model: its preset, contexts sampled from the model, and second moments of keys."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from workbench.editors.registry import EDITORS
from workbench.editors.setup.contexts import sample_contexts
from workbench.editors.setup.presets import context_lengths, preset
from workbench.editors.shared.second_moments import second_moments
from workbench.models.model import Model


def check_editor(model: Model, method: str, *, layer: int | None, preset_of: str | None = None) -> None:
    """Raise what `make_editor` would raise, before anything is computed; a layer of None is yet to be located."""
    if method not in EDITORS:
        raise ValueError(f"no editor {method!r}; there are {', '.join(sorted(EDITORS))}")
    options = preset(method, preset_of or model.name)
    if layer is not None:
        model.hook_name("mlp_key", layer)
        edited_layers(options, layer, model)


def needs_moments(method: str) -> bool:
    """Whether the editor asks for second moments of keys."""
    return bool({field.name for field in fields(EDITORS[method])} & {"second_moment", "second_moments"})


def make_editor(
    model: Model,
    method: str,
    *,
    layer: int,
    texts: Sequence[str],
    seed: int,
    cache: Path,
    preset_of: str | None = None,
    **changes: Any,
) -> Any:
    """An editor with its preset, contexts sampled from the model and the second moments of its layers' keys.

    Methods of one layer edit `layer`. Those of several edit the layers their preset names, or, where it gives
    "around" (places relative to the located layer), those around `layer`.

    Args:
        layer: the layer that tracing located.
        texts: what the second moments are taken over; they are kept in the folder `cache`.
        preset_of: the model whose preset is used, by default the model's own; a borrowed one reads the loss from
            the last layer.
        changes: fields of the editor that differ from the preset.

    Raises ValueError for an unknown method or no preset, IndexError for a layer out of range.
    """
    check_editor(model, method, layer=layer, preset_of=preset_of)
    editor = EDITORS[method]
    known = {field.name for field in fields(editor)}
    options = preset(method, preset_of or model.name)
    layers = edited_layers(options, layer, model)
    options = {name: value for name, value in options.items() if name != "around"}
    options |= {"layers": layers} if "layers" in known else {"layer": layer}
    options |= changes
    if preset_of is not None and "loss_layer" in known:
        options["loss_layer"] = None
    if "contexts" in known and "contexts" not in options:
        generator = torch.Generator(device=model.device).manual_seed(seed)
        lengths = context_lengths(method, preset_of or model.name)
        options["contexts"] = sample_contexts(model, lengths=lengths, generator=generator)
    if needs_moments(method) and not changes.keys() & {"second_moment", "second_moments"}:
        edited = options.get("layers", (options.get("layer"),))
        moments = second_moments(model, list(edited), texts, cache=cache, progress=True)
        options |= {"second_moments": moments} if "second_moments" in known else {"second_moment": moments[layer]}
    return editor(**options)


def edited_layers(options: dict[str, Any], layer: int, model: Model) -> tuple[int, ...]:
    """The layers that a preset names, or those around a layer; IndexError where the model has no such layer."""
    layers = options.get("layers") or [layer + place for place in options.get("around", [0])]
    for each in layers:
        model.hook_name("mlp_key", each)
    return tuple(layers)
