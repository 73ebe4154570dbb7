"""The value that makes a model say something else about a subject, found by gradient descent on one state."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.editors.shared.subject import subject_ends
from workbench.machine.shown import Shown
from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.models.tokens import Tokens, answer_start
from workbench.records.facts import EditRequest, fill
from workbench.records.joining import join

LOSS_REACHED = 5e-2
"""The published loop ends early below this loss."""
DIVERGENCE_REACHED = 0.01
"""PMET's ends, too, at this weighted divergence once the target is the model's answer everywhere."""
NLL_WEIGHT_REACHED = 0.1
"""Until it ends, it then weighs the likelihood by this."""


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """The terms of the loss at one step."""

    nll: float
    """Negative log-likelihood, mean over the target's tokens and the contexts."""
    kl: float
    """Weighted divergence from what the unedited model says of the subject's essence."""
    weight_decay: float
    """Weighted size of the change."""

    @property
    def total(self) -> float:
        """Their sum."""
        return self.nll + self.kl + self.weight_decay


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimisedValue(Shown):
    """v* = initial + delta."""

    initial: Float[Tensor, " d_model"]
    """The state at the subject's last token of the bare prompt."""
    delta: Float[Tensor, " d_model"]
    """The change found."""
    losses: tuple[ValueLoss, ...]
    """One for each evaluation; the last one belongs to `delta`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch(Shown):
    """Rewriting prompts with their targets, and the essence prompt as the last row; padded on the left."""

    tokens: Tokens
    subjects: Int[Tensor, " batch"]
    """Index of the subject's last token in each row."""
    rows: Int[Tensor, " prediction"]
    """Row of each predicted token of a target."""
    positions: Int[Tensor, " prediction"]
    """Index from which it is predicted."""
    targets: Int[Tensor, " prediction"]
    """Its id."""
    weights: Float[Tensor, " prediction"]
    """Its share of the mean over tokens and contexts."""

    @property
    def keep_last(self) -> int:
        """How many of the last positions hold all the logits needed."""
        first = min(int(self.positions.min()), int(self.subjects[-1]))
        return self.tokens.ids.shape[1] - first


def optimise_value(
    model: Model,
    request: EditRequest,
    templates: Sequence[str],
    *,
    site: str,
    layer: int,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    clamp: float,
    kl_weight: float,
    kl_template: str,
    loss_layer: int | None = None,
) -> OptimisedValue:
    """v* = argmin of NLL(target_new) + KL("{} is a") + decay over one state (Meng et al. 2022, equation 4).

    As published: one delta is added to the state at the subject's last token of every prompt; `steps` losses
    are evaluated with an Adam step between each two, ending early below a loss of 0.05; the divergence is
    taken at the subject's last token, not at the end of the prompt; the decay is
    weight_decay * ||delta|| / ||initial||^2; after each step ||delta|| is clamped to clamp * ||initial||.

    Args:
        templates: rewriting prompts with the subject's {} open, the bare one first.
        site: `mlp_write` for ROME; `resid_post` for methods that spread the change over layers.
        loss_layer: read the target's probability from this layer's residual stream (final norm and
            unembedding follow it directly); None for the last layer, where it is the model's own output.

    Raises:
        ValueError: the loss is not finite, the target has no token, or loss_layer lies below layer.
    """
    name = model.hook_name(site, layer)
    batch = prompt_batch(model, request, [*templates, kl_template])
    everywhere = torch.arange(len(batch.tokens.ids), device=model.device)
    dtype = torch.promote_types(model.dtype, torch.float32)
    initial = model.activations(batch.tokens, [name])[name][0, batch.subjects[0]].to(dtype)
    delta = torch.zeros_like(initial, requires_grad=True)

    def add_delta(state: Tensor, hook: object) -> Tensor:
        added = torch.zeros_like(state)
        added[everywhere, batch.subjects] = delta.to(state.dtype)
        return state + added

    hooks = [(name, add_delta), *read_from(model, layer, loss_layer)]
    keep, width = batch.keep_last, batch.tokens.ids.shape[1]
    optimiser = torch.optim.Adam([delta], lr=learning_rate)
    essence: Tensor | None = None
    losses: list[ValueLoss] = []
    with torch.enable_grad():
        for step in range(steps):
            logits = model.logits(batch.tokens, hooks=hooks, keep_last=keep).to(dtype)
            said = logits[batch.rows, batch.positions - (width - keep)].log_softmax(dim=-1)
            now = logits[-1, batch.subjects[-1] - (width - keep)].log_softmax(dim=-1)
            essence = now.detach() if essence is None else essence
            nll = -(said.gather(1, batch.targets[:, None])[:, 0] * batch.weights).sum()
            kl = kl_weight * torch.nn.functional.kl_div(essence, now, log_target=True, reduction="sum")
            decay = weight_decay * delta.norm() / initial.norm() ** 2
            loss = nll + kl + decay
            losses.append(ValueLoss(nll=nll.item(), kl=kl.item(), weight_decay=decay.item()))
            if not loss.isfinite():
                raise ValueError(
                    f"the value for {request.prompt!r} -> {request.target_new!r} diverged at step {step}: "
                    f"{losses[-1]}; check the model's weights, or lower learning_rate ({learning_rate})"
                )
            if loss < LOSS_REACHED or step == steps - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                largest = clamp * initial.norm()
                if delta.norm() > largest:
                    delta *= largest / delta.norm()
    return OptimisedValue(initial=initial, delta=delta.detach(), losses=tuple(losses))


