"""The logit lens (nostalgebraist 2020): the path to the answer, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.models.unembedding import Unembedding
from workbench.records.facts import EditRequest, Fact, check_listed
from workbench.tracing.known import answer_token, as_asked
from workbench.tracing.noise import subject_span
from workbench.tracing.trace import check_probabilities

PLACES = ("last_subject", "last")
"""The tokens looked at: the subject's last, where facts are recalled, and the prompt's last, where they are read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens(Shown):
    """What a model would say of some answers if each layer were its last."""

    prompt: str
    """The prompt."""
    targets: tuple[str, ...]
    """The answers."""
    tokens: tuple[str, ...]
    """Their first tokens as text, which were looked up."""
    probability: Float[Tensor, "place layer target"]
    """Probability of each answer's first token, places as `PLACES`, read from `resid_post` of each layer."""
    rank: Float[Tensor, "place layer target"]
    """Its rank in the vocabulary; 1 is the most likely token."""


class LensError(ValueError):
    """A model whose logits are made of its last layer in a way that is not known."""


@torch.no_grad()
def logit_lens(model: Model, fact: Fact | EditRequest, targets: Sequence[str]) -> Lens:
    """Read the residual stream after each layer through the final norm and the unembedding.

    At the last position, the last layer's reading is the model's own. Call it before an edit, and again under
    `edit.applied(model)`, with the answers before and after. ValueError for no targets, a target that changes the
    prompt's tokens, and a model whose probabilities are NaN; LensError for one whose logits are made in a way that is
    not known.
    """
    check_listed("targets", targets)
    if not targets:
        raise ValueError("the logit lens needs at least one answer to follow, got none")
    fact = as_asked(model, fact, *targets)
    found = [answer_token(model, fact.prompt, target, fact.separator) for target in targets]
    ids = [token for token in found if token is not None]
    if len(ids) < len(targets):
        raise ValueError(f"{targets[found.index(None)]!r} has no token of its own behind {fact.prompt!r}")
    tokens = model.tokenize([fact.prompt])
    names = [model.hook_name("resid_post", layer) for layer in range(model.n_layers)]
    states = model.activations(tokens, [*names, "logits"])
    places = [subject_span(model, fact)[1] - 1, tokens.ids.shape[1] - 1]
    stream = rearrange([states[name][0, places] for name in names], "layer place d -> place layer d")
    logits = Unembedding(model)(stream).float().cpu()
    check_probabilities(logits, model=model.name, prompt=fact.prompt)
    _check_reading(model, logits[-1, -1], states["logits"][0, -1].float().cpu())
    chosen = repeat(torch.tensor(ids), "target -> place layer target", place=len(places), layer=len(names))
    of_targets = logits.gather(-1, chosen)
    return Lens(
        prompt=fact.prompt,
        targets=tuple(targets),
        tokens=tuple(model.token_strings(torch.tensor(ids))),
        probability=logits.softmax(dim=-1).gather(-1, chosen),
        rank=1.0 + torch.stack([(logits > of_targets[..., [k]]).sum(dim=-1) for k in range(len(ids))], dim=-1),
    )


def _check_reading(model: Model, read: Float[Tensor, " vocab"], said: Float[Tensor, " vocab"]) -> None:
    """LensError if the last layer's reading is not what the model says, as of a family that scales its logits in a way
    that is not known here."""
    allowed = 1e-2 if model.dtype == torch.float32 else 0.5  # rounding
    off = (read.log_softmax(dim=-1) - said.log_softmax(dim=-1)).abs()[said.argmax()].item()
    if off > allowed:
        raise LensError(
            f"the logit lens does not know how {type(model.hf).__name__} makes logits of its last layer: what it reads "
            f"there is off by {off:.2g} in the log-probability of the model's first choice"
        )


def average_lens(lenses: Sequence[Lens], *, prompt: str, targets: Sequence[str]) -> Lens:
    """Mean probability and geometric mean rank over prompts, their answers paired in order.

    `prompt` and `targets` say what is averaged. ValueError for no lenses, or other than one target an answer.
    """
    if not lenses or {len(lens.targets) for lens in lenses} != {len(targets)}:
        raise ValueError(f"an average needs lenses of {len(targets)} answers each, got {len(lenses)} lenses")
    return Lens(
        prompt=prompt,
        targets=tuple(targets),
        tokens=tuple(targets),
        probability=torch.stack([lens.probability for lens in lenses]).mean(dim=0),
        rank=torch.stack([lens.rank.log() for lens in lenses]).mean(dim=0).exp(),
    )
