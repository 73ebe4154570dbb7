"""The fields of editors, as their sources say them: types, defaults and documentation; nothing heavy is imported."""

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from workbench.editors.registry import place_of

_PLAIN = {
    "int": int, "float": float, "bool": bool, "str": str, "Literal": Literal, "tuple": tuple, "Sequence": Sequence,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Field:
    """One hyperparameter."""

    kind: Any
    """Its type; None for one that text cannot give, such as a tensor."""
    told: str
    """The type in words."""
    default: str = ""
    """As it stands in the source; empty where there is none."""
    meaning: str = ""
    """The documentation string beneath it."""


def parsed(text: str, kind: Any) -> Any:
    """The value of this type that a text stands for: 30, 1e-3, true, none, W_in,W_out; ValueError if it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is type(None):
        return {"none": None, "null": None}[text.lower()] if text.lower() in ("none", "null") else _refuse(text)
    if origin in (Union, UnionType):
        for each in sorted(inner, key=lambda one: one is not type(None)):
            try:
                return parsed(text, each)
            except ValueError:
                continue
        return _refuse(text)
    if origin is Literal:
        return text if text in inner else _refuse(text)
    if origin in (tuple, Sequence):
        parts = json.loads(text) if text.startswith("[") else text.split(",")
        return tuple(parsed(str(part).strip(), inner[0]) for part in parts)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    return kind(text)


def in_words(kind: Any) -> str:
    """What values of a type are called."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, inner))
    if origin in (tuple, Sequence):
        return f"{in_words(inner[0])},..."
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}[kind]


def _refuse(text: str) -> Any:
    raise ValueError(f"{text!r} is not of this type")


@cache
def fields_of(method: str) -> Mapping[str, Field]:
    """The fields of a method's dataclass by name, those of its bases first; ValueError for an unknown method."""
    return _fields(*place_of(method))


@cache
def _tree(module: str) -> ast.Module | None:
    """The source of a module, which is not imported (its package is); None for one without."""
    loaded = sys.modules.get(module)
    spec = None if loaded is not None else find_spec(module)
    path = getattr(loaded, "__file__", None) or (spec and spec.origin)
    return ast.parse(Path(path).read_text(encoding="utf-8")) if path and path.endswith(".py") else None


def _fields(module: str, name: str) -> dict[str, Field]:
    tree = _tree(module)
    for found in tree.body if tree else ():
        if isinstance(found, ast.ClassDef) and found.name == name:
            break
    else:  # imported from elsewhere, or without a source
        home = _imported(module, name)
        return _fields(home, name) if home else {}
    fields: dict[str, Field] = {}
    for base in reversed(found.bases):
        fields |= _fields(module, ast.unparse(base))
    if not any("dataclass" in ast.unparse(each) for each in found.decorator_list):
        return fields
    for part, after in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            fields |= _field(module, part.target.id, part, after)
    return fields


def _field(module: str, name: str, part: ast.AnnAssign, after: ast.stmt | None) -> dict[str, Field]:
    told = ast.unparse(part.annotation)
    if told.startswith("ClassVar"):
        return {}
    value = "" if part.value is None else ast.unparse(part.value)
    made = value.startswith("field(")  # by a factory, or by the class itself
    meaning = ""
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        meaning = " ".join(after.value.value.split())
    kind = None if made else _kind(module, part.annotation)
    told = told if kind is None else in_words(kind)
    return {name: Field(kind=kind, told=told, default="" if made else value, meaning=meaning)}


def _kind(module: str, annotation: ast.expr) -> Any:
    """The type that an annotation of plain types, or a name for such a one, stands for; None for others."""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    known = dict(_PLAIN)
    for name in names - _PLAIN.keys():
        known[name] = _alias(module, name)
    if any(known[name] is None for name in names):
        return None
    return eval(compile(ast.Expression(annotation), module, "eval"), {"__builtins__": {}}, known)


def _alias(module: str, name: str) -> Any:
    tree = _tree(module)
    for part in tree.body if tree else ():
        if isinstance(part, ast.Assign) and [ast.unparse(each) for each in part.targets] == [name]:
            return _kind(module, part.value)
    home = _imported(module, name)
    return _alias(home, name) if home else None


def _imported(module: str, name: str) -> str | None:
    """The module of the workbench from which a module has a name."""
    tree = _tree(module)
    for part in tree.body if tree else ():
        if isinstance(part, ast.ImportFrom) and name in {each.name for each in part.names}:
            return part.module if (part.module or "").startswith("workbench.") else None
    return None
