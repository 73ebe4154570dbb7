"""The editors by name. A name's module is imported when it is first looked up, so that listing them costs nothing."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.machine.plugins import Added

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
    "t_patcher": ("workbench.editors.t_patcher", "TPatcher"),
    "calinet": ("workbench.editors.calinet", "CaliNet"),
    "lora": ("workbench.editors.lora", "LoRA"),
    "wise": ("workbench.editors.wise", "WISE"),
    "serac": ("workbench.editors.serac", "SERAC"),
}
"""Name -> module, class."""


def _wrong(editor: Any) -> str:
    """Why something that was added is no editor; empty if it is one."""
    base = import_module("workbench.editors.editor").Editor
    if not (isinstance(editor, type) and issubclass(editor, base)):
        return "is no subclass of workbench.editors.editor.Editor"
    if not is_dataclass(editor):
        return "is no dataclass, so it has no hyperparameters: put @dataclass(frozen=True, kw_only=True) before it"
    if inspect.isabstract(editor):
        return f"lacks {', '.join(sorted(getattr(editor, '__abstractmethods__', ())))}"
    if not isinstance(getattr(editor, "method", None), str):
        return 'lacks its display name: method: ClassVar[str] = "..."'
    if not (hasattr(editor, "layers") or "layers" in editor.__dataclass_fields__):
        return "lacks `layers`, those that it edits: a property, or a ClassVar of () for none"
    return ""


ADDED: "Added[type[Editor]]" = Added("workbench.editors", taken=_HOMES.keys(), check=_wrong)
"""Editors of plugins: files given by --plugin, and packages with entry points in the group `workbench.editors`."""


class _Editors(Mapping[str, "type[Editor]"]):
    def __getitem__(self, name: str) -> "type[Editor]":
        if name not in _HOMES:
            return ADDED[name]
        ADDED.check_free(name)
        module, editor = _HOMES[name]
        return getattr(import_module(module), editor)

    def __iter__(self) -> Iterator[str]:
        yield from _HOMES
        yield from ADDED

    def __len__(self) -> int:
        return len(_HOMES) + len(ADDED)


EDITORS: Mapping[str, "type[Editor]"] = _Editors()
"""Class of each method, in the order in which tables list them."""


def place_of(method: str) -> tuple[str, str]:
    """The module and the class of a method, of which only a plugin's is imported; ValueError for an unknown one."""
    if method not in _HOMES and method not in ADDED:
        raise ValueError(f"no editor {method!r}; there are {', '.join(EDITORS)}")
    return _HOMES.get(method) or (ADDED[method].__module__, ADDED[method].__name__)
