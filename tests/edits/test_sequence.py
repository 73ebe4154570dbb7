"""Sequences: the same as by hand, rolled back bit for bit, resumed from disk, split when memory runs out."""

import gc
import itertools
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file

from workbench.editors.alphaedit import AlphaEdit
from workbench.editors.rome import ROME
from workbench.editors.shared.moment import SecondMoment
from workbench.edits.edit import Edit, provenance
from workbench.edits.sequence import Steps, applied_files, sequence
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model
from workbench.records.facts import EditRequest

CAPITALS = (("Portugal", "Moscow"), ("Japan", "Rome"), ("Egypt", "Athens"), ("Italy", "Cairo"), ("Russia", "Lisbon"))
REQUESTS = [EditRequest(template="The capital of {} is", subject=s, target_new=target) for s, target in CAPITALS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Toy:
    """Reads the weights as they are and, as AlphaEdit does, the memory of the edits that are applied."""

    calls: ClassVar[list[tuple[str, ...]]] = []
    room: ClassVar[int] = 100
    """Requests for which there is memory."""

    layers: tuple[int, ...] = (1, 2)
    scale: float = 0.1
    moment: torch.Tensor | None = None

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        if len(requests) > self.room:
            raise MemoryError(f"{len(requests)} requests")
        self.calls.append(tuple(request.subject for request in requests))
        made = provenance(model, {"scale": self.scale})
        keys = torch.stack([torch.linspace(-1, 1, model.d_mlp).mul(len(r.subject)).sin() for r in requests], dim=1)
        remembered = sum((edit.carried["keys"].sum(dim=1) for edit in model.edits if edit.carried), torch.zeros(1))
        updates = tuple(
            WeightUpdate(
                layer=layer, left=keys, right=self.scale * (keys + remembered[:, None]).T @ model.weight(layer)
            )
            for layer in self.layers
        )
        return WeightEdit(
            updates=updates, method="toy", requests=tuple(requests), provenance=made, carried={"keys": keys.clone()}
        )


@pytest.fixture(autouse=True)
def no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "calls", [])


@pytest.fixture(params=["toy", "rome", "alphaedit"])
def editor(request: pytest.FixtureRequest) -> Any:
    if request.param == "toy":
        return Toy()
    if request.param == "rome":
        return ROME(layer=2, second_moment=None, steps=3, weight_decay=0.05)
    golden = load_file(GOLDEN / "rome.safetensors")
    moments = {n: SecondMoment(layer=n, matrix=golden[f"second_moment.{n}"].double(), count=37512) for n in (1, 2)}
    threshold = torch.linalg.eigvalsh(moments[1].matrix).median().item()
    return AlphaEdit(layers=(1, 2), second_moments=moments, null_threshold=threshold, steps=3, weight_decay=0.05)


def weights_of(model: Model, edits: Sequence[Edit]) -> dict[str, torch.Tensor]:
    """The weights that these edits alone make."""
    with applied(model, edits):
        return model.snapshot()


class applied:
    def __init__(self, model: Model, edits: Sequence[Edit]) -> None:
        self.model, self.edits = model, edits

    def __enter__(self) -> None:
        for edit in self.edits:
            edit.apply_(self.model)

    def __exit__(self, *_: object) -> None:
        for edit in reversed(self.edits):
            edit.revert_(self.model)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(7, marks=pytest.mark.slow)])
def test_a_sequence_is_the_editor_called_chunk_after_chunk(tiny_gpt2: Model, editor: Any, chunk: int):
    before = tiny_gpt2.snapshot()
    with sequence(tiny_gpt2, editor, REQUESTS, chunk=chunk) as steps:
        counts = [(len(edit.requests), len(tiny_gpt2.edits), steps.done) for edit in steps]
        edited = tiny_gpt2.snapshot()
        assert len(steps.edits) == -(-len(REQUESTS) // chunk)
    assert counts[-1][1:] == (len(counts), len(REQUESTS))
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}

    by_hand: list[Edit] = []
    for first in range(0, len(REQUESTS), chunk):
        by_hand.append(editor(tiny_gpt2, REQUESTS[first : first + chunk]))
        by_hand[-1].apply_(tiny_gpt2)
    assert same(edited, tiny_gpt2.snapshot())
    for edit in by_hand:
        edit.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())


