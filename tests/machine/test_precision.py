"""TF32 is set for a piece of work and no longer."""

import pytest
import torch

from workbench.machine.precision import float32_products


@pytest.mark.parametrize(("precision", "inside"), [("float32", "highest"), ("tf32", "high")])
@pytest.mark.parametrize("before", ["highest", "medium"])
def test_a_precision_is_set_and_restored_also_after_an_error(precision: str, inside: str, before: str) -> None:
    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(KeyboardInterrupt), float32_products(precision):
            assert torch.get_float32_matmul_precision() == inside
            assert torch.backends.cuda.matmul.allow_tf32 == (inside == "high")
            raise KeyboardInterrupt
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match="one of float32, tf32, got 'float16'"), float32_products("float16"):
        pass
