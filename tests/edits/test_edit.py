"""Edits come back bit for bit, in any order, and from disk."""

import json
from dataclasses import replace

import pytest
import torch
from known_edits import same
from safetensors.torch import save_file

from workbench.edits.edit import provenance
from workbench.edits.ledger import check_restored, state_fingerprint, undone
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REQUEST = EditRequest(
    template="The capital of {} is",
    subject="Portugal",
    target_new="Moscow",
    target_true="Lisbon",
    relation="capital",
)


def random_edit(model: Model, seed: int, *, layers: tuple[int, ...] = (2,), rank: int = 1) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    updates = tuple(
        WeightUpdate(
            layer=layer,
            left=torch.randn(model.d_mlp, rank, generator=generator),
            right=torch.randn(rank, model.d_model, generator=generator),
        )
        for layer in layers
    )
    provenance = {"model": model.name, "hyperparameters": {"contexts": ("{}", "So {}"), "rate": 0.1}}
    return WeightEdit(updates=updates, method="random", requests=(REQUEST,), provenance=provenance)


def test_applied_adds_left_times_right_and_restores_the_exact_weights(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    weight = tiny_gpt2.weight(2).clone()
    edit = random_edit(tiny_gpt2, 0, rank=3)
    with edit.applied(tiny_gpt2) as edited:
        assert edited is tiny_gpt2
        torch.testing.assert_close(edited.weight(2), weight + edit.updates[0].dense())
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}


def test_an_edit_reaches_the_logits(tiny_gpt2: Model):
    tokens = tiny_gpt2.tokenize(["The capital of Portugal is"])
    before = tiny_gpt2.logits(tokens)
    with random_edit(tiny_gpt2, 0).applied(tiny_gpt2):
        assert not torch.allclose(before, tiny_gpt2.logits(tokens))
    assert torch.equal(before, tiny_gpt2.logits(tokens))


