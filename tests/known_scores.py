"""Scores of targets, one prompt a target."""

import math
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from workbench.models.model import Model
from workbench.models.scoring import score_targets


def scored(model: Model, prompts: Sequence[str], targets: Sequence[str], **options) -> list[Tensor]:
    """Teacher-forced log-probability of each token of each target after its prompt."""
    return [score.log_probs for score in score_targets(model, list(zip(prompts, targets, strict=True)), **options)]


def all_top(model: Model, prompts: Sequence[str], targets: Sequence[str]) -> list[bool]:
    """Whether every token of the target is the most likely one."""
    return [score.top for score in score_targets(model, list(zip(prompts, targets, strict=True)))]


def nearly(one: Any, other: Any) -> bool:
    """Whether rows of a run, or scores, are the same but for the rounding of their numbers: the last bits depend on
    the processor and on what is computed together."""
    if is_dataclass(one) and type(one) is type(other):
        return nearly(vars(one), vars(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(nearly(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(nearly, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    return one == other
