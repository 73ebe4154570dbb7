"""WISE: a side memory beside one MLP matrix, routed to by activations (Wang et al. 2024, arXiv:2405.14768)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.margins import Bounds, Margins
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.subject import check_contexts, in_contexts
from workbench.editors.shared.tuning import TuningBatch, tuning_batch
from workbench.edits.edit import provenance
from workbench.edits.side_memory import Rules, Shard
from workbench.edits.side_memory_edit import SideMemoryEdit, edits_of, shards_of
from workbench.machine.hashing import digest
from workbench.models.hooks import Hook
from workbench.models.model import Model
from workbench.records.facts import EditRequest
from workbench.records.joining import true_statements

_STILL, _LOW = 1e-4, 0.02
"""The optimisation ends when the loss has changed by no more than the one and is no more than the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WISE(Editor):
    """Writes requests into a copy of one MLP matrix, which answers where it moves what the matrix gives far enough.

    Each request takes steps of gradient descent on the copy's entries that its shard's random mask lets move, for its
    target's negative log-likelihood in contexts plus hinges on distances (equation 5): the request's prompts at least
    `beta`, an unrelated text at most `alpha`, and the one `gamma` more than the other. The WISE edits that are applied
    to the model, of the same rules, are one memory with these; see `SideMemoryEdit`. It is the paper's WISE-Retrieve;
    its replay of earlier requests (appendix B.3) and WISE-Merge are left out.

    `form` "paper" measures ||A(x)(W' - W)|| over a prompt's tokens and moves only what the mask lets move. "published"
    is the authors' code in EasyEdit: distances are taken after the nonlinearity, in the hinges over all positions,
    padding and answer too; the log-likelihood is divided by one more than the target's tokens; a hinge is the mean of
    what is above zero; weight decay moves every entry, mask or not; of the memories only those that are far enough are
    compared. Its contexts begin with given words and are made greedily, joined without a full stop; those here are
    sampled (`sample_contexts`).

    That code also asks a memory by answers, and records a request's distance over all positions, before the last step
    (noted as "everywhere"). Here a memory is asked by prompts (`SideMemoryEdit`) in both forms and a request's distance
    is of its prompts, for by the other many a request would not be far enough for its own memory.

    Defaults are the published hyperparameters for Llama 2 7B.
    """

    method: ClassVar[str] = "WISE"

    layer: int
    """The layer whose MLP it stands beside."""
    site: Literal["mlp_write", "mlp_pre"] = "mlp_write"
    """Which matrix is copied: W_out, as in the paper, or what the nonlinearity is given by (published for GPT-2)."""
    unrelated: Sequence[str]
    """Texts that no request is about; each request takes one that does not name its subject."""
    contexts: Sequence[str] = ("{}",)
    """Templates that the request's prompt is put into; the first is the bare "{}"."""
    steps: int = 70
    """Of gradient descent, for each request, at most."""
    learning_rate: float = 1.0
    """Of gradient descent."""
    weight_decay: float = 1e-5
    """This times the copy is added to its gradient."""
    norm_constraint: float | None = 1.0
    """Largest absolute change of an entry; None for no constraint."""
    mask_ratio: float = 0.2
    """Part of the entries that a shard may move."""
    alpha: float = 5.0
    """Distance that an unrelated text should not exceed."""
    beta: float = 20.0
    """Distance that a request's prompts should exceed."""
    gamma: float = 10.0
    """By how much the one should exceed the other."""
    act_ratio: float = 0.88
    """A memory answers from this part of the smallest distance that its own requests had."""
    save_every: int = 500
    """Requests of a shard."""
    merge_every: int = 1000
    """Requests whose shards are merged into one memory by TIES."""
    density: float = 0.53
    """Part of a shard's change that is kept in merging."""
    form: Literal["paper", "published"] = "paper"
    """Whose arithmetic; see above."""
    seed: int = 0
    """Of the masks."""

    def __post_init__(self) -> None:
        self.rules  # noqa: B018 (it checks its fields)
        for name in ("unrelated", "contexts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_contexts(self.contexts)
        if not self.unrelated:
            raise ValueError("WISE needs unrelated texts, such as training records state, got none")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.mask_ratio <= 1:
            raise ValueError(f"mask_ratio is above 0 and at most 1, got {self.mask_ratio}")
        if self.norm_constraint is not None and not self.norm_constraint > 0:
            raise ValueError(f"norm_constraint must be positive, or None for none, got {self.norm_constraint}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer that it stands beside."""
        return (self.layer,)

    @property
    def rules(self) -> Rules:
        """Of the memory that requests are written into."""
        return Rules(**{field.name: getattr(self, field.name) for field in fields(Rules)})

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "WISE":
        """At the preset's layer, or the located one, with what training records state as unrelated texts."""
        given = {"layer": setting.layers()[0], "seed": setting.seed, **fields}
        if "contexts" not in given:
            given["contexts"] = setting.contexts()
        if "unrelated" not in given:
            given["unrelated"] = tuple(true_statements(setting.records()))
        return cls(**given)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> SideMemoryEdit:
        """The edit that makes each request true, one after another, on top of the memory that the model has.

        The model is left as it was. Its provenance lists, request by request, the unrelated text, both parts of the
        loss before each step, and the distance. IndexError for a layer out of range; ValueError for no requests or
        contradictory ones, for one whose subject all unrelated texts name, and if the loss is not finite.
        """
        requests, rules = check_requests(requests, model), self.rules
        rules.sites(model)
        if self.site == "mlp_write":
            check_hooks(model, self.method, "mlp_write")
        memory, written, notes = shards_of(model, rules), {}, []
        with model.without(edits_of(model.edits, rules)):
            for request in requests:
                index = self._next(memory)
                before = memory[index].change if index in memory else torch.zeros(tuple(rules.weight(model).shape))
                change, note = self._write(model, request, index, before)
                notes.append(note)
                shard = Shard(index=index, requests=1, change=change - before, distance=note["distance"])
                for shards in (memory, written):
                    shards[index] = shards[index].with_more(shard) if index in shards else shard
        return SideMemoryEdit(
            rules=rules,
            shards=tuple(written.values()),
            method=self.method,
            requests=requests,
            provenance=provenance(model, self._hyperparameters(), optimisation=notes),
        )

    def _hyperparameters(self) -> dict[str, Any]:
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return known | {"unrelated": {"sha256": digest(*self.unrelated), "texts": len(self.unrelated)}}

    def _next(self, memory: Mapping[int, Shard]) -> int:
        """The shard that the next request is written into: the last, or one more if that is full."""
        if not memory:
            return 0
        last = memory[max(memory)]
        return last.index + (last.requests >= self.save_every)

    def _mask(self, index: int, shape: Sequence[int]) -> Bool[Tensor, "d_in d_out"]:
        """Which entries a shard may move, on the CPU."""
        generator = torch.Generator().manual_seed(self.seed + index)
        return torch.rand(tuple(shape), generator=generator) < self.mask_ratio

    def _text(self, request: EditRequest) -> str:
        """The unrelated text of a request, whatever is written before it."""
        texts = [text for text in self.unrelated if request.subject not in text]
        if not texts:
            raise ValueError(f"every unrelated text names {request.subject!r}: give one that does not")
        return texts[int(digest(request.prompt), 16) % len(texts)]

    def _write(
        self, model: Model, request: EditRequest, index: int, before: Float[Tensor, "d_in d_out"]
    ) -> tuple[Float[Tensor, "d_in d_out"], dict[str, Any]]:
        """The shard's change with one more request in it, on the CPU, and what is noted of it."""
        text, weight = self._text(request), self.rules.weight(model).to(model.device)
        templates = in_contexts(request.template, self.contexts)
        rows = tuple(replace(request, template=template) for template in templates)
        batch = tuning_batch(model, rows, objective="target", kl_template=None)
        published = self.form == "published"
        bounds = Bounds(alpha=self.alpha, beta=self.beta, gamma=self.gamma, published=published)
        margins = Margins(bounds, self.rules, model, batch, text)
        mask = self._mask(index, weight.shape).to(weight.device)
        change = before.to(weight.device, torch.promote_types(weight.dtype, torch.float32)).clone().requires_grad_(True)
        losses: dict[str, list[float]] = {"edit": [], "activation": []}
        totals: list[float] = []
        everywhere = 0.0
        for _ in range(self.steps):
            with torch.enable_grad():
                log_probs = batch.log_probs(model, self._added(model, change))
                edit = self._edit_loss(batch, log_probs)
                near, activation = margins(change)
                total = edit + activation
            for name, loss in (("edit", edit), ("activation", activation)):
                losses[name].append(loss.item())
            everywhere = near.item()
            if len(totals) > 1 and abs(totals[-1] - totals[-2]) <= _STILL and totals[-1] <= _LOW:
                break
            totals.append(total.item())
            # Not `backward`: it would also leave gradients on a model whose parameters take them.
            (gradient,) = torch.autograd.grad(total, change)
            decay = self.weight_decay * (weight + change.detach())
            step = mask * gradient + decay if self.form == "published" else mask * (gradient + decay)
            with torch.no_grad():
                change -= self.learning_rate * step
                if self.norm_constraint is not None:
                    change.clamp_(-self.norm_constraint, self.norm_constraint)
        change = change.detach()
        note = {"unrelated": text, "losses": losses, "distance": margins.distance(change)}
        return change.cpu(), note | ({"everywhere": everywhere} if self.form == "published" else {})

    def _added(self, model: Model, change: Float[Tensor, "d_in d_out"]) -> list[Hook]:
        """Hooks that put the side memory in the matrix's place."""
        read: list[Tensor] = []

        def keep(states: Tensor, hook: object) -> None:
            read.append(states)

        def add(output: Tensor, hook: object) -> Tensor:
            return output + (read.pop().to(change.dtype) @ change).to(output.dtype)

        reads, writes = self.rules.sites(model)
        return [(reads, keep), (writes, add)]

    def _edit_loss(self, batch: TuningBatch, log_probs: Float[Tensor, "prediction vocab"]) -> Float[Tensor, ""]:
        """The target's negative log-likelihood, the mean over its tokens and the contexts."""
        losses = batch.target_losses(log_probs, learning_rate=self.learning_rate)
        if self.form == "published":
            tokens = batch.rows.bincount(minlength=len(batch.requests))
            losses = losses * tokens / (tokens + 1)
        return losses.mean()
