"""What fine-tuning scores: requests with their targets, and the prompts on which the model should stay as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.editors.shared.passes import Scored, predicted
from workbench.machine.shown import Shown
from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.models.tokens import Tokens, answer_start
from workbench.records.facts import EditRequest, fill, subject_characters, token_span
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True, eq=False)
class TuningBatch(Shown):
    """Requests with their targets, then their essence prompts, padded; and what is read of them."""

    requests: tuple[EditRequest, ...]
    tokens: Tokens
    rows: Int[Tensor, " prediction"]
    """Row of each prediction: of the targets' tokens, then of the essence prompts."""
    positions: Int[Tensor, " prediction"]
    """Index from which it is made."""
    targets: Int[Tensor, " target"]
    """The targets' tokens."""
    shares: Float[Tensor, " target"]
    """Each one's share of the mean over its target."""
    essence: Float[Tensor, "essence vocab"] | None = None
    """What the unedited model says of the subjects; None without a divergence."""

    @property
    def scored(self) -> Scored:
        """What passes read, that belongs to one edit."""
        edits = self.tokens.starts.new_zeros(len(self.tokens.ids))
        return Scored(tokens=self.tokens, rows=self.rows, positions=self.positions, edits=edits)

    def log_probs(self, model: Model, hooks: Sequence[Hook]) -> Float[Tensor, "prediction vocab"]:
        """Log-probabilities of every prediction."""
        return predicted(model, self.scored, hooks).log_softmax(dim=-1)

    def target_losses(
        self, log_probs: Float[Tensor, "prediction vocab"], *, learning_rate: float
    ) -> Float[Tensor, " request"]:
        """Each request's negative log-likelihood, the mean over its target; ValueError for one that is not finite."""
        said = log_probs[: len(self.targets)].gather(1, self.targets[:, None])[:, 0]
        losses = log_probs.new_zeros(len(self.requests)).index_add(0, self.rows[: len(said)], -said * self.shares)
        self.check_finite(losses, learning_rate=learning_rate)
        return losses

    def check_finite(self, losses: Float[Tensor, " request"], *, learning_rate: float) -> None:
        """ValueError that names the first request whose loss is not finite."""
        if not losses.isfinite().all():
            request = self.requests[int((~losses.isfinite()).nonzero()[0])]
            raise ValueError(
                f"the loss of {request.prompt!r} -> {request.target_new!r} is not finite: check the model's "
                f"weights, or lower learning_rate ({learning_rate})"
            )


def in_parts(
    model: Model,
    requests: tuple[EditRequest, ...],
    *,
    objective: str,
    kl_template: str | None,
    padding_side: Literal["left", "right"] = "left",
) -> list[TuningBatch]:
    """A batch in parts that fit into memory."""
    rows = model.encode([join(request.prompt, request.target_new, request.separator) for request in requests])
    keeps = [
        1 + len(row.ids) - answer_start(row.offsets, request.prompt)
        for request, row in zip(requests, rows, strict=True)
    ]
    parts = model.batches(rows, len(rows), keep=keeps, gradients=True)
    return [
        tuning_batch(
            model,
            tuple(requests[index] for index in part),
            objective=objective,
            kl_template=kl_template,
            padding_side=padding_side,
        )
        for part in parts
    ]


def tuning_batch(
    model: Model,
    requests: tuple[EditRequest, ...],
    *,
    objective: str,
    kl_template: str | None,
    padding_side: Literal["left", "right"] = "left",
) -> TuningBatch:
    """Requests with their targets scored by `objective`, and their essence prompts unless `kl_template` is None."""
    texts = [join(request.prompt, request.target_new, request.separator) for request in requests]
    subjects = [] if kl_template is None else [request.subject for request in requests]
    essence = kl_template or ""
    essences = [fill(essence, each) for each in subjects]
    tokens = model.tokenize([*texts, *essences], padding_side=padding_side)
    tokens = tokens.with_prompts([*(len(request.prompt) for request in requests), *map(len, essences)])
    starts = tokens.starts.tolist()
    rows, positions, targets, shares = [], [], [], []
    for row, request in enumerate(requests):
        first, end = answer_start(tokens.offsets[row], request.prompt), len(tokens.offsets[row])
        rows += [row] * (end - first)
        last = range(first, end) if objective == "target" else [first] * (end - first)
        positions += [starts[row] + index - 1 for index in last]
        targets += tokens.ids[row, starts[row] + first : starts[row] + end].tolist()
        shares += [1 / (end - first)] * (end - first)
    for row, subject in enumerate(subjects, start=len(texts)):
        _, end = token_span(tokens.offsets[row], subject_characters(essence, subject))
        rows.append(row)
        positions.append(starts[row] + end - 1)
    batch = TuningBatch(
        requests=requests,
        tokens=tokens,
        rows=torch.tensor(rows, device=model.device),
        positions=torch.tensor(positions, device=model.device),
        targets=torch.tensor(targets, device=model.device),
        shares=torch.tensor(shares, device=model.device),
    )
    if not subjects:
        return batch
    with torch.no_grad():
        return replace(batch, essence=batch.log_probs(model, [])[len(targets) :])
