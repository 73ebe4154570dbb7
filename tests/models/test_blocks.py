"""Blocks run part by part give the model's own states; where they do not, the self-check says so."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAIN, load_hf

from workbench.machine.precision import float32_products
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of, difference
from workbench.models.checkpoints import FETCHED
from workbench.models.contribution import Contribution
from workbench.models.kernels import fused_norm, rms_norm
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.rotary import rotations
from workbench.studies.tiny_models import CONFIGS

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def loaded(checkpoints: dict[str, Path]) -> Callable[[str, torch.dtype], Model]:
    @cache
    def load(family: str, dtype: torch.dtype) -> Model:
        return load_model(str(checkpoints[family]), device="cpu", dtype=dtype)

    return load


def test_float64_passes_although_norms_are_taken_in_float32(loaded: Callable[[str, torch.dtype], Model]) -> None:
    assert len(blocks_of(loaded("llama", torch.float64))._blocks) == 3


def test_blocks_give_the_models_logits(family_model: Model) -> None:
    ids = torch.randint(2, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(blocks_of(family_model).logits(ids), family_model.bridge(ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_gpus_rms_norm_is_the_modules(family: str, checkpoints: dict[str, Path], dtype: torch.dtype) -> None:
    hf = load_hf(checkpoints[family]).to(dtype)
    norms = [module for module in hf.modules() if fused_norm(module) is not module]
    x = torch.randn(7, hf.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        for module in norms:
            if module.weight.shape == x.shape[-1:]:
                torch.nn.init.normal_(module.weight)
                torch.testing.assert_close(rms_norm(module, x), module(x), atol=1e-6, rtol=torch.finfo(dtype).eps)
    assert bool(norms) or family not in ("llama", "qwen3")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in ("llama", "gemma3") else pytest.mark.slow)
        for family in CONFIGS
        if family not in PLAIN
    ],
)
def test_what_is_right_passes_in_every_precision(
    family: str, loaded: Callable[[str, torch.dtype], Model], dtype: torch.dtype
) -> None:
    blocks = blocks_of(loaded(family, dtype))
    assert len(blocks._blocks) == 3


@pytest.mark.parametrize("family", PLAIN)
def test_what_is_not_known_is_refused_in_one_line(family: str, loaded: Callable[[str, torch.dtype], Model]) -> None:
    with pytest.raises(BlocksError, match="cannot be run part by part") as caught:
        blocks_of(loaded(family, torch.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_massive_activations_pass(checkpoints: dict[str, Path], dtype: torch.dtype) -> None:
    """Real models hold, in a few dimensions and at a few tokens, activations a thousand times the others."""
    model = load_model(str(checkpoints["llama"]), device="cpu", dtype=dtype)
    with torch.no_grad():
        model.weight(0)[:, 3] *= 1000
        model.parameters["model.embed_tokens.weight"][:, 5] *= 100
    assert difference(blocks_of(model)) is None


@pytest.mark.slow
@pytest.mark.skipif(not (FETCHED["smollm2"] / "config.json").is_file(), reason="`workbench fetch smollm2` gets it")
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16))
@torch.no_grad()
def test_a_real_model_passes_and_its_wrongs_are_caught(dtype: torch.dtype) -> None:
    blocks = blocks_of(load_model("smollm2", device="cpu", dtype=dtype))
    wrong_rotary_base(blocks)
    assert "differs from its own" in (difference(blocks) or "")
    blocks._rotations, _ = rotations(blocks.model)
    wrong_scale(blocks)
    assert "differs from its own" in (difference(blocks) or "")


# What is wrong is caught -----------------------------------------------------------------------------------


def wrong_rotary_base(blocks: Blocks) -> None:
    """Angles that belong to the base to the power of 1.1."""
    bridge: Any = blocks.model.bridge
    frequencies = bridge.rotary_emb.original_component.inv_freq
    right = frequencies.clone()
    frequencies.pow_(1.1)
    blocks._rotations, _ = rotations(blocks.model)
    frequencies.copy_(right)


def one_rotary_base_for_all(blocks: Blocks) -> None:
    blocks._rotations = blocks._rotations[:1] * blocks.n_layers


def no_rotation(blocks: Blocks) -> None:
    blocks._rotations = [lambda x, positions: x] * blocks.n_layers


def no_query_norm(blocks: Blocks) -> None:
    _set(blocks, q_norm=None)


def no_key_norm(blocks: Blocks) -> None:
    _set(blocks, k_norm=None)


def no_window(blocks: Blocks) -> None:
    """As if it were ignored: the check still knows that there is one."""
    blocks._causal = lambda queries, keys, window, device: Blocks._causal(queries, keys, None, device)  # pyright: ignore[reportAttributeAccessIssue]


def window_off_by_one(blocks: Blocks) -> None:
    _set(blocks, window=9)


def wrong_scale(blocks: Blocks) -> None:
    _set(blocks, scale=1.3 * blocks._blocks[0].scale)


def no_cap_of_scores(blocks: Blocks) -> None:
    _set(blocks, softcap=None)


def no_cap_of_logits(blocks: Blocks) -> None:
    blocks.unembed.cap = None


def no_embedding_multiplier(blocks: Blocks) -> None:
    blocks._embed_scale = 1.0


def no_logit_multiplier(blocks: Blocks) -> None:
    blocks.unembed.scale = 1.0


def no_residual_multiplier(blocks: Blocks) -> None:
    _set(blocks, mlp_contribution=Contribution(norm=None, multiplier=1.0))


def no_norm_behind_attention(blocks: Blocks) -> None:
    _set(blocks, attn_contribution=Contribution(norm=None, multiplier=1.0))


def wrong_activation(blocks: Blocks) -> None:
    _set(blocks, act=torch.nn.functional.tanh)


def wrong_norm(blocks: Blocks) -> None:
    blocks._blocks[1].ln2 = blocks._blocks[1].ln1


def _set(blocks: Blocks, **attributes: Any) -> None:
    for parts in blocks._blocks:
        for name, value in attributes.items():
            setattr(parts, name, value)


WRONGS = {
    "llama": (wrong_rotary_base, wrong_scale, wrong_activation, wrong_norm),
    "llama_llama3": (wrong_rotary_base,),
    "gpt_neox": (wrong_scale, wrong_activation, wrong_norm),
    "gpt2": (wrong_scale, wrong_norm),
    "gpt_neo": (no_window, wrong_scale),
    "qwen3": (no_query_norm, no_key_norm),
    "mistral": (no_window, window_off_by_one, wrong_rotary_base),
    "gemma2": (no_window, no_cap_of_scores, no_cap_of_logits, no_norm_behind_attention, wrong_scale),
    "gemma3": (no_window, one_rotary_base_for_all, no_key_norm),
    "olmo2": (no_query_norm, no_norm_behind_attention),
    "granite": (no_embedding_multiplier, no_logit_multiplier, no_residual_multiplier),
    "smollm3": (no_rotation, one_rotary_base_for_all),
    "cohere": (no_logit_multiplier, no_rotation),
}
EVERY_TIME = (
    ("llama", wrong_rotary_base),
    ("llama", wrong_scale),
    ("qwen3", no_query_norm),
    ("mistral", no_window),
    ("gemma2", no_cap_of_scores),
    ("granite", no_embedding_multiplier),
)
CASES = [
    pytest.param(family, wrong, marks=[] if (family, wrong) in EVERY_TIME else pytest.mark.slow)
    for family in WRONGS
    for wrong in WRONGS[family]
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "plant"), CASES)
def test_a_wrong_is_caught(
    family: str, plant: Callable[[Blocks], None], loaded: Callable[[str, torch.dtype], Model], dtype: torch.dtype
) -> None:
    blocks = blocks_of(loaded(family, dtype))
    plant(blocks)
    assert "differs from its own" in (difference(blocks) or "")


def test_a_model_that_the_blocks_do_not_reproduce_is_refused(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blocks, "resid_pre", lambda self, embeddings, start=0: 2 * embeddings)
    with pytest.raises(BlocksError, match=r"cannot be run part by part.*resid_pre.*use the plain engine"):
        blocks_of(load_model(str(checkpoints["gpt2"]), device="cpu"))


def test_angles_and_the_check_are_of_float32(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user's products are TF32, which would round the angles, the model's own among them."""
    model = load_model(str(checkpoints["llama"]), device="cpu")
    precisions: list[tuple[str, str]] = []
    rotary: Any = model.bridge.rotary_emb.original_component
    rotary.register_forward_pre_hook(lambda *_: precisions.append(("angles", torch.get_float32_matmul_precision())))
    with float32_products("tf32"):
        rotations(model)
        assert precisions == [("angles", "highest")]
        blocks_of(model)
        assert {precision for _, precision in precisions} == {"highest"} and len(precisions) > 2
        assert torch.get_float32_matmul_precision() == "high"
