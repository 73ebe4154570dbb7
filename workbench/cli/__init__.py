"""The commands `workbench ...`, and what they share with the scripts of `analyses/`.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from typing import Annotated

import typer

import workbench
from workbench.cli.applying import apply, chat
from workbench.cli.checkpoints import export, fetch
from workbench.cli.comparing import compare
from workbench.cli.editing import edit, evaluate
from workbench.cli.moments import moments
from workbench.cli.playing import app as page
from workbench.cli.repeating import rerun
from workbench.cli.session import told
from workbench.cli.study import study
from workbench.cli.tracing import trace
from workbench.cli.training import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Where in a language model is a fact recalled, and can it be rewritten there without breaking the rest?\n\n"
    "Start with `workbench study`: it runs everything on a small embedded model and ends with a report.",
)


def _show_version(asked: bool) -> bool:
    if asked:
        print(f"workbench {workbench.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def settings(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


for command in (fetch, trace, edit, evaluate, apply, chat, export, train, study, rerun):
    app.command()(told(command, command.__name__))
app.add_typer(moments, name="moments")
app.command("app")(told(page, "app"))
app.command()(told(compare, "compare_editors"))  # its runs are those of the script


def main() -> None:
    """Entry point."""
    app()
