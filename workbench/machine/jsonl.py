"""JSON lines that survive being interrupted, and JSON of what runs write."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from workbench.machine.as_json import to_json
from workbench.machine.files import write_whole
from workbench.machine.hashing import digest

_CHECK = '"sha256": "'
"""How the last entry of a line begins."""


def append_line(path: Path, row: Mapping[str, Any], *, seal: str = "") -> None:
    """Add one object to a file of JSON lines, with a checksum; it is on the disk when this returns.

    `seal` is of the file's own: a line copied from a file with another one counts as damaged.
    """
    with path.open("a+b") as file:
        _drop_torn_line(file)
        file.write(_sealed(dumps(dict(row), indent=None), seal) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, *, seal: str = "") -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none if there is no such file.

    Lines that are not what `append_line` wrote with this seal are left out with one warning; so is a last line without
    its newline, which was being written when the program was stopped.
    """
    if not path.exists():
        return []
    return [row for row in _looked_at(path, path.read_bytes(), seal, "left out") if row is not None]


def sweep_lines(path: Path, *, seal: str = "") -> None:
    """Move the lines that `read_lines` leaves out to a file beside, with its warning, so that they are written anew.

    An incomplete last line is cut.
    """
    aside = path.with_name(f"{path.name}.damaged")
    data = path.read_bytes()
    found = list(zip(data.split(b"\n"), _looked_at(path, data, seal, f"moved to {aside.name}"), strict=False))
    sound, lost = (b"".join(line + b"\n" for line, row in found if (row is None) is lost) for lost in (False, True))
    if lost:
        with aside.open("ab") as file:
            file.write(lost)
            file.flush()
            os.fsync(file.fileno())
    if not sound:
        path.unlink()
    elif sound != data:
        write_whole(path, sound)


def _looked_at(path: Path, data: bytes, seal: str, becomes: str) -> list[dict[str, Any] | None]:
    """The object of each line, None for those that are damaged; warns of these, which are left out or moved."""
    *lines, torn = data.split(b"\n")
    found = [_opened(line, seal) for line in lines]
    lost = [number for number, row in enumerate(found, start=1) if row is None]
    if lost:
        warnings.warn(f"{path}: {_named(lost)} damaged or of other settings, and {becomes}", stacklevel=4)
    if torn:
        warnings.warn(f"{path}: the last line is incomplete and is left out", stacklevel=4)
    return found


def _named(lost: Sequence[int]) -> str:
    return f"line {lost[0]} is" if len(lost) == 1 else f"{len(lost):,} lines, from line {lost[0]} on, are"


def _sealed(text: str, seal: str) -> bytes:
    """The text of an object with its checksum as the last entry."""
    check = digest(seal, text)[:16]
    return f'{text[:-1]}{", " if len(text) > 2 else ""}{_CHECK}{check}"}}'.encode()


def _opened(line: bytes, seal: str) -> dict[str, Any] | None:
    """The object of a line; None if its checksum is another or missing."""
    try:
        text = line.decode()
        head, found, check = text.rpartition(_CHECK)
        whole = head.removesuffix(", ") + "}"
        if not found or check.removesuffix('"}') != digest(seal, whole)[:16]:
            return None
        return json.loads(whole)
    except ValueError:
        return None


def dumps(value: Any, indent: int | None = 2) -> str:
    """JSON of plain values, paths, arrays, tensors, sets and dataclasses; TypeError names anything else."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a file; ValueError names the file if it is not JSON."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): start its run again with --fresh") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object: start its run again with --fresh")
    return found


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
