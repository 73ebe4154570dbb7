"""Second moments that are kept in a folder of a user's: written, read for a model that they are of, and imported."""

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.editors.shared.moment import SecondMoment
from workbench.edits.ledger import unedited_fingerprint
from workbench.machine.environment import environment
from workbench.machine.hashing import digest
from workbench.machine.sealed import Damaged, load_sealed, save_sealed
from workbench.models.model import Model
from workbench.models.places import of_model

_FORMAT = "workbench-kept-moment-1"
_PUBLISHED = re.compile(r"(?P<module>.+?\.(?P<layer>\d+)\..+)_float(16|32|64)_mom2(_t[^_]+)?(_\d+)?\.npz")
"""Names of the files that ROME's and MEMIT's published code writes, in a folder MODEL/DATASET_stats."""
_ASYMMETRY = 1e-3
"""Difference of C from its transpose, relative to its largest entry, that is still rounding of float32 sums."""


def kept_path(folder: Path, layer: int) -> Path:
    """Where a layer's moment is kept in a folder."""
    return folder / f"second_moment-{layer}.safetensors"


def holds_moments(folder: Path) -> bool:
    """Whether a folder is one of second moments."""
    return folder.is_dir() and any(folder.glob(kept_path(Path(), 0).name.replace("-0", "-*")))


def keep_moments(model: Model, moments: Mapping[int, SecondMoment], folder: Path, *, source: Mapping[str, Any]) -> None:
    """Write moments of a model, each with the model that it is of and where it comes from; ValueError, and nothing
    written, where the folder holds another model's of one of the layers."""
    fingerprint = unedited_fingerprint(model)
    for path in (kept_path(folder, layer) for layer in moments):
        if path.is_file() and (other := _others(path, fingerprint)):
            raise ValueError(f"'{path}' is of {other}: choose another folder")
    for layer, moment in moments.items():
        of = {"model": model.name, "fingerprint": fingerprint, "layer": layer, "count": moment.count}
        made = {name: environment()[name] for name in ("date", "versions")}
        save_sealed(kept_path(folder, layer), {"matrix": moment.matrix}, of | made | {"source": source}, format=_FORMAT)


def _others(path: Path, fingerprint: str) -> str:
    """The model that a file's moment is of, if that is another than the one of the fingerprint; empty if not."""
    try:
        _, known = load_sealed(path, format=_FORMAT)
        return "" if known["fingerprint"] == fingerprint else f"{known['model']} with other weights"
    except (Damaged, KeyError, TypeError):
        return ""


def read_kept(model: Model, layers: Sequence[int], folder: Path) -> dict[int, SecondMoment]:
    """The moments of layers from a folder; ValueError for one that is not there, damaged, or not of this model."""
    found, fingerprint = {}, unedited_fingerprint(model)
    for layer in layers:
        path = kept_path(folder, layer)
        if not path.is_file():
            there = ", ".join(sorted(each.name for each in folder.glob("*.safetensors"))) or "nothing"
            raise ValueError(f"'{folder}' has no second moment of layer {layer}, it has {there}")
        try:
            tensors, known = load_sealed(path, format=_FORMAT)
            matrix, of = tensors["matrix"], (known["model"], known["fingerprint"], known["layer"])
            count = int(known["count"])
        except (Damaged, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged or no second moment: {error}") from None
        if of[1:] != (fingerprint, layer) or matrix.shape != (model.d_mlp, model.d_mlp):
            raise ValueError(
                f"'{path}' is of layer {of[2]} of {of[0]} with weights {of[1][:12]}, not of layer {layer} of "
                f"{model.name} with weights {fingerprint[:12]}: import or export it again for this model"
            )
        found[layer] = SecondMoment(layer=layer, matrix=matrix, count=count)
    return found


def kept_content(folder: Path) -> str:
    """A digest of all that a folder of moments holds."""
    return digest(*(digest(path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))))


def import_published(model: Model, path: Path) -> tuple[SecondMoment, dict[str, Any]]:
    """The second moment in a file as ROME's authors publish them, with where it comes from.

    Such a file, MODEL/DATASET_stats/MODULE_PRECISION_mom2_SAMPLES.npz, holds the sum of k k^T ("mom2.mom2") and the
    number of tokens ("mom2.count"); nothing in it is unpickled. ValueError for anything else, and for a file of another
    model, of another module than a W_out of this one, or of another size.
    """
    named = _PUBLISHED.fullmatch(path.name)
    if named is None:
        raise ValueError(f"'{path}' is not named as a published file: MODULE_float32_mom2_100000.npz")
    stats = path.absolute().parent
    if not stats.name.endswith("_stats"):
        raise ValueError(
            f"'{path}' does not say of which model it is: put it into a folder MODEL/wikipedia_stats, as published, "
            "such as gpt2-xl/wikipedia_stats"
        )
    of, module, layer = stats.parent.name, named["module"], int(named["layer"])
    here = {model.name.replace("/", "_"), Path(model.name).name}
    if of not in here and of.rpartition("_")[2] not in here:
        raise ValueError(f"'{path}' is of the model {of}, not of {model.name}")
    place = model.once(of_model).get((layer, "W_out"))
    if place is None or place.parameter != f"{module}.weight":
        known = "no such layer" if place is None else place.parameter.removesuffix(".weight")
        raise ValueError(f"'{path}' is of {module}, but the W_out of layer {layer} of {model.name} is {known}")
    sums, count = _read_sums(path, model.d_mlp)
    matrix = torch.from_numpy(sums).double() / count
    if not matrix.isfinite().all() or (matrix - matrix.T).abs().max() > _ASYMMETRY * matrix.abs().max():
        raise ValueError(f"'{path}' holds no second moment: its matrix is not finite or not symmetric")
    source = {"file": path.name, "sha256": digest(path.read_bytes()), "model": of, "texts": stats.name}
    return SecondMoment(layer=layer, matrix=matrix, count=count), source


def _read_sums(path: Path, d_mlp: int) -> tuple[np.ndarray, int]:
    """The sum of k k^T and the number of tokens in an npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("mom2.mom2.npy").file_size > 8 * d_mlp**2 + 4096:  # before it is unpacked
                raise ValueError(f"its matrix is larger than {d_mlp} x {d_mlp}")
        with np.load(path, allow_pickle=False) as arrays:
            sums, count = arrays["mom2.mom2"], int(arrays["mom2.count"])
        if sums.shape != (d_mlp, d_mlp) or sums.dtype.kind != "f" or count < 1:
            raise ValueError(f"it holds {sums.dtype} {sums.shape} over {count} tokens")
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"'{path}' holds no sums of keys of {d_mlp} numbers, mom2.mom2 and mom2.count: {said}"
        ) from None
    return sums, count
