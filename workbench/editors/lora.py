"""LoRA: fine-tuning of low-rank factors beside matrices of MLPs or attention, through `peft`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.requests import check_requests, seed_of
from workbench.editors.shared.tuning import TuningBatch, in_parts
from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.matrices import module_of
from workbench.models.model import Model
from workbench.records.facts import EditRequest

_INSIDE = "original"
"""Name of the module that `peft` is shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoRA(Editor):
    """Adam on factors of matrices' changes, dW = (alpha / rank) B A, for the new targets' negative log-likelihood.

    Hu et al. 2022, arXiv:2106.09685, equation 3, as `peft` (the package, which must be installed) builds and starts it:
    A uniform as of a new linear layer, B zero. A target's tokens are scored after the prompt and the tokens before
    them, the mean over tokens, then over the requests of a batch.

    Defaults are EasyEdit's hyperparameters for GPT-J, all of whose layers it adapts. Here it is plain LoRA; most of
    EasyEdit's files name AdaLoRA, of which it runs no step that prunes ranks, so that what it trains has `peft`'s
    first rank, 12, whatever the file says, the factor alpha / 12, and a loss that keeps the factors orthogonal.
    """

    method: ClassVar[str] = "LoRA"

    layers: Sequence[int]
    """The layers tuned, together; (3,) for one."""
    matrices: Sequence[str] = ("W_in", "W_out")
    """What is adapted in each: W_in, W_gate, W_out, or of attention W_Q, W_K, W_V, W_O where they are not fused."""
    rank: int = 8
    """Of each matrix's change."""
    alpha: float = 32.0
    """The factors' product is multiplied by alpha / rank."""
    dropout: float = 0.1
    """Chance that an entry of what A reads is left out of a step."""
    steps: int = 50
    """Passes over the requests, at most."""
    learning_rate: float = 5e-3
    """Of Adam."""
    weight_decay: float = 0.0
    """Of Adam: this times the factors is added to their gradient."""
    loss_reached: float = 0.0
    """The passes end when the mean loss is below this; the published code makes all of them."""
    batch_size: int = 1
    """Requests a step, in their order."""
    seed: int = 0
    """Of A and of the dropout."""

    def __post_init__(self) -> None:
        for name in ("layers", "matrices"):
            given = tuple(getattr(self, name))
            object.__setattr__(self, name, given)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} needs one or more different ones, got {given}")
        for name in ("rank", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("alpha", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is at least 0 and below 1, got {self.dropout}")
        if "b_out" in self.matrices:
            raise ValueError("LoRA adapts matrices, and b_out is a bias")

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "LoRA":
        """At the preset's layers or those around the located one."""
        _check_peft()
        return cls(**{"layers": setting.layers(), "seed": setting.seed, **fields})

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit that makes all the requests true together, computed on the weights as they are.

        The model is left bit for bit as it was: adapters stand around its modules for as long as they are trained.
        Its provenance lists the mean loss at each pass. IndexError for a layer out of range; ValueError for no
        requests or contradictory ones, for a matrix that the model lacks or keeps fused, without `peft`, and if the
        loss is not finite.
        """
        requests = check_requests(requests, model)
        _check_peft()
        places = [(layer, matrix) for layer in self.layers for matrix in self.matrices]
        for place in places:
            if self.rank > min(model.weight(*place).shape):
                raise ValueError(
                    f"rank {self.rank} is more than {place[1]} of layer {place[0]} of {model.name} has, "
                    f"{min(model.weight(*place).shape)}"
                )
        with _seeded(seed_of(self.seed, *requests), model.device), self._adapted(model, places) as adapters:
            losses = self._optimise(model, requests, adapters)
        return WeightEdit(
            updates=tuple(
                _update(layer, matrix, adapter) for (layer, matrix), adapter in zip(places, adapters, strict=True)
            ),
            method=self.method,
            requests=requests,
            provenance=provenance(
                model,
                {field.name: getattr(self, field.name) for field in fields(self)},
                optimisation={"losses": losses},
            ),
        )

    @contextmanager
    def _adapted(self, model: Model, places: Sequence[tuple[int, str]]) -> Iterator[list[Any]]:
        """The matrices' modules, wrapped by `peft`, stand in the model within the block."""
        holders = [module_of(model.bridge.blocks[layer], matrix) for layer, matrix in places]
        originals = [holder.original_component for holder in holders]
        adapters = [self._wrapped(original, model.device) for original in originals]
        try:
            for holder, adapter in zip(holders, adapters, strict=True):
                holder.set_original_component(adapter)
            yield adapters
        finally:
            for holder, original in zip(holders, originals, strict=True):
                holder.set_original_component(original)

    def _wrapped(self, original: nn.Module, device: torch.device) -> Any:
        """The module with factors beside it, where states are, which start at no change."""
        from peft import LoraConfig, inject_adapter_in_model  # here, since it takes seconds

        config = LoraConfig(
            target_modules=[_INSIDE],
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType] (a number is all that it is used as)
            lora_dropout=self.dropout,
            fan_in_fan_out=isinstance(original, Conv1D),
        )
        flags = [parameter.requires_grad for parameter in original.parameters()]
        wrapped = inject_adapter_in_model(config, nn.ModuleDict({_INSIDE: original}))
        for parameter, flag in zip(original.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        adapter: Any = wrapped[_INSIDE]  # pyright: ignore[reportIndexIssue]
        for factors in (adapter.lora_A, adapter.lora_B):  # Adam's steps would be lost in half precision
            factors.to(device, torch.promote_types(factors["default"].weight.dtype, torch.float32))
        return adapter

    def _optimise(self, model: Model, requests: tuple[EditRequest, ...], adapters: Sequence[Any]) -> list[float]:
        """Tune the factors in place; returns the mean loss of each pass, measured before each batch's step."""
        size = self.batch_size
        batches = [
            in_parts(model, requests[first : first + size], objective="target", kl_template=None)
            for first in range(0, len(requests), size)
        ]
        leaves = [factor for adapter in adapters for factor in _factors(adapter)]
        optimiser = torch.optim.Adam(leaves, lr=self.learning_rate, weight_decay=self.weight_decay)
        means: list[float] = []
        while len(means) < self.steps and (not means or means[-1] >= self.loss_reached):
            total = 0.0
            for parts in batches:
                count = sum(len(part.requests) for part in parts)
                optimiser.zero_grad()
                for part in parts:
                    total += self._add_gradients(model, part, leaves, count)
                optimiser.step()
            means.append(total / len(requests))
        return means

    def _add_gradients(self, model: Model, part: TuningBatch, leaves: Sequence[Tensor], count: int) -> float:
        """The summed loss of a part; its gradient, of the mean over `count` requests, is added to the leaves'."""
        with torch.enable_grad():
            losses = part.target_losses(part.log_probs(model, []), learning_rate=self.learning_rate)
            # Not `backward`: it would also leave gradients on a model whose parameters take them.
            gradients = torch.autograd.grad(losses.sum() / count, leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return losses.sum().item()


def _check_peft() -> None:
    if find_spec("peft") is None:
        raise ValueError("LoRA trains with the package peft, which is not installed: pip install peft")


def _factors(adapter: Any) -> tuple[Tensor, Tensor]:
    """A [rank, d_in] and B [d_out, rank]."""
    return adapter.lora_A["default"].weight, adapter.lora_B["default"].weight


def _update(layer: int, matrix: str, adapter: Any) -> WeightUpdate:
    """The change by its factors; B takes the multiplier."""
    a, b = (factor.detach().cpu() for factor in _factors(adapter))
    return WeightUpdate(
        layer=layer, matrix=matrix, left=a.T.contiguous(), right=adapter.scaling["default"] * b.T.contiguous()
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """`peft` and dropout draw from torch's own generators: seeded within the block, as they were after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
