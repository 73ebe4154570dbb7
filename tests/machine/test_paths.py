"""Caches lie where the user says, else where the platform keeps them; data are there."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.atlas import __main__ as atlas
from workbench.machine.paths import ATLAS, DATA, ROOT, cache_folder


def test_the_cache_is_the_platforms_unless_the_user_names_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "workbench"
    assert ROOT not in cache_folder().parents
    monkeypatch.setenv("WORKBENCH_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", "here")
    assert cache_folder() == tmp_path / "here"


def test_the_data_of_a_checkout_are_its_own() -> None:
    assert DATA == ROOT / "data"
    assert (ATLAS / "model" / "config.json").is_file()


def test_the_data_of_an_installed_package_are_not_remade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "DATA", tmp_path)
    monkeypatch.setattr(atlas, "ATLAS", tmp_path)
    found = CliRunner().invoke(atlas.app, ["records"])
    assert found.exit_code == 2 and "belongs to an installed package" in found.output
    assert list(tmp_path.iterdir()) == []
