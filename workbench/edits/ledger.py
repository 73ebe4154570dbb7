"""The edits applied to a model: taking several back at once, exactly, and a fingerprint of the state they make."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.machine.hashing import digest
from workbench.models.model import Model


@contextmanager
def undone(model: Model) -> Iterator[Model]:
    """Take back on leaving the block, all at once, the edits that it leaves applied; those of before it stay.

    The weights are then exactly what they would be had the edits never been applied, also if the block raises.
    """
    earlier = list(model.edits)
    try:
        yield model
    finally:
        before = Counter(id(edit) for edit in earlier)
        added: set[int] = set()
        for index, edit in enumerate(model.edits):
            if before[id(edit)]:
                before[id(edit)] -= 1
            else:
                added.add(index)
        take_back_(model, added)


def take_back_(model: Model, indices: set[int]) -> None:
    """Take edits, by their index in the ledger, out of it and out of the weights."""
    places = {place for index in indices for place in model.edits[index].places}
    model.edits[:] = [edit for index, edit in enumerate(model.edits) if index not in indices]
    with torch.no_grad():
        for place in places:
            model.weight(*place).copy_(model.originals[place])
    for edit in model.edits:
        edit.add_(model, places)
    for place in places - {place for edit in model.edits for place in edit.places}:
        del model.originals[place]


def check_restored(model: Model, fingerprint: str, *, after: str) -> None:
    """RuntimeError, saying after what, unless the model is what it was when its `state_fingerprint` was taken before.

    Weights bit for bit, the edits applied, and no hook left behind.
    """
    if state_fingerprint(model) != fingerprint:
        raise RuntimeError(f"{after}: {model.name} has not the weights and edits from before it; load the model again")
    if left := sorted(name for name, point in model.bridge.hook_dict.items() if point.fwd_hooks):
        raise RuntimeError(f"{after}: hooks were left on {model.name} at {', '.join(left)}; load the model again")


def state_fingerprint(model: Model) -> str:
    """What an edit is made for: the weights' fingerprint or, with edits applied, that of the weights and the edits.

    The latter is SHA-256 over the fingerprint of the weights without edits and the edits' digests, in their order.
    It does not hash the edited weights, whose last bits depend on how a machine multiplies left @ right.
    """
    if not model.edits:
        return model.fingerprint()
    edited = {place: model.weight(*place).clone() for place in model.originals}
    try:
        with torch.no_grad():
            for place, original in model.originals.items():
                model.weight(*place).copy_(original)
        weights = model.fingerprint()
    finally:
        with torch.no_grad():
            for place, weight in edited.items():
                model.weight(*place).copy_(weight)
    return digest("\n".join([weights, *(edit.digest for edit in model.edits)]))
