"""Hyperparameters by method and model, as published or tuned; kept in data/presets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.machine.paths import DATA

PRESETS = DATA / "presets"
"""One JSON file a method: model -> source and fields of the editor."""

PUBLISHED_CONTEXT_LENGTHS = ((5, 10), (10, 10))
"""(tokens, how many) of the contexts that ROME's published code samples."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One method's hyperparameters for one model."""

    fields: Mapping[str, Any]
    """Of the editor; a `layer` of None means the layer that tracing located."""
    around: tuple[int, ...] = (0,)
    """Layers edited, relative to the located one, where the fields do not name them."""
    context_lengths: tuple[tuple[int, int], ...] = PUBLISHED_CONTEXT_LENGTHS
    """(tokens, how many) of the contexts to sample."""
    context_beginnings: tuple[str, ...] = ()
    """What these begin with, in turn."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Of a method that must be trained: fields of its recipe."""
    trained_on: tuple[str, ...] = ()
    """Names of the records that it is trained on, such as "atlas_questions"; none for those of the model."""


def preset(method: str, model: str) -> Preset:
    """A method's preset for a model: `ROME(**preset("rome", "gpt2-xl").fields, second_moment=...)`.

    Models are found by the last part of their name, whatever its case. ValueError lists what is known.
    """
    path = _path(method)
    if not path.is_file():
        methods = ", ".join(sorted(file.stem for file in PRESETS.glob("*.json")))
        raise ValueError(f"no presets for method {method!r}; there are some for {methods}")
    entries = json.loads(path.read_text(encoding="utf-8"))
    name = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-hf").removeprefix("meta-")
    if name not in entries:
        raise ValueError(
            f"no {method} preset for model {model!r}; there are some for {', '.join(sorted(entries))}: "
            "borrow one with --preset (preset_of= in Python)"
        )
    entry = entries[name]
    fields, lengths = dict(entry["fields"]), entry.get("context_lengths", PUBLISHED_CONTEXT_LENGTHS)
    return Preset(
        around=tuple(fields.pop("around", (0,))),
        fields=fields,
        context_lengths=tuple((tokens, count) for tokens, count in lengths),
        context_beginnings=tuple(entry.get("context_beginnings", ())),
        training=entry.get("training", {}),
        trained_on=tuple(entry.get("trained_on", ())),
    )


def has_some(method: str) -> bool:
    """Whether there are presets for a method."""
    return _path(method).is_file()


def _path(method: str) -> Path:
    return PRESETS / f"{method.lower()}.json"