def prompt_batch(model: Model, request: EditRequest, templates: Sequence[str]) -> Batch:
    """The templates filled with the request, the last of them the essence prompt."""
    *rewriting, essence = templates
    prompts = [fill(template, request.subject) for template in rewriting]
    texts = [join(prompt, request.target_new, request.separator) for prompt in prompts]
    last = fill(essence, request.subject)
    tokens = model.tokenize([*texts, last], padding_side="left").with_prompts([*map(len, prompts), len(last)])
    rows, positions, weights = [], [], []
    for row, prompt in enumerate(prompts):
        first, end = answer_start(tokens.offsets[row], prompt), len(tokens.offsets[row])
        rows += [row] * (end - first)
        positions += [int(tokens.starts[row]) + index for index in range(first, end)]
        weights += [1 / (end - first) / len(prompts)] * (end - first)
    device = model.device
    at = torch.tensor(positions, device=device)
    which = torch.tensor(rows, device=device)
    return Batch(
        tokens=tokens,
        subjects=subject_ends(tokens, templates, request.subject),
        rows=which,
        positions=at - 1,
        targets=tokens.ids[which, at],
        weights=torch.tensor(weights, device=device),
    )


def read_from(model: Model, layer: int, loss_layer: int | None) -> list[Hook]:
    """Hooks that hand the rewriting rows' residual stream after `loss_layer` straight to the final norm."""
    if loss_layer is None or loss_layer == model.n_layers - 1:
        return []
    early, last = model.hook_name("resid_post", loss_layer), model.hook_name("resid_post", model.n_layers - 1)
    if loss_layer < layer:
        raise ValueError(f"loss_layer {loss_layer} lies below the edited layer {layer}, which cannot change it")
    kept: list[Tensor] = []

    def keep(resid: Tensor, hook: object) -> None:
        kept[:] = [resid]

    def hand_over(resid: Tensor, hook: object) -> Tensor:
        # The last row is the essence prompt, whose divergence is the model's own.
        return torch.cat([kept[0][:-1], resid[-1:]])

    return [(early, keep), (last, hand_over)]


def final_loss(value: OptimisedValue) -> dict[str, float | int]:
    """The terms of the last loss of a value's optimisation, how many were evaluated, and both norms."""
    last = value.losses[-1]
    return {
        "evaluations": len(value.losses),
        "nll": last.nll,
        "kl": last.kl,
        "weight_decay": last.weight_decay,
        "initial_norm": value.initial.norm().item(),
        "delta_norm": value.delta.norm().item(),
    }
