"""Edits made elsewhere: what two states of a `transformers` model differ in, as an edit of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.edits.origin import made_for
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.machine.hashing import digest
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.places import Places, of_model, places_of
from workbench.models.weights import fingerprint
from workbench.records.facts import EditRequest

_LARGEST_RANK = 256
"""Differences of a higher rank are kept whole."""
_NEGLIGIBLE = 1e-3
"""Part of a difference, by its norm, that rounding may account for."""


@dataclass(frozen=True, kw_only=True)
class _State:
    """One state of a model's parameters."""

    parameters: Mapping[str, Tensor]
    places: Places | None = None
    """None where tensors alone were given, some or all, which do not say what model they are of."""
    tied: Mapping[str, str]
    """Names of parameters that are another under a second name."""
    name: str = ""


def from_hf_diff(before: Any, after: Any, *, method: str, requests: Sequence[EditRequest]) -> WeightEdit:
    """`Edit.from_hf_diff`, where it is described."""
    old, new = _state(before), _state(after)
    whole = old if old.places is not None else new
    if whole.places is None:
        raise ValueError(
            "two state dicts do not say what model they are of: give the model or its folder for one of them"
        )
    first, second = (_named(state, whole, what) for state, what in ((old, "before"), (new, "after")))
    updates: list[WeightUpdate] = []
    homeless: list[str] = []
    for name in sorted(first.keys() & second.keys()):
        _check_alike(name, first[name], second[name])
        if torch.equal(first[name], second[name]):
            continue
        change = second[name].double() - first[name].double()
        for (layer, matrix), place in whole.places.items():
            part = place.view(change) if place.parameter == name else change[:0]
            if part.any():
                left, right = _factors(part, place.view(second[name]))
                updates.append(WeightUpdate(layer=layer, matrix=matrix, left=left, right=right))
                part.zero_()
        if change.any():
            homeless.append(name)
    if homeless:
        raise ValueError(
            f"{_some(homeless)} differ too, which no edit of weights changes here: W_out, W_in, W_gate, b_out and "
            "matrices of attention that are not fused are what it may"
        )
    if not updates:
        raise ValueError("before and after do not differ, so there is no edit")
    made = {**{name: each for name, each in whole.parameters.items() if name not in first}, **first}
    noted = made_for(
        whole.name,
        fingerprint(made, {name: digest(each) for name, each in made.items()}),
        next(iter(first.values())).dtype,
        {},
    )
    return WeightEdit(updates=tuple(updates), method=method, requests=tuple(requests), provenance=noted)


def _state(given: Any) -> _State:
    """Of a model of the workbench or of `transformers`, its folder or hub name, or a state dict."""
    if isinstance(given, str | Path):
        given = load_model(str(given), device="cpu", dtype=None)
    if isinstance(given, Model):
        parameters = given.parameters
        return _State(parameters=parameters, places=given.once(of_model), tied=_tied(given.hf), name=given.name)
    if isinstance(given, torch.nn.Module):
        name = getattr(given, "name_or_path", "") or type(given).__name__
        parameters = dict(given.named_parameters())
        return _State(parameters=parameters, places=places_of(given), tied=_tied(given), name=name)
    if isinstance(given, Mapping) and all(isinstance(each, Tensor) for each in given.values()):
        return _State(parameters=given, tied={})
    raise ValueError(f"a model, its folder or a state dict is needed, got {type(given).__name__}")


def _tied(hf: Any) -> Mapping[str, str]:
    return getattr(hf, "all_tied_weights_keys", {})


def _named(state: _State, whole: _State, what: str) -> dict[str, Tensor]:
    """Its parameters by the names that the whole model has for them, on the CPU; ValueError for other names."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.parameters.items():
        own = name if name in whole.parameters else whole.tied.get(name, name)
        if own not in whole.parameters:
            unknown.append(name)
            continue
        value = tensor.detach().cpu().contiguous()
        if own in found and not torch.equal(found[own], value):
            raise ValueError(f"{what}, {name} is not what {own} is, though the two are tied in {whole.name}")
        found[own] = value
    if unknown:
        raise ValueError(f"{_some(unknown)} of {what!r} are no parameters of {whole.name}: leave them out")
    return found


def _check_alike(name: str, before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape:
        raise ValueError(f"{name} is {tuple(before.shape)} before and {tuple(after.shape)} after")
    if before.dtype != after.dtype:
        raise ValueError(f"{name} is {before.dtype} before and {after.dtype} after: load both in one dtype")


def _factors(
    change: Float[Tensor, "d_in d_out"], weight: Float[Tensor, "d_in d_out"]
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]:
    """A change as factors of the lowest rank that gives it but for the rounding of the weights; else whole."""
    dtype, full = torch.promote_types(weight.dtype, torch.float32), min(change.shape)
    rounding = torch.finfo(weight.dtype).eps * weight.double().norm()
    bound = torch.minimum(rounding, _NEGLIGIBLE * change.norm())
    if sketched := min(full // 4, _LARGEST_RANK):
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(change.shape[1], sketched, generator=generator, dtype=change.dtype)
        basis = torch.linalg.qr(change @ directions).Q
        inside = basis.T @ change
        if (change - basis @ inside).norm() <= bound:
            left, sizes, right = torch.linalg.svd(inside, full_matrices=False)
            tails = sizes.square().flip(0).cumsum(0).flip(0).sqrt()
            rank = max(1, int((tails > bound).sum()))
            return (basis @ left[:, :rank] * sizes[:rank]).to(dtype), right[:rank].to(dtype)
    identity = torch.eye(full, dtype=dtype)
    return (identity, change.to(dtype)) if len(change) == full else (change.to(dtype), identity)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
