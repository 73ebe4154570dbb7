"""`workbench apply` and `workbench chat`: what a model says before and after saved edits, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import options
from workbench.cli.session import console, load

if TYPE_CHECKING:
    from workbench.models.model import Model

Edits = Annotated[list[Path], typer.Argument(help="Edit files, applied in this order.")]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="How many are generated, greedily.")]
Force = Annotated[bool, typer.Option("--force", help="Also for edits made for other weights or in another dtype.")]


def apply(
    edits: Edits,
    prompts: Annotated[list[str], typer.Option("--prompt", help="What the model goes on from; once each.")],
    model: options.Model = "atlas",
    tokens: Tokens = 20,
    force: Force = False,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Show what a model says to prompts before and after saved edits, side by side."""
    show_both(
        load(model, device=device, dtype=dtype, device_map=device_map), edits, prompts, tokens=tokens, force=force
    )


def chat(
    edits: Edits,
    model: options.Model = "atlas",
    tokens: Tokens = 20,
    force: Force = False,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Read prompts line by line, and show what a model says before and after saved edits; an empty line ends it."""
    from workbench.edits.sequence import applied_files

    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    with applied_files(loaded, edits, force=force):  # what is wrong with them is told before anything is asked
        console.print("A prompt a line; an empty line ends.")
    while prompt := _line():
        try:
            show_both(loaded, edits, [prompt], tokens=tokens, force=force)
        except ValueError as error:  # of this prompt: the next may do
            console.print(f"error: {error}")


def show_both(model: "Model", edits: Sequence[Path], prompts: Sequence[str], *, tokens: int, force: bool) -> None:
    """Print the greedy continuations of the unedited and the edited model, a row a prompt; the model is restored."""
    from rich.table import Table
    from rich.text import Text

    from workbench.edits.sequence import applied_files
    from workbench.models.generation import generate

    before = generate(model, list(prompts), max_new_tokens=tokens)
    with applied_files(model, edits, force=force):
        after = generate(model, list(prompts), max_new_tokens=tokens)
    table = Table("Prompt", "Before", "After", show_lines=len(prompts) > 1)
    for row in zip(prompts, before, after, strict=True):
        table.add_row(*(Text(said.strip()) for said in row))
    console.print(table)


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
