"""Attribution patching: every cell's effect to first order, from two forward passes and one backward pass.

Restoring a state moves it from its corrupted to its clean value. To first order that changes what is measured by

    (clean state - corrupted state) . d measured / d state, at the corrupted run

(Nanda 2023; Syed et al. 2310.10348, equation 3), for all cells at once. The estimate is no substitute for exact
tracing: `agreement` says how far the two agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from workbench.machine.intervals import Estimate, student, wilson
from workbench.models.hooks import Hook
from workbench.models.model import SITES, Model
from workbench.models.tokens import Tokens
from workbench.records.facts import Fact
from workbench.tracing.corruption import Corruption
from workbench.tracing.known import as_asked
from workbench.tracing.measure import Measure, make_measure
from workbench.tracing.noise import subject_span
from workbench.tracing.positions import Positions, traced_positions
from workbench.tracing.trace import CausalTrace, check_probabilities, restored_layers


def attribute_fact(
    model: Model,
    fact: Fact,
    *,
    noise: Float[Tensor, "sample subject_pos d_model"],
    replace: bool = False,
    sites: Sequence[str] = SITES,
    positions: Positions = "all",
    window: int = 10,
    metric: str = "probability",
    foil: int | None = None,
) -> CausalTrace:
    """Estimate what `trace_fact` computes with the same arguments; `restored` is corrupted + estimated effect.

    A window's effect is the sum over its layers (`restored_layers`), each restored alone. Restored together they do
    less than that even to first order, since what a lower layer changes in a higher one of the window is overwritten
    there; only effects of single layers are derivatives. Estimates may leave the range of what is measured:
    probabilities below 0 or above 1 stay as they are. All positions come from the same passes, so that fewer of them
    save nothing.

    Raises ValueError for a window below 1, an unknown site or metric, a position that the prompt does not have,
    noise of another shape than the subject's, and a model whose probabilities are NaN.
    """
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        raise ValueError(f"sites must be some of {', '.join(SITES)}, got {', '.join(map(repr, sites)) or 'none'}")
    restored_layers(0, window, model.n_layers)
    prompt = as_asked(model, fact).prompt
    tokens = model.tokenize([prompt])
    first, end = subject_span(model, fact)
    if len(noise) < 1 or tuple(noise.shape[1:]) != (end - first, model.d_embed):
        raise ValueError(
            f"noise for {fact.subject!r} in {fact.prompt!r} must be [samples, {end - first} subject tokens, "
            f"{model.d_embed}], got {list(noise.shape)}"
        )
    chosen = traced_positions(positions, n_tokens=tokens.ids.shape[1], subject=(first, end))
    names = [model.hook_name(site, layer) for site in dict.fromkeys(sites) for layer in range(model.n_layers)]
    clean_states, clean_logits = _clean_run(model, tokens, names)
    answer = int(clean_logits.argmax())
    measure = make_measure(metric, clean=clean_logits, answer=answer, foil=foil)
    clean = measure(clean_logits).item()
    corruption = Corruption(first=first, noise=noise.to(model.device), replace=replace)
    rows = model.tokenize([prompt] * corruption.samples)
    corrupted, effects = _first_order(model, rows, names, clean_states, corruption, measure)
    for values in (torch.tensor([clean, corrupted]), effects):
        check_probabilities(values, model=model.name, prompt=fact.prompt)
    by_site = rearrange(effects[:, list(chosen)], "(site layer) pos -> site pos layer", layer=model.n_layers)

    def windowed(site: str, effect: Float[Tensor, "pos layer"]) -> Float[Tensor, "pos layer"]:
        width = 1 if site == "resid_post" else window
        layers = [restored_layers(layer, width, model.n_layers) for layer in range(model.n_layers)]
        return torch.stack([effect[:, one.start : one.stop].sum(dim=1) for one in layers], dim=1)

    texts = model.token_strings(torch.tensor([answer] if foil is None else [answer, foil]))
    return CausalTrace(
        fact=fact,
        tokens=tuple(model.token_strings(tokens.ids[0])),
        subject=(first, end),
        answer=texts[0],
        answer_id=answer,
        clean=clean,
        corrupted=corrupted,
        restored={
            site: corrupted + windowed(site, effect) for site, effect in zip(dict.fromkeys(sites), by_site, strict=True)
        },
        window=window,
        positions=chosen,
        metric=metric,
        foil=None if foil is None else texts[1],
        samples=len(noise),
    )


def _clean_run(model: Model, tokens: Tokens, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """States [1 pos d_model] at the hooks named and the last position's logits, from one forward pass."""
    states: dict[str, Tensor] = {}

    def keeper(name: str) -> Hook:
        return name, lambda state, hook: states.update({name: state.detach()})

    with torch.no_grad():
        logits = model.logits(tokens, hooks=[keeper(name) for name in names], keep_last=1)[0, -1]
    return states, logits


