"""Installed like any package: what it needs is declared, and a wheel works from any folder."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from command import run

import workbench
from workbench.machine.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "importlinter": "import-linter"}
"""By the name that is imported, where it is not that of the package on PyPI."""
IMPORT = re.compile(r"^ *(?:from (\w+)[\w.]* import |import (\w+)[\w.]*(?: as \w+)?(?:  #.*)?$)", re.MULTILINE)
"""One a line, as ruff keeps them; to parse all files would take a test seconds."""
FOR_DOCS = {"mkdocs-material", "mkdocstrings", "latex2mathml", "nbclient", "nbformat", "ipykernel"}
RUN_BY_OTHERS = {"gguf", "beartype", "pytest-xdist", "ruff", "pyright", "hatchling"} | FOR_DOCS
"""What is not imported: transformers reads GGUF files by one, the tests' import hook checks by another, the rest are
tools and what builds the docs."""


def imported(*rooms: str) -> set[str]:
    """Packages on PyPI that Python files in these folders import anywhere."""
    own = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"workbench", *sys.stdlib_module_names}
    texts = (path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py"))
    names: set[str] = {name for text in texts for found in IMPORT.findall(text) for name in found if name}
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names - own}


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}


def test_what_is_declared_is_what_is_imported() -> None:
    required, optional = named(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    extras = named([name for extra, names in optional.items() if extra != "dev" for name in names])
    assert imported("workbench") == (required | extras) - RUN_BY_OTHERS
    assert imported("analyses", "reports") <= required
    assert imported("tests") - required - extras == named(optional["dev"]) - RUN_BY_OTHERS - {"workbench"}


def test_it_is_typed_and_names_its_version() -> None:
    assert (ROOT / "workbench" / "py.typed").is_file()
    assert run("--version").output == f"workbench {workbench.__version__}\n"
    assert f"version: {workbench.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {workbench.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# A wheel ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel and, by a .pth file, sees what is installed here."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))  # .pth files in there are not read
    install = ["install", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", environment, *install], check=True)
    return environment


@pytest.mark.slow
def test_a_wheel_holds_the_data_and_nothing_of_the_checkouts(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    data = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {f"workbench/{name}" for name in data.split("\n") if name} <= held
    assert {"workbench/py.typed", "workbench/__main__.py", "workbench/report/report.html.j2"} <= held
    assert {name.split("/")[0].split("-")[0] for name in held} == {"workbench"}


@pytest.mark.slow
def test_an_installed_study_writes_into_the_working_folder_and_the_cache(installed: Path, tmp_path: Path) -> None:
    (packages,) = installed.glob("lib/python*/site-packages")
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    kept = ("PYTHONPATH", "WORKBENCH_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"}

    def call(*arguments: str) -> str:
        command = [installed / "bin" / "workbench", *arguments]
        return subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True, text=True).stdout

    def beside() -> dict[Path, int]:
        paths = (path for path in packages.rglob("*") if "__pycache__" not in path.parts)
        return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}

    before = beside()
    assert call("--version") == f"workbench {workbench.__version__}\n"
    assert "Report: runs/study-atlas/report.html" in call("study", "--limit", "3", "--traces", "2")
    assert beside() == before
    assert [path.name for path in work.iterdir()] == ["runs"]
    assert list((home / "cache" / "workbench").glob("second_moment-*"))
