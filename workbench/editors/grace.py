"""GRACE: a codebook of keys with deferral radii in one layer (Hartvigsen et al. 2023, arXiv:2211.11031)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.passes import Place, passes_of
from workbench.editors.shared.requests import check_requests, seed_of
from workbench.editors.shared.tuning import TuningBatch, tuning_batch
from workbench.edits.codebook import Codebook, Label, Rules
from workbench.edits.codebook_edit import CodebookEdit, codebook
from workbench.edits.edit import provenance
from workbench.models.model import Model
from workbench.models.tokens import TokenRow
from workbench.records.facts import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class GRACE(Editor):
    """Replaces what one layer gives wherever what it reads at a prompt's last token lies within the radius of a key.

    A request's key is what the layer reads at the last token of its prompt; its value is found by Adam, for the new
    target's negative log-likelihood (the mean over its tokens), with the value in place and nothing else changed. The
    requests of the GRACE edits that are applied to the model, of the same layer and rules, are one codebook with
    these: where a request meets an entry near it the entry is shared or both radii shrink, see `Codebook.written`.

    Defaults are the hyperparameters of the published code for GPT2-XL, but for `form`, the paper's. EasyEdit sets
    `replace` to "last". Of the published options these are left out: values trained under noise, keys that move, and
    the replacement of every token.
    """

    method: ClassVar[str] = "GRACE"

    layer: int
    """The layer that the codebook wraps."""
    site: Literal["mlp_pre", "mlp_write"] = "mlp_pre"
    """What is replaced: what the nonlinearity is given (from keys `mlp_in`), or W_out's output (from `mlp_key`)."""
    replace: Literal["prompt", "last"] = "prompt"
    """Where: at all tokens of the prompt before its last (published), or at the last alone (EasyEdit)."""
    radius: float = 1.0
    """Deferral radius of a new entry, Euclidean, in units of the keys (the paper's epsilon_init)."""
    steps: int = 100
    """Of Adam, for each request."""
    learning_rate: float = 1.0
    """Of Adam."""
    start: Literal["cold", "warm"] = "cold"
    """Where a new value begins: uniform in [0, 1) (cold), or what now stands at the prompt's last token."""
    form: Literal["paper", "published", "easyedit"] = "paper"
    """Whose rules for labels and splits: the paper's, the authors' code's or EasyEdit's; see `Codebook.written`."""
    seed: int = 0
    """Of the cold start."""

    def __post_init__(self) -> None:
        self._rules()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.start not in ("cold", "warm"):
            raise ValueError(f"start is 'cold' or 'warm', got {self.start!r}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer that the codebook wraps."""
        return (self.layer,)

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "GRACE":
        """At the preset's layer, or the located one."""
        return cls(**{"layer": setting.layers()[0], "seed": setting.seed, **fields})

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> CodebookEdit:
        """The edit that makes each request true, on top of the codebook that the model has.

        The model is left as it was. Its provenance lists the loss before each step, request by request. IndexError
        for a layer out of range; ValueError for no requests or contradictory ones, for a prompt of one token if
        what is before the last is to be replaced, and if the loss is not finite.
        """
        requests = check_requests(requests, model)
        rules = self._rules()
        rules.sites(model)
        if self.site == "mlp_write":
            check_hooks(model, self.method, "mlp_write")
        book = codebook(model, rules)
        keys, values, labels, losses = [], [], [], []
        for request in requests:
            batch = tuning_batch(model, (request,), objective="target", kl_template=None)
            key, label, start = self._entry(model, request, batch, book)
            value, loss = self._train(model, batch, start)
            book = book.written(key, value, label)
            for found, one in ((keys, key), (values, value), (labels, label), (losses, {"losses": loss})):
                found.append(one)
        return CodebookEdit(
            rules=rules,
            keys=torch.stack(keys),
            values=torch.stack(values),
            labels=tuple(labels),
            method=self.method,
            requests=requests,
            provenance=provenance(
                model, {known.name: getattr(self, known.name) for known in fields(self)}, optimisation=losses
            ),
        )

    def _rules(self) -> Rules:
        return Rules(layer=self.layer, site=self.site, replace=self.replace, radius=self.radius, form=self.form)

    def _entry(
        self, model: Model, request: EditRequest, batch: TuningBatch, book: Codebook
    ) -> tuple[Float[Tensor, " d_in"], Label, Float[Tensor, " d_out"]]:
        """The key and label of a request, on the CPU, and where its value begins."""
        prompt = 1 + int(batch.tokens.prompt_ends[0] - batch.tokens.starts[0])
        if prompt == 1 and self.replace == "prompt":
            raise ValueError(
                f"the prompt {request.prompt!r} is one token, and replace='prompt' replaces those before the last: "
                "lengthen it, or use replace='last'"
            )
        label = (prompt, tuple(batch.targets.tolist()))
        # The prompt alone, as it is read before an answer, so that it has one key whatever its answer.
        read = batch.tokens.ids[0, int(batch.tokens.starts[0]) :][:prompt].tolist()
        alone = model.pad([TokenRow(text="", ids=tuple(read), offsets=())], padding_side="left")
        names = book.rules.sites(model)
        found = model.activations(alone, names)
        key, there = (found[name][0, int(alone.lasts[0])].cpu().to(book.keys.dtype) for name in names)
        same = book.shared(key, label)
        if same is not None:
            return key, label, book.values[same]
        return key, label, there if self.start == "warm" else self._drawn(request, len(there)).to(there.dtype)

    def _drawn(self, request: EditRequest, size: int) -> Float[Tensor, " d_out"]:
        """A cold start."""
        return torch.rand(size, generator=torch.Generator().manual_seed(seed_of(self.seed, request)))

    def _train(
        self, model: Model, batch: TuningBatch, start: Float[Tensor, " d_out"]
    ) -> tuple[Float[Tensor, " d_out"], list[float]]:
        """The value, on the CPU, and the loss before each step."""
        rules, ends = self._rules(), batch.tokens.prompt_ends
        always = torch.ones_like(ends, dtype=torch.bool)
        value = start.to(model.device).clone().requires_grad_(True)
        passes = passes_of(model, [(self.layer, model.matrix_at(self.site, self.layer))])

        def put(place: Place, x: Tensor, output: Tensor) -> Tensor:
            return rules.replaced(output, ends, value[None], always)

        optimiser, losses = torch.optim.Adam([value], lr=self.learning_rate), []
        for _ in range(self.steps):
            with torch.enable_grad():
                log_probs = passes.logits(batch.scored, put).log_softmax(dim=-1)
                loss = -(log_probs.gather(1, batch.targets[:, None])[:, 0] * batch.shares).sum()
            losses.append(loss.item())
            batch.check_finite(loss[None], learning_rate=self.learning_rate)
            # Not `backward`: it would also leave gradients on a model whose parameters take them.
            (value.grad,) = torch.autograd.grad(loss, value)
            optimiser.step()
        return value.detach().cpu(), losses
