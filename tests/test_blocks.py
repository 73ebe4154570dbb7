"""Blocks run part by part give the model's own states; where they do not, the self-check says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.blocks import Blocks, BlocksError
from workbench.blocks_check import difference
from workbench.models import Model, load_model
from workbench.rotary import rotation

DTYPES = (torch.float32, torch.bfloat16)


def test_blocks_give_the_models_logits(family_model: Model) -> None:
    ids = torch.randint(2, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(family_model.blocks.logits(ids), family_model.bridge(ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_right_passes_in_every_precision(family: str, checkpoints: dict[str, Path], dtype: torch.dtype) -> None:
    Blocks(load_model(str(checkpoints[family]), device="cpu", dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_massive_activations_pass(checkpoints: dict[str, Path], dtype: torch.dtype) -> None:
    """Real models hold, in a few dimensions and at a few tokens, activations a thousand times the others."""
    model = load_model(str(checkpoints["llama"]), device="cpu", dtype=dtype)
    with torch.no_grad():
        model.weight(0)[:, 3] *= 1000
        model.parameters["model.embed_tokens.weight"][:, 5] *= 100
    assert difference(model.blocks) is None


# What is wrong is caught -----------------------------------------------------------------------------------


def wrong_rotary_base(blocks: Blocks) -> None:
    """Angles that belong to 10,000 to the power of 1.1."""
    bridge: Any = blocks.model.bridge
    frequencies = bridge.rotary_emb.original_component.inv_freq
    right = frequencies.clone()
    frequencies.pow_(1.1)
    blocks._rotation = rotation(blocks.model)
    frequencies.copy_(right)


def wrong_scale(blocks: Blocks) -> None:
    for parts in blocks._blocks:
        parts.scale *= 1.3


def wrong_activation(blocks: Blocks) -> None:
    blocks._blocks[-1].act = torch.nn.functional.relu


def wrong_norm(blocks: Blocks) -> None:
    blocks._blocks[1].ln2 = blocks._blocks[1].ln1


WRONGS = {
    "llama": (wrong_rotary_base, wrong_scale, wrong_activation, wrong_norm),
    "gpt_neox": (wrong_scale, wrong_activation, wrong_norm),
    "gpt2": (wrong_scale, wrong_norm),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "plant"), [(family, wrong) for family in WRONGS for wrong in WRONGS[family]])
def test_a_wrong_is_caught(
    family: str, plant: Callable[[Blocks], None], checkpoints: dict[str, Path], dtype: torch.dtype
) -> None:
    blocks = Blocks(load_model(str(checkpoints[family]), device="cpu", dtype=dtype))
    plant(blocks)
    assert "differs from its own" in (difference(blocks) or "")


def test_a_model_that_the_blocks_do_not_reproduce_is_refused(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blocks, "resid_pre", lambda self, embeddings, start=0: 2 * embeddings)
    with pytest.raises(BlocksError, match=r"cannot be run part by part.*resid_pre.*use the plain engine"):
        Blocks(load_model(str(checkpoints["gpt2"]), device="cpu"))
