"""Dataclasses as JSON values and back, by the types of their fields."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

_Kind = TypeVar("_Kind")


class AsJson:
    """What a dataclass inherits to travel as JSON values.

    NaN, which JSON has not, becomes null; tuples become lists, and the keys of mappings text. A field with the metadata
    `{"json": False}` is left out.
    """

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return to_json(self)

    @classmethod
    def from_dict(cls: type[_Kind], values: Mapping[str, Any]) -> _Kind:
        """The inverse of `to_dict`; keys that are no fields (what a run folder adds) are ignored."""
        return from_json(cls, values)


def to_json(value: Any) -> Any:
    """A value with the dataclasses, mappings and sequences in it as JSON has them; what else there is stays."""
    if is_dataclass(value) and not isinstance(value, type):
        written = (field.name for field in fields(value) if field.metadata.get("json", True))
        return {name: to_json(getattr(value, name)) for name in written}
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json` for dataclasses, mappings, tuples and floats; values of other types stay as they are.

    TypeError for a dataclass without a field that it needs.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [field.name for field in fields(kind) if field.name in value]
        return kind(**{name: from_json(hints[name], value[name]) for name in known})
    if kind is float:
        return math.nan if value is None else float(value)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        each = inner[:1] * len(value) if inner[-1] is ... else inner
        return tuple(from_json(part, one) for part, one in zip(each, value, strict=True))
    if origin is Mapping:
        return {inner[0](key): from_json(inner[1], one) for key, one in value.items()}
    return value
