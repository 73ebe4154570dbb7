"""Editor: hyperparameters of a method, called with a model and requests, and what it is prepared with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from workbench.editors.setup.contexts import sample_contexts
from workbench.editors.setup.presets import Preset
from workbench.editors.shared.kept_moments import read_kept
from workbench.editors.shared.moment import SecondMoment
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.edit import Edit
from workbench.machine.processes import Workers
from workbench.machine.shown import Shown, field_values, html_table, short
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What an editor can be prepared with; each thing is made when it is asked for."""

    model: Model
    located: int | None
    """The layer that tracing located; None for an editor that does not depend on it."""
    preset: Preset
    """Published or tuned hyperparameters."""
    alone: bool = False
    """Edit `layer` alone, whatever layers the preset names."""
    texts: Callable[[], Sequence[str]]
    """Text that keys are averaged over."""
    cache: Path
    """Folder where second moments are kept."""
    kept: Path | None = None
    """Folder of second moments that are there already; None to count them over the texts."""
    seed: int
    """Of the contexts."""
    records: Callable[[], Sequence[Record]] = tuple
    """Training records, for methods that learn from others' edits or show them."""
    workers: Workers[Model] | None = None
    """Who counts second moments, of the same model; None for this process."""

    @property
    def layer(self) -> int:
        """The layer that tracing located; ValueError where there is none."""
        if self.located is None:
            raise ValueError("which layer is edited? Give its number as layer")
        return self.located

    def layers(self) -> tuple[int, ...]:
        """The layers that the preset names, or those around the located one; IndexError for one that is not there."""
        if self.alone:
            return (self.layer,)
        return edited_layers(self.preset, 0 if self.preset.fields.get("layers") else self.layer, self.model)

    def contexts(self) -> tuple[str, ...]:
        """Contexts sampled from the model, of the preset's lengths and beginnings."""
        generator = torch.Generator(device=self.model.device).manual_seed(self.seed)
        lengths, beginnings = self.preset.context_lengths, self.preset.context_beginnings
        return sample_contexts(self.model, lengths=lengths, beginnings=beginnings, generator=generator)

    def moments(self, layers: Sequence[int]) -> Mapping[int, SecondMoment]:
        """Second moments of the layers' keys: those kept, else over the texts or from the cache."""
        if self.kept is not None:
            return read_kept(self.model, layers, self.kept)
        return second_moments(
            self.model, list(layers), self.texts(), cache=self.cache, progress=True, workers=self.workers
        )


class Editor(Shown, ABC):
    """A method with its hyperparameters, which are the fields of a frozen dataclass.

    `editor(model, requests)` gives the edit that makes the requests true, and leaves the model as it was found. A
    method joins the others by one line in `registry` and a file in data/presets, or as a plugin (`plugins`).
    """

    method: ClassVar[str]
    """Display name, which its edits bear."""
    batches: ClassVar[bool] = False
    """Whether it writes many requests as one; the others' requests are best written one after another."""
    needs_moments: ClassVar[bool] = False
    """Whether `prepare` asks for second moments of keys."""
    layers: Sequence[int]
    """The layers that it edits; none for a method that changes none."""

    def _repr_html_(self) -> str:
        """The hyperparameters, for notebooks; those at their defaults last."""
        rows = sorted(field_values(self), key=lambda row: row[2])
        shown = [(name, short(value), "default" if default else "") for name, value, default in rows]
        return html_table(f"{self.method} ({type(self).__name__})", shown)

    @classmethod
    def ready(cls, model: str) -> bool:
        """Whether all is there that must be made beforehand, by a command of its own, for the model of this name."""
        del model
        return True

    @classmethod
    def check_ready(cls, model: str) -> None:
        """FileNotFoundError, which names that command, where it is not."""
        del model

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "Editor":
        """The editor with these fields and with what it needs beforehand: layers, contexts, second moments.

        Unless a method says otherwise that is the located layer, where it has a field `layer`.
        """
        located = {"layer": setting.layer} if "layer" in getattr(cls, "__dataclass_fields__", {}) else {}
        return cls(**{**fields, **located})

    @property
    def trained_seconds(self) -> float:
        """Seconds that training took, as noted with what was learned; 0 for a method that learns nothing beforehand."""
        return 0.0

    @abstractmethod
    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> Edit:
        """The edit that makes the requests true."""

    def each(self, model: Model, requests: Sequence[EditRequest]) -> Sequence[Edit]:
        """One edit a request, each made for itself on the model as it is; methods that search for a value search for
        all of them at once, which changes each by rounding alone. Errors are those of any of them."""
        return [self(model, [request]) for request in requests]


def edited_layers(preset: Preset, layer: int, model: Model) -> tuple[int, ...]:
    """The layers that a preset names, or those around a layer; IndexError where the model has no such layer."""
    layers = preset.fields.get("layers") or [layer + place for place in preset.around]
    for each in layers:
        model.hook_name("mlp_key", each)
    return tuple(layers)
