"""MEND: networks that turn a fine-tuning gradient into an edit (Mitchell et al. 2022, arXiv:2110.11309)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.editors.shared.factors import divergence, gradient_factors, negative_log_likelihoods, pooled_factors
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.passes import Passes, added, shape_of
from workbench.editors.shared.requests import check_requests
from workbench.editors.training.examples import Batch
from workbench.editors.training.network import TrainedNetwork, description
from workbench.editors.training.trained import Hypernetwork, HypernetworkRecipe, fit_network
from workbench.editors.training.transform import GradientTransforms
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record


@dataclass(frozen=True, kw_only=True)
class MENDRecipe(HypernetworkRecipe):
    """How a network is built and trained; defaults are those of the authors' code (config/alg/mend.yaml)."""

    rank: int = 1920
    """Of U V in each layer of a transform."""
    rate: float = 1e-4
    """The learned rates' beginning."""
    learning_rate: float = 1e-6
    """Of Adam, for the transforms."""
    rate_learning_rate: float = 1e-4
    """Of Adam, for the learned rates. In the published code this has no effect, and they move at 1e-6."""
    edit_weight: float = 0.1
    """c_edit: multiplies -log p of the target after the edit."""
    locality_weight: float = 1.0
    """Multiplies KL(before || after) over the texts that should stay."""
    edits: int = 10
    """Edits a step."""
    clip: float | None = 100.0
    """Largest norm of the gradient."""
    descent: bool = True
    """W - rate dW, as algorithm 1 has it; the published code adds, and leaves it to the rates to turn negative."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MEND(Hypernetwork):
    """One gradient of -log p(target | prompt), its rank-one factors transformed by a trained network (algorithm 1).

    The gradient of a weight is sum u^T delta over positions, u the inputs of the matrix and delta the gradients at
    its outputs. A network for each shape of matrix maps every (u, delta), normalised, to another pair; the change is
    -rate sum u~^T delta~, of a rank of as many as there are tokens. Requests in a batch share one mean loss.

    What differs between codebases: the first form is the default, the other an option of the recipe.

    - The change is subtracted (paper) or added (published code): `descent`.
    - Training scores a paraphrase (paper, authors' code), or the edited prompt itself (EasyEdit): `itself`, a share.
    - KL over every next token (authors' code for GPT), or over the positions of an answer (EasyEdit): `answers_only`.

    As in the authors' code, and not in the paper's equations: the network's skip connections carry normalised factors,
    so an untrained network that has seen factors is not a plain gradient step; one that has seen none is.
    """

    method: ClassVar[str] = "MEND"
    name: ClassVar[str] = "mend"
    recipes: ClassVar[type] = MENDRecipe
    batches: ClassVar[bool] = True

    network: TrainedNetwork
    """The trained transforms."""
    scale: float = 1.0
    """Multiplies the change that the network makes; more is surer of the new answer and spares the rest less."""

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit that makes the requests true together, computed on the weights as they are.

        ValueError for no requests or contradictory ones, or a network trained for another model.
        """
        requests = check_requests(requests, model)
        self.network.check_made_for(model)
        transforms = built(self.network, model)
        check_hooks(model, self.method, "mlp_write")
        factors = pooled_factors(model, list(transforms.shapes), requests)
        with torch.no_grad():
            changes = transforms(factors, descent=self.network.settings["descent"])
        return self.edit_of(model, requests, [changes])

    @classmethod
    def untrained(cls, model: Model, recipe: MENDRecipe) -> TrainedNetwork:
        """The network before its first step, which makes a step of gradient descent."""
        return _frozen(model, recipe, _new(model, recipe).state_dict(), provenance={"recipe": asdict(recipe)})

    @classmethod
    def fit(
        cls,
        model: Model,
        records: Sequence[Record],
        recipe: MENDRecipe,
        *,
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> TrainedNetwork:
        """Train transforms on the records' edits (algorithm 2), from the checkpoint if it is there.

        The factors' statistics grow with every edit trained on. ValueError while edits are applied to the model.
        """
        network = _new(model, recipe)

        def loss(passes: Passes, batch: Batch) -> Tensor:
            edit, kept = losses(network, passes, batch, descent=recipe.descent, observe=network.training)
            return recipe.edit_weight * edit + recipe.locality_weight * kept

        optimiser = torch.optim.Adam(
            [
                {"params": list(network.transforms.parameters()), "lr": recipe.learning_rate},
                {"params": [network.rates], "lr": recipe.rate_learning_rate},
            ]
        )
        fitted, more = fit_network(
            cls.name, model, records, recipe, network, optimiser, loss, checkpoint=checkpoint, progress=progress
        )
        return _frozen(model, recipe, fitted, provenance=more)


def losses(
    network: GradientTransforms, passes: Passes, batch: Batch, *, descent: bool, observe: bool
) -> tuple[Tensor, Tensor]:
    """-log p of the target after each edit, and the mean KL(before || after) over what should stay, both as means."""
    _, factors = gradient_factors(passes, batch.edit)
    changes = network(factors, descent=descent, observe=observe)
    said = negative_log_likelihoods(passes.logits(batch.outer, added(changes, batch.outer)), batch.outer)
    with torch.no_grad():
        before = passes.logits(batch.kept)
    moved = divergence(before, passes.logits(batch.kept, added(changes, batch.kept)))
    return batch.outer.means(said).mean(), batch.kept.means(moved).mean()


def built(network: TrainedNetwork, model: Model) -> GradientTransforms:
    """The module of a frozen network, on the model's device."""
    places = [(layer, matrix) for layer, matrix in network.settings["places"]]
    shapes = {place: shape_of(model, place) for place in places}
    made = GradientTransforms(shapes, rank=network.settings["rank"], rate=0.0)
    made.load_state_dict({name: tensor.float() for name, tensor in network.tensors.items()})
    return made.to(model.device).eval()


def _new(model: Model, recipe: MENDRecipe) -> GradientTransforms:
    shapes = {place: shape_of(model, place) for place in recipe.places(model)}
    generator = torch.Generator().manual_seed(recipe.seed)
    made = GradientTransforms(shapes, rank=recipe.rank, rate=recipe.rate).initialise_(generator)
    return made.to(model.device)


def _frozen(
    model: Model, recipe: MENDRecipe, state: Mapping[str, Tensor], *, provenance: Mapping[str, Any]
) -> TrainedNetwork:
    """U and V are kept in float16, all else as it is."""
    halved = {name: each.half() if name.endswith((".u", ".v")) else each for name, each in state.items()}
    return TrainedNetwork(
        method=MEND.name,
        model=model.name,
        made_for=description(model),
        settings={
            "places": [list(place) for place in recipe.places(model)],
            "rank": recipe.rank,
            "descent": recipe.descent,
        },
        tensors={name: each.detach().cpu() for name, each in halved.items()},
        provenance=provenance,
    )
