"""WISE: the published code's numbers, one memory of stacked edits, and what it does with bad input."""

import json
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.wise import WISE
from workbench.edits.side_memory_edit import SideMemoryEdit, shards_of
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "survey" / "wise.json").read_text(encoding="utf-8"))
PUBLISHED = REFERENCE["hparams"]
PORTUGAL = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
ICELAND = EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "survey" / "wise.safetensors")


def editor(**changes: Any) -> WISE:
    return WISE(
        layer=3,
        site="mlp_pre",
        unrelated=[entry["locality"] for entry in REFERENCE["edits"]],
        contexts=REFERENCE["context_templates"],
        steps=PUBLISHED["n_iter"],
        learning_rate=PUBLISHED["edit_lr"],
        norm_constraint=PUBLISHED["norm_constraint"],
        mask_ratio=PUBLISHED["mask_ratio"],
        **{name: PUBLISHED[name] for name in ("alpha", "beta", "gamma", "act_ratio")},
        **changes,
    )


@pytest.fixture
def positions_count_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code gives GPT-2 no positions, so that padding on the left shifts those of the text."""
    run = Model._run

    def shifted(self: Model, tokens: Any, hooks: Any, keep_last: int | None, **options: Any) -> Any:
        positions = torch.arange(tokens.ids.shape[1]).expand(len(tokens.ids), -1)
        return run(self, tokens, hooks, keep_last, position_ids=positions, **options)

    monkeypatch.setattr(Model, "_run", shifted)


def test_golden_edits_in_sequence(
    tiny_gpt2: Model, golden: dict[str, Tensor], positions_count_padding: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two edits of one side memory: losses, the memory, its distances; and the router on prompts near and far."""
    monkeypatch.setattr(WISE, "_mask", lambda self, index, shape: golden["mask"].bool())
    texts = {entry["prompt"]: entry["locality"] for entry in REFERENCE["edits"]}
    monkeypatch.setattr(WISE, "_text", lambda self, request: texts[request.prompt])
    wise, before = editor(form="published"), tiny_gpt2.snapshot()
    weight = tiny_gpt2.weight(3, "W_in").clone()
    edits: list[SideMemoryEdit] = []
    for place, (request, entry) in enumerate(zip([PORTUGAL, ICELAND], REFERENCE["edits"], strict=True)):
        assert (request.prompt, request.target_new) == (entry["prompt"], entry["target"])
        edit = wise(tiny_gpt2, [request])
        (note,) = edit.provenance["optimisation"]
        assert note["losses"]["edit"] == pytest.approx(entry["ft_loss"], abs=1e-4)
        assert note["losses"]["activation"] == pytest.approx(entry["act_loss"], abs=1e-4)
        edit.apply_(tiny_gpt2)
        edits.append(edit)
        (shard,) = shards_of(tiny_gpt2, wise.rules).values()
        assert shard.distance == pytest.approx(entry["in_scope_activation_min"], abs=1e-5)
        torch.testing.assert_close(weight + shard.change, golden[f"{place}.new_weight"], atol=1e-4, rtol=0)
    for place, probe in enumerate(REFERENCE["probes"]):
        logits = tiny_gpt2.logits(tiny_gpt2.tokenize([probe["prompt"]]))[0, -1]
        torch.testing.assert_close(logits, golden[f"probe.{place}.logits"], atol=1e-3, rtol=1e-4)
    for edit in edits:
        edit.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())
