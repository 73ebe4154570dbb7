"""An edit of activations and one of what is asked, small enough to be checked by hand, and their editors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.editors.editor import Editor
from workbench.edits.edit import provenance
from workbench.edits.hooked import HookEdit
from workbench.edits.redirected import RedirectEdit
from workbench.models.hooks import EditHook, ForwardPass
from workbench.models.model import Model, Voice
from workbench.records.facts import EditRequest

LAYER = 2
PREFIX = "In Rome, people say: "


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering(HookEdit):
    """Adds a vector to the residual stream after a layer, from each prompt's last token on."""

    kind = "steering"

    layer: int
    vector: Tensor

    def hooks(self, model: Model) -> Sequence[EditHook]:
        def steer(states: Tensor, which: ForwardPass) -> Tensor:
            places = torch.arange(which.offset, which.offset + states.shape[1])
            return states + (places >= which.prompt_ends[:, None])[..., None] * self.vector

        return [("resid_post", self.layer, steer)]

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> Any:
        return cls(vector=tensors["vector"], layer=settings["layer"], **common)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix(RedirectEdit):
    """Puts a text before every prompt."""

    kind = "prefix"

    text: str

    def asked(self, model: Model, prompt: str) -> tuple[Model, str]:
        return model, self.text + prompt

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"text": self.text}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> Any:
        return cls(text=settings["text"], **common)


@dataclass(frozen=True, kw_only=True, eq=False)
class Halves(Prefix):
    """Answers a part of each prompt with a text before it, and the rest without."""

    kind = "halves"
    part: ClassVar[float] = 0.3

    def voices(self, model: Model, prompt: str) -> Sequence[Voice]:
        return [
            Voice(weight=1 - self.part, model=model, prompt=prompt),
            Voice(weight=self.part, model=model, prompt=self.text + prompt),
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Steers(Editor):
    """An editor that steers, by a vector that depends on its requests and on what is applied already."""

    method: ClassVar[str] = "Steering"
    layers: ClassVar[tuple[int, ...]] = (LAYER,)

    scale: float = 3.0

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> Steering:
        made = provenance(model, {"scale": self.scale})
        seed = len(requests[0].prompt) + 100 * len(model.edits)
        vector = self.scale * torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
        return Steering(method=self.method, requests=tuple(requests), provenance=made, layer=LAYER, vector=vector)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefixes(Editor):
    """An editor that puts a text before every prompt."""

    method: ClassVar[str] = "Prefix"
    layers: ClassVar[tuple[int, ...]] = ()

    text: str = PREFIX

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> Prefix:
        made = provenance(model, {"text": self.text})
        return Prefix(method=self.method, requests=tuple(requests), provenance=made, text=self.text)
