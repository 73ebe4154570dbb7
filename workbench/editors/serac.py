"""SERAC: edits in a memory that another model answers by (Mitchell et al. 2022, arXiv:2206.06520)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.editor import Setting
from workbench.editors.setup.presets import preset
from workbench.editors.shared.requests import check_requests
from workbench.editors.training.network import ABOUT, TrainedNetwork, network_path
from workbench.editors.training.scope import Distance, similarities
from workbench.editors.training.serac import Networks, SeracRecipe, fit, in_words, marked, untrained
from workbench.editors.training.trained import TrainedEditor
from workbench.edits.edit import provenance
from workbench.edits.redirected import RedirectEdit
from workbench.models.encoders import first_token
from workbench.models.loading import load_model
from workbench.models.model import Model, Voice
from workbench.records.facts import EditRequest, Record

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
        _counterfactual(self.switch, self.network, model)

    def chosen(self, model: Model, prompt: str) -> tuple[float, EditRequest]:
        """How near the nearest request of the memory is to a prompt, from 0 to 1, and the request."""
        edits = self._memory(model)[::-1]
        keys = torch.cat([edit.keys.flip(0) for edit in edits]).to(model.device)  # the latest first
        requests = [request for edit in edits for request in reversed(edit.requests)]
        query = _embedded(self.switch, self.network, model, prompt)
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
        return _counterfactual(self.switch, self.network, model), put

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


@dataclass(frozen=True, kw_only=True, eq=False)
class SERAC(TrainedEditor):
    """Keeps edits in a memory beside a model that stays as it is, and has prompts in their scope answered by another.

    A prompt's similarity to an edit is exp(-|e(prompt) - e(edit's prompt)|^2) of the classifier's embeddings e; above
    `threshold` for the nearest edit, that edit's text, a space and the prompt are put to the counterfactual model
    (section 3, with the classifier of embeddings of appendix B). Otherwise the model itself answers, as if nothing
    had been edited.

    The classifier embeds edits and prompts without their answers. (The published code for GPT takes the last word
    off an edit, and shows the classifier the answer after a prompt where it scores one.) The published code joins a
    text anew with its answer and aligns it from its end, as here.

    Both networks are small and trained here, by `workbench train serac`, over the model's own token embeddings. The
    classifier is a transformer of two layers. The counterfactual model is a decoder of two layers that begins as
    induction heads set by hand, and does no more than copy the answer of the edit that it reads and end the text
    there; what is put to it has a mark before both answers (`training.serac.marked`). The published ones are pretrained
    models that are fine-tuned (DistilBERT; T5-small, or GPT-2 for GPT-2-XL): give such by name.

    Defaults are the published ones; EasyEdit's differ in `soft`.
    """

    method: ClassVar[str] = "SERAC"
    name: ClassVar[str] = "serac"
    recipes: ClassVar[type] = SeracRecipe
    batches: ClassVar[bool] = True
    layers: ClassVar[tuple[int, ...]] = ()

    network: TrainedNetwork | None = None
    """The networks trained here for the model; None where both others are given."""
    encoder: str | None = None
    """A Hugging Face encoder in place of the classifier, by its name or folder: the last state of a prompt's first
    token is its embedding, as published. One that was not fine-tuned for it needs another `scale`."""
    counterfactual: str | None = None
    """A Hugging Face causal model of the same vocabulary in place of the one trained here, by its name or folder."""
    scale: float = 1.0
    """Of the distance in the exponent."""
    distance: Distance = "squared"
    """See `scope.similarities`."""
    threshold: float = 0.5
    """Similarity above which a prompt is in scope."""
    soft: bool = False
    """Mix what both models say, token by token, the counterfactual model by the similarity, instead of switching at the
    threshold."""

    def __post_init__(self) -> None:
        if not self.scale > 0 or not 0 <= self.threshold <= 1:
            raise ValueError(f"scale must be positive and threshold in 0..1, got {self.scale} and {self.threshold}")
        if self.distance not in get_args(Distance):
            raise ValueError(f"distance is one of {', '.join(get_args(Distance))}, got {self.distance!r}")
        if self.network is None and (self.encoder is None or self.counterfactual is None):
            raise ValueError("SERAC needs a trained network, or both an encoder and a counterfactual model by name")

    @classmethod
    def ready(cls, model: str) -> bool:
        """Whether a network is kept for the model of this name, or its preset names others."""
        return _named(model) or super().ready(model)

    @classmethod
    def check_ready(cls, model: str) -> None:
        """FileNotFoundError, which names the command that trains one, unless it is."""
        if not _named(model):
            super().check_ready(model)

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "SERAC":
        """With the network that is kept for the model, where one is needed."""
        if fields.get("encoder") is not None and fields.get("counterfactual") is not None:
            return cls(**fields)
        prepared = super().prepare(setting, fields)
        assert isinstance(prepared, cls)
        return prepared

    @classmethod
    def fit(
        cls,
        model: Model,
        records: Sequence[Record],
        recipe: SeracRecipe,
        *,
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> TrainedNetwork:
        """Both networks, trained together; see `training.serac.fit`."""
        return fit(model, records, recipe, checkpoint=checkpoint, progress=progress)

    @classmethod
    def untrained(cls, model: Model, recipe: SeracRecipe) -> TrainedNetwork:
        """Both networks as they begin."""
        return untrained(model, recipe)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> MemoryEdit:
        """The edit that remembers the requests; the model itself is not run.

        ValueError for no requests or contradictory ones, for a network of another model, or a counterfactual model of
        another vocabulary.
        """
        requests = check_requests(requests)
        switch = Switch(**{name: getattr(self, name) for name in Switch.__dataclass_fields__})
        network = None if self.encoder is not None and self.counterfactual is not None else self.network
        if network is not None:
            network.check_made_for(model)
        _counterfactual(switch, network, model)
        keys = torch.stack([_embedded(switch, network, model, request.prompt) for request in requests])
        digest = None if network is None else network.digest
        return MemoryEdit(
            method=self.method,
            requests=requests,
            provenance=provenance(model, {**asdict(switch), "network": digest}),
            switch=switch,
            keys=keys.cpu(),
            network=network,
            kept=network is not None and _is_kept(network),
        )


def _named(model: str) -> bool:
    """Whether the preset of a model names both others."""
    try:
        fields = preset(SERAC.name, model).fields
    except ValueError:  # it has no preset
        return False
    return {"encoder", "counterfactual"} <= fields.keys()


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


def _embedded(switch: Switch, network: TrainedNetwork | None, model: Model, prompt: str) -> Float[Tensor, " d"]:
    if switch.encoder is not None:
        return first_token(switch.encoder, prompt, model.device)
    return _networks(network, model).embed(model, prompt)


def _counterfactual(switch: Switch, network: TrainedNetwork | None, model: Model) -> Model:
    if switch.counterfactual is None:
        return _networks(network, model).counterfactual
    found = _other(switch.counterfactual, str(model.device))
    if found.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise ValueError(f"{found.name} cannot answer for {model.name}: its vocabulary is another")
    return found


@lru_cache(maxsize=2)
def _other(name: str, device: str) -> Model:
    return load_model(name, device=device)


def _is_kept(network: TrainedNetwork) -> bool:
    path = network_path(network.method, network.model)
    return path.is_file() and TrainedNetwork.load(path).digest == network.digest


@lru_cache(maxsize=4)
def _kept(path: Path, digest: str) -> TrainedNetwork:
    found = TrainedNetwork.load(path)
    if found.digest != digest:
        raise ValueError(f"it was made with another network than that in '{path}', which was trained anew since")
    return found
