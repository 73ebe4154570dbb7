"""`workbench app`: a local page to play with."""

from pathlib import Path
from time import sleep
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.ending import Terminated
from workbench.cli.session import console, load


def app(
    model: options.Model = "atlas",
    host: Annotated[
        str, typer.Option("--host", help="The address listened at; other than 127.0.0.1, others may use the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="[default: the first free one from 7860 on]")
    ] = None,
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
) -> None:
    """Open a page on this machine: trace a prompt, click a layer, edit, read before and after, undo, save."""
    try:
        from workbench.app.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the page needs Gradio, which is not installed: pip install 'workbench[app]'") from None

    loaded = load(model, device=device, dtype=dtype)
    page, address = serve(loaded, out or Path("runs") / f"app-{Path(loaded.name).name}", host=host, port=port)
    console.print(f"Open {address} (Ctrl-C ends it)")
    try:
        while True:
            sleep(3600)
    except KeyboardInterrupt as stopped:
        page.close(verbose=False)
        if isinstance(stopped, Terminated):
            raise
