"""What editors share that must be trained before they edit."""

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from workbench.editors.editor import Editor, Setting
from workbench.editors.training.network import TrainedNetwork, trained_network
from workbench.models.model import Model
from workbench.records.facts import Record


class TrainedEditor(Editor):
    """An editor with a network that is fitted to others' edits and passed in as a field."""

    name: ClassVar[str]
    """Its name in the registry."""
    recipes: ClassVar[type]
    """The frozen dataclass of its recipes; a preset's "training" gives its fields."""
    network: TrainedNetwork
    """What it has learned of the model."""

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
