"""KE: a network that reads an edit's words and shifts weights along its gradient (De Cao et al. 2021, 2104.08164)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.factors import divergence, gradient_factors, negative_log_likelihoods, pooled_factors
from workbench.editors.shared.keys import check_hooks
from workbench.editors.shared.passes import Passes, Scored, added, shape_of
from workbench.editors.shared.requests import check_requests
from workbench.editors.training.examples import Batch
from workbench.editors.training.network import TrainedNetwork, description
from workbench.editors.training.shift import GradientShifts, embedded
from workbench.editors.training.trained import Hypernetwork, HypernetworkRecipe, fit_network
from workbench.edits.weights import WeightEdit
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record

_ANSWER = 5
"""Tokens generated to find out what the model says now."""


@dataclass(frozen=True, kw_only=True)
class KERecipe(HypernetworkRecipe):
    """How a network is built and trained; defaults are those of the authors' code for question answering."""

    hidden: int = 128
    """Width of the LSTM's directions and of each shift's hidden layer."""
    width: int = 1024
    """Of the condition."""
    max_scale: float = 1.0
    """Multiplies every shift. The softmaxes over a matrix's rows make a shift hundreds of times smaller than the
    gradient; what 200,000 published steps make up for, presets of fewer steps put here."""
    learning_rate: float = 3e-4
    """Of centred RMSprop."""
    multiplier_learning_rate: float = 0.1
    """Of the constraint's multiplier, which is raised while the divergence is above the margin."""
    smoothing: float = 0.1
    """Of the labels in the training loss; the gradient that is shifted is of the plain one."""
    margin: float = 1e-3
    """Divergence allowed at first."""
    least_margin: float = 1e-5
    """Divergence allowed at last."""
    margin_decay: float = 0.8
    """Multiplies the margin after a validation in which over nine tenths of the edits succeed."""
    edits: int = 64
    """Edits a step."""
    clip: float | None = None
    """Largest norm of the gradient."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KE(Hypernetwork):
    """The gradient of -log p(target | prompt), scaled, gated and shifted by a network that reads the edit (equation 4).

    The network reads "old answer >> new answer || prompt": the old answer is `target_true`, or what the model says
    where that is not given. The change is max_scale sigmoid(eta) (G * softmax(a) c^T + softmax(b) d^T), and is
    added, as in the paper and its code: nothing but training makes it a descent. Published for encoders and every
    matrix they have; here MLP matrices are edited, as MEND's authors do (algs/efk.py). Requests of a batch are each
    shifted by their own words, and the shifts added up.

    Training minimises the smoothed -log p after the edit under KL(before || after) <= margin on texts that should
    stay, by a multiplier that is raised where it is above; these are texts near the edit, where the published code
    takes the other examples of the batch. Its learning rate is constant, without the published warm-up.
    """

    method: ClassVar[str] = "KE"
    name: ClassVar[str] = "ke"
    recipes: ClassVar[type] = KERecipe

    network: TrainedNetwork
    """The trained conditioner and shifts."""
    scale: float = 1.0
    """Multiplies the change that the network makes; more is surer of the new answer and spares the rest less."""

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> WeightEdit:
        """The edit that makes the requests true, computed on the weights as they are.

        ValueError for no requests or contradictory ones, or a network trained for another model.
        """
        requests = check_requests(requests, model)
        self.network.check_made_for(model)
        network = built(self.network, model)
        check_hooks(model, self.method, "mlp_write")
        changes = []
        for request in requests:
            factors = pooled_factors(model, list(network.shapes), [request])
            words = embedded(model, conditions(model, [request]))
            with torch.no_grad():
                changes.append(network(words, factors, scale=self.network.settings["max_scale"]))
        return self.edit_of(model, requests, changes)

    @classmethod
    def untrained(cls, model: Model, recipe: KERecipe) -> TrainedNetwork:
        """The network before its first step."""
        return _frozen(model, recipe, _new(model, recipe).state_dict(), provenance={"recipe": asdict(recipe)})

    @classmethod
    def fit(
        cls,
        model: Model,
        records: Sequence[Record],
        recipe: KERecipe,
        *,
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> TrainedNetwork:
        """Train a network on the records' edits under the margin (equation 3), from the checkpoint if it is there.

        What validates is the smoothed loss plus the divergence. ValueError while edits are applied to the model.
        """
        network = _new(model, recipe)

        def loss(passes: Passes, batch: Batch) -> Tensor:
            if network.training:
                narrow(network, recipe)
            said, kept, flipped = losses(network, model, passes, batch, recipe)
            if not network.training:
                network.get_buffer("flipped").add_(flipped)
                network.get_buffer("asked").add_(len(batch.requests))
                return said + kept
            return said + network.multiplier * (kept - network.get_buffer("margin"))

        learned = [each for name, each in network.named_parameters() if name != "multiplier"]
        optimiser = torch.optim.RMSprop(
            [
                {"params": learned, "lr": recipe.learning_rate},
                {"params": [network.multiplier], "lr": recipe.multiplier_learning_rate, "maximize": True},
            ],
            centered=True,
        )
        fitted, more = fit_network(
            cls.name, model, records, recipe, network, optimiser, loss, checkpoint=checkpoint, progress=progress
        )
        return _frozen(model, recipe, fitted, provenance=more)


def losses(
    network: GradientShifts, model: Model, passes: Passes, batch: Batch, recipe: KERecipe
) -> tuple[Tensor, Tensor, int]:
    """The smoothed -log p after the edits, the KL(before || after) over what should stay, as means; edits that hold."""
    _, factors = gradient_factors(passes, batch.edit)
    changes = network(embedded(model, conditions(model, batch.requests)), factors, scale=recipe.max_scale)
    logits = passes.logits(batch.outer, added(changes, batch.outer))
    said = smoothed(logits, batch.outer, recipe.smoothing)
    right = batch.outer.means((logits.argmax(dim=-1) == batch.outer.targets).to(said.dtype))
    with torch.no_grad():
        before = passes.logits(batch.kept)
    moved = divergence(before, passes.logits(batch.kept, added(changes, batch.kept)))
    return batch.outer.means(said).mean(), batch.kept.means(moved).mean(), int((right == 1).sum())


def smoothed(logits: Float[Tensor, "prediction vocab"], scored: Scored, smoothing: float) -> Tensor:
    """-log p of each target's token, a share of it spread evenly over all others."""
    log_probs = logits.log_softmax(dim=-1)
    right, share = negative_log_likelihoods(logits, scored), smoothing / (logits.shape[-1] - 1)
    return (1 - smoothing - share) * right - share * log_probs.sum(dim=-1)


