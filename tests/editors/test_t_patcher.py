"""T-Patcher: the published code's numbers, patches on patches, and what it does with bad input."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from known_scores import all_top, scored
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.make import make_editor
from workbench.editors.setup.presets import PRESETS
from workbench.editors.shared.beside import WholeNetwork
from workbench.editors.shared.memories import Memories, remembered
from workbench.editors.t_patcher import TPatcher
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.neurons import NeuronEdit, Neurons
from workbench.edits.sequence import sequence
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record
from workbench.records.joining import join

REFERENCE = json.loads((GOLDEN / "survey" / "tpatcher.json").read_text(encoding="utf-8"))
PORTUGAL = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
ARGENTINA = EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish")
REQUESTS = [PORTUGAL, ARGENTINA]
PUBLISHED: dict[str, Any] = {
    "seq2seq.0": (PORTUGAL, (0.0, 0.0)),
    "seq2seq.1": (ARGENTINA, (0.0, 0.0)),
    "margins.0": (PORTUGAL, (3.0, -3.0)),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "survey" / "tpatcher.safetensors")


@pytest.fixture(scope="module")
def memories(tiny_gpt2: Model) -> Memories:
    """The golden ones."""
    return remembered(tiny_gpt2, 5, REFERENCE["memory_sentences"], source="texts", at_most=1000)


def test_golden_memories(memories: Memories, golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(memories.queries, golden["memory"], atol=1e-5, rtol=1e-5)
    assert len(memories.unrelated(["Peru", "cairo"])) == 87 - sum(memories.text.tolist().count(i) for i in (2, 3))


@pytest.mark.parametrize("entry", REFERENCE["requests"], ids=lambda entry: entry["tag"])
def test_golden_steps(
    tiny_gpt2: Model,
    golden: dict[str, Tensor],
    memories: Memories,
    entry: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong tokens, the patches as they start, three losses before and after five steps, and what these leave."""
    tag, settings, count = entry["tag"], REFERENCE["settings"], len(entry["input_ids"])
    request, margins = PUBLISHED[tag]
    assert (request.prompt, request.target_new) == (entry["prompt"], entry["target"])
    monkeypatch.setattr(TPatcher, "_drawn", lambda self, request, *shape: golden[f"{tag}.value"].T)
    editor = TPatcher(
        layer=5, memories=memories, steps=5, margins=margins, label_smoothing=settings["label_smoothing"],
        learning_rate=settings["lr"], weight_decay=settings["weight_decay"], amplify=settings["amplify"],
        memory_weight=float(settings["memory_weight"]), activation_weight=settings["act_weight"],
    )  # fmt: skip
    edit = editor(tiny_gpt2, [request])
    (found,) = edit.provenance["optimisation"]
    assert found["patches"] == len(entry["wrong_positions"])
    for index, step in enumerate(entry["steps"]):
        said = {name: losses[index] for name, losses in found.items() if name != "patches"}
        expected = {"edit": step["loss"], "activation": step["act"], "memory": step["memory"]}
        assert said == pytest.approx(expected, rel=1e-4)
    queries = golden[f"{tag}.queries"]
    wrong = [at - count for at in entry["wrong_positions"]]
    torch.testing.assert_close(edit.carried["queries"][wrong], queries, atol=1e-5, rtol=1e-5)

    key, bias, value, scale = editor._started(request, queries)
    first = replace(edit, neurons=Neurons(keys=key, biases=bias, values=value * scale))
    text = f"{request.prompt} {request.target_new}"
    sites = [tiny_gpt2.hook_name(site, 5) for site in ("mlp_in", "mlp_out")]
    with first.applied(tiny_gpt2):
        states = tiny_gpt2.activations(tiny_gpt2.tokenize([text]), sites)
    read, wrote = (states[site][0, :count] for site in sites)
    exact = {"mlp_in": read, "mlp_out": wrote, "patch_preact": first.neurons.inputs(read), "key": key, "bias": bias}
    for name, mine in exact.items():
        torch.testing.assert_close(mine, golden[f"{tag}.{name}"], atol=1e-4, rtol=1e-5)

    if len(entry["steps"]) == 1:  # of the margins' case only the losses at the start were printed
        return
    for name, mine in (("key", edit.neurons.keys), ("bias", edit.neurons.biases), ("value", edit.neurons.values.T)):
        expected = golden[f"{tag}.{name}_after"]
        assert mine is not None and (mine - expected).norm() / expected.norm() < 1e-4, name
    with edit.applied(tiny_gpt2):
        logits = tiny_gpt2.logits(tiny_gpt2.tokenize([text]))[0, :count]
    torch.testing.assert_close(logits, golden[f"{tag}.logits_after"], atol=1e-3, rtol=1e-4)


