"""`workbench rerun`: a run once more, from the settings that its folder holds."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.editing import edit, evaluate
from workbench.cli.session import told
from workbench.cli.study import study
from workbench.cli.tracing import trace

_COMMANDS = {"study": study, "trace": trace, "edit": edit, "evaluate": evaluate}


def rerun(
    folder: Annotated[Path, typer.Argument(help="The folder of a run of study, trace, edit or evaluate.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new run's folder. [default: FOLDER-rerun]")] = None,
    device: options.Device = "auto",
) -> None:
    """Repeat a run with the settings that its folder holds, into another folder."""
    from workbench.runs.identity import CONTENT, changed_contents
    from workbench.runs.run import Run
    from workbench.studies.contents import contents

    settings = Run.open(folder).settings
    name = settings.get("command")
    if name not in _COMMANDS:
        raise ValueError(f"'{folder}' is a run of {name}; rerun repeats those of {', '.join(_COMMANDS)}")
    if changed := changed_contents(settings.get(CONTENT, {}), contents(settings)):
        raise ValueError(f"{', '.join(changed)} are not what they were in '{folder}': put them back as they were")
    known = inspect.signature(_COMMANDS[name]).parameters
    values = {each: settings.get(each, option.default) for each, option in known.items()}
    again = {"out": out or folder.with_name(f"{folder.name}-rerun"), "device": device}
    told(_COMMANDS[name], name)(**values | again)