def _first_order(
    model: Model,
    rows: Tokens,
    names: Sequence[str],
    clean: dict[str, Tensor],
    corruption: Corruption,
    measure: Measure,
) -> tuple[float, Float[Tensor, "hook pos"]]:
    """Mean of what is measured in the corrupted runs, and the first-order effect of each clean state at each
    position, averaged over the samples (`rows`), in float32 on the CPU."""
    probes: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}

    def corrupt(embeddings: Tensor, hook: Any) -> Tensor:
        return corruption(embeddings)

    def probe(name: str) -> Callable[..., Tensor]:
        def add(state: Tensor, hook: Any) -> Tensor:
            # d measured / d state is the gradient of a zero that is added to the state.
            steps[name] = clean[name] - state.detach()
            probes[name] = torch.zeros_like(state, requires_grad=True)
            return state + probes[name]

        return add

    hooks: list[Hook] = [(model.hook_name("embed"), corrupt), *((name, probe(name)) for name in names)]
    with torch.enable_grad():
        measured = measure(model.logits(rows, hooks=hooks, keep_last=1)[:, -1])
        gradients = torch.autograd.grad(measured.sum(), [probes[name] for name in names])
    effects = [
        einsum(steps[name].float(), gradient.float(), "sample pos d, sample pos d -> sample pos").mean(dim=0)
        for name, gradient in zip(names, gradients, strict=True)
    ]
    return measured.mean().item(), torch.stack(effects).cpu()


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far estimated effects agree with exact ones, over facts."""

    site: str
    """Where states were restored."""
    facts: int
    """How many facts were compared; correlations leave out those whose effects, exact or estimated, are all equal, and
    those traced before their subject only."""
    spearman: Estimate
    """Mean over facts of the rank correlation over a fact's cells traced, from its subject on, with a 95 % interval
    (Student's t over facts)."""
    pearson: Estimate
    """The same of the linear correlation."""
    same_layer: Estimate
    """Share of the facts traced at their last subject token whose layers of greatest effect there lie at most half a
    window apart, with Wilson's 95 % interval; NaN without such facts."""


def agreement(exact: Sequence[CausalTrace], estimated: Sequence[CausalTrace], site: str) -> Agreement:
    """Compare the estimates of `attribute_fact` with exact traces of the same facts, of one site.

    ValueError for no traces, other than one estimate an exact trace, traces of different prompts, positions, windows
    or metrics, and a site not traced.
    """
    if not exact or len(exact) != len(estimated):
        raise ValueError(f"agreement needs one estimate an exact trace, got {len(estimated)} for {len(exact)}")
    ranks, linear, same = [], [], []
    for one, other in zip(exact, estimated, strict=True):
        settings = [
            (each.fact.prompt, each.positions, each.window, each.span, each.severed, each.metric)
            for each in (one, other)
        ]
        if settings[0] != settings[1]:
            raise ValueError(
                f"traces to compare must be of one prompt and setting, got {settings[0]} and {settings[1]}"
            )
        effects = [each.indirect_effect(site).double().numpy() for each in (one, other)]
        after = [row for row, pos in enumerate(one.positions) if pos >= one.subject[0]]
        cells = [effect[after].flatten() for effect in effects]
        if after and all(np.ptp(values) > 0 for values in cells):
            ranks.append(float(np.corrcoef([rankdata(values) for values in cells])[0, 1]))
            linear.append(float(np.corrcoef(cells)[0, 1]))
        if one.last_subject in one.positions:
            peaks = [int(each.effect_at(site, one.last_subject).argmax()) for each in (one, other)]
            same.append(abs(peaks[0] - peaks[1]) <= (0 if site == "resid_post" else one.window / 2))
    return Agreement(
        site=site,
        facts=len(exact),
        spearman=student(ranks),
        pearson=student(linear),
        same_layer=wilson(same),
    )
