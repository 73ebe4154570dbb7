"""From a name or a path to a `Model`."""

import torch

from workbench.machine.allocator import keep_freed_memory
from workbench.models.batching import budget
from workbench.models.checkpoints import load_checkpoint
from workbench.models.model import Model
from workbench.models.placement import DEVICE_MAPS


def load_model(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = torch.float32,
    device_map: str | None = None,
) -> Model:
    """Load "atlas", a local Hugging Face folder, or a model of the Hugging Face hub, for reading and editing.

    Raw weights in `dtype` (None: that of the checkpoint's weights), evaluation mode, gradients off, eager attention.
    With a `device_map` of "auto" a model that is larger than a GPU is spread over all GPUs and the CPU; `device` then
    stays "auto". ValueError for a model that cannot be had or has no fast tokenizer.
    """
    if device_map not in (None, *DEVICE_MAPS):
        raise ValueError(f"device map is one of {', '.join(DEVICE_MAPS)}, or none is given; got {device_map!r}")
    if device_map and device != "auto":
        raise ValueError(f"a device map of {device_map!r} chooses the devices: leave device {device!r} out")
    device = named_device(device)
    if device == "cpu":
        keep_freed_memory()
    checkpoint = load_checkpoint(name_or_path, device=device, dtype=dtype, device_map=device_map)
    where, one = checkpoint.device, next(iter(checkpoint.parameters.values()))
    return Model(
        name=name_or_path,
        checkpoint=checkpoint,
        device=where,
        dtype=one.dtype,
        budget=budget(where),
        device_map=device_map,
    )


def named_device(device: str) -> str:
    """The device that "auto" stands for, or the one of that name; ValueError for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # a name that torch does not know, no GPU, not so many
        raise ValueError(f'device {device!r} is not available here; give "cpu" or "auto"') from None
    return device
