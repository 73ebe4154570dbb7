"""What is read from a file is of the types of its fields, or named."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.typed import check_types


@dataclass(frozen=True, kw_only=True)
class Inner:
    layer: int
    form: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: tuple[Inner, ...]
    pair: tuple[int, tuple[str, ...]] = (1, ("x",))
    ratio: float = 1
    note: str | None = None
    matrix: Float[Tensor, "a b"] = field(default_factory=lambda: torch.ones(2, 3))
    more: Mapping[str, Tensor] = field(default_factory=dict)
    anything: Mapping[str, Any] = field(default_factory=dict)


SOUND = Outer(inner=(Inner(layer=1),), more={"x": torch.ones(1)}, anything={"y": [1]}, note="n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner": (Inner(layer=True),)}, "inner[0].layer should be int, got True"),
        ({"inner": (Inner(layer=1, form=cast(Any, "c")),)}, "inner[0].form should be 'a' or 'b', got c"),
        ({"inner": [Inner(layer=1)]}, "inner should be tuple, got [Inner("),
        ({"inner": (3,)}, "inner[0] should be Inner, got 3"),
        ({"pair": (1, (2,))}, "pair[1][0] should be str, got 2"),
        ({"pair": (1,)}, "pair should be tuple of 2, got (1,)"),
        ({"ratio": "1"}, "ratio should be float, got 1"),
        ({"note": 3}, "note should be str, got 3"),
        ({"more": {"x": 3}}, "more['x'] should be Tensor, got 3"),
        ({"more": {3: torch.ones(1)}}, "more's key should be str, got 3"),
        ({"anything": []}, "anything should be mapping, got []"),
        ({"matrix": 3}, "matrix should be tensor, got 3"),
        ({"matrix": torch.ones(3)}, "matrix should be Float[Tensor, 'a b'], got torch.float32 (3,)"),
        ({"matrix": torch.ones(2, 3).bool()}, "matrix should be Float[Tensor, 'a b'], got torch.bool (2, 3)"),
        ({"matrix": torch.ones(2, 3) + 1j}, "matrix should be Float[Tensor, 'a b'], got torch.complex64 (2, 3)"),
        (
            {"matrix": torch.ones(2, 3).to(torch.float8_e4m3fn)},
            "matrix should be tensor of float64, float32, bfloat16, float16, got torch.float8_e4m3fn",
        ),
        ({"matrix": torch.full((2, 3), torch.nan)}, "matrix should be tensor of finite numbers, got NaN or infinity"),
    ],
)
def test_a_field_of_another_type_is_named(changes: dict[str, Any], said: str) -> None:
    check_types(SOUND)
    with pytest.raises(TypeError) as caught:
        check_types(replace(SOUND, **changes))
    assert str(caught.value).startswith(said)
