"""A digest is SHA-256 of the bytes of its parts, wherever a tensor lies and however it is laid out."""

import hashlib

import pytest
import torch

from workbench.machine.hashing import digest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_a_tensor_is_its_values_in_order(dtype: torch.dtype) -> None:
    matrix = torch.arange(12, dtype=dtype).reshape(3, 4)
    expected = hashlib.sha256(matrix.numpy().tobytes()).hexdigest()
    assert digest(matrix) == digest(matrix.flatten()) == digest(matrix.T.contiguous().T) == expected
    assert digest(matrix.T) == hashlib.sha256(matrix.T.contiguous().numpy().tobytes()).hexdigest() != expected


def test_types_that_numpy_has_not_and_parameters() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    assert digest(parameter) == hashlib.sha256(bytes.fromhex("803f00c0")).hexdigest()
    assert digest(torch.tensor(1.0)) == hashlib.sha256(bytes.fromhex("0000803f")).hexdigest()
    assert digest(torch.empty(0, 3)) == hashlib.sha256().hexdigest()


def test_parts_follow_one_another() -> None:
    numbers = torch.tensor([1.0])
    whole = "torch.float32 é\n".encode() + numbers.numpy().tobytes() + b"\x01"
    assert digest("torch.float32 ", "é\n", numbers, b"\x01") == hashlib.sha256(whole).hexdigest()
    assert digest() == hashlib.sha256(b"").hexdigest()
