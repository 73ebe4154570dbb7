"""SecondMoment: C of a layer's keys, factored for solving, and kept in files with a checksum."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.hashing import digest
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.machine.shown import Shown

_MOMENT, _PARTIAL = "workbench-moment-2", "workbench-sums-2"

_SAVED_EVERY = 60.0
"""Seconds after which the sums so far are saved, between one lot of texts and the next."""
_SINGULAR = 1e-14
"""Pivots below this, relative to the largest diagonal entry, are rounding errors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondMoment(Shown):
    """C = mean of k k^T over tokens, with k the input of a layer's W_out (Meng et al. 2022, equation 2)."""

    layer: int
    """The layer whose keys were counted."""
    matrix: Float[Tensor, "d_mlp d_mlp"]
    """C, uncentred, in float64."""
    count: int
    """How many tokens it is the mean of."""

    def __repr__(self) -> str:
        return f"<layer {self.layer}: {' x '.join(map(str, self.matrix.shape))} over {self.count:,} keys>"


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
class Partial(Shown):
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
            tensors, (texts, count) = load_sealed(self.path, format=_PARTIAL)
            sums = {layer: tensors[str(layer)].to(total.device) for layer, total in self.sums.items()}
        except Exception as error:  # whatever is wrong with it, the pass can start again
            warnings.warn(f"the sums in '{self.path}' are damaged ({error}); starting again", stacklevel=4)
        else:
            self.sums, self.texts, self.count = sums, texts, count

    def save(self) -> None:
        """Write them if that was not done for a while."""
        if self.path is None or time.monotonic() - self._saved < _SAVED_EVERY:
            return
        sums = {str(layer): total for layer, total in self.sums.items()}
        save_sealed(self.path, sums, [self.texts, self.count], format=_PARTIAL)
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
        tensors, known = load_sealed(path, format=_MOMENT)
        matrix = tensors["matrix"]
        if known["layer"] != layer or matrix.shape != (d_mlp, d_mlp):
            raise ValueError(f"it holds {tuple(matrix.shape)} of layer {known['layer']}")
        return SecondMoment(layer=layer, matrix=matrix, count=known["count"])
    except Exception as error:  # whatever is wrong with a cache file, it can be computed again
        warnings.warn(f"cached second moment '{path}' is damaged ({error}); computing it again", stacklevel=3)
        return None


def write_moment(path: Path, moment: SecondMoment) -> None:
    """Write what `read_moment` reads."""
    save_sealed(path, {"matrix": moment.matrix}, {"layer": moment.layer, "count": moment.count}, format=_MOMENT)