# What it is and does ------------------------------------------------------------------------------------


def texts_of(requests: Sequence[EditRequest]) -> list[str]:
    return [join(each.prompt, each.target_new, each.separator) for each in requests]


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        return model.logits(model.tokenize(texts_of(REQUESTS)))


@pytest.fixture
def plain(memories: Memories) -> TPatcher:
    return TPatcher(layer=5, memories=memories, steps=20, least_steps=10, amplify=1.0, learning_rate=0.05)


def test_what_is_said_already_needs_no_patch(tiny_gpt2: Model, plain: TPatcher) -> None:
    """And without patches the model is itself bit for bit."""
    known, own = replace(PORTUGAL, target_new="Lisbon"), logits(tiny_gpt2)
    assert all_top(tiny_gpt2, [known.prompt], ["Lisbon"]) == [True]
    edit = plain(tiny_gpt2, [known])
    assert len(edit.neurons) == 0 and edit.provenance["optimisation"][0]["patches"] == 0
    with edit.applied(tiny_gpt2):
        assert torch.equal(logits(tiny_gpt2), own)


def test_it_edits_and_stops_when_it_is_done(tiny_gpt2: Model, plain: TPatcher) -> None:
    before, untouched, own = tiny_gpt2.snapshot(), state_fingerprint(tiny_gpt2), logits(tiny_gpt2)
    edit = replace(plain, steps=400)(tiny_gpt2, [PORTUGAL])
    (found,) = edit.provenance["optimisation"]
    steps = len(found["edit"]) - 1
    assert steps < 400 and steps % 25 == 0
    assert edit.provenance["hyperparameters"]["memories"] == {"of": "texts", "tokens": 87}
    with edit.applied(tiny_gpt2):
        assert all_top(tiny_gpt2, [PORTUGAL.prompt], ["Moscow"]) == [True]
    inputs = edit.neurons.inputs(plain.memories.queries if plain.memories else torch.empty(0, 64))
    assert inputs.max() < edit.neurons.inputs(edit.carried["queries"]).max(), "memories activate it less"
    assert torch.equal(logits(tiny_gpt2), own) and same(before, tiny_gpt2.snapshot())
    check_restored(tiny_gpt2, untouched, after="a test")


def test_most_patches(tiny_gpt2: Model, plain: TPatcher) -> None:
    """The first wrong tokens get them."""
    one, all_of_them = (replace(plain, steps=1, most_patches=most)(tiny_gpt2, [PORTUGAL]) for most in (1, 5))
    assert (len(one.neurons), len(all_of_them.neurons)) == (1, 2)


@pytest.mark.slow
def test_each_edit_stands_on_those_before(tiny_gpt2: Model, plain: TPatcher, tmp_path: Path) -> None:
    """Together is one after another, goes on from files, and what was patched is remembered."""
    together = plain(tiny_gpt2, REQUESTS)
    assert tiny_gpt2.edits == []
    with together.applied(tiny_gpt2):
        expected = logits(tiny_gpt2)
    with sequence(tiny_gpt2, plain, REQUESTS, folder=tmp_path / "edits") as steps:
        apart: list[Any] = list(steps)
        torch.testing.assert_close(logits(tiny_gpt2), expected)
        steps.rollback(1)
        fewer = logits(tiny_gpt2)
    torch.testing.assert_close(torch.cat([each.neurons.keys for each in apart]), together.neurons.keys)
    (tmp_path / "edits" / "00001-00001.safetensors").unlink()
    with sequence(tiny_gpt2, plain, REQUESTS, folder=tmp_path / "edits") as steps:
        assert [edit.digest for edit in steps] == [edit.digest for edit in apart]
        steps.rollback(1)
        assert torch.equal(logits(tiny_gpt2), fewer)
    with apart[0].applied(tiny_gpt2):
        assert plain.memories is not None
        asked = {"other": ARGENTINA, "same": replace(ARGENTINA, subject="portugal")}
        found = {name: plain._memory(tiny_gpt2, request) for name, request in asked.items()}
    assert found["other"] is not None and found["same"] is not None
    assert torch.equal(found["other"][-len(apart[0].carried["queries"]) :], apart[0].carried["queries"])
    assert len(found["same"]) == len(plain.memories.queries), "what is about the subject is no memory"