def conditions(model: Model, requests: Sequence[EditRequest]) -> list[str]:
    """What the network reads of each edit."""
    unknown = [request.prompt for request in requests if request.target_true is None]
    said = iter(generate(model, unknown, max_new_tokens=_ANSWER) if unknown else ())
    return [
        f"{(next(said) if request.target_true is None else request.target_true).strip()} >> "
        f"{request.target_new.strip()} || {request.prompt}"
        for request in requests
    ]


@torch.no_grad()
def narrow(network: GradientShifts, recipe: KERecipe) -> None:
    """Before a step: the multiplier stays above 0, and a validation that went well narrows the margin, once."""
    network.multiplier.clamp_(min=0)
    margin, flipped, asked = (network.get_buffer(name) for name in ("margin", "flipped", "asked"))
    if flipped > 0.9 * asked:
        margin.mul_(recipe.margin_decay).clamp_(min=recipe.least_margin)
    flipped.zero_()
    asked.zero_()


def built(network: TrainedNetwork, model: Model) -> GradientShifts:
    """The module of a frozen network, on the model's device."""
    settings = network.settings
    shapes = {(layer, matrix): shape_of(model, (layer, matrix)) for layer, matrix in settings["places"]}
    made = GradientShifts(shapes, model.d_embed, hidden=settings["hidden"], width=settings["width"], margin=0.0)
    made.load_state_dict({name: tensor.float() for name, tensor in network.tensors.items()})
    return made.to(model.device).eval()


def _new(model: Model, recipe: KERecipe) -> GradientShifts:
    shapes = {place: shape_of(model, place) for place in recipe.places(model)}
    # The seed is set inside a fork, so that a caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would reseed GPUs too
        made = GradientShifts(shapes, model.d_embed, hidden=recipe.hidden, width=recipe.width, margin=recipe.margin)
    return made.to(model.device)


def _frozen(
    model: Model, recipe: KERecipe, state: Mapping[str, Tensor], *, provenance: Mapping[str, Any]
) -> TrainedNetwork:
    """Matrices are kept in float16, all else as it is."""
    return TrainedNetwork(
        method=KE.name,
        model=model.name,
        made_for=description(model),
        settings={
            "places": [list(place) for place in recipe.places(model)],
            "hidden": recipe.hidden,
            "width": recipe.width,
            "max_scale": recipe.max_scale,
        },
        tensors={name: (each.half() if each.ndim == 2 else each).detach().cpu() for name, each in state.items()},
        provenance=provenance,
    )
