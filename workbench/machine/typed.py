"""Whether dataclasses that were read from a file hold what the types of their fields say."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import AbstractArray
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of numbers that can be computed with; of the others, such as float8, a few operations alone are known."""


def check_types(value: Any, kind: Any = None, name: str = "") -> None:
    """TypeError that names the field which is of another type than it should be.

    Tensors of floats are finite and of a type that can be computed with. Of a type that is none of those below nothing
    is asked.
    """
    kind = type(value) if kind is None else kind
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        _check_tensor(value, kind, name)
    elif isinstance(kind, type) and is_dataclass(kind):
        _expect(isinstance(value, kind), value, kind.__name__, name)
        hints = get_type_hints(type(value))
        for field in fields(value):
            check_types(getattr(value, field.name), hints[field.name], f"{name}.{field.name}".removeprefix("."))
    elif kind in (int, float, str, bool, NoneType, Tensor):
        fits = isinstance(value, (int, float) if kind is float else kind)
        _expect(fits and (kind is bool or not isinstance(value, bool)), value, kind.__name__, name)
    else:
        _check_generic(value, kind, name)


def _check_generic(value: Any, kind: Any, name: str) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        _expect(value in inner, value, " or ".join(map(repr, inner)), name)
    elif origin in (Union, UnionType):
        if value is not None or NoneType not in inner:
            some = [one for one in inner if one is not NoneType]
            if len(some) == 1:
                check_types(value, some[0], name)
    elif origin is tuple:
        _expect(isinstance(value, tuple), value, "tuple", name)
        each = inner[:1] * len(value) if inner[-1] is ... else inner
        _expect(len(each) == len(value), value, f"tuple of {len(each)}", name)
        for place, (part, one) in enumerate(zip(each, value, strict=True)):
            check_types(one, part, f"{name}[{place}]")
    elif origin is Mapping:
        _expect(isinstance(value, Mapping), value, "mapping", name)
        for key, one in value.items():
            check_types(key, inner[0], f"{name}'s key")
            check_types(one, inner[1], f"{name}[{key!r}]")


def _check_tensor(value: Any, kind: Any, name: str) -> None:
    _expect(isinstance(value, Tensor), value, "tensor", name)
    if value.is_floating_point():
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        _expect(value.dtype in FLOATS, value.dtype, f"tensor of {known}", name)
        _expect(bool(value.isfinite().all()), "NaN or infinity", "tensor of finite numbers", name)
    _expect(isinstance(value, kind), f"{value.dtype} {tuple(value.shape)}", kind.__name__, name)


def _expect(fits: bool, value: Any, kind: str, name: str) -> None:
    if not fits:
        said = value if isinstance(value, str | torch.dtype) else repr(value)[:60]
        raise TypeError(f"{name or 'it'} should be {kind}, got {said}")
