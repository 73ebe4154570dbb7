"""SERAC: edits in a memory that another model answers by (Mitchell et al. 2022, arXiv:2206.06520)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch

from workbench.editors.editor import Setting
from workbench.editors.scoped_memory import MemoryEdit, Switch, counterfactual_of, embedded, is_kept
from workbench.editors.setup.presets import preset
from workbench.editors.shared.requests import check_requests
from workbench.editors.training.network import TrainedNetwork
from workbench.editors.training.scope import Distance
from workbench.editors.training.serac import SeracRecipe, fit, untrained
from workbench.editors.training.trained import TrainedEditor
from workbench.edits.edit import provenance
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record


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
        requests = check_requests(requests, model)
        switch = Switch(**{name: getattr(self, name) for name in Switch.__dataclass_fields__})
        network = None if self.encoder is not None and self.counterfactual is not None else self.network
        if network is not None:
            network.check_made_for(model)
        counterfactual_of(switch, network, model)
        keys = torch.stack([embedded(switch, network, model, request.prompt) for request in requests])
        digest = None if network is None else network.digest
        return MemoryEdit(
            method=self.method,
            requests=requests,
            provenance=provenance(model, {**asdict(switch), "network": digest}),
            switch=switch,
            keys=keys.cpu(),
            network=network,
            kept=network is not None and is_kept(network),
        )


def _named(model: str) -> bool:
    """Whether the preset of a model names both others."""
    try:
        fields = preset(SERAC.name, model).fields
    except ValueError:  # it has no preset
        return False
    return {"encoder", "counterfactual"} <= fields.keys()
