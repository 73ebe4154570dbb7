"""SecondMoment: C of a layer's keys, factored for solving, and kept in files with a checksum."""

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from workbench.machine.files import write_whole
from workbench.machine.hashing import digest

_SAVED_EVERY = 60.0
"""Seconds after which the sums so far are saved, between one lot of texts and the next."""
_SINGULAR = 1e-14
"""Pivots below this, relative to the largest diagonal entry, are rounding errors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondMoment:
    """C = mean of k k^T over tokens, with k the input of a layer's W_out (Meng et al. 2022, equation 2)."""

    layer: int
    """The layer whose keys were counted."""
    matrix: Float[Tensor, "d_mlp d_mlp"]
    """C, uncentred, in float64."""
    count: int
    """How many tokens it is the mean of."""


def factorise(matrix: Float[Tensor, "d d"], layer: int) -> Float[Tensor, "d d"]:
    """Lower Cholesky factor of C, in float64, for `torch.cholesky_solve`; ValueError if there is none."""
    matrix = matrix.detach().cpu().double()
    if not matrix.isfinite().all():
        raise ValueError(f"the second moment of layer {layer} is not finite")
    factor, failed = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
    pivots = factor.diagonal().square()
    if failed or pivots.min() <= _SINGULAR * matrix.diagonal().max():
        raise ValueError(
            f"the second moment of layer {layer} is singular, so C^-1 k is undefined; collect it over more "
            f"tokens and more varied ones (many more than the {len(matrix)} dimensions of a key)"
        )
    return factor


@dataclass(kw_only=True, eq=False)
class Partial:
    """The sums of a pass as far as it has come, kept in a file so that it can be stopped."""

    sums: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    """By layer, of k k^T."""
    path: Path | None
    """Where they are kept; None for nowhere."""
    texts: int = 0
    """How many texts are in them."""
    count: int = 0
    """How many tokens."""
    _saved: float = field(default_factory=time.monotonic)

    def resume(self) -> None:
        """Take over what an earlier pass has saved; a damaged file is left aside with a warning."""
        if self.path is None or not self.path.exists():
            return
        try:
            with safe_open(str(self.path), "pt") as file:
                metadata = file.metadata() or {}
                sums = {layer: file.get_tensor(str(layer)) for layer in self.sums}
            if json.loads(metadata["sha256"]) != {str(layer): _digest(total) for layer, total in sums.items()}:
                raise ValueError("its content does not have the checksum it was written with")
            self.texts, self.count = int(metadata["texts"]), int(metadata["count"])
            self.sums = {layer: total.to(self.sums[layer].device) for layer, total in sums.items()}
        except Exception as error:  # whatever is wrong with it, the pass can start again
            warnings.warn(f"the sums in '{self.path}' are damaged ({error}); starting again", stacklevel=4)

    def save(self) -> None:
        """Write them if that was not done for a while."""
        if self.path is None or time.monotonic() - self._saved < _SAVED_EVERY:
            return
        sums = {str(layer): total.cpu() for layer, total in self.sums.items()}
        checksums = json.dumps({layer: _digest(total) for layer, total in sums.items()})
        metadata = {"texts": str(self.texts), "count": str(self.count), "sha256": checksums}
        write_whole(self.path, save(sums, metadata=metadata))
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Once the moments are written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def partial_path(paths: Sequence[Path]) -> Path | None:
    """Where the sums of a pass that ends in these cache files are kept while it lasts."""
    if not paths:
        return None
    name = digest("\n".join(path.name for path in paths))
    return paths[0].parent / f"second_moment-partial-{name[:32]}.safetensors"


def read_moment(path: Path, layer: int, d_mlp: int) -> SecondMoment | None:
    """What a cache file holds; None if there is none or, with a warning, if it is not what was written."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            metadata, matrix = file.metadata() or {}, file.get_tensor("matrix")
        if metadata.get("sha256") != _digest(matrix):
            raise ValueError("its content does not have the checksum it was written with")
        if metadata["layer"] != str(layer) or matrix.shape != (d_mlp, d_mlp):
            raise ValueError(f"it holds {tuple(matrix.shape)} of layer {metadata['layer']}")
        return SecondMoment(layer=layer, matrix=matrix, count=int(metadata["count"]))
    except Exception as error:  # whatever is wrong with a cache file, it can be computed again
        warnings.warn(f"cached second moment '{path}' is damaged ({error}); computing it again", stacklevel=3)
        return None


def write_moment(path: Path, moment: SecondMoment) -> None:
    metadata = {"layer": str(moment.layer), "count": str(moment.count), "sha256": _digest(moment.matrix)}
    write_whole(path, save({"matrix": moment.matrix.contiguous()}, metadata=metadata))


def _digest(matrix: Tensor) -> str:
    return digest(str(matrix.dtype), matrix)