def test_iterating_goes_on_where_it_was_left(tiny_gpt2: Model):
    with sequence(tiny_gpt2, Toy(), REQUESTS, chunk=2) as steps:
        next(steps)
        assert [edit.requests for edit in steps] == [tuple(REQUESTS[2:4]), tuple(REQUESTS[4:])]
        assert list(steps) == []
    assert [len(subjects) for subjects in Toy.calls] == [2, 2, 1]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_leaving_takes_back_the_sequence_and_no_other_edit(tiny_gpt2: Model, error: type[BaseException] | None):
    start = tiny_gpt2.snapshot()
    other = Toy(layers=(2, 3))(tiny_gpt2, REQUESTS[:1])
    with other.applied(tiny_gpt2):
        before = tiny_gpt2.snapshot()
        try:
            with sequence(tiny_gpt2, Toy(), REQUESTS) as steps:
                for edit in steps:
                    if len(steps.edits) == 3:
                        edit.revert_(tiny_gpt2)  # by another way than `rollback`
                        if error:
                            raise error
                        break
        except (ValueError, KeyboardInterrupt) as raised:
            assert type(raised) is error
        assert tiny_gpt2.edits == [other]
        assert same(before, tiny_gpt2.snapshot())
    assert same(start, tiny_gpt2.snapshot())


def test_an_editor_that_fails_leaves_nothing_of_its_chunk(tiny_gpt2: Model, tmp_path: Path, monkeypatch):
    before = tiny_gpt2.snapshot()

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        sequence(tiny_gpt2, Toy(), REQUESTS, chunk=2, folder=tmp_path) as steps,
    ):
        next(steps)
        monkeypatch.setattr(Toy, "__call__", interrupted)
        next(steps)
    assert same(before, tiny_gpt2.snapshot())
    assert names(tmp_path) == ["00000-00001.safetensors", "sequence.json"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1::2])
def test_any_edit_is_rolled_back_exactly(tiny_gpt2: Model, order: tuple[int, ...]):
    before = tiny_gpt2.snapshot()
    with sequence(tiny_gpt2, Toy(), REQUESTS[:3]) as steps:
        edits = list(steps)
    for count in (1, 2, 3):
        left = [edit for index, edit in enumerate(edits) if index not in order[:count]]
        expected = weights_of(tiny_gpt2, left)
        with sequence(tiny_gpt2, Toy(), REQUESTS[:3]) as steps:
            list(steps)
            for index in order[:count]:
                steps.rollback(index)
            assert same(expected, tiny_gpt2.snapshot())
            assert [edit.digest for edit in tiny_gpt2.edits] == [edit.digest for edit in left]
        assert same(before, tiny_gpt2.snapshot())


def test_what_was_rolled_back_is_neither_in_the_weights_nor_in_the_memory_of_what_follows(tiny_gpt2: Model):
    with sequence(tiny_gpt2, Toy(), REQUESTS[:4]) as steps:
        for _ in range(3):
            next(steps)
        steps.rollback(1)
        following = next(steps)
        edits = list(steps.edits)
    with applied(tiny_gpt2, [edits[0], edits[2]]):
        assert Toy()(tiny_gpt2, REQUESTS[3:4]).digest == following.digest
    with applied(tiny_gpt2, edits[:3]):
        assert Toy()(tiny_gpt2, REQUESTS[3:4]).digest != following.digest


def test_rollbacks_that_make_no_sense(tiny_gpt2: Model):
    with sequence(tiny_gpt2, Toy(), REQUESTS) as steps:
        next(steps)
        for index in (1, -1):
            with pytest.raises(IndexError, match=f"no edit {index} in this sequence: 1 have been made"):
                steps.rollback(index)
        steps.rollback(0)
        with pytest.raises(ValueError, match="not applied"):
            steps.rollback(0)


@pytest.mark.slow
def test_a_sequence_is_resumed_from_its_folder(tiny_gpt2: Model, editor: Any, tmp_path: Path):
    with sequence(tiny_gpt2, editor, REQUESTS, chunk=2) as steps:
        digests = [edit.digest for edit in steps]
        whole = tiny_gpt2.snapshot()
    with sequence(tiny_gpt2, editor, REQUESTS, chunk=2, folder=tmp_path / "edits") as steps:
        next(steps)
        next(steps)
    assert names(tmp_path / "edits") == ["00000-00001.safetensors", "00002-00003.safetensors", "sequence.json"]
    Toy.calls.clear()
    with sequence(tiny_gpt2, editor, REQUESTS, chunk=2, folder=tmp_path / "edits") as steps:
        assert [edit.digest for edit in steps] == digests
        assert same(whole, tiny_gpt2.snapshot())
    assert Toy.calls == ([("Russia",)] if isinstance(editor, Toy) else [])
    with sequence(tiny_gpt2, editor, REQUESTS, chunk=2, folder=tmp_path / "edits") as steps:
        assert [edit.digest for edit in steps] == digests
    assert len(names(tmp_path / "edits")) == 4