def test_the_whole_network_finds_the_same(tiny_gpt2: Model, plain: TPatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(plain, steps=5)
    fast = quick(tiny_gpt2, REQUESTS)
    monkeypatch.setattr("workbench.editors.t_patcher.beside_mlp", WholeNetwork)
    slow = quick(tiny_gpt2, REQUESTS)
    for name, tensor in fast.tensors().items():
        torch.testing.assert_close(tensor, slow.tensors()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_families_in_half_precision(checkpoints: dict[str, Path], family: str, tmp_path: Path) -> None:
    model = load_model(str(checkpoints[family]), device="cpu", dtype=torch.bfloat16)
    memories = remembered(model, 2, REFERENCE["memory_sentences"], source="texts", at_most=60)
    assert len(memories.queries) == 60 and memories.queries.dtype == torch.float32
    edit = TPatcher(layer=2, memories=memories, steps=10, amplify=0.1, learning_rate=0.02)(model, [PORTUGAL])
    edit.save(tmp_path / "edit.safetensors")
    loaded = NeuronEdit.load(tmp_path / "edit.safetensors", model=model)
    (found,) = edit.provenance["optimisation"]
    assert found["memory"][-1] < found["memory"][0]
    with loaded.applied(model):
        (said,) = scored(model, [PORTUGAL.prompt], ["Moscow"])
    assert -said.mean().item() == pytest.approx(found["edit"][-1], abs=0.1)


# Prepared -----------------------------------------------------------------------------------------------


def prepared(model: Model, **options: Any) -> TPatcher:
    options = {"layer": 2, "texts": lambda: ["Rain fell on the old town."], "preset_of": "atlas"} | options
    editor = make_editor(model, "t_patcher", seed=0, cache=Path(), **options)
    assert isinstance(editor, TPatcher)
    return editor


def test_memories_are_of_records_or_else_of_texts(tiny_gpt2: Model) -> None:
    record = Record(case_id=0, request=replace(PORTUGAL, subject="Japan", target_new="Rome", target_true="Tokyo"))
    found = prepared(tiny_gpt2, records=lambda: [record]).memories
    assert found is not None and found.source == "training records"
    assert found.texts == ("The capital of Japan is Tokyo",), "what is true, not what another edit would say"
    found = prepared(tiny_gpt2).memories
    assert found is not None and (found.source, found.texts) == ("texts", ("Rain fell on the old town.",))


def test_it_stands_at_the_last_layer(tiny_gpt2: Model) -> None:
    """Wherever tracing points, unless a layer is to be edited alone."""
    assert prepared(tiny_gpt2).layers == (5,)
    assert prepared(tiny_gpt2, alone=True).layers == (2,)


def test_without_memories_no_weight_is_on_them(tiny_gpt2: Model) -> None:
    assert prepared(tiny_gpt2, memory_weight=0.0).memories is None


def test_presets() -> None:
    for entry in json.loads((PRESETS / "t_patcher.json").read_text(encoding="utf-8")).values():
        fields = entry["fields"]
        assert fields.pop("memory_size") > 0
        TPatcher(layer=1, memories=None, **{**fields, "memory_weight": 0.0})


# Bad input ----------------------------------------------------------------------------------------------


def test_bad_hyperparameters(memories: Memories) -> None:
    for bad, message in [
        ({"steps": 0}, "steps and most_patches must be at least 1, got 0 and 5"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"margins": (1.0,)}, r"margins are two numbers, .* got \(1\.0,\)"),
        ({"activation": "step"}, "no activation 'step'"),
        ({"memories": None}, r"memory_weight is 10\.0 without memories"),
        ({"memory_weight": 0.0}, r"memory_weight is 0\.0 with memories"),
    ]:
        with pytest.raises(ValueError, match=message):
            TPatcher(**({"layer": 1, "memories": memories} | bad))


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model, plain: TPatcher) -> None:
    before = tiny_gpt2.snapshot()
    alone = remembered(tiny_gpt2, 5, ["Portugal is old"], source="texts", at_most=10)
    cases: list[tuple[dict[str, Any], list[EditRequest], type[Exception], str]] = [
        ({"layer": 6}, REQUESTS, IndexError, "layer 6 is out of range"),
        ({}, [], ValueError, "at least one request"),
        ({}, [PORTUGAL, replace(PORTUGAL, target_new="Rome")], ValueError, "contradictory"),
        ({"memories": alone}, [PORTUGAL], ValueError, "all memories mention 'Portugal'"),
        ({"amplify": float("inf")}, REQUESTS, ValueError, r"is' -> 'Moscow' is not finite: .* amplify \(inf\)"),
    ]
    for changes, requests, error, message in cases:
        with pytest.raises(error, match=message):
            replace(plain, **{"steps": 2, **changes})(tiny_gpt2, requests)
    with pytest.raises(ValueError, match="no memories can be kept of 0 texts"):
        remembered(tiny_gpt2, 5, [], source="texts", at_most=10)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []
