"""A training loop for the networks of editors: stopped early, and resumed to the same bits."""

import io
import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.machine.files import write_whole
from workbench.machine.hashing import digest
from workbench.machine.progress import progress_bar
from workbench.machine.shown import Shown

_CHECK = 64
"""Bytes of the checksum with which a checkpoint begins."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long is trained, and how often it is looked at."""

    steps: int
    """Steps of the optimiser, at most."""
    validate_every: int
    """Steps between two validations; the checkpoint is written with each."""
    patience: int
    """Steps without a better validation after which training ends."""
    accumulate: int = 1
    """Examples a step; their mean loss is what it lowers."""
    clip: float | None = None
    """Largest norm of the gradient over all parameters; None for any."""
    decay: float = 0.0
    """Share of the steps, at the end, over which the learning rates fall to 0 along a line; 0 leaves them."""
    seed: int = 0
    """Of the order of the examples and of what their losses draw."""

    def __post_init__(self) -> None:
        for name in ("steps", "validate_every", "patience", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None for none, got {self.clip}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is a share of the steps from 0 to 1, got {self.decay}")

    def pace(self, step: int) -> float:
        """What the learning rates are multiplied with at a step, the first being 0."""
        return min(1.0, (self.steps - step) / (self.decay * self.steps)) if self.decay else 1.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One validation."""

    step: int
    """Steps made so far; 0 is the untrained network."""
    loss: float | None
    """Mean training loss since the last validation; None before the first step."""
    validation: float
    """What `validate` gave; less is better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted(Shown):
    """The network at its best validation."""

    state: dict[str, Tensor]
    """Its parameters and buffers by name."""
    step: int
    """Steps after which it was the best."""
    curve: tuple[Point, ...]
    """All validations, the first of the untrained network."""
    seconds: float
    """What training took, over all its parts if it was resumed."""

    def noted(self) -> dict[str, Any]:
        """What is kept of it with the network: JSON values."""
        curve = [[point.step, point.loss, point.validation] for point in self.curve]
        return {"seconds": self.seconds, "step": self.step, "curve": curve}


def train(
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[int, random.Random], Tensor],
    validate: Callable[[], float],
    *,
    examples: int,
    schedule: Schedule,
    checkpoint: Path | None = None,
    identity: str = "",
    title: str = "Training",
    progress: bool = False,
) -> Fitted:
    """Lower the loss over the examples, each once an epoch in random order, until validation is better no more.

    The network keeps the state of its last step; the best is in what is returned.

    Args:
        loss: of the example of an index; what it draws must come from the random numbers that it is given, which are
            others at every step and the same in a resumed training. It may write to the network's buffers.
        validate: a figure over examples held out, less is better; called without gradients and in eval mode.
        checkpoint: a file written at each validation, from which a training that was stopped goes on.
        identity: what is trained on what; ValueError for a checkpoint of something else.

    Raises ValueError where a loss or a validation is not finite.
    """
    at = _Progress.load(checkpoint, identity) if checkpoint is not None and checkpoint.exists() else _Progress()
    rates = [group["lr"] for group in optimiser.param_groups]
    if at.points:
        network.load_state_dict(at.network)
        optimiser.load_state_dict(at.optimiser)
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    started = time.monotonic() - at.seconds

    def look(mean: float | None) -> None:
        network.eval()
        with torch.no_grad():
            figure = validate()
        network.train()
        if not math.isfinite(figure):
            raise ValueError(f"the validation after {at.step} steps is {figure}: lower the learning rate")
        if not at.points or figure < min(point.validation for point in at.points):
            at.best, at.best_step = _copy(network.state_dict()), at.step
        at.points.append(Point(step=at.step, loss=mean, validation=figure))
        at.seconds = time.monotonic() - started
        if checkpoint is not None:
            at.network, at.optimiser = network.state_dict(), optimiser.state_dict()
            at.save(checkpoint, identity)

    with progress_bar(disable=not progress) as bar:
        task = bar.add_task(title, total=schedule.steps, completed=at.step)
        if not at.points:
            look(None)
        losses: list[float] = []
        network.train()
        while at.step < schedule.steps and at.step - at.best_step < schedule.patience:
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.pace(at.step)
            losses.append(_step(parameters, optimiser, loss, at.step, examples, schedule))
            at.step += 1
            if at.step % schedule.validate_every == 0 or at.step == schedule.steps:
                look(math.fsum(losses) / len(losses))
                losses = []
            last = at.points[-1]
            bar.update(task, completed=at.step, description=f"{title}: validation {last.validation:.4g}")
    network.eval()
    return Fitted(state=at.best, step=at.best_step, curve=tuple(at.points), seconds=at.seconds)


def _step(
    parameters: list[Tensor],
    optimiser: torch.optim.Optimizer,
    loss: Callable[[int, random.Random], Tensor],
    step: int,
    examples: int,
    schedule: Schedule,
) -> float:
    """One step of the optimiser; returns the mean loss."""
    # All randomness comes of the seed and the step, so that there is no state of a generator to be kept.
    draw, total = random.Random(f"{schedule.seed} {step}"), 0.0
    gradients: list[Tensor | None] = [None] * len(parameters)
    for place in range(step * schedule.accumulate, (step + 1) * schedule.accumulate):
        with torch.enable_grad():
            mean = loss(_example(place, examples, schedule.seed), draw) / schedule.accumulate
        if not mean.isfinite():
            raise ValueError(f"the training loss at step {step} is {mean.item()}: lower the learning rate")
        total += mean.item()
        # Not `backward`: it would also leave gradients on a model whose parameters take them.
        found = torch.autograd.grad(mean, parameters, allow_unused=True)
        gradients = [b if a is None else a if b is None else a + b for a, b in zip(gradients, found, strict=True)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if schedule.clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
    optimiser.step()
    optimiser.zero_grad()
    return total


def _example(place: int, examples: int, seed: int) -> int:
    """Which example stands at a place of the endless row of epochs."""
    epoch, index = divmod(place, examples)
    return random.Random(f"{seed} epoch {epoch}").sample(range(examples), examples)[index]


@dataclass(kw_only=True)
class _Progress:
    """How far a training has come: all that its checkpoint holds."""

    step: int = 0
    best_step: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, identity: str) -> None:
        """Write it, whole or not at all."""
        content = {
            "identity": identity,
            "step": self.step,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "points": [asdict(point) for point in self.points],
            "best": self.best,
            "network": self.network,
            "optimiser": self.optimiser,
        }
        encoded = io.BytesIO()
        torch.save(content, encoded)
        written = encoded.getvalue()
        write_whole(path, digest(written).encode() + written)

    @classmethod
    def load(cls, path: Path, identity: str) -> "_Progress":
        """ValueError for the checkpoint of another training; with a warning the beginning, if it is damaged."""
        data = path.read_bytes()
        check, written = data[:_CHECK], data[_CHECK:]
        if check != digest(written).encode():
            warnings.warn(f"the training in '{path}' is damaged; it begins anew", stacklevel=3)
            return cls()
        content = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
        if content.pop("identity") != identity:
            raise ValueError(f"'{path}' is the checkpoint of another training: delete it to begin anew")
        content["points"] = [Point(**point) for point in content["points"]]
        return cls(**content)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
