"""What the batch editors share: keys and states of many requests at once, the regularised solve, what is noted down."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.moment import SecondMoment
from workbench.editors.shared.subject import in_contexts
from workbench.machine.hashing import digest
from workbench.models.hooks_check import hook_faults
from workbench.models.model import Model
from workbench.records.facts import EditRequest, fill, subject_characters, token_span

_DEPENDENT = 1e-12
"""Pivots below this, relative to the largest diagonal entry, are rounding errors."""


def subject_states(
    model: Model, name: str, templates: Sequence[str], subjects: Sequence[str], *, batch_size: int = 64
) -> Float[Tensor, "row d"]:
    """Activation at the hook named, at the subject's last token of each filled template; float64, on the CPU."""
    texts = [fill(template, subject) for template, subject in zip(templates, subjects, strict=True)]
    found: dict[int, Tensor] = {}
    rows = model.encode(texts)
    for batch in model.batches(rows, batch_size, keep=1):
        tokens = model.pad([rows[index] for index in batch])
        ends = [
            token_span(offsets, subject_characters(templates[index], subjects[index]))[1] - 1
            for offsets, index in zip(tokens.offsets, batch, strict=True)
        ]
        states = model.activations(tokens, [name])[name][torch.arange(len(batch)), torch.tensor(ends)]
        found |= dict(zip(batch, states.cpu().double(), strict=True))
    return torch.stack([found[index] for index in range(len(texts))])


def check_hooks(model: Model, method: str, *sites: str) -> None:
    """ValueError unless these sites mean what a method takes them for, in every layer."""
    for site in sites:
        if site in model.once(hook_faults):
            raise ValueError(f"{method} cannot keep what it promises: {model.once(hook_faults)[site]}")


def contributed(model: Model, layer: int, output: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What a layer's MLP adds to the residual stream where W_out gives `output`; float64, on the CPU."""
    contribution = model.mlp_contribution(layer)
    return output if contribution.direct else contribution(_on_device(model, output)).cpu().double()


def output_change(
    model: Model,
    layer: int,
    wanted: Float[Tensor, "row d_model"],
    templates: Sequence[str],
    subjects: Sequence[str],
) -> Float[Tensor, "row d_model"]:
    """The change of W_out's output, at the subject's last token of each filled template, that changes what a layer's
    MLP adds to the residual stream by `wanted`: exactly, or as far as a norm between them lets it; see `Contribution`.
    """
    contribution = model.mlp_contribution(layer)
    if contribution.direct:
        return wanted
    output = subject_states(model, model.hook_name("mlp_write", layer), templates, subjects)
    return contribution.needed(_on_device(model, output), _on_device(model, wanted)).cpu().double()


def _on_device(model: Model, tensor: Tensor) -> Tensor:
    return tensor.to(model.device, torch.promote_types(model.dtype, torch.float32))


def mean_keys(
    model: Model, layer: int, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> Float[Tensor, "d_mlp request"]:
    """K: each request's key, half the bare prompt's, half the mean over the other contexts, as MEMIT publishes it.

    `contexts` begin with the bare {}; where that is the only one, the key is the bare prompt's.
    """
    templates = [template for request in requests for template in in_contexts(request.template, contexts)]
    subjects = [request.subject for request in requests for _ in contexts]
    states = subject_states(model, model.hook_name("mlp_key", layer), templates, subjects)
    keys = rearrange(states, "(request context) d_mlp -> context d_mlp request", context=len(contexts))
    return keys[0] if len(contexts) == 1 else (keys[0] + keys[1:].mean(dim=0)) / 2


def regularised_solve(
    factor: Float[Tensor, "d_mlp d_mlp"], keys: Float[Tensor, "d_mlp request"], weight: float, layer: int
) -> Float[Tensor, "d_mlp request"]:
    """(weight C + K K^T)^-1 K = C^-1 K (weight I + K^T C^-1 K)^-1, from the lower Cholesky factor of C.

    The second form is solved: one factor of C does for every batch, and it has a limit at weight 0, where each key
    is mapped to its own unit vector exactly. ValueError if the keys are then linearly dependent.
    """
    inverse_keys = torch.cholesky_solve(keys, factor)
    gram = keys.T @ inverse_keys
    gram = (gram + gram.T) / 2 + weight * torch.eye(len(gram), dtype=gram.dtype)
    inner, failed = torch.linalg.cholesky_ex(gram)
    if failed or inner.diagonal().square().min() <= _DEPENDENT * gram.diagonal().max():
        raise ValueError(
            f"the keys of the {len(gram)} requests at layer {layer} are linearly dependent, so not all of them can "
            "be given a value of its own; raise the regularisation, or make the edits one after another"
        )
    return torch.cholesky_solve(inverse_keys.T, inner).T


def describe_moment(matrix: Float[Tensor, "d_mlp d_mlp"], tokens: int | None) -> dict[str, str | int | None]:
    """A second moment as provenance names it: the hash of its bytes, and how many tokens it was counted over."""
    return {"sha256": digest(matrix), "tokens": tokens}


def check_moment(moment: SecondMoment, model: Model) -> None:
    """ValueError unless C is of the size of the model's keys."""
    if moment.matrix.shape != (model.d_mlp, model.d_mlp):
        raise ValueError(
            f"second moment is {' x '.join(map(str, moment.matrix.shape))}, but the keys of layer {moment.layer} of "
            f"{model.name} have {model.d_mlp} dimensions; is it another model's?"
        )
