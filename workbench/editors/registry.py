"""The editors by name. A name's module is imported when it is first looked up, so that listing them costs nothing."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.editors.editor import Editor

_HOMES = {
    "ft": ("ft", "FT"),
    "ft_l": ("ft", "FTL"),
    "rome": ("rome", "ROME"),
    "r_rome": ("rome", "RROME"),
    "memit": ("memit", "MEMIT"),
    "emmet": ("emmet", "EMMET"),
    "pmet": ("pmet", "PMET"),
    "alphaedit": ("alphaedit", "AlphaEdit"),
}
"""Name -> module of `workbench.editors`, class."""


class _Editors(Mapping[str, "type[Editor]"]):
    def __getitem__(self, name: str) -> "type[Editor]":
        module, editor = _HOMES[name]
        return getattr(import_module(f"workbench.editors.{module}"), editor)

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


EDITORS: Mapping[str, "type[Editor]"] = _Editors()
"""Class of each method, in the order in which tables list them."""
