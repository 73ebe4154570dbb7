"""The help of an analysis before what it computes with is imported: of its file only `main`'s signature is run."""

import ast
import sys
from pathlib import Path
from typing import Any

from workbench.cli.session import script


def help_first(name: str, file: str) -> None:
    """Where the program that runs is this analysis and is asked for its help: show it and exit.

    To be called before the imports of an analysis, with its `__name__` and `__file__`.
    """
    if name == "__main__" and "--help" in sys.argv[1:]:
        script(outlined(Path(file))["main"])


def outlined(path: Path) -> dict[str, Any]:
    """Of an analysis its docstring, a `main` that does nothing, and what the signature of `main` names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (main,) = (part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == "main")
    main.body = main.body[:1]  # its docstring
    kept: list[ast.stmt] = [main]
    wanted = _used(main)
    for part in reversed(tree.body[: tree.body.index(main)]):
        if wanted & _bound(part):
            kept.append(part)
            wanted |= _used(part)
    values: dict[str, Any] = {
        "__name__": "outline",
        "__file__": str(path),
        "__doc__": ast.get_docstring(tree, clean=False),
    }
    exec(compile(ast.Module(body=kept[::-1], type_ignores=[]), str(path), "exec"), values)
    return values


def _used(part: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(part) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _bound(part: ast.stmt) -> set[str]:
    if isinstance(part, ast.Import | ast.ImportFrom):
        return {(one.asname or one.name).split(".")[0] for one in part.names}
    return {node.id for node in ast.walk(part) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
