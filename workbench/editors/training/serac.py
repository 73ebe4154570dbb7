"""SERAC's two networks, small and over a model's own token embeddings: how they are built, kept and trained."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from workbench.editors.training.copier import answering, decoder, shape_for, token_table
from workbench.editors.training.loop import Schedule, train
from workbench.editors.training.made_up import MadeUpEdit, Questions
from workbench.editors.training.network import TrainedNetwork, description, records_digest
from workbench.editors.training.scope import ScopeEncoder, balanced_loss, similarities
from workbench.editors.training.trained import check_unedited, parted
from workbench.machine import hashing
from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.models.tokens import TextTokenizer, answer_start
from workbench.records.facts import EditRequest, Record
from workbench.records.joining import join

_MARK = " ="


@dataclass(frozen=True, kw_only=True)
class SeracRecipe:
    """How large the networks are, and how they are trained."""

    width: int = 64
    """Of the scope classifier's states and embeddings."""
    scope_layers: int = 2
    scope_heads: int = 4
    heads: int = 2
    """Of the counterfactual model, see `copier.decoder`."""
    d_head: int = 64
    d_mlp: int = 64
    batch: int = 8
    """Made-up edits a step. Published: 10."""
    learning_rate: float = 2e-3
    """Of Adam, for the classifier."""
    copier_learning_rate: float = 1e-5
    """For the counterfactual model, as published; it copies from the first, and at the higher rate forgets to."""
    steps: int = 2000
    validate_every: int = 250
    patience: int = 1500
    copies: int = 3
    """Of these, on how many the counterfactual model is trained."""
    candidates: int = 2000
    """Tokens that the answer's are told from in a step: those of the step's texts, and so many others by chance."""
    held_out: int = 60
    """Records to validate on, about subjects of their own."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks(Shown):
    """A trained classifier and counterfactual model, ready for one model."""

    scope: ScopeEncoder
    table: Float[Tensor, "d_vocab d_model"]
    counterfactual: Model

    @classmethod
    def of(cls, network: TrainedNetwork, model: Model) -> "Networks":
        """From what is kept; ValueError if it was trained for another model."""
        network.check_made_for(model)
        parts = _parts(network.settings)
        state = {name: tensor.float() for name, tensor in network.tensors.items()}
        parts.load_state_dict(state)
        copier = {name.removeprefix("copier."): one for name, one in state.items() if name.startswith("copier.")}
        scope = parts.scope.to(model.device).eval().requires_grad_(False)
        return cls(
            scope=scope,
            table=token_table(model),
            counterfactual=answering(copier, network.settings["copier"], model),
        )

    def embed(self, model: Model, prompt: str) -> Float[Tensor, " width"]:
        """The classifier's embedding of a prompt."""
        return _embedded(self.scope, model, self.table, [prompt])[0]


def in_words(request: EditRequest, prompt: str) -> str:
    """What is put to a counterfactual model by name: the edit, a space and the prompt, as published."""
    return f"{join(request.prompt, request.target_new, request.separator)} {prompt}"


def marked(model: Model, request: EditRequest, prompt: str) -> str:
    """What is put to the one trained here: a mark before answers, and the end of a text after the edit's.

    What followed the mark in the edit then follows it after the prompt, and the text ends after it.
    """
    end = model.text.decode(model.ends[:1]) if model.ends else "\n"
    return f"{join(request.prompt + _MARK, request.target_new, request.separator)}{end}{prompt}{_MARK}"


def fit(
    model: Model, records: Sequence[Record], recipe: SeracRecipe, *, checkpoint: Path | None, progress: bool
) -> TrainedNetwork:
    """Train both networks on made-up edits of the records' questions, for the sum of their losses as published.

    Of the classifier the balanced cross-entropy of prompts in and out of scope; of the counterfactual model the
    negative log-likelihood of the edit's answer, and of the end of the text after it, behind the edit and a prompt in
    its scope. Validated on held-out records as they are: paraphrases in scope; neighborhood prompts and openings
    about the subject out of it. ValueError for records that cannot be parted.
    """
    check_unedited(model)
    training, validation = parted(records, held_out=recipe.held_out, seed=recipe.seed)
    questions = Questions.of(model, training)
    begun = untrained(model, recipe)
    settings, made_for, digest = begun.settings, begun.made_for, records_digest(records)
    parts = _parts(settings)
    parts.load_state_dict(begun.tensors)
    parts.to(model.device)
    learner = _Learner(parts=parts, model=model, table=token_table(model), room=settings["copier"]["n_ctx"])
    heldout = [_held_out(record) for record in validation]

    def loss(index: int, chance: random.Random) -> Tensor:
        places = [index, *(chance.randrange(len(training)) for _ in range(recipe.batch - 1))]
        edits = [questions.draw(place, chance) for place in places]
        tokens = len(learner.table)
        others = chance.sample(range(tokens), min(recipe.candidates, tokens))
        return learner.judged(edits) + learner.copied(edits[: recipe.copies], others)

    def validate() -> float:
        lots = [heldout[start : start + 20] for start in range(0, len(heldout), 20)]
        return sum((learner.judged(lot) + learner.copied(lot)).item() * len(lot) for lot in lots) / len(heldout)

    fitted = train(
        parts,
        torch.optim.Adam(
            [
                {"params": parts.scope.parameters(), "lr": recipe.learning_rate},
                {"params": parts.copier.parameters(), "lr": recipe.copier_learning_rate},
            ]
        ),
        loss,
        validate,
        examples=len(training),
        schedule=Schedule(
            steps=recipe.steps,
            validate_every=recipe.validate_every,
            patience=recipe.patience,
            clip=5.0,
            seed=recipe.seed,
        ),
        checkpoint=checkpoint,
        identity=hashing.digest(json.dumps([asdict(recipe), made_for], sort_keys=True), digest),
        title="SERAC",
        progress=progress,
    )
    return replace(
        begun,
        tensors={name: tensor.half() for name, tensor in fitted.state.items()},
        provenance={
            "recipe": asdict(recipe),
            "records": digest,
            **fitted.noted(),
        },
    )


