"""What a run depends on beyond its settings' words: the content of the files they name, and of presets."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from workbench.editors.setup.presets import preset
from workbench.editors.shared.kept_moments import holds_moments, kept_content
from workbench.editors.training.network import network_path
from workbench.machine.hashing import digest
from workbench.machine.jsonl import dumps
from workbench.studies.defaults import records_path, requests_path

_FILES = ("records", "requests", "text", "texts", "held_out", "plugin")
"""Settings that name files, or what stands for one."""


def contents(settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each file, or folder of second moments, that the settings name, by the setting and what it names;
    names of neither are left out."""
    found = {}
    for setting in _FILES:
        named = settings.get(setting)
        for name in named if isinstance(named, list | tuple) else [named]:
            if not isinstance(name, str):  # a number of requests, or none
                continue
            path = requests_path(name) if setting == "requests" else records_path(name)
            if path.is_file():
                found[f"{setting} {name}"] = digest(path.read_bytes())
            elif holds_moments(path):
                found[f"{setting} {name}"] = kept_content(path)
    return found


def preset_contents(model: str, methods: Iterable[str], *, preset_of: str | None = None) -> dict[str, str]:
    """SHA-256 of the hyperparameters of each method that has some for the model of that name, or the one whose presets
    are borrowed, and of the network that was trained for the model."""
    found, of = {}, preset_of or model
    for method in dict.fromkeys(methods):
        with suppress(ValueError):  # without a preset: whoever needs it says so
            found[f"preset {method} of {of}"] = digest(dumps(preset(method, of)))
        if (network := network_path(method, model)).is_file():
            found[f"network {method} of {model}"] = digest(network.read_bytes())
    return found
