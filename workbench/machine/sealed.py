"""Tensors and what they are, in one safetensors file with a checksum over all of it.

The same content is always the same bytes: the file holds a single entry of metadata, whose own keys are sorted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from workbench.machine.files import write_whole
from workbench.machine.hashing import digest

_ENTRY = "workbench"


class Damaged(ValueError):
    """A file that does not hold what was written into it, or holds something else; says what is wrong."""


def save_sealed(path: str | Path, tensors: Mapping[str, Tensor], content: Any, *, format: str) -> None:
    """Write tensors and a JSON value as one file, whole or not at all."""
    stored: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if place in places else plain  # safetensors takes no two names for one memory
        places.add(place)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    entry = {"format": format, "content": text, "sha256": _checksum(stored, text, format)}
    write_whole(Path(path), save(stored, metadata={_ENTRY: json.dumps(entry, sort_keys=True, ensure_ascii=False)}))


def load_sealed(path: str | Path, *, format: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the value that `save_sealed` wrote in this format; `Damaged` for anything else.

    The message does not name the file.
    """
    try:
        with safe_open(str(path), "pt") as file:
            entry = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            if entry.get("format") != format:
                raise Damaged(f"its format is {entry.get('format')!r}, not {format!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
        if entry["sha256"] != _checksum(tensors, entry["content"], format):
            raise Damaged("its content does not have the checksum it was written with")
        return tensors, json.loads(entry["content"])
    except Damaged:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(str(error) or type(error).__name__) from None


def _checksum(tensors: Mapping[str, Tensor], text: str, format: str) -> str:
    parts: list[Tensor | str] = [json.dumps([format, text])]
    for name, tensor in sorted(tensors.items()):
        parts += [json.dumps([name, str(tensor.dtype), *tensor.shape]), tensor]
    return digest(*parts)