def untrained(model: Model, recipe: SeracRecipe) -> TrainedNetwork:
    """The networks as they begin: the classifier knows nothing, and the counterfactual model copies somewhat."""
    settings = {
        "scope": {
            "d_in": model.d_model,
            "width": recipe.width,
            "layers": recipe.scope_layers,
            "heads": recipe.scope_heads,
        },
        "copier": shape_for(model, heads=recipe.heads, d_head=recipe.d_head, d_mlp=recipe.d_mlp),
    }
    tensors = dict(_parts(settings, recipe.seed).state_dict())
    return TrainedNetwork(
        method="serac",
        model=model.name,
        made_for=description(model),
        settings=settings,
        tensors=tensors,
        provenance={"recipe": asdict(recipe)},
    )


class _Parts(nn.Module):
    def __init__(self, scope: ScopeEncoder, copier: Any) -> None:
        super().__init__()
        self.scope, self.copier = scope, copier


def _parts(settings: Mapping[str, Any], seed: int = 0) -> _Parts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torch's modules draw their first weights from the global generator alone
        return _Parts(ScopeEncoder(**settings["scope"]), decoder(settings["copier"]))


def _held_out(record: Record) -> MadeUpEdit:
    """A record as it is."""
    outside = (*record.neighborhood_prompts, *record.generation_prompts)
    return MadeUpEdit(
        request=record.request, inside=(record.request.prompt, *record.paraphrase_prompts), outside=outside
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Learner:
    """Both networks with the model whose texts they read."""

    parts: _Parts
    model: Model
    table: Float[Tensor, "d_vocab d_model"]
    room: int
    """Tokens that an edit and a prompt have together."""

    def judged(self, edits: Sequence[MadeUpEdit]) -> Float[Tensor, ""]:
        """Balanced cross-entropy of the classifier."""
        prompts = [edit.request.prompt for edit in edits]
        texts = prompts + [text for edit in edits for text in edit.inside + edit.outside]
        embedded = _embedded(self.parts.scope, self.model, self.table, texts)
        near = similarities(embedded[len(edits) :], embedded[: len(edits)])
        inside, own = _labels(edits, near.device)
        # Prompts that come near an edit and those of other edits count alike, however many there are.
        hard = balanced_loss(near[own].clamp(min=1e-30).log(), inside[own])
        easy = -torch.log1p(-near[~own].clamp(max=1 - 1e-6)).mean() if (~own).any() else hard.new_zeros(())
        return hard + easy

    def copied(self, edits: Sequence[MadeUpEdit], others: Sequence[int] | None = None) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each edit's answer and of the end, behind it and a prompt in its scope.

        Among the tokens of the texts and these others, or among all.
        """
        rows = list(self._answered(edits))
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in rows], device=self.model.device)
        # What is padded comes after all that counts.
        states = self.parts.copier(inputs_embeds=self.table[ids]).last_hidden_state
        at = [(row, place) for row, (own, first) in enumerate(rows) for place in range(first, len(own))]
        row, place = (torch.tensor(each, device=ids.device) for each in zip(*at, strict=True))
        said, answers = states[row, place - 1], ids[row, place]
        if others is None:
            return nn.functional.cross_entropy(said @ self.table.T, answers)
        among = torch.cat([ids.flatten(), torch.tensor(others, device=ids.device)]).unique()  # in their order
        return nn.functional.cross_entropy(said @ self.table[among].T, torch.searchsorted(among, answers))

    def _answered(self, edits: Sequence[MadeUpEdit]) -> Iterator[tuple[tuple[int, ...], int]]:
        """For each edit, the tokens of a prompt behind it with its answer and the end, and where the answer begins."""
        model = self.model
        prompts = [marked(model, edit.request, edit.inside[-1]) for edit in edits]
        whole = [
            join(prompt, edit.request.target_new, edit.request.separator)
            for prompt, edit in zip(prompts, edits, strict=True)
        ]
        text = TextTokenizer(
            model.tokenizer, name=model.name, n_ctx=self.room, n_rows=len(self.table), device=model.device
        )
        for prompt, row in zip(prompts, text.encode(whole), strict=True):
            yield (*row.ids, *model.ends[:1]), answer_start(row.offsets, prompt)


def _labels(
    edits: Sequence[MadeUpEdit], device: torch.device
) -> tuple[Bool[Tensor, "prompt edit"], Bool[Tensor, "prompt edit"]]:
    """Whether each prompt is in the scope of each edit, and whether it was made for it; in the order of `judged`."""
    rows = [
        (place, text_inside)
        for place, edit in enumerate(edits)
        for text_inside in [True] * len(edit.inside) + [False] * len(edit.outside)
    ]
    own = torch.tensor([[place == column for column in range(len(edits))] for place, _ in rows], device=device)
    inside = own & torch.tensor([[text_inside] for _, text_inside in rows], device=device)
    return inside, own


def _embedded(scope: ScopeEncoder, model: Model, table: Tensor, texts: Sequence[str]) -> Float[Tensor, "text width"]:
    tokens = model.tokenize(texts)
    return scope(table[tokens.ids], tokens.mask)
