"""The editors by name. A name's module is imported when it is first looked up, so that listing them costs nothing."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.editors.editor import Editor

_HOMES = {
    "ft": ("workbench.editors.ft", "FT"),
    "ft_l": ("workbench.editors.ft", "FTL"),
    "rome": ("workbench.editors.rome", "ROME"),
    "r_rome": ("workbench.editors.rome", "RROME"),
    "memit": ("workbench.editors.memit", "MEMIT"),
    "emmet": ("workbench.editors.emmet", "EMMET"),
    "pmet": ("workbench.editors.pmet", "PMET"),
    "alphaedit": ("workbench.editors.alphaedit", "AlphaEdit"),
    "grace": ("workbench.editors.grace", "GRACE"),
    "ike": ("workbench.editors.ike", "IKE"),
    "mend": ("workbench.editors.mend", "MEND"),
    "ke": ("workbench.editors.ke", "KE"),
    "kn": ("workbench.editors.kn", "KN"),
    "serac": ("workbench.editors.serac", "SERAC"),
}
"""Name -> module, class."""


class _Editors(Mapping[str, "type[Editor]"]):
    def __getitem__(self, name: str) -> "type[Editor]":
        module, editor = _HOMES[name]
        return getattr(import_module(module), editor)

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


EDITORS: Mapping[str, "type[Editor]"] = _Editors()
"""Class of each method, in the order in which tables list them."""
