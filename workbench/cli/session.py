"""What every command and every analysis shares: its run folder and report, and how it tells what went wrong.

Heavy imports stand inside the functions, so that `--help` answers at once.
"""

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from workbench.cli import options
from workbench.cli.ending import Terminated, terminating
from workbench.machine.failures import told_in_a_line

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.report.elements import Section
    from workbench.runs.run import Run
    from workbench.studies.checked import Checks

SOME_FAILED = 3
"""Exit code of a command that came to its end, but some of whose records failed."""
_running: ContextVar[dict[str, Any]] = ContextVar("the name and the options of the command that runs now")
_OF_THIS_TIME = {"out", "retry", "fresh", "device", "device_map", "workers", "cluster", "gpus_per_worker"}
_NO_SETTINGS = {*_OF_THIS_TIME, "together"}
"""Options that a run may go on with though they differ."""
console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
"""Where results are printed: plain text, its lines as long as they are."""


# A command -----------------------------------------------------------------------------------------------------


def script(main: Callable[..., None], file: str | None = None, doc: str | None = None) -> None:
    """Run an analysis from the command line, named by its file; its docstring is its help. Both are those of the module
    of `main` unless given."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    path = Path(file or main.__globals__["__file__"])
    app.command(help=_as_written(doc or main.__globals__["__doc__"]))(told(main, path.stem))
    app(prog_name=path.name)


def told(command: Callable[..., None], name: str) -> Callable[..., None]:
    """The command of that name, with one clear line instead of a traceback and exit code 1; 130 after Ctrl-C, 143
    after SIGTERM.

    Its option `precision`, if it has one, holds for what it computes, and what `plugin` names is loaded first. The
    environment variable WORKBENCH_TRACEBACK shows the traceback.
    """

    @functools.wraps(command)
    def wrapped(*, config: Path | None = None, **values: Any) -> None:
        del config  # its callback has read it
        try:
            if method := values.pop("help_editor", None):
                _help_editor(method, values)
            from workbench.machine.precision import float32_products

            with terminating(), warnings.catch_warnings(), float32_products(values.get("precision", "float32")):
                warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
                _load_plugins(values.get("plugin") or ())
                _running.set({"command": name, **values})
                command(**values)
        except KeyboardInterrupt as stopped:
            print("Interrupted. What is finished is kept; the same command goes on from there.")
            raise typer.Exit(143 if isinstance(stopped, Terminated) else 130) from None
        except typer.Exit:
            raise
        except Exception as error:  # SafetensorError, torch's own, ...: whatever it is, a user wants one line
            if os.environ.get("WORKBENCH_TRACEBACK"):
                raise
            print(f"error: {told_in_a_line(error)}", file=sys.stderr)
            raise typer.Exit(1) from None

    _declare(wrapped, command)
    return wrapped


def _declare(wrapped: Callable[..., None], command: Callable[..., None]) -> None:
    """Give a command the options that all have, and --help-editor where fields of an editor can be set."""
    signature = inspect.signature(command)
    more = {"config": options.Config}
    if "changes" in signature.parameters:
        more["help_editor"] = options.HelpEditor
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in more.items()
    ]
    vars(wrapped)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *added])
    wrapped.__annotations__ = {**command.__annotations__, **more}


def _help_editor(method: str, values: Mapping[str, Any]) -> None:
    from workbench.editors.asked import described

    _load_plugins(values.get("plugin") or ())
    console.print(described(method, values.get("preset") or values["model"]))
    raise typer.Exit


def _load_plugins(files: Iterable[Path]) -> None:
    for file in files:
        from workbench.editors.plugins import load_plugin

        load_plugin(file)


def _as_written(text: str) -> str:
    """Help whose paragraphs keep their lines, as commands to paste need."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.strip().split("\n\n"))


# Its run -------------------------------------------------------------------------------------------------------


def given(*, without: Sequence[str] = (), **settled: Any) -> dict[str, Any]:
    """The settings of a run: the options of the command that runs now, with what it has settled in their place.

    Left out are the options that a run may go on with though they differ: --out, --retry, --fresh, --device,
    --together, those that say who works, and those of `without`.
    """
    left_out = {*_NO_SETTINGS, "plugin", *without}
    asked = _running.get()
    kept = {name: value for name, value in asked.items() if name not in left_out} | plugged(asked.get("plugin"))
    return kept | settled


