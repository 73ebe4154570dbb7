"""How values look where they are typed: one short line without walls of numbers, and a small table in notebooks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from markupsafe import Markup, escape

_TEXT, _ITEMS = 60, 4
"""Characters of a text and items of a sequence up to which they are shown whole."""


class Shown:
    """What a dataclass inherits to be shown by its fields in one short line; those at their defaults are left out.

    A class with a `__repr__` of its own, and those that inherit from it, are shown by that.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = cls.__repr__  # the inherited one, in place of that which a dataclass would be given

    def __repr__(self) -> str:
        told = [f"{name}={short(value)}" for name, value, default in field_values(self) if not default]
        return f"{type(self).__name__}({', '.join(told)})"


def field_values(value: Any) -> Iterable[tuple[str, Any, bool]]:
    """Name and value of each field that is shown, and whether it is at its default."""
    for field in fields(value):
        if field.repr:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            found = getattr(value, field.name)
            yield field.name, found, _same(found, default)


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, bool | int | float | str | tuple | dict) and bool(value == default))


def short(value: Any) -> str:
    """A value in a few words: of tensors their shape, of long sequences and mappings how many they hold."""
    if isinstance(value, str):
        return repr(value if len(value) <= _TEXT else f"{value[: _TEXT - 4]} ...")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"<{' x '.join(map(str, value.shape)) or 'scalar'} {dtype}>"
    if isinstance(value, Mapping):
        items = [f"{short(key)}: {short(one)}" for key, one in list(value.items())[:_ITEMS]]
        return f"{{{', '.join(items)}}}" if len(value) <= _ITEMS else f"<{len(value):,} by {_kind(next(iter(value)))}>"
    if isinstance(value, Sequence):
        plain = all(isinstance(one, int | float) for one in value)
        if len(value) > (2 * _ITEMS if plain else _ITEMS):
            return f"<{len(value):,} of {_kind(value[0])}>"
        inside = ", ".join(map(short, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if is_dataclass(value) or value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"<{type(value).__name__}>"


def _kind(value: Any) -> str:
    return type(value).__name__


def html_table(caption: str, rows: Iterable[Sequence[Any]], *, head: Sequence[str] = ()) -> str:
    """A small table for notebooks; every cell is text, and escaped."""
    line = Markup("<tr>{}</tr>")
    cells = Markup('<{tag} style="text-align: left; vertical-align: top">{text}</{tag}>')

    def row(tag: str, values: Sequence[Any]) -> Markup:
        return line.format(Markup("").join(cells.format(tag=tag, text=str(value)) for value in values))

    body = Markup("\n").join([*([row("th", head)] if head else []), *(row("td", each) for each in rows)])
    return str(Markup("<table>\n<caption>{}</caption>\n{}\n</table>").format(escape(caption), body))


def percent(value: float) -> str:
    """A share as a percentage, "-" for none."""
    return "-" if value != value else f"{100 * value:.1f}"
