"""SHA-256 of tensors and texts, by which caches, edits and weights are known again."""

import hashlib

import torch
from einops import rearrange
from torch import Tensor


def digest(*parts: Tensor | str | bytes) -> str:
    """SHA-256 over the parts one after another, in hexadecimal.

    Of a tensor the bytes of its values in order count, wherever and however it lies in memory; its type and shape do
    not: give them as a text where they matter. A text is taken in UTF-8.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            flat = rearrange(part.detach().cpu(), "... -> (...)").contiguous()
            found.update(flat.view(torch.uint8).numpy().data)
        else:
            found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()
