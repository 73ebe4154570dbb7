"""PMET: precise model editing in a transformer (Li et al. 2024, arXiv:2308.08742)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.memit import MEMIT
from workbench.editors.search.fast_values import search_together
from workbench.editors.search.outputs import OutputSearch
from workbench.editors.search.values import (
    DIVERGENCE_REACHED,
    LOSS_REACHED,
    NLL_WEIGHT_REACHED,
    OptimisedValue,
    ValueLoss,
    prompt_batch,
    read_from,
)
from workbench.editors.shared.subject import in_contexts
from workbench.models.model import Model
from workbench.records.facts import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class PMET(MEMIT):
    """MEMIT for the MLP's own output, optimised together with the attention's, which is not written:

        d_attn, d_mlp = argmin  phi NLL(target_new) + KL("{} is a") + decay
        dW = (lambda C + K K^T)^-1 K R^T,    R = (m + d_mlp - m') / sqrt(layers left, this one included)

    Both deltas are added at the subject's last token in the last edited layer; m is the MLP's output there in the
    unedited model, m' what it is once the layers before have been edited. As published, phi is 1, but 0.1 while
    every token of the target is the model's first choice in every context; the optimisation ends early below a
    loss of 0.05, or when phi is 0.1 and the weighted divergence at most 0.01. Decay and clamp apply to each delta
    with the norm of the output that it is added to.

    Defaults are the published hyperparameters for GPT-J.
    """

    method: ClassVar[str] = "PMET"
    site: ClassVar[str] = "mlp_write"

    steps: int = 30
    """How many losses are evaluated for each request; one fewer Adam steps are made."""
    learning_rate: float = 0.2
    """Of Adam."""
    kl_weight: float = 1.0
    """Multiplies the divergence on `kl_template`."""
    moment_weight: float = 6000.0
    """lambda, of C (the published mom2_update_weight)."""

    def _share(self, remaining: int) -> float:
        return math.sqrt(remaining)

    def _values(self, model: Model, requests: Sequence[EditRequest]) -> list[OptimisedValue]:
        templates = [in_contexts(request.template, self.contexts) for request in requests]
        options = self._optimisation() | {"layer": self.layers[-1]}
        return search_together(OutputSearch, optimise_outputs, model, requests, templates, **options)


def optimise_outputs(
    model: Model,
    request: EditRequest,
    templates: Sequence[str],
    *,
    layer: int,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    clamp: float,
    kl_weight: float,
    kl_template: str,
    loss_layer: int | None = None,
) -> OptimisedValue:
    """The MLP's output and its delta, found together with a delta of the attention's output; see `PMET`.

    Arguments and errors as for `optimise_value`. The likelihood in `losses` is weighted by phi.
    """
    names = [model.hook_name(site, layer) for site in ("attn_out", "mlp_write")]
    batch = prompt_batch(model, request, [*templates, kl_template])
    everywhere = torch.arange(len(batch.tokens.ids), device=model.device)
    dtype = torch.promote_types(model.dtype, torch.float32)
    found = model.activations(batch.tokens, names)
    initial = torch.stack([found[name][0, batch.subjects[0]].to(dtype) for name in names])
    delta = torch.zeros_like(initial, requires_grad=True)

    def adder(index: int):
        def add_delta(state: Tensor, hook: object) -> Tensor:
            added = torch.zeros_like(state)
            added[everywhere, batch.subjects] = delta[index].to(state.dtype)
            return state + added

        return add_delta

    hooks = [*((name, adder(index)) for index, name in enumerate(names)), *read_from(model, layer, loss_layer)]
    keep, width = batch.keep_last, batch.tokens.ids.shape[1]
    optimiser = torch.optim.Adam([delta], lr=learning_rate)
    essence: Tensor | None = None
    phi = 1.0
    losses: list[ValueLoss] = []
    with torch.enable_grad():
        for step in range(steps):
            logits = model.logits(batch.tokens, hooks=hooks, keep_last=keep).to(dtype)
            said = logits[batch.rows, batch.positions - (width - keep)].log_softmax(dim=-1)
            now = logits[-1, batch.subjects[-1] - (width - keep)].log_softmax(dim=-1)
            essence = now.detach() if essence is None else essence
            nll = -phi * (said.gather(1, batch.targets[:, None])[:, 0] * batch.weights).sum()
            kl = kl_weight * torch.nn.functional.kl_div(essence, now, log_target=True, reduction="sum")
            decay = weight_decay * (delta.norm(dim=1) / initial.norm(dim=1) ** 2).sum()
            loss = nll + kl + decay
            losses.append(ValueLoss(nll=nll.item(), kl=kl.item(), weight_decay=decay.item()))
            if not loss.isfinite():
                raise ValueError(
                    f"the outputs for {request.prompt!r} -> {request.target_new!r} diverged at step {step}: "
                    f"{losses[-1]}; check the model's weights, or lower learning_rate ({learning_rate})"
                )
            answered = bool((said.argmax(dim=1) == batch.targets).all())
            if loss < LOSS_REACHED or (answered and kl <= DIVERGENCE_REACHED) or step == steps - 1:
                break
            phi = NLL_WEIGHT_REACHED if answered else 1.0
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                delta *= _shrink(delta, clamp * initial.norm(dim=1))
    return OptimisedValue(initial=initial[1], delta=delta.detach()[1], losses=tuple(losses))


def _shrink(delta: Float[Tensor, "output d_model"], largest: Float[Tensor, " output"]) -> Float[Tensor, "output 1"]:
    return (largest / delta.norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)).clamp(max=1)[:, None]
