"""SERAC's two networks, small and over a model's own token embeddings: how they are built, kept and trained."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.training.copier import answering, shape_for, token_table
from workbench.editors.training.loop import Schedule, train
from workbench.editors.training.made_up import MadeUpEdit, Questions
from workbench.editors.training.network import TrainedNetwork, description, records_digest
from workbench.editors.training.scope import ScopeEncoder
from workbench.editors.training.scope_and_copy import Learner, embedded, parts_of
from workbench.editors.training.trained import check_unedited, parted
from workbench.machine import hashing
from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.records.facts import Record


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
        parts = parts_of(network.settings)
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
        return embedded(self.scope, model, self.table, [prompt])[0]


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
    parts = parts_of(settings)
    parts.load_state_dict(begun.tensors)
    parts.to(model.device)
    learner = Learner(parts=parts, model=model, table=token_table(model), room=settings["copier"]["n_ctx"])
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
    tensors = dict(parts_of(settings, recipe.seed).state_dict())
    return TrainedNetwork(
        method="serac",
        model=model.name,
        made_for=description(model),
        settings=settings,
        tensors=tensors,
        provenance={"recipe": asdict(recipe)},
    )


def _held_out(record: Record) -> MadeUpEdit:
    """A record as it is."""
    outside = (*record.neighborhood_prompts, *record.generation_prompts)
    return MadeUpEdit(
        request=record.request, inside=(record.request.prompt, *record.paraphrase_prompts), outside=outside
    )
