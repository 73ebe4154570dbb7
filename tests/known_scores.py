"""Scores of targets, one prompt a target."""

from collections.abc import Sequence

from torch import Tensor

from workbench.models.model import Model
from workbench.models.scoring import score_targets


def scored(model: Model, prompts: Sequence[str], targets: Sequence[str], **options) -> list[Tensor]:
    """Teacher-forced log-probability of each token of each target after its prompt."""
    return [score.log_probs for score in score_targets(model, list(zip(prompts, targets, strict=True)), **options)]


def all_top(model: Model, prompts: Sequence[str], targets: Sequence[str]) -> list[bool]:
    """Whether every token of the target is the most likely one."""
    return [score.top for score in score_targets(model, list(zip(prompts, targets, strict=True)))]
