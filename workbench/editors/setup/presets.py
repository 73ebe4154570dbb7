"""Hyperparameters by method and model, as published or tuned; kept in data/presets."""

import json
from typing import Any

from workbench.machine.paths import DATA

PRESETS = DATA / "presets"
"""One JSON file a method: model -> source and fields of the editor."""


PUBLISHED_CONTEXT_LENGTHS = ((5, 10), (10, 10))
"""(tokens, how many) of the contexts that ROME's published code samples."""


def preset(method: str, model: str) -> dict[str, Any]:
    """The editor's fields for a model: `ROME(**preset("rome", "gpt2-xl"), second_moment=...)`.

    A `layer` of None means the layer that tracing located. Models are found by the last part of their name,
    whatever its case. ValueError lists what is known.
    """
    return _entry(method, model)["fields"]


def context_lengths(method: str, model: str) -> tuple[tuple[int, int], ...]:
    """`lengths` of `sample_contexts` for a model, as published unless its preset says otherwise; errors as `preset`."""
    return tuple(
        (tokens, count) for tokens, count in _entry(method, model).get("context_lengths", PUBLISHED_CONTEXT_LENGTHS)
    )


def _entry(method: str, model: str) -> dict[str, Any]:
    path = PRESETS / f"{method.lower()}.json"
    if not path.is_file():
        methods = ", ".join(sorted(file.stem for file in PRESETS.glob("*.json")))
        raise ValueError(f"no presets for method {method!r}; there are some for {methods}")
    entries = json.loads(path.read_text(encoding="utf-8"))
    name = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-hf").removeprefix("meta-")
    if name not in entries:
        raise ValueError(
            f"no {method} preset for model {model!r}; there are some for {', '.join(sorted(entries))}: "
            "borrow one with --preset, or give the hyperparameters yourself"
        )
    return entries[name]