def plugged(plugin: Iterable[Path] | None) -> dict[str, Any]:
    """The setting of a run that plugins are part of; none for others, which go on whatever a later version adds."""
    return {"plugin": [str(file) for file in plugin]} if plugin else {}


@dataclass(kw_only=True)
class Page:
    """The run of an analysis, and what its report shows."""

    run: "Run"
    show: "Callable[[], Sequence[Section]] | None" = None
    """Saves tables and figures of what the run holds so far, and makes the report's sections of them. It is called at
    the end, also of a run that is interrupted; without it they are those of a study."""


@contextmanager
def analysis(
    out: Path | None,
    settings: Mapping[str, Any],
    model: "Model | None" = None,
    *,
    title: str = "Locating and editing facts",
    headline: "Callable[[Run], str] | str | None" = None,
    report: bool = True,
    methods: Iterable[str] = (),
    checks: "Sequence[Checks]" = (),
) -> Iterator[Page]:
    """Open the run folder, keep its state, and write and name its report at the end, also when it is interrupted.

    The options --retry, --fresh and --preset of the command that runs now are seen to here.

    Args:
        out: the folder; None for one in `runs/`, named by command and model.
        settings: see `given`.
        model: whose weights a run goes on with; ValueError for others.
        title, headline: of the report; the latter, or what makes it of the run, None for that of a study.
        report: whether there is one.
        methods: those on whose presets and trained networks results depend; a run goes on with none that changed.
        checks: what the model is to take; what it cannot is told, and kept as failed, before the block is entered.

    Exit code 3 if any record failed.
    """
    from workbench.machine.failures import lines
    from workbench.report.write import write_report
    from workbench.runs.folder import check_apart, clear, locked
    from workbench.runs.identity import CONTENT, GOING_ON, together
    from workbench.runs.run import Run
    from workbench.studies.checked import check
    from workbench.studies.contents import contents, preset_contents

    named = [settings["command"], *([Path(settings["model"]).name] if "model" in settings else [])]
    folder, asked = out or Path("runs") / "-".join(named), _running.get()
    check_apart(folder, asked)
    with locked(folder):
        if asked.get("fresh"):
            clear(folder)
        run = Run.create(folder, {**settings, CONTENT: contents(settings)})
        if model is not None:
            run.check_model(model.fingerprint())
        if model is not None:
            run.check_presets(preset_contents(model.name, methods, preset_of=asked.get("preset")))
        if asked.get("retry"):
            run.retry()
        beside = {name: value for name, value in asked.items() if name not in {*settings, *_OF_THIS_TIME}}
        run.write_json(GOING_ON, together(run.read_json(GOING_ON), beside))
        page = Page(run=run)

        def write(sections: "Sequence[Section] | None", *, complete: bool) -> None:
            if report:
                said = headline(run) if callable(headline) else headline
                path = write_report(run, sections, title=title, headline=said, complete=complete)
                print(f"Report: {path}")

        try:
            with run.running():
                if model is not None:
                    check(run, model, checks)
                yield page
                write(page.show and page.show(), complete=True)
        except BaseException:
            write(_so_far(page), complete=False)
            raise
    if failed := lines(run.rows("failures")):
        print("\n".join(failed), file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


def _so_far(page: Page) -> "Sequence[Section] | None":
    """What an interrupted run can show; None where that is nothing of its own."""
    from workbench.machine.failures import FAILURES

    try:
        return page.show and page.show()
    except FAILURES:  # too little is there yet: the report shows figures and tables as they are
        return None


def one_of(option: str, value: Any, choices: Iterable[Any]) -> None:
    """ValueError, which lists the choices, for a value that is none of them."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{option} is one of {', '.join(map(str, filter(None, choices)))}, got {value!r}")


# Its model -----------------------------------------------------------------------------------------------------


def load(model: str, *, device: str, dtype: str | None, device_map: str | None = None) -> "Model":
    """`load_model` with the options of a command."""
    from workbench.models import loading

    chosen = {"device_map": device_map} if device_map else {}
    return loading.load_model(model, device=device, dtype=None if dtype is None else torch_dtype(dtype), **chosen)


def torch_dtype(name: str) -> "torch.dtype":
    """The dtype of a name; ValueError for one that models are not loaded in."""
    import torch

    one_of("--dtype", name, ("float32", "bfloat16", "float16"))
    return getattr(torch, name)
