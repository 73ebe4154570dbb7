"""What must hold for a family of models before its traces and edits mean anything, as measured numbers."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from workbench.editors.rome import ROME
from workbench.editors.shared.keys import subject_states
from workbench.models.blocks import BlocksError
from workbench.models.loading import load_model
from workbench.models.model import SITES, Model
from workbench.records.facts import EditRequest, Fact
from workbench.records.joining import join
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import gaussian_noise, subject_span
from workbench.tracing.trace import CausalTrace

_FACT = Fact(subject="Eiffel Tower", template="In Paris the {} stands in", object="Rome")
_REQUEST = EditRequest(template=_FACT.template, subject=_FACT.subject, target_new="Rome")
_TEXTS = ("In Rome", "The Eiffel Tower stands in Paris, and the", "Steve Jobs founded Apple")
_LAYER = 1


@dataclass(frozen=True, kw_only=True)
class FamilyCheck:
    """The largest deviations of one model from what is promised of all."""

    logits: float
    """Of logits from Hugging Face's, prompt by prompt there and left-padded together here."""
    fast: float | None
    """Of the fast engine's traces from the plain one's, in nats; None where the blocks are not known."""
    effect: float
    """Largest indirect effect in them, beside which `fast` is to be seen."""
    promise: float
    """Of what a ROME edit does at the subject's last token from what its optimisation found; see `missed`."""
    export: float
    """Of the logits of the saved and reloaded edited model from the edited model's."""

    def faults(self) -> list[str]:
        """What is further off than rounding."""
        bounds = {"logits": 1e-4, "fast": 1e-5, "promise": 0.01, "export": 1e-5}
        return [name for name, bound in bounds.items() if not (getattr(self, name) or 0.0) <= bound]


def check_family(folder: Path) -> FamilyCheck:
    """Load a checkpoint and measure it; ValueError where it cannot be loaded or edited."""
    model = load_model(str(folder), device="cpu")
    fast, effect = _fast(model)
    promise, export = _edited(model)
    return FamilyCheck(logits=_logits(model, folder), fast=fast, effect=effect, promise=promise, export=export)


@torch.no_grad()
def _logits(model: Model, folder: Path) -> float:
    """`FamilyCheck.logits`."""
    hf: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    together = model.tokenize(_TEXTS, padding_side="left")
    found = model.logits(together)
    errors = []
    for row, text in enumerate(_TEXTS):
        alone = hf(model.tokenize([text]).ids).logits[0]
        errors.append((found[row, int(together.starts[row]) :] - alone).abs().max().item())
    return max(errors)


def _fast(model: Model) -> tuple[float | None, float]:
    """`FamilyCheck.fast` and `effect`; the prompt is longer than the windows of the tiny models."""
    first, end = subject_span(model, _FACT)
    noise = gaussian_noise(0.5, 2, end - first, model.d_embed, generator=torch.Generator().manual_seed(0))

    def trace(engine: str) -> CausalTrace:
        return trace_fact(model, _FACT, noise=noise, window=2, metric="kl", engine=engine)

    plain = trace("plain")
    effect = max(plain.indirect_effect(site).abs().max().item() for site in SITES)
    try:
        fast = trace("fast")
    except BlocksError:
        return None, effect
    return max((fast.restored[site] - plain.restored[site]).abs().max().item() for site in SITES), effect


def _edited(model: Model) -> tuple[float, float]:
    """`FamilyCheck.promise` and `export`."""
    editor = ROME(layer=_LAYER, second_moment=None, steps=12, learning_rate=0.3, weight_decay=0.01, clamp=1.0)
    edit = editor(model, [_REQUEST])
    (promised,) = edit.provenance["optimisation"]
    with edit.applied(model), tempfile.TemporaryDirectory() as saved:
        state = state_at_subject(model, "resid_post", _LAYER, _REQUEST)
        model.save_pretrained(Path(saved))
        tokens = model.tokenize(_TEXTS)
        with torch.no_grad():
            export = (load_model(saved, device="cpu").logits(tokens) - model.logits(tokens))[tokens.mask.bool()]
    return missed(model, _LAYER, state, _REQUEST, promised["nll"]), export.abs().max().item()


def state_at_subject(model: Model, site: str, layer: int, request: EditRequest) -> Float[Tensor, " d_model"]:
    """A state at the subject's last token of the bare prompt; float64."""
    return subject_states(model, model.hook_name(site, layer), [request.template], [request.subject])[0]


def missed(model: Model, layer: int, state: Float[Tensor, " d_model"], request: EditRequest, promised: float) -> float:
    """The share of the target's log-likelihood that an optimisation promised and the edited model misses.

    An edit of W_out changes other tokens too, which the optimisation of a value knows nothing of; so the residual
    stream that leaves the layer of the edited model is put into `model` at the subject's last token alone.
    """
    before, after = (_negative_log_likelihood(model, layer, each, request) for each in (None, state))
    return abs((after - promised) / (before - promised))


@torch.no_grad()
def _negative_log_likelihood(model: Model, layer: int, state: Tensor | None, request: EditRequest) -> float:
    """Of the target, mean over its tokens, with a state in place at the subject's last token."""
    tokens = model.tokenize([join(request.prompt, request.target_new)])
    first = model.tokenize([request.prompt]).ids.shape[1]
    _, end = subject_span(model, Fact(subject=request.subject, template=request.template, object=request.target_new))

    def put(resid: Tensor, hook: object) -> Tensor:
        changed = resid.clone()
        changed[0, end - 1] = changed[0, end - 1] if state is None else state.to(resid)
        return changed

    logits = model.logits(tokens, hooks=[(model.hook_name("resid_post", layer), put)])[0]
    said = logits[first - 1 : -1].log_softmax(dim=-1).gather(1, tokens.ids[0, first:, None])
    return -said.mean().item()
