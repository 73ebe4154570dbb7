"""What must hold for a family of models before its traces and edits mean anything, as measured numbers."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from workbench.blocks import BlocksError
from workbench.editors.keys import subject_states
from workbench.editors.rome import ROME
from workbench.facts import EditRequest, Fact
from workbench.models import SITES, Model, load_model
from workbench.tracing import CausalTrace, gaussian_noise, subject_span, trace_fact

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
    """Of what a ROME edit does from what its optimisation reports: of the change of W_out's output at the subject's
    last token, and of the target's log-probability, the larger share."""
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
    noise = gaussian_noise(0.5, 2, end - first, model.d_model, generator=torch.Generator().manual_seed(0))

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

    def read() -> tuple[torch.Tensor, float]:
        name = model.hook_name("mlp_write", _LAYER)
        (log_probs,) = model.target_log_probs([_REQUEST.prompt], [_REQUEST.target_new])
        return subject_states(model, name, [_REQUEST.template], [_REQUEST.subject])[0], -log_probs.mean().item()

    edit = ROME(layer=_LAYER, second_moment=None, steps=12, learning_rate=0.3, weight_decay=0.01, clamp=1.0)(
        model, [_REQUEST]
    )
    (promised,) = edit.provenance["optimisation"]
    before, unlikely = read()
    with edit.applied(model), tempfile.TemporaryDirectory() as saved:
        after, likely = read()
        model.save_pretrained(Path(saved))
        tokens = model.tokenize(_TEXTS)
        with torch.no_grad():
            export = (load_model(saved, device="cpu").logits(tokens) - model.logits(tokens))[tokens.mask.bool()]
    change = abs((after - before).norm().item() / promised["delta_norm"] - 1)
    said = abs((likely - promised["nll"]) / (unlikely - promised["nll"]))
    return max(change, said), export.abs().max().item()
