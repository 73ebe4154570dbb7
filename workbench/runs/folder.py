"""The folder of a run: who may write into it, and what may be deleted from it."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.machine.jsonl import load_json

LOCK = ".lock"
"""The file by which one process keeps others out."""
CLEARING = ".clearing"
"""The file that says that what else is there is being deleted."""
_WHOLE = ("settings.json", "environment.json", "status.json")
"""What every run's folder holds."""
_BEGUN = re.compile(r"environment\.json$|status\.json$|\.lock$|\.(environment|status|settings)\.json\.")
"""What a run that was killed as it began may have left."""


def check_folder(folder: Path) -> None:
    """ValueError for a file, and for a folder that holds more than a run, or than one that was killed as it began."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, not a run folder: choose another --out")
    if not folder.exists() or all((folder / name).exists() for name in _WHOLE) or (folder / CLEARING).exists():
        return
    if not all(_BEGUN.match(path.name) for path in folder.iterdir()):
        raise ValueError(f"'{folder}' holds files but is no run's: choose another --out")


def check_apart(folder: Path, asked: Mapping[str, Any]) -> None:
    """ValueError where what a command reads, by its options, lies in the folder that it is to write.

    A text may name something else than a file, as a method does after which the folder is called.
    """
    for name, value in asked.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if name == "out" or not isinstance(each, str | Path) or not str(each) or not os.path.exists(each):
                continue  # not `Path.exists`, which fails of a text that is too long for a name
            place, to = Path(each).resolve(), folder.resolve()
            if to in place.parents or (place == to and isinstance(each, Path)):
                raise ValueError(f"'{each}' lies in '{folder}', which is to be written: choose another --out")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a run's folder, within the block; ValueError if another one does."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock, status = FileLock(folder / LOCK), folder / "status.json"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        process = load_json(status).get("process", "another") if status.exists() else "another"
        raise ValueError(
            f"'{folder}' is being written by process {process}: wait until it is done, or choose another --out"
        ) from None
    try:
        end_clearing(folder)
        yield
    finally:
        lock.release()


def clear(folder: Path) -> None:
    """Delete what a run has left in its folder, but for the lock; ValueError, see `check_folder`, deletes nothing.

    Stopped in the midst, it is ended by the next who writes there, see `end_clearing`.
    """
    check_folder(folder)
    (folder / CLEARING).touch()
    for path in folder.iterdir():
        if path.name not in (LOCK, CLEARING):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / CLEARING).unlink()


def end_clearing(folder: Path) -> None:
    """Delete what is left where `clear` was stopped in the midst."""
    if (folder / CLEARING).exists():
        clear(folder)
