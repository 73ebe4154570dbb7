"""The commands as a user types them."""

from conftest import GOLDEN
from typer.testing import CliRunner, Result

from workbench.cli import app

TINY = GOLDEN / "tiny-gpt2"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
