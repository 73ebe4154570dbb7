"""Edits one after another, each computed on the weights that those before it leave, with checkpoints to resume from."""

import gc
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from workbench.edits.edit import Edit
from workbench.edits.ledger import change_, state_fingerprint, undone
from workbench.machine.allocator import out_of_memory
from workbench.machine.files import write_whole
from workbench.machine.jsonl import dumps, load_json
from workbench.machine.plain import plain
from workbench.models.model import Model
from workbench.records.facts import EditRequest

MakesEdits = Callable[[Model, Sequence[EditRequest]], Edit]
"""An editor: anything of `workbench.editors`."""

_FORMAT = "workbench-sequence-1"
_SETTINGS = "sequence.json"


@dataclass(kw_only=True, eq=False)
class Steps:
    """The edits of a sequence, made and applied as they are iterated over; made by `sequence`.

    Iterating again goes on where it was left.
    """

    model: Model
    """The model that is edited."""
    editor: MakesEdits
    """What makes the edits."""
    requests: tuple[EditRequest, ...]
    """All that is asked for, in order."""
    chunk: int
    """Requests an edit, at most; halved when an edit does not fit into memory."""
    folder: Path | None
    """Where the edits are saved."""
    edits: list[Edit] = field(default_factory=list)
    """The edits so far, also those that were rolled back."""
    done: int = 0
    """How many requests have been dealt with."""

    def __iter__(self) -> "Steps":
        return self

    def __next__(self) -> Edit:
        if self.done == len(self.requests):
            raise StopIteration
        edit, count = self._saved() or self._made()
        applied, made, done = list(self.model.edits), len(self.edits), self.done
        try:
            edit.apply_(self.model)
            self.edits.append(edit)
            self.done += count
        except BaseException:  # an interrupt in between: it is as if it had not begun
            change_(self.model, applied)
            del self.edits[made:]
            self.done = done
            raise
        return edit

    def rollback(self, index: int) -> None:
        """Take back the edit `edits[index]` exactly: the weights become those of the edits that remain.

        What comes next is computed on these. IndexError if there is no such edit; ValueError if it was taken back.
        """
        if not 0 <= index < len(self.edits):
            raise IndexError(f"no edit {index} in this sequence: {len(self.edits)} have been made so far")
        self.edits[index].revert_(self.model)

    def _saved(self) -> tuple[Edit, int] | None:
        """The edit of the next requests from the folder, and how many they are."""
        if self.folder is None:
            return None
        found = sorted(self.folder.glob(f"{self.done:05d}-*.safetensors"))
        if not found:
            return None
        last = found[0].stem.partition("-")[2]
        if len(found) > 1 or not last.isdecimal() or not self.done <= int(last) < len(self.requests):
            names = ", ".join(path.name for path in found)
            raise ValueError(f"'{self.folder}' has {names} for request {self.done}: delete the folder to start again")
        edit = Edit.load(found[0])
        try:
            edit.check_made_for(self.model)
        except ValueError as error:
            raise ValueError(
                f"'{found[0]}' does not go on from the edits before it: delete it and those after it ({error})"
            ) from None
        return edit, int(last) + 1 - self.done

    def _made(self) -> tuple[Edit, int]:
        """The edit of the next requests, computed and saved, and how many they are."""
        while True:
            part = self.requests[self.done : self.done + self.chunk]
            try:
                edit = self.editor(self.model, part)
            except (MemoryError, RuntimeError) as error:
                if len(part) == 1 or not out_of_memory(error):
                    raise
            else:
                break
            # Only here, where what the editor had reserved is free again.
            gc.collect()  # also what refers to itself, as CUDA graphs do
            self.chunk = (len(part) + 1) // 2
            warnings.warn(
                f"{len(part)} requests do not fit into memory: chunks of {self.chunk} from here", stacklevel=3
            )
        if self.folder is not None:
            edit.save(self.folder / f"{self.done:05d}-{self.done + len(part) - 1:05d}.safetensors")
        return edit, len(part)


