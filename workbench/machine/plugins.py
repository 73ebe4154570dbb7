"""What others add: Python files that a user gives, and what installed packages offer by entry points."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from workbench.machine.failures import reason

_Kind = TypeVar("_Kind")


class PluginError(ValueError):
    """What a plugin offers cannot be used; the message names the file or the package, and the reason, in one line."""


def import_file(path: Path) -> ModuleType:
    """The module in a file, named by it, so that what it defines is found again; PluginError where it fails."""
    path, name = path.expanduser().resolve(), f"workbench_plugin_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    if known is not None:
        raise PluginError(f"plugin {path}: {known.__file__} has the same name: rename one of them")
    spec = spec_from_file_location(name, path) if path.is_file() and path.suffix == ".py" else None
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {path}: there is no such Python file")
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look for the module that they are of
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever its code raises
        del sys.modules[name]
        raise PluginError(f"plugin {path}: {_at(error, path)}") from error
    return module


def _at(error: Exception, path: Path) -> str:
    """An error on one line, with the line of the file where it came up."""
    trace, line = error.__traceback__, getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    said = " ".join(reason(error).split())
    return said if line is None else f"line {line}: {said}"


@cache
def offered(group: str) -> Mapping[str, EntryPoint]:
    """What installed packages offer under a group of entry points, by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=group)}


class Added(Mapping[str, _Kind], Generic[_Kind]):
    """What files have added, and what packages offer, by name; the latter is imported when it is looked up."""

    def __init__(self, group: str, *, taken: Collection[str], check: Callable[[Any], str]) -> None:
        """`taken` are names of the workbench's own; `check` says what is wrong with a value, or nothing."""
        self._group, self._taken, self._check = group, taken, check
        self._of_files: dict[str, _Kind] = {}

    def add(self, name: str, value: _Kind, *, source: str) -> None:
        """Take in what a file gives; PluginError where the check or the name refuses it."""
        if self._of_files.get(name) is value:
            return
        if name in self._taken or name in self._of_files or name in offered(self._group):
            raise PluginError(f"{source}: the name {name!r} exists already: choose another")
        self._of_files[name] = self._sound(name, value, source)

    def check_free(self, name: str) -> None:
        """PluginError where a package offers something under this name, which is the workbench's own."""
        if name in offered(self._group):
            raise PluginError(
                f"{_source(offered(self._group)[name])}: the name {name!r} exists already: uninstall the package, or "
                "have it choose another"
            )

    def _sound(self, name: str, value: Any, source: str) -> Any:
        if wrong := self._check(value):
            raise PluginError(f"{source}: {name!r} {wrong}")
        return value

    def __getitem__(self, name: str) -> _Kind:
        if name in self._of_files:
            return self._of_files[name]
        entry = offered(self._group)[name]
        try:
            value = entry.load()
        except Exception as error:  # whatever its code raises
            why = " ".join(reason(error).split())
            raise PluginError(f"{_source(entry)}: {name!r} cannot be imported: {why}") from error
        return self._sound(name, value, _source(entry))

    def __iter__(self) -> Iterator[str]:
        yield from self._of_files
        yield from (name for name in offered(self._group) if name not in self._taken)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _source(entry: EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist is not None else f"entry point {entry.value}"
