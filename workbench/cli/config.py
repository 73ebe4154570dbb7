"""A file of options, which stand in for those that the command line does not give."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml


def options_in(path: Path, known: Iterable[Any]) -> dict[str, Any]:
    """The options of a YAML or JSON file by the names of the command's parameters (click's).

    Of an option that is given several times, or takes several values, a list is all of them, and a mapping
    NAME: VALUE gives one "NAME=VALUE" each. BadParameter for a file that cannot be read, for unknown options,
    and for empty lists.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise typer.BadParameter(f"'{path}' holds no options by name, as in 'limit: 3'")
    names = {name.lstrip("-"): each for each in known for name in each.opts if each.name not in ("config", "help")}
    if unknown := [str(name) for name in content if str(name) not in names]:
        raise typer.BadParameter(
            f"'{path}' has {', '.join(unknown)}; the options of this command are {', '.join(sorted(names))}"
        )
    if empty := [str(name) for name, value in content.items() if value == []]:
        raise typer.BadParameter(f"'{path}' names nothing for {', '.join(empty)}: leave it out, or give it a value")
    return {names[name].name: _value(names[name], value) for name, value in content.items() if value is not None}


def _value(option: Any, value: Any) -> Any:
    if not getattr(option, "multiple", False):
        return value
    if isinstance(value, Mapping):
        return [f"{name}={_text(one)}" for name, one in value.items()]
    return list(value) if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "none" if value is None else str(value)