def test_a_folder_of_another_sequence_is_refused(tiny_gpt2: Model, tmp_path: Path):
    def edit(editor: Any = None, requests: Sequence[EditRequest] = REQUESTS, chunk: int = 2) -> None:
        with sequence(tiny_gpt2, editor or Toy(moment=torch.eye(2)), requests, chunk=chunk, folder=tmp_path) as steps:
            list(steps)

    edit()
    saved = {path: path.read_bytes() for path in tmp_path.iterdir()}
    before, calls = tiny_gpt2.snapshot(), len(Toy.calls)
    changed = [*REQUESTS[:3], replace(REQUESTS[3], target_new="Paris"), REQUESTS[4]]
    with pytest.raises(ValueError, match=r"another sequence \(the requests differ from number 3 on\): choose another"):
        edit(requests=changed)
    with pytest.raises(ValueError, match="the requests differ from number 4 on"):
        edit(requests=REQUESTS[:4])
    with pytest.raises(ValueError, match=r"\(chunk was 2 and is now 3\)"):
        edit(chunk=3)
    with pytest.raises(ValueError, match=r"\(scale was 0.1 and is now 0.2\)"):
        edit(editor=Toy(moment=torch.eye(2), scale=0.2))
    with pytest.raises(ValueError, match=r"\(moment was 'sha256 .* and is now 'sha256 .*\): choose"):
        edit(editor=Toy(moment=2 * torch.eye(2)))
    with pytest.raises(ValueError, match="editor was 'Toy' and is now 'ROME'"):
        edit(editor=ROME(layer=2, second_moment=None))
    with Toy(scale=1.0)(tiny_gpt2, REQUESTS).applied(tiny_gpt2), pytest.raises(ValueError, match=r"\(fingerprint was"):
        edit()
    assert len(Toy.calls) == calls + 1
    assert same(before, tiny_gpt2.snapshot())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == saved


def test_saved_edits_that_do_not_go_on_from_each_other(tiny_gpt2: Model, tmp_path: Path):
    with sequence(tiny_gpt2, Toy(), REQUESTS, folder=tmp_path) as steps:
        list(steps)
    Toy(scale=1.0)(tiny_gpt2, REQUESTS[:1]).save(tmp_path / "00000-00000.safetensors")
    with sequence(tiny_gpt2, Toy(), REQUESTS, folder=tmp_path) as steps:
        next(steps)
        with pytest.raises(ValueError, match=r"00001-00001.safetensors' does not go on .*: delete it and those after"):
            next(steps)
    Toy()(tiny_gpt2, REQUESTS[:2]).save(tmp_path / "00000-00001.safetensors")
    with (
        sequence(tiny_gpt2, Toy(), REQUESTS, folder=tmp_path) as steps,
        pytest.raises(ValueError, match="for request 0"),
    ):
        next(steps)


@pytest.mark.filterwarnings("ignore:3 requests do not fit")
def test_a_chunk_too_large_for_memory_is_split(tiny_gpt2: Model, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Toy, "room", 2)
    with (
        pytest.warns(UserWarning, match="5 requests do not fit into memory: chunks of 3 from here"),
        sequence(tiny_gpt2, Toy(), REQUESTS, chunk=5, folder=tmp_path) as steps,
    ):
        counts = [len(edit.requests) for edit in steps]
        edited = tiny_gpt2.snapshot()
    assert counts == [2, 2, 1]
    with sequence(tiny_gpt2, Toy(), REQUESTS, chunk=2) as steps:
        list(steps)
        assert same(edited, tiny_gpt2.snapshot())
    Toy.calls.clear()
    with sequence(tiny_gpt2, Toy(), REQUESTS, chunk=5, folder=tmp_path) as steps:
        assert [len(edit.requests) for edit in steps] == counts
        assert same(edited, tiny_gpt2.snapshot())
    assert Toy.calls == []


