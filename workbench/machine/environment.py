"""Where a run happened: versions, machine, commit, date."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from workbench.machine.paths import ROOT

PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "workbench")


def environment() -> dict[str, Any]:
    """Date, Python, package versions, platform, torch's threads, the GPU (None without one) and the repository's commit
    (None outside a checkout)."""
    return {
        "date": now(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpu": _gpu(),
        "commit": _commit(ROOT),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _gpu() -> str | None:
    """Name and memory of the GPU that models are put on, and the CUDA that torch was built with."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """The commit checked out at `root`, with '+changes' if tracked files differ from it.

    None where `root` is not itself the top of a checkout: a package installed below somebody's repository
    must not claim that repository's commit.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
