"""Linear modules by oneDNN's kernel are what torch computes, and so are the gradients through them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from transformers.pytorch_utils import Conv1D

from workbench.models import kernels
from workbench.models.kernels import linear

pytestmark = pytest.mark.skipif(kernels.LINEAR_KERNEL is None, reason="this torch was built without oneDNN")


def _strided(module: torch.nn.Linear) -> torch.nn.Linear:
    """With weights that are a slice of a larger matrix, as one matrix of queries, keys and values is cut."""
    whole = torch.randn(module.out_features, 3 * module.in_features)
    module.weight = torch.nn.Parameter(whole[:, ::3], requires_grad=False)
    return module


MODULES: dict[str, Any] = {
    "biased": lambda: torch.nn.Linear(12, 40),
    "unbiased": lambda: torch.nn.Linear(12, 40, bias=False),
    "GPT-2's": lambda: Conv1D(40, 12),
    "slice": lambda: _strided(torch.nn.Linear(12, 40)),
}


def _through(module: Any, x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    output = linear(module, x, gelu=gelu)
    (gradient,) = torch.autograd.grad(output.sin().sum(), [x])
    return output.detach(), gradient


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)], ids=str)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_output_and_gradient_are_those_of_torch(
    make: Any, shape: tuple[int, ...], gelu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module, x = make().requires_grad_(False), torch.randn(shape)
    ours = _through(module, x, gelu)
    with torch.no_grad():
        alone = linear(module, x, gelu=gelu)
    monkeypatch.setattr(kernels, "LINEAR_KERNEL", None)
    theirs = _through(module, x, gelu)
    for one, other in zip((*ours, alone), (*theirs, theirs[0]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_weights_that_are_trained_get_their_gradient(make: Any) -> None:
    module, x = make().requires_grad_(True), torch.randn(5, 12)
    linear(module, x).sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in module.parameters())


def test_a_bias_that_alone_is_trained_gets_its_gradient() -> None:
    module = torch.nn.Linear(12, 40)
    module.weight.requires_grad_(False)
    linear(module, torch.randn(5, 12, requires_grad=True)).sum().backward()
    assert module.bias.grad is not None and module.bias.grad.eq(5).all()


def test_weights_written_between_forward_and_backward_are_refused() -> None:
    module, x = torch.nn.Linear(12, 40).requires_grad_(False), torch.randn(5, 12, requires_grad=True)
    output = linear(module, x).sum()
    with torch.no_grad():
        module.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_other_precisions_are_left_to_torch() -> None:
    module = torch.nn.Linear(3, 4).double().requires_grad_(False)
    assert gradcheck(lambda x: linear(module, x), torch.randn(2, 3, dtype=torch.double, requires_grad=True))
