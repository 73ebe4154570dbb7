"""The editors that benchmarks time: published hyperparameters, and second moments that take no time."""

from typing import Any

import torch

from workbench.editors.editor import edited_layers
from workbench.editors.registry import EDITORS
from workbench.editors.setup.contexts import sample_contexts
from workbench.editors.setup.presets import preset
from workbench.editors.shared.moment import SecondMoment
from workbench.models.model import Model
from workbench.studies.defaults import RECORDS
from workbench.studies.edit import make_editor

PRESET_OF, PRESET_LAYERS = "gpt2-xl", 48
"""The model whose hyperparameters are used for a shape, and its depth."""
OWN_LAYER = 5
"""SmolLM2's located layer."""


def settled_editor(model: Model, method: str, name: str, seed: int) -> Any:
    """The embedded model's own editor; SmolLM2's own with C = 1; for a shape the published one with C = 1, at the
    same share of the depth."""
    if name == "atlas":
        return make_editor(model, method, layer=model.n_layers // 3, text="atlas", seed=seed)
    own = name in RECORDS
    published = preset(method, name if own else PRESET_OF)
    options: dict[str, Any] = {**published.fields, "loss_layer": None}
    located = edited_layers(published, OWN_LAYER, model) if own else ()
    generator = torch.Generator(device=model.device).manual_seed(seed)
    options["contexts"] = sample_contexts(
        model, lengths=published.context_lengths, beginnings=published.context_beginnings, generator=generator
    )
    one = torch.eye(model.d_mlp, dtype=torch.float64)
    if "layer" in options:
        options["layer"] = OWN_LAYER if own else scaled(options["layer"], model)
        options["second_moment"] = SecondMoment(layer=options["layer"], matrix=one, count=1)
    else:
        options["layers"] = located or sorted({scaled(layer, model) for layer in options["layers"]})
        options["second_moments"] = {
            layer: SecondMoment(layer=layer, matrix=one, count=1) for layer in options["layers"]
        }
    return EDITORS[method](**options)


def scaled(layer: int, model: Model) -> int:
    """The layer at the same share of the depth."""
    return layer * model.n_layers // PRESET_LAYERS
