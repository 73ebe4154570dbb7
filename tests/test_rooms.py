"""The rooms stand on one another, see `[tool.importlinter]` in pyproject.toml."""

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_only_point_backwards_and_there_is_no_circle() -> None:
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS
