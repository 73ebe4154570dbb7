"""The edits applied to a model: taking several back at once, exactly, and a fingerprint of the state they make."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.edits.rounding import Unrounded, sums_of
from workbench.machine.hashing import digest
from workbench.models.model import Model


def change_(model: Model, edits: Sequence[Any], *, forward: bool = False) -> None:
    """Make these the edits that are applied, in this order, and the weights what they ask for.

    An interrupt or an error midway leaves the edits of before or, with `forward`, these; either way, weights and
    ledger agree. RuntimeError while another thread holds the model.
    """
    with model.hold(model.name):
        settle_(model)
        before = list(model.edits)
        try:
            _record(model, edits)
            if [*map(id, edits[: len(before)])] == [*map(id, before)]:  # on top of what is there, which is cheaper
                unrounded, places = Unrounded(model=model, sums=model.sums), set(model.unsettled)
                for edit in edits[len(before) :]:
                    edit.add_(unrounded, edit.places)
                unrounded.write_(places)
                model.unsettled.clear()
                unrounded.tell(model.originals, places)
            settle_(model)
        except BaseException:
            _record(model, edits if forward else before)
            settle_(model)
            raise


def _record(model: Model, edits: Sequence[Any]) -> None:
    """Note in the ledger what is to be applied, and which matrices that concerns; nothing is written yet."""
    of_before, of_now = Counter(map(id, model.edits)), Counter(map(id, edits))
    changing = [edit for edit in (*model.edits, *edits) if of_before[id(edit)] != of_now[id(edit)]]
    places = {place for edit in changing for place in edit.places}
    for place in places - model.originals.keys():
        model.originals[place] = model.weight(*place).detach().clone()
        model.sums |= sums_of({place: model.originals[place]})
    model.unsettled.update(places)
    model.edits[:] = edits


def settle_(model: Model) -> None:
    """Write the matrices that the ledger calls unsettled: the originals, and every edit in turn on top of them, rounded
    once where they are of half precision.

    What an interrupt leaves half written is whole again when it is called once more.
    """
    if places := set(model.unsettled):
        originals = {place: model.originals[place] for place in places}
        _copy_(model, originals)
        model.sums |= sums_of(originals)
        unrounded = Unrounded(model=model, sums=model.sums)
        for edit in model.edits:
            edit.add_(unrounded, places)
        unrounded.write_(places)
        model.unsettled.clear()
    for place in model.originals.keys() - {place for edit in model.edits for place in edit.places}:
        del model.originals[place]
    for place in model.sums.keys() - model.originals.keys():
        del model.sums[place]


@contextmanager
def undone(model: Model) -> Iterator[Model]:
    """Take back on leaving the block, all at once, the edits that it leaves applied; those of before it stay.

    The weights are then exactly what they would be had the edits never been applied, also if the block raises. Until
    then no other thread may run or edit the model.
    """
    with taking_back(model, _added_since(list(model.edits))):
        yield model


def _added_since(earlier: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """What remains of a model's edits without those that it had not got earlier."""

    def remaining(edits: Sequence[Any]) -> list[Any]:
        before, kept = Counter(map(id, earlier)), []
        for edit in edits:
            if before[id(edit)]:
                before[id(edit)] -= 1
                kept.append(edit)
        return kept

    return remaining


@contextmanager
def taking_back(model: Model, remaining: Callable[[Sequence[Any]], list[Any]]) -> Iterator[None]:
    """Leave applied, after the block, what `remaining` finds among the edits that are applied then.

    Asked once, and done again where an interrupt comes between: an interrupt at any point leaves right weights.
    """
    found: list[list[Any]] = []

    def back() -> None:
        if not found:
            found.append(remaining(model.edits))
        change_(model, found[0], forward=True)

    with model.hold(model.name):
        try:
            try:
                yield
            finally:
                back()
        except BaseException:
            back()
            raise


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
    weights = unedited_fingerprint(model)
    return digest("\n".join([weights, *(edit.digest for edit in model.edits)])) if model.edits else weights


def unedited_fingerprint(model: Model) -> str:
    """The fingerprint of the weights without the edits that are applied."""
    with model.hold(model.name):
        settle_(model)
        edited = {place: model.weight(*place).clone() for place in model.originals}
        try:
            try:
                model.unsettled.update(edited)
                _copy_(model, model.originals)
                return model.fingerprint()
            finally:
                _copy_(model, edited)  # the same bits as adding every edit anew, which takes long with many of them
                model.unsettled.clear()
        except BaseException:
            settle_(model)
            raise


@torch.no_grad()
def _copy_(model: Model, weights: Mapping[tuple[int, str], Tensor]) -> None:
    for place, weight in weights.items():
        model.weight(*place).copy_(weight)
