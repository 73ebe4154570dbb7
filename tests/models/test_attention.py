"""Fused attention in pieces, and without cuDNN, is fused attention."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from workbench.models.attention import ROWS, attend_fused
from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model


def states(batch: int = 7, pos: int = 5, kv_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, pos, heads, 3, generator=generator) for heads in (4, kv_heads, kv_heads)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Rows of each call of torch's attention, and whether cuDNN's was allowed."""
    seen: list[tuple[int, bool]] = []
    attend = F.scaled_dot_product_attention

    def spied(q: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append((len(q), torch.backends.cuda.cudnn_sdp_enabled()))
        return attend(q, *arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    return seen


SEEN = torch.ones(5, 5, dtype=torch.bool).tril()
ALONE = torch.eye(5, dtype=torch.bool)
MASKS = {
    "none": None,
    "of all rows": SEEN,
    "of all rows, with a dimension for them": SEEN[None, None],
    "of each row": torch.stack([SEEN, ALONE, SEEN, ALONE, ALONE, SEEN, ALONE])[:, None],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_many_rows_attend_in_pieces(mask: torch.Tensor | None, kv_heads: int, calls: list[tuple[int, bool]]) -> None:
    q, k, v = (x.requires_grad_() for x in states(kv_heads=kv_heads))
    causal = mask is None
    found = [attend_fused(q, k, v, mask, 0.4, causal=causal, rows=rows) for rows in (ROWS, 3)]
    assert [rows for rows, _ in calls] == [7, 3, 3, 1]
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(each.sin().sum(), [q, k, v]) for each in found]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=0)


def test_no_call_has_more_rows_than_a_grid(calls: list[tuple[int, bool]]) -> None:
    assert 2 * ROWS <= 65_536
    q, k, v = (torch.zeros(65_536 + 1, 1, 1, 1) for _ in range(3))
    attend_fused(q, k, v, None, 1.0)
    assert [rows for rows, _ in calls] == [ROWS, ROWS, 1]


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_passed_by_and_allowed_again(
    before: bool, calls: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, (q, k, v) = torch.backends.cuda.cudnn_sdp_enabled(), states()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        found = [attend_fused(q, k, v, None, 0.4, cudnn=cudnn, rows=4) for cudnn in (True, False)]
        assert calls == [(4, before), (3, before), (4, False), (3, False)]
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
        assert torch.equal(*found)

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("no kernel")

        monkeypatch.setattr(F, "scaled_dot_product_attention", fail)
        with pytest.raises(RuntimeError, match="no kernel"):
            attend_fused(q, k, v, None, 0.4, cudnn=False)
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(usual)


def test_a_gpus_blocks_attend_without_cudnn(
    family_model: Model, calls: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, ids = blocks_of(family_model), torch.randint(2, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    assert blocks.cudnn  # on a CPU there is nothing to switch off
    monkeypatch.setattr(blocks, "short", 0)
    usual = blocks.logits(ids)
    calls.clear()
    monkeypatch.setattr(blocks, "cudnn", False)
    torch.testing.assert_close(blocks.logits(ids), usual, atol=1e-6, rtol=0)
    assert len(calls) == blocks.n_layers and not any(allowed for _, allowed in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_cudnn_shared_heads_are_told_apart_where_there_is_a_mask(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision only cuDNN takes both; the other kernels would be two matrix products."""
    q, k, v = (x.to(dtype) for x in states())
    expected, shared = attend_fused(q, k, v, SEEN, 0.4), []
    attend = F.scaled_dot_product_attention

    def spied(*arguments: Any, **options: Any) -> torch.Tensor:
        shared.append(options["enable_gqa"])
        return attend(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    torch.testing.assert_close(attend_fused(q, k, v, SEEN, 0.4, cudnn=False), expected)
    attend_fused(q, k, v, None, 0.4, causal=True, cudnn=False)
    assert shared == [dtype == torch.float32, True]
