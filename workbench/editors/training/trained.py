"""What editors share that must be trained before they edit."""

import json
import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.passes import Passes, Place, passes_of
from workbench.editors.training.examples import Batch, Examples
from workbench.editors.training.loop import Schedule, train
from workbench.editors.training.network import TrainedNetwork, check_kept, network_path, records_digest, trained_network
from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record


class TrainedEditor(Editor):
    """An editor with a network that is fitted to others' edits and passed in as a field."""

    name: ClassVar[str]
    """Its name in the registry."""
    recipes: ClassVar[type]
    """The frozen dataclass of its recipes; a preset's "training" gives its fields."""
    network: TrainedNetwork | None
    """What it has learned of the model."""

    @property
    def trained_seconds(self) -> float:
        """Seconds that its network was trained for; 0 where others' networks, or untrained ones, stand in."""
        return self.network.provenance.get("seconds", 0.0) if self.network else 0.0

    @classmethod
    def ready(cls, model: str) -> bool:
        """Whether a network is kept for the model of this name."""
        return network_path(cls.name, model).is_file()

    @classmethod
    def check_ready(cls, model: str) -> None:
        """FileNotFoundError, which names the command that trains one, unless there is."""
        check_kept(cls.name, model)

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "TrainedEditor":
        """With the network that is kept for the model, unless `fields` has one."""
        if "network" not in fields:
            fields = {**fields, "network": trained_network(cls.name, setting.model)}
        return cls(**fields)

    @classmethod
    @abstractmethod
    def fit(
        cls,
        model: Model,
        records: Sequence[Record],
        recipe: Any,
        *,
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> TrainedNetwork:
        """Train a network of the recipe on the records' edits.

        From the checkpoint, if it is there; see `training.loop.train`.
        """


def check_unedited(model: Model) -> None:
    """ValueError while edits are applied to a model that a network is to be trained for."""
    if model.edits:
        raise ValueError(f"{len(model.edits)} edits are applied to {model.name}: take them back before training")


def parted(records: Sequence[Record], *, held_out: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Records to train on, and about `held_out` to validate on; no subject is in both.

    ValueError where either would be empty.
    """
    subjects = sorted({record.request.subject for record in records})
    random.Random(seed).shuffle(subjects)
    kept: set[str] = set()
    for subject in subjects:
        if sum(record.request.subject in kept for record in records) >= held_out:
            break
        kept.add(subject)
    training = [record for record in records if record.request.subject not in kept]
    validation = [record for record in records if record.request.subject in kept]
    if not training or not validation:
        raise ValueError(
            f"{len(records)} records about {len(subjects)} subjects cannot be parted into {held_out} to validate on "
            "and some to train on; give more records"
        )
    return training, validation


class Hypernetwork(TrainedEditor):
    """An editor whose network makes of gradients what MLP matrices change by."""

    network: TrainedNetwork
    scale: float
    """Multiplies that change; a field of each."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")

    @property
    def layers(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The layers that the network edits."""
        return tuple(sorted({layer for layer, _ in self.network.settings["places"]}))

    def edit_of(
        self,
        model: Model,
        requests: tuple[EditRequest, ...],
        changes: Iterable[Mapping[Place, tuple[Tensor, Tensor]]],
    ) -> WeightEdit:
        """The edit that makes these changes, each of one edit, [1 d rank] and [1 rank d]."""
        return WeightEdit(
            updates=tuple(
                WeightUpdate(layer=layer, matrix=matrix, left=self.scale * left[0].cpu(), right=right[0].cpu())
                for each in changes
                for (layer, matrix), (left, right) in each.items()
            ),
            method=self.method,
            requests=requests,
            provenance=provenance(
                model, {**self.network.settings, "network": self.network.digest, "scale": self.scale}
            ),
        )


@dataclass(frozen=True, kw_only=True)
class HypernetworkRecipe:
    """What the recipes of networks share that learn to edit MLP matrices."""

    last: int = 3
    """How many of the last layers are edited, unless `edited` names them."""
    edited: Sequence[int] = ()
    """The layers edited."""
    matrices: Sequence[str] = ("W_out", "W_in")
    """The matrices edited in each."""
    steps: int = 100_000
    """Steps at most."""
    validate_every: int = 1000
    """Steps between validations."""
    patience: int = 20_000
    """Steps without a better validation after which training ends."""
    held_out: int = 64
    """Records to validate on."""
    edits: int = 1
    """Edits a step, computed together."""
    clip: float | None = None
    """Largest norm of the gradient."""
    decay: float = 0.0
    """Share of the steps, at the end, over which the learning rates fall to 0; the authors leave them as they are."""
    vary_targets: bool = False
    """Ask for a random new answer of the record's relation instead of the record's own."""
    itself: float = 0.0
    """Share of examples that score the edited prompt itself, instead of a paraphrase."""
    kept: int = 1
    """Texts an example that should stay as they are."""
    answers_only: bool = False
    """Of these, only the positions of an answer's tokens count."""
    seed: int = 0
    """Of the network's beginning, of the records held out, and of what is drawn."""

    def places(self, model: Model) -> list[Place]:
        """The matrices edited, layer by layer; IndexError for a layer that is not there."""
        layers = self.edited or range(max(0, model.n_layers - self.last), model.n_layers)
        for layer in layers:
            model.hook_name("mlp_key", layer)
        return [(layer, matrix) for layer in layers for matrix in self.matrices]


def fit_network(
    name: str,
    model: Model,
    records: Sequence[Record],
    recipe: HypernetworkRecipe,
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Passes, Batch], Tensor],
    *,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The network's best state by its loss on records held out, and where it comes from.

    Args:
        loss: the mean of some examples; the network is in eval mode when they are those of validation.
    """
    check_unedited(model)
    training, validation = parted(records, held_out=recipe.held_out, seed=recipe.seed)
    passes = passes_of(model, recipe.places(model))

    def drawn_from(some: Sequence[Record]) -> Examples:
        return Examples(
            model,
            some,
            vary_targets=recipe.vary_targets,
            itself=recipe.itself,
            kept=recipe.kept,
            answers_only=recipe.answers_only,
        )

    examples, held = drawn_from(training), drawn_from(validation)
    at_once = [range(len(held))[start : start + recipe.edits] for start in range(0, len(held), recipe.edits)]
    fixed = [held.batch(some, random.Random(f"{recipe.seed} held out {some[0]}")) for some in at_once]

    for batch in fixed:
        passes.read(batch.edit, batch.outer, batch.kept, stay=True)

    def step(_: int, draw: random.Random) -> Tensor:
        batch = examples.batch(draw.sample(range(len(examples)), min(recipe.edits, len(examples))), draw)
        passes.read(batch.edit, batch.outer, batch.kept)
        return loss(passes, batch)

    def validate() -> float:
        return sum(loss(passes, batch).item() * len(batch.requests) for batch in fixed) / len(held)

    identity = {
        "method": name,
        "model": model.fingerprint(),
        "recipe": asdict(recipe),
        "records": records_digest(records),
    }
    fitted = train(
        network,
        optimiser,
        step,
        validate,
        examples=1,
        schedule=Schedule(
            steps=recipe.steps,
            validate_every=recipe.validate_every,
            patience=recipe.patience,
            clip=recipe.clip,
            decay=recipe.decay,
            seed=recipe.seed,
        ),
        checkpoint=checkpoint,
        identity=json.dumps(identity),
        title=f"Training {name} for {model.name}",
        progress=progress,
    )
    return fitted.state, {
        "recipe": asdict(recipe),
        "records": {"digest": identity["records"], "training": len(training), "validation": len(validation)},
        **fitted.noted(),
    }
