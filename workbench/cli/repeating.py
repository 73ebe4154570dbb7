"""`workbench rerun`: a run once more, from the settings that its folder holds."""

import inspect
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from workbench.cli import options
from workbench.cli.comparing import compare
from workbench.cli.editing import edit, evaluate
from workbench.cli.session import told
from workbench.cli.study import study
from workbench.cli.tracing import trace

_COMMANDS = {"study": study, "trace": trace, "edit": edit, "evaluate": evaluate, "compare_editors": compare}


def rerun(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new run's folder. [default: FOLDER-rerun]")] = None,
    device: options.Device = "auto",
) -> None:
    """Repeat a run with the settings that its folder holds, into another folder.

    Those of other analyses than `compare` are repeated in the folder of a checkout, where their scripts are.
    """
    from workbench.runs.identity import CONTENT, GOING_ON, changed_contents
    from workbench.runs.run import Run
    from workbench.studies.contents import contents

    made = Run.open(folder)
    settings, name = made.settings, made.settings.get("command", "")
    main = _COMMANDS.get(name) or _analysis(name, folder)
    if changed := changed_contents(settings.get(CONTENT, {}), contents(settings)):
        raise ValueError(
            f"{', '.join(changed)} are not what they were in '{folder}': put them back as they were, or "
            "call this in the folder where it was made"
        )
    if out is not None and out.resolve() == folder.resolve():
        raise ValueError(f"'{out}' is the run itself: choose another --out")
    given = {**made.read_json(GOING_ON), **settings}
    given.pop("located", None)  # the run whose layer was taken: the layer is settled
    values = {each: _value(option, given) for each, option in inspect.signature(main).parameters.items()}
    named = folder if folder.name not in ("", "..") else folder.resolve()  # "." has no name
    again = {"out": out or named.with_name(f"{named.name}-rerun"), "device": device}
    told(main, name)(**values | {key: value for key, value in again.items() if key in values})


def _analysis(name: str, folder: Path) -> Callable[..., None]:
    """The `main` of a script of `analyses/` in the working folder."""
    path = Path("analyses") / f"{name}.py"
    spec = spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(
            f"'{folder}' is a run of {name or 'nothing that has a name'}; rerun repeats those of "
            f"{', '.join(_COMMANDS)}, and of the scripts of analyses/ when it is called in the folder of a checkout"
        )
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def _value(option: inspect.Parameter, given: dict[str, Any]) -> Any:
    """An option as a command is given it: of JSON's texts those are paths again that it takes for paths."""
    value = given.get(option.name, option.default)
    return Path(value) if isinstance(value, str) and Path in get_args(get_args(option.annotation)[0]) else value
