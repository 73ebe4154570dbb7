"""From a name or a path to a `Model`."""

import torch

from workbench.machine.allocator import keep_freed_memory
from workbench.models.batching import budget
from workbench.models.checkpoints import load_checkpoint
from workbench.models.model import Model


def load_model(name_or_path: str, *, device: str = "auto", dtype: torch.dtype | None = torch.float32) -> Model:
    """Load "atlas", a local Hugging Face folder, or a model of the Hugging Face hub, for reading and editing.

    Raw weights in `dtype` (None: that of the checkpoint's weights), evaluation mode, gradients off, eager attention.
    ValueError for a model that cannot be had or has no fast tokenizer.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f'device {device!r} is not available here; give "cpu" or "auto"')
    if device == "cpu":
        keep_freed_memory()
    checkpoint = load_checkpoint(name_or_path, device=device, dtype=dtype)
    one = next(iter(checkpoint.parameters.values()))
    return Model(
        name=name_or_path, checkpoint=checkpoint, device=one.device, dtype=one.dtype, budget=budget(one.device)
    )
