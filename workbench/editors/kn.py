"""KN: rows of W_out that are knowledge neurons', moved to another answer (Dai et al. 2022, arXiv:2104.08696)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.subject import check_contexts, in_contexts
from workbench.edits.edit import provenance
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models.decoding import continue_tokens
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.models.unembedding import Unembedding
from workbench.records.facts import EditRequest, opened
from workbench.tracing.integrated import NeuronSite, Points
from workbench.tracing.known import top_tokens
from workbench.tracing.neurons import (
    AnswerTokens,
    KnowledgeNeurons,
    answered,
    check_attribution,
    knowledge_neurons,
    refined,
)

Rule = Literal["paper", "scaled", "easyedit"]
"""What is added to a row, see `KN`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KN(Editor):
    """Finds the neurons to which the old answer is attributed, and adds to the row of W_out of each (section 5.1):

        dW_i = -erase e(old) + write e(new)

    with e the row of the unembedding of an answer's first token, as the paper's answers have one token and its word
    embeddings are tied to the unembedding. The old answer is the request's `target_true`, else the model's first
    choice. Published code differs from the paper, as `rule` says:

    - "paper": as above;
    - "scaled": each embedding is scaled to the norm of the row as it is (the paper's code, with the same weights);
    - "easyedit": the row loses the embeddings of the model's own continuation, of as many tokens as the new answer
      has, and gains the new answer's, each once; for a new answer of one token it loses the model's first choice
      twice (EasyEdit's code for GPT; without `erase` and `write`).

    The neurons are those of `knowledge_neurons`: attributed above `threshold` times the largest, for more than `share`
    of the prompts, which are the request's in its contexts and the other templates of its relation. `site`, `points`
    and `tokens` hold what published code does otherwise. The paper also leaves those alone that more than a tenth of
    the relation's other facts share; a request brings no such facts, so that is not done here.

    Rows are moved whatever the sign of their neuron's activation, as published: where it is negative, as it may be
    in a gated MLP, the row then works against the new answer. `signed`, which no paper has, turns such changes round.

    Defaults are those of the paper, for BERT.
    """

    method: ClassVar[str] = "KN"
    batches: ClassVar[bool] = True

    layers: Sequence[int]
    """The layers looked at, usually all; those without a neuron that is kept stay as they are."""
    contexts: tuple[str, ...] = ("{}",)
    """Texts with a {} for the prompt, the bare {} first: ways to ask, where paraphrases are not at hand."""
    paraphrases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By the name of a relation, templates that ask for it in other words."""
    steps: int = 20
    """m, the number of points at which the gradient is taken."""
    threshold: float = 0.2
    """Share of a prompt's largest attribution above which a neuron counts."""
    share: float = 0.7
    """Share of the prompts above which a neuron that counts for them is kept."""
    moving: bool = True
    """Whether the share moves until 2 to 5 neurons are kept, on average over the requests."""
    site: NeuronSite = "mlp_key"
    """Activations after the nonlinearity, or before it."""
    points: Points = "right"
    """Where the points lie."""
    tokens: AnswerTokens = "first"
    """What is attributed of an old answer of several tokens."""
    rule: Rule = "paper"
    """What is added to a row."""
    erase: float = 1.0
    """lambda_1, of the old answer."""
    write: float = 8.0
    """lambda_2, of the new answer."""
    signed: bool = False
    """Whether what is added takes the sign of the neuron's activation at the prompt's last token: for gated MLPs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers needs one or more different layers, got {self.layers}")
        check_contexts(self.contexts)
        check_attribution(
            steps=self.steps,
            threshold=self.threshold,
            share=self.share,
            site=self.site,
            points=self.points,
            tokens=self.tokens,
        )
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule is one of {', '.join(map(repr, get_args(Rule)))}, got {self.rule!r}")

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "KN":
        """Over all layers, with contexts; tracing's layer is looked at alone where that is asked for."""
        given = {"layers": (setting.layer,) if setting.alone else range(setting.model.n_layers), **fields}
        if "contexts" not in given:
            given["contexts"] = setting.contexts()
        return cls(**given)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit of all the requests together, each computed on the weights as they are.

        Its provenance lists the neurons kept for each request, and the share of the prompts that kept them.
        IndexError for a layer out of range; ValueError for no requests or contradictory ones, and for one for which
        no neuron is kept.
        """
        requests = check_requests(requests, model)
        check_hooks(model, self.method, "mlp_write")
        found = [self._located(model, request) for request in requests]
        found = refined(found) if self.moving else found
        rows: dict[int, list[int]] = {}
        changes: dict[int, list[Tensor]] = {}
        for request, each in zip(requests, found, strict=True):
            if not each.neurons:
                raise ValueError(
                    f"no neuron is kept for {each.answer!r} after {request.prompt!r}: its attributions stand out for "
                    f"none, or for different ones by prompt; lower share ({each.share}), or give fewer contexts"
                )
            change = self._change(model, request)
            signs = self._signs(model, request, each.neurons)
            for (layer, neuron), sign in zip(each.neurons, signs, strict=True):
                rows.setdefault(layer, []).append(neuron)
                changes.setdefault(layer, []).append(sign * change(model.weight(layer)[neuron]))
        return WeightEdit(
            updates=tuple(_update(model, layer, rows[layer], changes[layer]) for layer in sorted(rows)),
            method=self.method,
            requests=requests,
            provenance=provenance(
                model,
                {known.name: getattr(self, known.name) for known in fields(self)},
                optimisation=[{"answer": each.answer, "share": each.share, "neurons": each.neurons} for each in found],
            ),
        )

    def _located(self, model: Model, request: EditRequest) -> KnowledgeNeurons:
        others = self.paraphrases.get(request.relation, ())
        templates = [*in_contexts(request.template, self.contexts), *others]
        return knowledge_neurons(
            model,
            request,
            templates=list(dict.fromkeys(templates)),
            layers=self.layers,
            steps=self.steps,
            threshold=self.threshold,
            share=self.share,
            site=self.site,
            points=self.points,
            tokens=self.tokens,
        )

    def _signs(self, model: Model, request: EditRequest, neurons: Sequence[tuple[int, int]]) -> list[int]:
        """-1 for the neurons whose activation turns their row round, else 1."""
        if not self.signed:
            return [1] * len(neurons)
        names = {layer: model.hook_name("mlp_key", layer) for layer, _ in neurons}
        states = model.activations(model.tokenize([opened(request.prompt)]), list(names.values()))
        return [-1 if states[names[layer]][0, -1, neuron] < 0 else 1 for layer, neuron in neurons]

    def _change(self, model: Model, request: EditRequest) -> Callable[[Tensor], Tensor]:
        """What is added to a row of W_out, by the row."""
        prompt, target = request.prompt, request.target_new
        row, first = answered(model, prompt, target, request.separator)
        if self.rule == "easyedit":
            change = easyedit_change(model, prompt, row.ids[first:])
            return lambda row: change
        if request.target_true is None:
            (replaced,) = top_tokens(model, [opened(prompt)])
        else:
            old, place = answered(model, prompt, request.target_true, request.separator)
            replaced = old.ids[place]
        old, new = Unembedding(model).rows([replaced, row.ids[first]])
        if self.rule == "paper":
            return lambda row: self.write * new - self.erase * old
        direction = self.write * new / new.norm() - self.erase * old / old.norm()
        return lambda row: row.to(direction).norm() * direction


def easyedit_change(model: Model, prompt: str, answer: Sequence[int]) -> Float[Tensor, " d_model"]:
    """What EasyEdit's code adds to every row for an answer of these tokens; see `KN`."""
    tokens = model.tokenize([opened(prompt)], padding_side="left")
    (own,) = continue_tokens(model, tokens, steps=len(answer), sampler=Sampler())
    rows = Unembedding(model).rows
    lost = rows(own).sum(dim=0)
    return rows(answer).sum(dim=0) - (2 * lost if len(answer) == 1 else lost)


def _update(model: Model, layer: int, neurons: Sequence[int], changes: Sequence[Tensor]) -> WeightUpdate:
    """dW of one layer: a column that picks its row, and what is added to it, for each change."""
    right = torch.stack(list(changes)).cpu()
    picked = torch.nn.functional.one_hot(torch.tensor(neurons), model.d_mlp).to(right.dtype)
    return WeightUpdate(layer=layer, left=rearrange(picked, "change d_mlp -> d_mlp change"), right=right)
