"""Weights come back: from an interrupt at any line, and from two threads at once."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from known_kinds import Steering

import workbench
from workbench.edits.edit import Edit
from workbench.edits.ledger import settle_, state_fingerprint, undone
from workbench.edits.sequence import sequence
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model
from workbench.records.facts import EditRequest

TRACED = (str(Path(workbench.__file__).parent / "edits"), str(Path(workbench.__file__).parent / "models"))
REQUESTS = [EditRequest(template="{} is", subject=name, target_new="x") for name in ("A", "B", "C")]


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """An interrupt at the very end of `torch.no_grad` leaves them off, for all tests that follow."""
    yield
    torch.set_grad_enabled(True)


def edits_of(model: Model) -> list[Edit]:
    """Two that share a matrix, and one of activations."""

    def random(*layers: int) -> Edit:
        generator = torch.Generator().manual_seed(layers[0])
        sizes = (model.d_mlp, 1), (1, model.d_model)
        updates = [[torch.randn(size, generator=generator) for size in sizes] for _ in layers]
        return WeightEdit(
            updates=tuple(
                WeightUpdate(layer=layer, left=left, right=right)
                for layer, (left, right) in zip(layers, updates, strict=True)
            ),
            method="random",
            requests=(),
            provenance={},
        )

    vector = torch.ones(model.d_model)
    steering = Steering(method="steering", requests=(), provenance={}, layer=1, vector=vector)
    return [random(1, 2), steering, random(2)]


def nested(model: Model, edits: list[Edit]) -> None:
    with edits[0].applied(model), edits[1].applied(model), edits[2].applied(model):
        pass


def raising(model: Model, edits: list[Edit]) -> None:
    with contextlib.suppress(ZeroDivisionError), edits[0].applied(model), edits[2].applied(model):
        raise ZeroDivisionError


def kept_within(model: Model, edits: list[Edit]) -> None:
    with undone(model):
        for edit in edits:
            edit.apply_(model)
        edits[0].revert_(model)
        state_fingerprint(model)


def stepwise(model: Model, edits: list[Edit]) -> None:
    with sequence(model, lambda *_: edits[len(model.edits)], REQUESTS) as steps:
        next(steps)
        next(steps)
        steps.rollback(0)


def interrupted_at(place: int, work: Callable[[], Any], *, event: str) -> bool:
    """Raise Ctrl-C at that line or opcode, counted as those of edits and models are run; whether there are so many."""
    seen = 0

    def tracer(frame: Any, what: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith((*TRACED, contextlib.__file__)):
            return None
        frame.f_trace_opcodes = event == "opcode"
        if what == event:
            seen += 1
            if seen == place:
                raise KeyboardInterrupt
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize(
    ("event", "step"),
    [
        ("line", 17),
        pytest.param("line", 1, marks=pytest.mark.slow),
        pytest.param("opcode", 5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "work", [nested, *(pytest.param(work, marks=pytest.mark.slow) for work in (raising, kept_within, stepwise))]
)
def test_an_interrupt_anywhere_leaves_right_weights(
    tiny_gpt2: Model, work: Callable[[Model, list[Edit]], None], event: str, step: int
):
    edits, untouched = edits_of(tiny_gpt2), state_fingerprint(tiny_gpt2)
    place = 1
    while interrupted_at(place, lambda: work(tiny_gpt2, edits), event=event):
        assert tiny_gpt2.edits == [] and state_fingerprint(tiny_gpt2) == untouched, place
        assert tiny_gpt2.originals == {} and tiny_gpt2.unsettled == set(), place
        place += step
    assert place > 100


@pytest.mark.parametrize("use", ["apply_", "applied", "score"])
def test_another_thread_is_refused_by_name(tiny_gpt2: Model, use: str):
    mine, _, other = edits_of(tiny_gpt2)
    untouched, tokens, said = state_fingerprint(tiny_gpt2), tiny_gpt2.tokenize(["The capital"]), []

    def work() -> None:
        try:
            if use == "applied":
                with other.applied(tiny_gpt2):
                    said.append("applied")
            else:
                other.apply_(tiny_gpt2) if use == "apply_" else tiny_gpt2.logits(tokens)
        except RuntimeError as error:
            said.append(str(error))

    with mine.applied(tiny_gpt2):
        thread = threading.Thread(target=work, name="second")
        thread.start()
        thread.join()
        assert tiny_gpt2.edits == [mine]
        tiny_gpt2.logits(tokens)
    (message,) = said
    assert "'second'" in message and "'MainThread'" in message and "load the model" in message
    assert state_fingerprint(tiny_gpt2) == untouched
    with mine.applied(tiny_gpt2):  # free again
        pass


def test_what_interrupts_leave_half_written_is_not_run_and_can_be_finished(
    tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch
):
    below, _, above = edits_of(tiny_gpt2)
    untouched, tokens = state_fingerprint(tiny_gpt2), tiny_gpt2.tokenize(["The capital"])
    below.apply_(tiny_gpt2)
    edited = tiny_gpt2.logits(tokens)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt), above.applied(tiny_gpt2):
        broken.setattr(WeightEdit, "add_", interrupt)  # also while it is put right
        above.revert_(tiny_gpt2)
    with pytest.raises(RuntimeError, match=r"W_out of layer 2 of .* `workbench.edits.ledger.settle_\(model\)`"):
        tiny_gpt2.logits(tokens)
    settle_(tiny_gpt2)
    assert tiny_gpt2.edits == [below] and torch.equal(tiny_gpt2.logits(tokens), edited)
    below.revert_(tiny_gpt2)
    assert state_fingerprint(tiny_gpt2) == untouched


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
