"""Dataclasses as JSON values that tell what they hold without holding it."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from workbench.machine.hashing import digest
from workbench.machine.jsonl import dumps

_LONG = 100
"""Items beyond which a list is told by its digest where that is asked for."""


def plain(value: Any, *, whole: bool = True) -> Any:
    """The fields of an editor, or one of their values, as JSON: tensors by a hash of their bytes, and so long lists
    unless they are to be `whole`."""
    if isinstance(value, Tensor):
        return f"sha256 {digest(value)}"
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "editor": type(value).__name__,
            **{known.name: plain(getattr(value, known.name), whole=whole) for known in fields(value)},
        }
    if isinstance(value, Mapping):
        return {str(name): plain(part, whole=whole) for name, part in value.items()}
    if isinstance(value, list | tuple):
        told = [plain(part, whole=whole) for part in value]
        return told if whole or len(told) <= _LONG else f"{len(told)} values, sha256 {digest(dumps(told))}"
    return value
