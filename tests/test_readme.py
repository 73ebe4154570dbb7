"""README is true: its code runs, its tables are those of reports/, its files exist."""

import re
import runpy
from pathlib import Path

import pytest

from workbench.machine.paths import ROOT
from workbench.records.counterfact import read_counterfact, write_counterfact
from workbench.studies import calls
from workbench.studies.defaults import records_path

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("facts", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_the_example_does_what_it_says(
    facts: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layer is located over a few facts, or over as many as the user's."""
    write_counterfact(read_counterfact(records_path("atlas"))[:facts], tmp_path / "records.json")
    monkeypatch.setattr(calls, "records_path", lambda name: tmp_path / "records.json")
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    before, after = (line for line in capsys.readouterr().out.splitlines() if line.strip() and "━" not in line)
    assert "Paris" in before
    assert "Rome" in after
    assert (tmp_path / "eiffel.safetensors").exists()


def test_its_tables_are_those_of_the_reports() -> None:
    refresh = runpy.run_path(str(ROOT / "reports" / "refresh.py"))
    assert refresh["with_tables"](TEXT) == TEXT


def test_the_folder_of_each_report_shows_what_it_says() -> None:
    twin = runpy.run_path(str(ROOT / "reports" / "refresh.py"))["twin"]
    for report in (ROOT / "reports").rglob("report.html"):
        page = report.with_name("README.md").read_text(encoding="utf-8")
        assert page == twin(report) and page.startswith("# ")
        links = re.findall(r"!\[.*?\]\((figures/[^)]+)\)", page)
        assert len(links) == len(list((report.parent / "figures").glob("*.png")))


def test_its_links_and_pictures_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
    named = re.findall(r"`((?:analyses|workbench|data|tests|reports)/[\w/.]*)`", TEXT)
    assert not [path for path in named if not (ROOT / path).exists()]