@pytest.mark.filterwarnings("ignore:4 requests do not fit")
def test_what_cannot_be_split_is_raised(tiny_gpt2: Model, monkeypatch):
    def fails_with(error: Exception) -> Steps:
        def fail(*_: object) -> WeightEdit:
            Toy.calls.append(())
            raise error

        monkeypatch.setattr(Toy, "__call__", fail)
        Toy.calls.clear()
        with (
            sequence(tiny_gpt2, Toy(), REQUESTS[:4], chunk=4) as steps,
            pytest.raises(type(error), match=re.escape(str(error))),
        ):
            next(steps)
        return steps

    fails_with(RuntimeError("hooks that never fired"))
    assert len(Toy.calls) == 1
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 55)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), full.value):
        with pytest.warns(UserWarning, match="chunks of 1"):
            assert fails_with(error).chunk == 1
        assert len(Toy.calls) == 3


def test_sequences_that_make_no_sense(tiny_gpt2: Model, tmp_path: Path):
    def refused(message: str, **options: Any) -> None:
        given = {"editor": Toy(), "requests": REQUESTS} | options
        with pytest.raises(ValueError, match=message), sequence(tiny_gpt2, **given):
            pass

    refused("at least one request", requests=[])
    refused("chunk must be at least 1, got 0", chunk=0)
    (tmp_path / "notes.txt").write_text("mine")
    refused("holds files but no sequence.json", folder=tmp_path)
    refused("is a file, not a folder", folder=tmp_path / "notes.txt")
    refused("is not a dataclass", folder=tmp_path / "new", editor=lambda model, requests: Toy()(model, requests))
    assert names(tmp_path) == ["notes.txt"]


def test_files_of_a_sequence_and_files_of_single_edits_are_applied_in_order(tiny_gpt2: Model, tmp_path: Path):
    before = tiny_gpt2.snapshot()
    with sequence(tiny_gpt2, Toy(), REQUESTS, folder=tmp_path / "sequence") as steps:
        list(steps)
        whole = tiny_gpt2.snapshot()
    paths = sorted((tmp_path / "sequence").glob("*.safetensors"))
    with applied_files(tiny_gpt2, paths) as edits:
        assert len(edits) == len(REQUESTS)
        assert same(whole, tiny_gpt2.snapshot())
    assert same(before, tiny_gpt2.snapshot())

    single = [Toy()(tiny_gpt2, [request]) for request in REQUESTS[:2]]
    for index, edit in enumerate(single):
        edit.save(tmp_path / f"{index}.safetensors")
    with applied_files(tiny_gpt2, [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]):
        both = tiny_gpt2.snapshot()
    assert same(both, weights_of(tiny_gpt2, single))

    there, elsewhere = paths[0], tmp_path / "single" / ".." / "sequence" / paths[0].name
    (tmp_path / "single").mkdir()
    with pytest.raises(ValueError, match="is named twice"), applied_files(tiny_gpt2, [there, elsewhere]):
        pass
    with pytest.raises(ValueError, match="on top of"), applied_files(tiny_gpt2, [paths[0], paths[2]]):
        pass
    with pytest.warns(UserWarning, match="was made for"), applied_files(tiny_gpt2, [paths[0], paths[2]], force=True):
        assert len(tiny_gpt2.edits) == 2
    assert same(before, tiny_gpt2.snapshot())


def test_what_refers_to_itself_is_gone_before_half_of_a_chunk_is_tried(tiny_gpt2: Model, monkeypatch):
    """As CUDA graphs do, which would keep their memory."""
    made, call = [], Toy.__call__

    class Held:
        def __init__(self) -> None:
            self.itself = self

    def holding(self: Toy, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        assert all(earlier() is None for earlier in made)
        made.append(weakref.ref(Held()))
        return call(self, model, requests)

    monkeypatch.setattr(Toy, "room", 2)
    monkeypatch.setattr(Toy, "__call__", holding)
    gc.disable()
    try:
        with (
            pytest.warns(UserWarning, match="4 requests do not fit into memory: chunks of 2"),
            sequence(tiny_gpt2, Toy(), REQUESTS[:4], chunk=4) as steps,
        ):
            next(steps)
    finally:
        gc.enable()
    assert len(made) == 2
