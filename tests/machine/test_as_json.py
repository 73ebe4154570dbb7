"""A dataclass comes back from JSON as it went, and what its type does not say is left alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from workbench.machine.as_json import AsJson, from_json, to_json
from workbench.machine.jsonl import dumps


@dataclass(frozen=True, kw_only=True)
class Inner(AsJson):
    value: float
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outer(AsJson):
    inner: Mapping[str, tuple[Inner, ...]]
    by_layer: Mapping[int, float]
    ends: tuple[int, float]
    held: object = field(default=None, metadata={"json": False})


OUTER = Outer(
    inner={"a": (Inner(value=0.5), Inner(value=1.0, name="x")), "b": ()}, by_layer={3: 0.1, 10: 0.2}, ends=(1, 2.5)
)


def test_json_and_back() -> None:
    values = json.loads(json.dumps(OUTER.to_dict(), allow_nan=False))
    assert values == {
        "inner": {"a": [{"value": 0.5, "name": None}, {"value": 1.0, "name": "x"}], "b": []},
        "by_layer": {"3": 0.1, "10": 0.2},
        "ends": [1, 2.5],
    }
    assert values == OUTER.to_dict()
    assert Outer.from_dict(values) == OUTER


def test_nan_is_null() -> None:
    assert to_json(Inner(value=math.nan)) == {"value": None, "name": None}
    assert math.isnan(from_json(Inner, {"value": None}).value)
    assert from_json(tuple[float, ...], [None, 1])[1] == 1.0
    assert json.loads(dumps({"row": Inner(value=math.nan)})) == {"row": {"value": None, "name": None}}


def test_what_is_no_field_is_ignored_and_what_is_missing_told() -> None:
    assert Inner.from_dict({"value": 1, "method": "ROME"}) == Inner(value=1.0)
    with pytest.raises(TypeError, match="value"):
        Inner.from_dict({"name": "x"})


def test_a_field_kept_in_memory_is_not_written() -> None:
    outer = Outer(inner={}, by_layer={}, ends=(0, 0.0), held=object())
    assert "held" not in outer.to_dict()
    with pytest.raises(ValueError, match="zip"):
        Outer.from_dict({"inner": {}, "by_layer": {}, "ends": [1]})
