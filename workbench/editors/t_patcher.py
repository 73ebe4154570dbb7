"""T-Patcher: neurons beside the last MLP, one for each token that an edit corrects (Huang et al. 2023, 2301.09785)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.beside import Beside, beside_mlp
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.losses import largest, smoothed_loss
from workbench.editors.shared.memories import Memories, remembered
from workbench.editors.shared.requests import check_requests, seed_of
from workbench.editors.shared.tuning import TuningBatch, tuning_batch
from workbench.edits.edit import provenance
from workbench.edits.ledger import undone
from workbench.edits.neurons import NeuronEdit, Neurons, check_activation
from workbench.models.model import Model
from workbench.records.facts import EditRequest
from workbench.records.joining import true_statements

_QUERIES = "queries"
_CLIP = 5.0
"""Largest norm of the gradient, as published."""
_TOP = {"activation": 5, "memory": 1000}
"""How many of the largest terms a loss is the mean of (section 4.2, S(v; k))."""
_CHECK_EVERY = 25
"""Steps between two looks at whether the edit is done."""
_SETTLED = 1e-3
"""An edit is done if its memory loss has fallen by less than this since the last look."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TPatcher(Editor):
    """Adds a neuron ("patch") beside the last MLP for each token of the target that the model gets wrong.

    A patch act(k x + b) v starts with k = q / |q|^2, b = 0, where q is what the MLP reads where the token is predicted:
    its input there is 1. Adam trains k, b and v of all patches of a request, on

        edit loss + activation_weight l_a + memory_weight (l_m1 + l_m2)

    (section 4.2): the target's negative log-likelihood; the mean of the 5 largest exp(-a), with a each patch's input at
    its own token; and over the memories m, the means of the 1,000 largest exp(k m + b - a - gamma) and
    exp(k m + b - beta), beta = gamma = -3, which keep what is unrelated from activating it. Requests are written one
    after another: the patches of those before stay as they are, and what the MLP read of those joins the memories.

    Of the published code (for BERT and BART) it has `amplify`, which it trains beside v, and the label smoothing
    of 0.1, an option here. That code runs zsRE with margins (0, 0); averages l_a over copies of one edit; and halves
    the learning rate on plateaus, which is left out. Its stop looks at other memories than those trained on, this one's
    at the same: when all target tokens are the top choice and the memory loss no longer falls.
    """

    method: ClassVar[str] = "T-Patcher"

    layer: int
    """The layer patched: the last."""
    memories: Memories | None
    """What should not activate the patches; None for none, with a memory_weight of 0."""
    steps: int = 2000
    """Of Adam, at most."""
    least_steps: int = 100
    """Before which the edit is not taken to be done."""
    learning_rate: float = 0.01
    """Of Adam."""
    weight_decay: float = 0.01
    """Of Adam: this times each parameter is added to its gradient."""
    activation_weight: float = 1.0
    """Multiplies l_a."""
    memory_weight: float = 10.0
    """Multiplies l_m1 + l_m2."""
    margins: Sequence[float] = (3.0, -3.0)
    """-gamma and beta: by how much a memory should stay below a patch's own token, and below 0."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the vocabulary."""
    most_patches: int = 5
    """Of a request; tokens beyond them stay wrong."""
    amplify: float = 10.0
    """v = w * c, where w starts standard normal and c at this; both are trained."""
    activation: str | None = None
    """Of the patches, a name in `transformers`; None for the MLP's own."""
    seed: int = 0
    """Of the values' start."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "margins", tuple(self.margins))
        check_activation(self.activation)
        if self.steps < 1 or self.most_patches < 1:
            raise ValueError(f"steps and most_patches must be at least 1, got {self.steps} and {self.most_patches}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if len(self.margins) != 2:
            raise ValueError(f"margins are two numbers, -gamma and beta, got {self.margins}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if (self.memories is None) != (self.memory_weight == 0):
            raise ValueError(
                f"memory_weight is {self.memory_weight} {'without' if self.memories is None else 'with'} memories: "
                "give memories and a weight, or None and 0"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer that is patched."""
        return (self.layer,)

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "TPatcher":
        """At the last layer, or the one that is to be edited alone, with `memory_size` memories.

        They are of the training records, each with its true answer, in a random order; without any, of the texts.
        """
        options = {"memory_weight": cls.memory_weight, **fields}
        layer = options.setdefault("layer", setting.layer if setting.alone else setting.model.n_layers - 1)
        size = options.pop("memory_size")
        texts = true_statements(setting.records())
        source, texts = ("training records", texts) if texts else ("texts", list(setting.texts()))
        Random(setting.seed).shuffle(texts)
        if options["memory_weight"]:
            options["memories"] = remembered(setting.model, layer, texts, source=source, at_most=size)
        return cls(**{"seed": setting.seed, "memories": None, **options})

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> NeuronEdit:
        """The edit that makes each request true, on top of the edits that the model has.

        The model is left as it was. Its provenance lists each request's patches, and its losses before each step and
        after the last. A request that the model follows already gets no patch. IndexError for a layer out of range;
        ValueError for no requests or contradictory ones, where no memory is unrelated to a request's subject, and if a
        loss is not finite.
        """
        requests = check_requests(requests, model)
        check_hooks(model, self.method, "mlp_write")
        plain = {known.name: getattr(self, known.name) for known in fields(self) if known.name != "memories"}
        plain["memories"] = self.memories and {"of": self.memories.source, "tokens": len(self.memories.queries)}
        noted, parts, optimisation = provenance(model, plain), [], []
        with undone(model):
            for request in requests:
                part, losses = self._patched(model, request)
                part.apply_(model)
                parts.append(part)
                optimisation.append({"patches": len(part.neurons), **losses})
        return self._edit(parts, requests, noted | {"optimisation": optimisation})

    def _edit(
        self, parts: Sequence[NeuronEdit], requests: tuple[EditRequest, ...], noted: Mapping[str, Any]
    ) -> NeuronEdit:
        """Edits as one."""
        neurons = [part.neurons for part in parts]
        return NeuronEdit(
            layer=self.layer,
            neurons=Neurons(
                keys=torch.cat([each.keys for each in neurons]),
                values=torch.cat([each.values for each in neurons]),
                biases=torch.cat([each.biases for each in neurons if each.biases is not None]),
                activation=self.activation,
            ),
            carried={_QUERIES: torch.cat([part.carried[_QUERIES] for part in parts])},
            method=self.method,
            requests=requests,
            provenance=noted,
        )

    def _patched(self, model: Model, request: EditRequest) -> tuple[NeuronEdit, dict[str, list[float]]]:
        """One request's edit, and its losses."""
        batch = tuning_batch(model, (request,), objective="target", kl_template=None)
        patched = beside_mlp(model, batch, self.layer)
        with torch.no_grad():
            wrong = patched.log_probs(torch.zeros_like).argmax(dim=-1) != batch.targets
        at = wrong.nonzero()[: self.most_patches, 0]
        losses: dict[str, list[float]] = {"edit": [], "activation": [], "memory": []}
        queries = patched.read.to(torch.promote_types(patched.read.dtype, torch.float32))
        found = self._started(request, queries[at])
        if len(at):
            found = self._trained(model, batch, patched, found, at, self._memory(model, request), losses)
        key, bias, value, scale = (tensor.detach().cpu() for tensor in found)
        neurons = Neurons(keys=key, values=value * scale, biases=bias, activation=self.activation)
        edit = NeuronEdit(
            layer=self.layer, neurons=neurons, carried={_QUERIES: queries.cpu()},
            method=self.method, requests=(request,), provenance={},
        )  # fmt: skip
        return edit, losses

    def _started(self, request: EditRequest, queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Key, bias, value and what multiplies the value, of a patch for each query, [patch d_model]."""
        value = self._drawn(request, *queries.shape).to(queries)
        keys = queries / queries.norm(dim=-1, keepdim=True) ** 2
        return keys, queries.new_zeros(len(queries)), value, torch.full_like(queries, self.amplify)

    def _drawn(self, request: EditRequest, patches: int, d_model: int) -> Float[Tensor, "patch d_model"]:
        """Where values start."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, request))
        return torch.randn(patches, d_model, generator=generator)

    def _memory(self, model: Model, request: EditRequest) -> Float[Tensor, "memory d_model"] | None:
        """Memories of the editor and of the patches that are applied, but of those that are about the subject."""
        if self.memories is None:
            return None
        found = [self.memories.unrelated([request.subject])]
        for edit in model.edits:
            patches = isinstance(edit, NeuronEdit) and edit.layer == self.layer and _QUERIES in edit.carried
            if patches and all(each.subject.lower() != request.subject.lower() for each in edit.requests):
                found.append(edit.carried[_QUERIES])
        memory = torch.cat([each.to(model.device) for each in found])
        if not len(memory):
            raise ValueError(f"all memories mention {request.subject!r}: give others, or memory_weight=0 and none")
        return memory

    def _trained(
        self,
        model: Model,
        batch: TuningBatch,
        patched: Beside,
        start: tuple[Tensor, ...],
        at: Int[Tensor, " patch"],
        memory: Float[Tensor, "memory d_model"] | None,
        losses: dict[str, list[float]],
    ) -> tuple[Tensor, ...]:
        """Key, bias, value and multiplier after training; the losses are noted down."""
        leaves = [tensor.clone().requires_grad_(True) for tensor in start]
        key, bias, value, scale = leaves
        optimiser = torch.optim.Adam(leaves, lr=self.learning_rate, weight_decay=self.weight_decay)
        own = patched.read[at]
        for step in range(self.steps + 1):
            with torch.enable_grad():
                neurons = Neurons(keys=key, values=value * scale, biases=bias, activation=self.activation)
                log_probs = patched.log_probs(neurons.adding(model, self.layer))
                terms = {"edit": smoothed_loss(log_probs, batch.targets, self.label_smoothing)}
                inputs = neurons.inputs(own).diagonal()
                terms["activation"] = largest(-inputs, _TOP["activation"])
                if memory is not None:
                    there = neurons.inputs(memory)
                    terms["memory"] = largest(there - inputs + self.margins[0], _TOP["memory"])
                    terms["memory"] = terms["memory"] + largest(there - self.margins[1], _TOP["memory"])
                weights = {"edit": 1.0, "activation": self.activation_weight, "memory": self.memory_weight}
                total = sum((weights[name] * term for name, term in terms.items()), torch.zeros_like(bias[0]))
            for name, term in terms.items():
                losses[name].append(term.item())
            if not total.isfinite():
                (request,) = batch.requests
                raise ValueError(
                    f"the loss of {request.prompt!r} -> {request.target_new!r} is not finite: check the model's "
                    f"weights, or lower learning_rate ({self.learning_rate}) or amplify ({self.amplify})"
                )
            right = log_probs.argmax(dim=-1) == batch.targets
            if step == self.steps or (step >= self.least_steps and self._done(right, step, losses["memory"])):
                break
            # Not `backward`: it would also leave gradients on a model whose parameters take them.
            for leaf, gradient in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
                leaf.grad = gradient
            torch.nn.utils.clip_grad_norm_(leaves, _CLIP)
            optimiser.step()
        return tuple(leaves)

    def _done(self, right: Bool[Tensor, " target"], step: int, memory: Sequence[float]) -> bool:
        if step % _CHECK_EVERY or not right.all():
            return False
        return len(memory) <= _CHECK_EVERY or memory[-1 - _CHECK_EVERY] - memory[-1] < _SETTLED
