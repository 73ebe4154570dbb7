"""The commands and the analyses as a user types them."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner, Result

from workbench.cli import app
from workbench.machine.paths import ROOT

TINY = ROOT / "tests" / "golden" / "tiny-gpt2"
ANALYSES = ROOT / "analyses"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a script printed and how it ended."""

    code: int
    printed: str
    """Without progress bars and without naming the report, which differs from run to run."""
    errors: str


Analyse = Callable[..., Said]
"""Runs a script of `analyses/` with arguments: `code` is how it must end."""


def make_analyse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Analyse:
    def analyse(script: str, *arguments: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ANALYSES / script), run_name="__main__")
        found = capsys.readouterr()
        assert ended.value.code == code, found
        assert "Traceback" not in found.err
        lines = [line for line in found.out.splitlines() if "━" not in line and not line.startswith("Report: ")]
        return Said(code=code, printed="\n".join(lines).strip(), errors=found.err)

    return analyse