def test_applied_restores_when_the_block_raises(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    with pytest.raises(KeyboardInterrupt), random_edit(tiny_gpt2, 0).applied(tiny_gpt2):
        raise KeyboardInterrupt
    assert same(before, tiny_gpt2.snapshot())


def test_nested_edits_of_one_matrix(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    with random_edit(tiny_gpt2, 0, layers=(1, 2)).applied(tiny_gpt2):
        outer = tiny_gpt2.snapshot()
        with random_edit(tiny_gpt2, 1, layers=(2, 3)).applied(tiny_gpt2):
            assert not same(outer, tiny_gpt2.snapshot())
        assert same(outer, tiny_gpt2.snapshot())
    assert same(before, tiny_gpt2.snapshot())


def test_the_same_edit_nested_in_itself(tiny_gpt2: Model):
    before, edit = tiny_gpt2.snapshot(), random_edit(tiny_gpt2, 0)
    with edit.applied(tiny_gpt2):
        once = tiny_gpt2.snapshot()
        with edit.applied(tiny_gpt2):
            assert len(tiny_gpt2.edits) == 2
        assert same(once, tiny_gpt2.snapshot())
    assert same(before, tiny_gpt2.snapshot())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_reverting_in_any_order_is_exact(tiny_gpt2: Model, order: tuple[int, ...]):
    before = tiny_gpt2.snapshot()
    edits = [random_edit(tiny_gpt2, seed, layers=layers) for seed, layers in enumerate([(1, 2), (2,), (2, 4)])]
    for edit in edits:
        edit.apply_(tiny_gpt2)
    left = list(edits)
    for index in order:
        edits[index].revert_(tiny_gpt2)
        left.remove(edits[index])
        now = tiny_gpt2.snapshot()
        # The same as if only those that are left had ever been applied.
        for edit in reversed(left):
            edit.revert_(tiny_gpt2)
        assert same(before, tiny_gpt2.snapshot())
        for edit in left:
            edit.apply_(tiny_gpt2)
        assert same(now, tiny_gpt2.snapshot())
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.originals == {}


def test_a_kept_edit_outlives_the_block_it_was_applied_in(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    tried, kept = random_edit(tiny_gpt2, 0), random_edit(tiny_gpt2, 1)
    with tried.applied(tiny_gpt2):
        kept.apply_(tiny_gpt2)
    now = tiny_gpt2.snapshot()
    kept.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())
    with kept.applied(tiny_gpt2):
        assert same(now, tiny_gpt2.snapshot())


def test_reverting_what_is_not_applied(tiny_gpt2: Model):
    with pytest.raises(ValueError, match="not applied"):
        random_edit(tiny_gpt2, 0).revert_(tiny_gpt2)


def test_relative_norms_are_those_of_the_dense_matrices(tiny_gpt2: Model):
    weights = {layer: tiny_gpt2.weight(layer).clone() for layer in (1, 2)}
    edit = random_edit(tiny_gpt2, 0, layers=(1, 2, 2), rank=2)
    sums = {1: edit.updates[0].dense(), 2: edit.updates[1].dense() + edit.updates[2].dense()}
    expected = {layer: (sums[layer].norm() / weights[layer].norm()).item() for layer in (1, 2)}
    assert edit.norms(tiny_gpt2) == pytest.approx(expected, rel=1e-5)
    with edit.applied(tiny_gpt2):
        assert edit.norms(tiny_gpt2) == pytest.approx(expected, rel=1e-5)


def test_saving_and_loading_gives_the_same_edit(tiny_gpt2: Model, tmp_path):
    edit = random_edit(tiny_gpt2, 0, layers=(1, 3), rank=2)
    edit.save(tmp_path / "deep" / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "deep" / "edit.safetensors")
    assert loaded.requests == edit.requests
    assert loaded.method == edit.method
    assert loaded.provenance == edit.provenance
    for ours, theirs in zip(edit.updates, loaded.updates, strict=True):
        assert (ours.layer, ours.matrix) == (theirs.layer, theirs.matrix)
        assert torch.equal(ours.left, theirs.left) and torch.equal(ours.right, theirs.right)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["edit.safetensors"]
    with edit.applied(tiny_gpt2):
        expected = tiny_gpt2.snapshot()
    with loaded.applied(tiny_gpt2):
        assert same(expected, tiny_gpt2.snapshot())


def test_an_edit_of_another_model_is_refused_before_anything_changes(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    fits = WeightUpdate(layer=1, left=torch.ones(tiny_gpt2.d_mlp, 1), right=torch.ones(1, tiny_gpt2.d_model))
    wide = WeightUpdate(layer=2, left=torch.ones(12, 1), right=torch.ones(1, tiny_gpt2.d_model))
    deep = WeightUpdate(layer=47, left=torch.ones(tiny_gpt2.d_mlp, 1), right=torch.ones(1, tiny_gpt2.d_model))
    for update, error, message in [(wide, ValueError, "12 x 64"), (deep, IndexError, "47")]:
        edit = WeightEdit(updates=(fits, update), method="ROME", requests=(), provenance={})
        with pytest.raises(error, match=message):
            edit.apply_(tiny_gpt2)
        with pytest.raises(error, match=message), edit.applied(tiny_gpt2):
            pass
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}


def test_an_application_that_fails_halfway_leaves_no_trace(tiny_gpt2: Model, monkeypatch):
    before, edit = tiny_gpt2.snapshot(), random_edit(tiny_gpt2, 0, layers=(1, 2))
    dense = WeightUpdate.dense

    def fail_in_layer_2(update: WeightUpdate) -> torch.Tensor:
        if update.layer == 2:
            raise MemoryError
        return dense(update)

    monkeypatch.setattr(WeightUpdate, "dense", fail_in_layer_2)
    with pytest.raises(MemoryError):
        edit.apply_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}


def test_updates_that_make_no_sense(tiny_gpt2: Model):
    # The check of shapes under pytest (a TypeError) comes before our own.
    with pytest.raises((ValueError, TypeError), match="rank"):
        WeightUpdate(layer=0, left=torch.ones(8, 2), right=torch.ones(1, 4))
    with pytest.raises(ValueError, match="not finite"):
        WeightUpdate(layer=0, left=torch.full((8, 1), float("nan")), right=torch.ones(1, 4))
    with pytest.raises(ValueError, match="JSON"):
        WeightEdit(updates=(), method="ROME", requests=(), provenance={"model": tiny_gpt2})


def test_loading_what_is_not_an_edit(tmp_path):
    with pytest.raises(FileNotFoundError, match="no edit at"):
        WeightEdit.load(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not an edit"):
        WeightEdit.load(tmp_path / "text.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not an edit"):
        WeightEdit.load(tmp_path / "other.safetensors")
    content = {
        "method": "ROME",
        "requests": [],
        "provenance": {},
        "updates": [{"layer": 0, "matrix": "W_out"}],
    }
    save_file(
        {"x": torch.ones(1)},
        tmp_path / "missing.safetensors",
        metadata={"format": "workbench-edit-1", "edit": json.dumps(content)},
    )
    with pytest.raises(ValueError, match="not an edit"):
        WeightEdit.load(tmp_path / "missing.safetensors")


def test_memory_is_saved_with_the_edit(tiny_gpt2: Model, tmp_path):
    memory = {"keys.1": torch.randn(6, 3), "keys.2": torch.arange(4)}
    edit = replace(random_edit(tiny_gpt2, 0), carried=memory)
    edit.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors")
    assert same(dict(loaded.carried), memory)
    assert len(loaded.updates) == 1
    assert loaded.digest == edit.digest
    assert random_edit(tiny_gpt2, 0).carried == {}


def test_one_tensor_may_be_in_an_edit_twice(tiny_gpt2: Model, tmp_path):
    edit = random_edit(tiny_gpt2, 0, layers=(1, 2))
    left = edit.updates[0].left
    edit = replace(edit, updates=tuple(replace(each, left=left) for each in edit.updates), carried={"keys": left})
    edit.save(tmp_path / "edit.safetensors")
    assert WeightEdit.load(tmp_path / "edit.safetensors").digest == edit.digest


def test_the_digest_is_of_every_tensor_and_its_place(tiny_gpt2: Model):
    edit = random_edit(tiny_gpt2, 0)
    assert edit.digest == random_edit(tiny_gpt2, 0).digest
    others = [
        random_edit(tiny_gpt2, 1),
        random_edit(tiny_gpt2, 0, layers=(3,)),
        replace(edit, updates=(replace(edit.updates[0], right=-edit.updates[0].right),)),
        replace(edit, carried={"keys.2": torch.zeros(1)}),
    ]
    assert len({edit.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_an_edit_from_disk_is_for_the_weights_it_was_made_for(tiny_gpt2: Model, tmp_path):
    path, before = tmp_path / "edit.safetensors", tiny_gpt2.snapshot()
    edit = replace(random_edit(tiny_gpt2, 0), provenance=provenance(tiny_gpt2, {}))
    edit.save(path)
    assert WeightEdit.load(path, model=tiny_gpt2).digest == edit.digest
    made = tiny_gpt2.fingerprint()
    try:
        tiny_gpt2.weight(0)[0, 0] += 1e-3
        other = tiny_gpt2.fingerprint()
        with pytest.raises(ValueError, match=f"'Portugal'.*{made[:12]}.*{other[:12]}.*force"):
            WeightEdit.load(path, model=tiny_gpt2)
        with pytest.warns(UserWarning, match=f"{made[:12]}.*{other[:12]}"):
            assert WeightEdit.load(path, model=tiny_gpt2, force=True).digest == edit.digest
        assert WeightEdit.load(path).digest == edit.digest  # to look at it, no model is needed
    finally:
        tiny_gpt2.restore_(before)
    replace(edit, provenance={}).save(path)
    with pytest.raises(ValueError, match="fingerprint unknown"):
        WeightEdit.load(path, model=tiny_gpt2)


def test_an_edit_made_on_top_of_others_is_for_these(tiny_gpt2: Model, tmp_path):
    first, second = random_edit(tiny_gpt2, 0, layers=(1, 2)), random_edit(tiny_gpt2, 1)
    with first.applied(tiny_gpt2):
        top = replace(second, provenance=provenance(tiny_gpt2, {}))
    first.save(tmp_path / "first.safetensors")
    top.save(tmp_path / "top.safetensors")
    with pytest.raises(ValueError, match="on top of"):
        WeightEdit.load(tmp_path / "top.safetensors", model=tiny_gpt2)
    with second.applied(tiny_gpt2), pytest.raises(ValueError, match="with 1 edits applied"):
        WeightEdit.load(tmp_path / "top.safetensors", model=tiny_gpt2)
    with WeightEdit.load(tmp_path / "first.safetensors").applied(tiny_gpt2):
        WeightEdit.load(tmp_path / "top.safetensors", model=tiny_gpt2)


def test_the_state_is_the_weights_without_edits_and_the_edits_in_order(tiny_gpt2: Model):
    one, two = random_edit(tiny_gpt2, 0, layers=(1, 2)), random_edit(tiny_gpt2, 1)
    before = tiny_gpt2.snapshot()
    states = [state_fingerprint(tiny_gpt2)]
    assert states == [tiny_gpt2.fingerprint()]
    for applied in [(one,), (two,), (one, two), (two, one)]:
        with undone(tiny_gpt2):
            for edit in applied:
                edit.apply_(tiny_gpt2)
            edited = tiny_gpt2.snapshot()
            states.append(state_fingerprint(tiny_gpt2))
            assert same(edited, tiny_gpt2.snapshot())
            tiny_gpt2.weight(0)[0, 0] += 1e-3  # a matrix that no edit knows of counts too
            assert state_fingerprint(tiny_gpt2) != states[-1]
            tiny_gpt2.restore_(edited)
    assert len(set(states)) == 5
    assert same(before, tiny_gpt2.snapshot())


def test_undone_takes_back_what_the_block_applied_and_nothing_else(tiny_gpt2: Model):
    start = tiny_gpt2.snapshot()
    one, two, three = (random_edit(tiny_gpt2, seed, layers=(1, 2)) for seed in range(3))
    one.apply_(tiny_gpt2)
    two.apply_(tiny_gpt2)
    before = tiny_gpt2.snapshot()
    with pytest.raises(KeyboardInterrupt), undone(tiny_gpt2):
        for edit in (three, one, three):
            edit.apply_(tiny_gpt2)
        raise KeyboardInterrupt
    assert [edit is wanted for edit, wanted in zip(tiny_gpt2.edits, (one, two), strict=True)] == [True, True]
    assert same(before, tiny_gpt2.snapshot())
    with undone(tiny_gpt2):
        three.apply_(tiny_gpt2)
        one.revert_(tiny_gpt2)  # of before the block, and stays reverted
    two.revert_(tiny_gpt2)
    assert same(start, tiny_gpt2.snapshot())
    assert tiny_gpt2.edits == [] and tiny_gpt2.originals == {}


def test_weights_that_did_not_come_back_are_noticed(tiny_gpt2: Model):
    weights, kept = tiny_gpt2.fingerprint(), tiny_gpt2.snapshot()
    check_restored(tiny_gpt2, weights, after="nothing")
    try:
        with torch.no_grad():
            tiny_gpt2.weight(2)[0, 0] += 1e-3
        with pytest.raises(RuntimeError, match=r"^a change: .* has not the weights and edits"):
            check_restored(tiny_gpt2, weights, after="a change")
    finally:
        tiny_gpt2.restore_(kept)
    check_restored(tiny_gpt2, weights, after="nothing")
