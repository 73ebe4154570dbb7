"""`import workbench` offers what the README needs, typed as it is, and costs nothing until it is used."""

import ast
import subprocess
import sys

import pytest

import workbench
from workbench.machine.paths import ROOT


@pytest.mark.parametrize("name", [name for name in dir(workbench) if name != "__version__"])
def test_every_name_is_there(name: str) -> None:
    assert getattr(workbench, name) is not None


def test_types_are_told_of_the_same_names_from_the_same_places() -> None:
    (typed,) = (
        node
        for node in ast.parse((ROOT / "workbench" / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    )
    told = {
        (name.name, str(node.module).removeprefix("workbench."))
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert told == set(workbench._HOME.items())


def test_importing_it_imports_no_torch() -> None:
    subprocess.run([sys.executable, "-c", "import workbench, sys; assert 'torch' not in sys.modules"], check=True)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no 'lode_model'; it offers .*load_model"):
        workbench.lode_model  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
