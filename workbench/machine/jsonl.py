"""JSON lines that survive being interrupted, and JSON of what runs write."""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from workbench.machine.as_json import to_json


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one object to a file of JSON lines; it is on the disk when this returns."""
    with path.open("a+b") as file:
        _drop_torn_line(file)
        file.write(dumps(dict(row), indent=None).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none if there is no such file.

    A last line without its newline was being written when the program was stopped: it is left out with a
    warning. ValueError names any other line that is not JSON.
    """
    if not path.exists():
        return []
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        warnings.warn(f"{path}: the last line is incomplete and is left out", stacklevel=3)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON; delete it to do that record again") from error
    return rows


def dumps(value: Any, indent: int | None = 2) -> str:
    """JSON of plain values, paths, arrays, tensors, sets and dataclasses; TypeError names anything else."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a file; ValueError names the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete its run folder to start again") from error


def _plain(value: Any) -> Any:
    """What JSON has no word for, as something it has."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    raise TypeError(f"cannot write {type(value).__name__} {value!r} as JSON")


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut what an interrupted `append_line` left behind the last newline."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
