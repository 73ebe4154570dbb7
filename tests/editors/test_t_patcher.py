"""T-Patcher: the published code's numbers, patches on patches, and what it does with bad input."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.shared.memories import Memories, remembered
from workbench.editors.t_patcher import TPatcher
from workbench.edits.neurons import Neurons
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "survey" / "tpatcher.json").read_text(encoding="utf-8"))
PORTUGAL = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
ARGENTINA = EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish")
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
    monkeypatch.setattr(TPatcher, "_drawn", lambda self, *shape: golden[f"{tag}.value"].T)
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

    key, bias, value, scale = editor._started(queries)
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
