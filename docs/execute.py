"""Execute notebooks and keep what they show: python docs/execute.py docs/tutorials/edit.ipynb

A notebook runs in its own folder, on the CPU, in the Python that runs this; the checkout's `workbench` is imported.
"""

import base64
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

LARGEST = 100_000
"""Bytes that a figure may have as PNG."""


def executed(path: Path, *, changes: dict[str, str] | None = None) -> Any:
    """The notebook with new outputs; `changes` are made to its code, which is then another notebook's.

    Cells tagged "install" are left out. CellExecutionError where a cell raises, ValueError for too large a figure.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    for cell in notebook.cells:
        for old, new in (changes or {}).items():
            cell.source = cell.source.replace(old, new)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}, record_timing=False)
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if shown(output)]
            for output in cell.outputs:
                keep_small(path, output)
    return notebook


def shown(output: Any) -> bool:
    """Whether an output is a reader's: warnings and progress bars are not."""
    if output.output_type == "stream":
        return output.name == "stdout"
    return not (output.output_type == "display_data" and set(output.data) <= {"text/html", "text/plain"})


def keep_small(path: Path, output: Any) -> None:
    """Write a figure with 128 colours; ValueError where it is too large even so."""
    if png := output.get("data", {}).get("image/png"):
        written = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(written, "png", optimize=True)
        if written.tell() > LARGEST:
            raise ValueError(f"{path}: a figure of {written.tell():,} bytes; draw less, or smaller")
        output.data["image/png"] = base64.b64encode(written.getvalue()).decode()


def texts(notebook: Any) -> list[str]:
    """What its cells show, with a mark for each figure, and numbers, which differ between machines, left out."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        found.append("".join(each.text for each in outputs if each.output_type == "stream"))  # printed in however many
        for data in (each.data for each in outputs if "data" in each):
            found.append("figure" if "image/png" in data else data.get("text/plain", ""))
    return [re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", text) for text in found]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
