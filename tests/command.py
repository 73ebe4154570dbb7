"""The commands as a user types them."""

from pathlib import Path

from typer.testing import CliRunner, Result

from workbench.cli import app

TINY = Path(__file__).parent / "golden" / "tiny-gpt2"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