@contextmanager
def sequence(
    model: Model,
    editor: MakesEdits,
    requests: Sequence[EditRequest],
    *,
    chunk: int = 1,
    folder: str | Path | None = None,
) -> Iterator[Steps]:
    """Edit the model chunk after chunk, each edit computed on the weights that those before it leave, and left applied.

        with sequence(model, editor, requests, chunk=10, folder="edits") as steps:
            for edit in steps:
                ...  # score edit.requests at once
            ...  # and all of them at the end: retention

    Leaving the block, also by an error or Ctrl-C, takes the edits back, bit for bit; those applied before it stay.

    A chunk is one batch for the editor. Where it does not fit into memory (MemoryError, or torch's own error) it is
    halved, with a warning, and so are those after it: the second half is then computed on the weights that the first
    leaves, which for batch editors is not the edit of the whole. A `chunk` that fits says so beforehand.

    With a `folder` every edit is saved before it is applied, under the first and last index of its requests, and a
    later run with the same editor, requests and chunk on the same model reads what is there and goes on from it.
    ValueError, which names what differs, for a folder of another sequence or of something else; ValueError for no
    requests or a chunk below 1.
    """
    requests = tuple(requests)
    if not requests:
        raise ValueError("a sequence needs at least one request, got none")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    place = None if folder is None else Path(folder)
    if place is not None:
        _open(place, model, editor, requests, chunk)
    with undone(model):
        yield Steps(model=model, editor=editor, requests=requests, chunk=chunk, folder=place)


@contextmanager
def applied_files(model: Model, paths: Sequence[str | Path], *, force: bool = False) -> Iterator[list[Edit]]:
    """Edits read from files and applied in this order; after the block they are taken back exactly.

    Each must have been made for the model as it is before the block, as edits made apart from each other are, or for
    what those before it leave, as the edits of a sequence are. ValueError otherwise, or under `force` a warning; and
    for a file that is there twice.
    """
    files = [Path(path).resolve() for path in paths]
    if twice := next((path for place, path in enumerate(files) if path in files[:place]), None):
        raise ValueError(f"{twice} is named twice, and would be applied twice: name it once")
    start = state_fingerprint(model)
    with undone(model):
        edits: list[Edit] = []
        for path in paths:
            edit = Edit.load(path)
            if edit.provenance.get("fingerprint") != start:  # which knows the dtype too
                edit.check_made_for(model, force=force)
            edit.apply_(model)
            edits.append(edit)
        yield edits


def _open(folder: Path, model: Model, editor: MakesEdits, requests: Sequence[EditRequest], chunk: int) -> None:
    """Note in the folder what the sequence is, or refuse the folder if it is another's."""
    if not is_dataclass(editor):
        raise ValueError(f"{editor!r} is not a dataclass, so its hyperparameters cannot be noted: leave `folder` out")
    settings = json.loads(
        dumps(
            {
                "format": _FORMAT,
                "model": model.name,
                "fingerprint": state_fingerprint(model),
                "editor": plain(editor),
                "chunk": chunk,
                "requests": [asdict(request) for request in requests],
            }
        )
    )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, not a folder for edits: choose another")
    path = folder / _SETTINGS
    if path.exists():
        if differing := _differences(load_json(path), settings):
            raise ValueError(
                f"'{folder}' holds edits of another sequence ({'; '.join(differing)}): choose another folder, or "
                "delete it to start again"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"'{folder}' holds files but no {_SETTINGS}: choose another folder")
    else:
        write_whole(path, dumps(settings).encode())


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two sequences, in words; the name a model goes by does not count."""
    found = []
    for name in ("format", "fingerprint", "chunk"):
        if old.get(name) != new[name]:
            found.append(f"{name} was {_short(old.get(name))} and is now {_short(new[name])}")
    before, now = old.get("editor") or {}, new["editor"]
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            found.append(f"{name} was {_short(before.get(name))} and is now {_short(now.get(name))}")
    pairs = zip_longest(old.get("requests") or [], new["requests"])
    first = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if first is not None:
        found.append(f"the requests differ from number {first} on")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
