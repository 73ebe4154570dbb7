"""The edits of SERAC: a memory in words, the switch that judges a prompt's scope, and who answers within it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.training.network import ABOUT, TrainedNetwork, network_path
from workbench.editors.training.scope import Distance, similarities
from workbench.editors.training.scope_and_copy import in_words, marked
from workbench.editors.training.serac import Networks
from workbench.edits.redirected import RedirectEdit
from workbench.models.encoders import first_token
from workbench.models.loading import load_model
from workbench.models.model import Model, Voice
from workbench.records.facts import EditRequest

_NETWORK = "network."


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Who judges scope, who answers, and from what similarity on; see the fields of `SERAC` of these names."""

    encoder: str | None = None
    counterfactual: str | None = None
    scale: float = 1.0
    distance: Distance = "squared"
    threshold: float = 0.5
    soft: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryEdit(RedirectEdit):
    """Edits kept in words; a prompt in the scope of the nearest is answered by the counterfactual model.

    Edits of the same switch and networks that are applied to a model are one memory: the request whose prompt's
    embedding is nearest is chosen among all of them, of equally near ones the latest. One that is taken back
    leaves the memory of the others.
    """

    switch: Switch
    keys: Float[Tensor, "request d"]
    """Embedding of each request's prompt, in their order."""
    network: TrainedNetwork | None
    """The classifier and counterfactual model trained here; None where both are others."""
    kept: bool
    """Whether the network lies where `network_path` finds it, so that a file of the edit names it and does not hold
    it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.keys) != len(self.requests):
            raise ValueError(f"{len(self.keys)} keys for {len(self.requests)} requests")
        if not self.keys.isfinite().all():
            raise ValueError("the embeddings of the requests' prompts are not finite: check the encoder's weights")

    def check_fits(self, model: Model) -> None:
        """ValueError for a model that its network was not trained for, or of another vocabulary."""
        if self.network is not None:
            self.network.check_made_for(model)
        counterfactual_of(self.switch, self.network, model)

    def chosen(self, model: Model, prompt: str) -> tuple[float, EditRequest]:
        """How near the nearest request of the memory is to a prompt, from 0 to 1, and the request."""
        edits = self._memory(model)[::-1]
        keys = torch.cat([edit.keys.flip(0) for edit in edits]).to(model.device)  # the latest first
        requests = [request for edit in edits for request in reversed(edit.requests)]
        query = embedded(self.switch, self.network, model, prompt)
        (near,) = similarities(query[None], keys, scale=self.switch.scale, distance=self.switch.distance)
        place = int(near.argmax())
        return near[place].item(), requests[place]

    def asked(self, model: Model, prompt: str) -> tuple[Model, str]:
        """The counterfactual model, with the nearest request in front of a prompt in its scope; else the model."""
        if self is not self._memory(model)[-1]:
            return model, prompt  # the latest, which is asked first, has judged for all
        near, request = self.chosen(model, prompt)
        return self._put(model, request, prompt) if near > self.switch.threshold else (model, prompt)

    def voices(self, model: Model, prompt: str) -> Sequence[Voice]:
        """One alone or, under a soft switch, both, the counterfactual model by as much as the request is near."""
        if not self.switch.soft or self is not self._memory(model)[-1]:
            return super().voices(model, prompt)
        near, request = self.chosen(model, prompt)
        who, put = self._put(model, request, prompt)
        return [Voice(weight=1 - near, model=model, prompt=prompt), Voice(weight=near, model=who, prompt=put)]

    def _put(self, model: Model, request: EditRequest, prompt: str) -> tuple[Model, str]:
        put = marked(model, request, prompt) if self.switch.counterfactual is None else in_words(request, prompt)
        return counterfactual_of(self.switch, self.network, model), put

    def _memory(self, model: Model) -> list["MemoryEdit"]:
        edits = [edit for edit in model.edits if isinstance(edit, MemoryEdit) and edit._shared == self._shared]
        return edits if any(edit is self for edit in edits) else [*edits, self]

    @cached_property
    def _shared(self) -> tuple[Switch, str | None]:
        """What edits of one memory agree on."""
        return self.switch, None if self.network is None else self.network.digest

    def tensors(self) -> dict[str, Tensor]:
        """The keys, and the network unless it is kept elsewhere."""
        held = {} if self.network is None or self.kept else self.network.tensors
        return {"keys": self.keys, **{f"{_NETWORK}{name}": tensor for name, tensor in held.items()}}

    def settings(self) -> dict[str, Any]:
        """The switch, and which network it is."""
        found: dict[str, Any] = {"switch": asdict(self.switch), "network": None}
        if self.network is not None:
            names = ("method", "model") if self.kept else ABOUT
            own = {name: getattr(self.network, name) for name in names}
            found["network"] = {"kept": self.kept, "digest": self.network.digest, **own}
        return found

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "MemoryEdit":
        """The inverse of `tensors` and `settings`; ValueError where the network that was kept is another now."""
        network, kept = None, False
        if settings["network"] is not None:
            about = dict(settings["network"])
            kept, digest = about.pop("kept"), about.pop("digest")
            if kept:
                network = _kept(network_path(about["method"], about["model"]), digest)
            else:
                held = {n.removeprefix(_NETWORK): one for n, one in tensors.items() if n.startswith(_NETWORK)}
                network = TrainedNetwork(tensors=held, **about)
        return cls(switch=Switch(**settings["switch"]), keys=tensors["keys"], network=network, kept=kept, **common)


@dataclass(frozen=True)
class _Ready:
    """Makes a network's parts for a model; one for all edits of a digest, see `Model.once`."""

    digest: str
    network: TrainedNetwork

    def __call__(self, model: Model) -> Networks:
        return Networks.of(self.network, model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ready) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _networks(network: TrainedNetwork | None, model: Model) -> Networks:
    assert network is not None
    return model.once(_Ready(network.digest, network))


def embedded(switch: Switch, network: TrainedNetwork | None, model: Model, prompt: str) -> Float[Tensor, " d"]:
    """Of a prompt, by whoever judges scope."""
    if switch.encoder is not None:
        return first_token(switch.encoder, prompt, model.device)
    return _networks(network, model).embed(model, prompt)


def counterfactual_of(switch: Switch, network: TrainedNetwork | None, model: Model) -> Model:
    """Who answers in scope; ValueError for a model of another vocabulary."""
    if switch.counterfactual is None:
        return _networks(network, model).counterfactual
    found = _other(switch.counterfactual, str(model.device))
    if found.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise ValueError(f"{found.name} cannot answer for {model.name}: its vocabulary is another")
    return found


@lru_cache(maxsize=2)
def _other(name: str, device: str) -> Model:
    return load_model(name, device=device)


def is_kept(network: TrainedNetwork) -> bool:
    """Whether the network lies where `network_path` finds it."""
    path = network_path(network.method, network.model)
    return path.is_file() and TrainedNetwork.load(path).digest == network.digest


@lru_cache(maxsize=4)
def _kept(path: Path, digest: str) -> TrainedNetwork:
    found = TrainedNetwork.load(path)
    if found.digest != digest:
        raise ValueError(f"it was made with another network than that in '{path}', which was trained anew since")
    return found
