"""The docs are true: their code runs, their commands and notebooks do what they say, and the site builds."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import typer
from command import ANALYSES

from workbench.cli import app
from workbench.cli.early_help import outlined
from workbench.cli.session import told
from workbench.editors.registry import EDITORS
from workbench.machine.paths import ROOT
from workbench.records.course import read_requests, read_single_edit
from workbench.records.reading import schema
from workbench.studies.tiny_models import make_checkpoint

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
GPU = DOCS / "tutorials" / "gpu.ipynb"
TOOLS = runpy.run_path(str(DOCS / "execute.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OTHERS = {"make", "source"}
"""Commands on a page that are not the workbench's."""


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def named(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def commands() -> list[tuple[str, str]]:
    """Every command that a page shows, in its blocks and in its sentences."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line]
        lines += re.findall(r"`((?:workbench |python analyses/)[^`]+)`", BLOCK.sub("", text))
        found += [(named(page), line) for line in lines]
    for notebook in NOTEBOOKS:
        cells = "\n".join(cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "markdown")
        found += [(named(notebook), line) for line in re.findall(r"`((?:workbench |python analyses/)[^`]+)`", cells)]
    return found


def parse(line: str, *, whole: bool = True) -> None:
    """Have the command line's own parser read it, without running anything; not `whole`: it may lack what is needed."""
    program, *arguments = shlex.split(line)
    if program == "workbench":
        group = typer.main.get_command(app)
        name, *arguments = arguments
        command = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        assert program == "python", line
        script, *arguments = arguments
        alone = typer.Typer(add_completion=False)
        alone.command()(told(outlined(ROOT / script)["main"], Path(script).stem))
        command = typer.main.get_command(alone)
    try:
        command.make_context("docs", arguments)
    except typer.Exit as ended:  # --help and --help-editor say what they are asked and exit
        assert ended.exit_code == 0
    except Exception as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise


def given_in_full(line: str) -> bool:
    """Whether it is more than the name of a command in a sentence, or has places to be filled in."""
    return line.split()[0] not in OTHERS and not re.search(r"\.\.\.|\b[A-Z]{4,}\b|^workbench \w+$|^python \S+$", line)


SHOWN = commands()


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "sh", "yaml", "json"}


@pytest.mark.parametrize(("page", "line"), [shown for shown in SHOWN if given_in_full(shown[1])])
def test_a_command_is_one(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse(line, whole=page.endswith(".md") and line in "\n".join(blocks(DOCS / page, "sh")))


def test_a_command_that_is_none_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("workbench trace --modle atlas")


def test_what_is_named_of_the_checkout_is_there() -> None:
    for page, line in SHOWN:
        words = line.split()
        if words[0] == "workbench":
            assert words[1] in typer.main.get_command(app).commands, page  # pyright: ignore[reportAttributeAccessIssue]
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file() and words[1].startswith(ANALYSES.name), page


def test_the_files_that_pages_show_are_read(tmp_path: Path) -> None:
    (edit,) = blocks(DOCS / "how-to" / "homework.md", "yaml")
    (tmp_path / "my_edit.yaml").write_text(edit)
    assert [one.rule for one in read_single_edit(tmp_path / "my_edit.yaml").prompts].count(None) == 1
    counterfact, course = blocks(DOCS / "how-to" / "own_data.md", "json")
    for text, name in ((counterfact, "CounterFact"), (course, "the course")):
        (tmp_path / "records.json").write_text(text)
        assert schema(tmp_path / "records.json") == name
    (record,) = read_requests(tmp_path / "records.json")
    assert record.portability_prompts and record.neighborhood_prompts


@pytest.mark.slow  # for importing every editor
def test_every_method_has_a_page_that_says_what_it_is() -> None:
    table = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \| \[[^\]]*\]\((\w+\.md)\) \|.*\|([^|]*)\|$", table, re.MULTILINE)
    told = {name: (page, "yes" in batch) for names, page, batch in rows for name in re.findall(r"`(\w+)`", names)}
    assert told.keys() == EDITORS.keys()
    for name, (page, batches) in told.items():
        text = (DOCS / "methods" / page).read_text(encoding="utf-8")
        editor = EDITORS[name]
        assert batches == editor.batches and f"::: {editor.__module__}.{editor.__name__}\n" in text
        assert "arxiv.org/abs/" in text and "$$" in text


# What runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order, in a folder with what the page says to write there."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint("llama", tmp_path / "my-llama")
    for text in blocks(page, "json")[:1]:
        (tmp_path / "records.json").write_text(text)
    code = blocks(page, "python")
    if page.stem == "own_editor":
        (tmp_path / "my_editor.py").write_text(code.pop(0))
    if page.stem == "own_model":
        code[-1] = code[-1].replace('subject="Ann"', 'subject="the"')
    (tmp_path / "page.py").write_text("\n".join(code))
    runpy.run_path("page.py")


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != GPU], ids=named)
def test_a_notebook_shows_what_is_kept(path: Path) -> None:
    """But for numbers, which differ between machines."""
    kept = nbformat.read(path, as_version=4)
    assert TOOLS["texts"](TOOLS["executed"](path)) == TOOLS["texts"](kept)


@pytest.mark.slow
def test_the_notebook_for_gpus_runs_on_a_small_model() -> None:
    changes = {'"gpt2-xl", torch.float32, "gpt2-xl"': '"atlas", torch.float32, "atlas"', 'text="self"': 'text="atlas"'}
    changes |= {'records_path("smollm2")': 'records_path("atlas")', '"eiffel.safetensors"': "os.devnull"}
    changes |= {"import torch\n": "import os\nimport torch\n"}
    source = "\n".join(cell.source for cell in nbformat.read(GPU, 4).cells)
    assert all(old in source for old in changes)
    shown = "\n".join(TOOLS["texts"](TOOLS["executed"](GPU, changes=changes)))
    assert "after:  Rome" in shown and "figure" in shown


def test_notebooks_are_small_and_use_the_public_face() -> None:
    for path in NOTEBOOKS:
        assert path.stat().st_size < 200_000
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
                for node in ast.walk(ast.parse(code)):
                    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "workbench":
                        assert node.attr in dir(__import__("workbench")), (path.name, node.attr)
                    assert not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("workbench."), path


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    subprocess.run(build, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?https?://[^>]*>", text), page
        assert 'class="arithmatex"' not in text
    assert "<math" in (tmp_path / "site" / "methods" / "rome" / "index.html").read_text(encoding="utf-8")
