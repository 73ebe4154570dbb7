"""Tracing one fact: a clean run, corrupted runs, and a restored run for every cell, by either engine."""

import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.models.blocks import BlocksError
from workbench.models.model import SITES, Model
from workbench.models.tokens import Tokens
from workbench.records.facts import Fact
from workbench.tracing.cells import Cell, grid
from workbench.tracing.corruption import Corruption
from workbench.tracing.fast import FastRuns
from workbench.tracing.measure import make_measure
from workbench.tracing.noise import subject_span
from workbench.tracing.plain import PlainRuns
from workbench.tracing.positions import Positions, traced_positions
from workbench.tracing.trace import CausalTrace, check_probabilities

ENGINES = ("auto", "fast", "plain")
"""How cells are computed, all to the same numbers; "auto" is fast where a model's blocks are known, else plain."""


def trace_fact(
    model: Model,
    fact: Fact,
    *,
    noise: Float[Tensor, "sample subject_pos d_model"],
    replace: bool = False,
    sites: Sequence[str] = SITES,
    positions: Positions = "all",
    window: int = 10,
    span: int = 1,
    severed: str | None = None,
    severed_noise: Float[Tensor, "sample subject_pos d_model"] | None = None,
    metric: str = "probability",
    foil: int | None = None,
    engine: str = "auto",
    batch_size: int = 256,
    memory: float | None = None,
    skip_before_subject: bool = False,
) -> CausalTrace:
    """Trace one fact (Meng et al. 2022, section 2): clean run, corrupted runs, a restored run for every cell.

    `noise` is added to the token embeddings of the subject's tokens, the same for every cell. A cell
    restores, at one position, the clean state of `resid_post` in one layer or of `mlp_out` / `attn_out` in a
    window of layers (`restored_layers`). What is measured is about the clean run's top token, averaged over
    the noise samples.

    Args:
        replace: put `noise` in place of the embeddings, such as those of another subject's tokens.
        positions: tokens whose cells are computed (`traced_positions`); each costs about as much as any other.
        span: restore this many positions together, from the cell's on.
        severed: freeze this site (`mlp_out` or `attn_out`) of the layers above the restored ones at its
            corrupted values, at the restored positions (section 2.2, figure 3).
        severed_noise: noise of the corrupted runs that they are frozen to, by default `noise`. The published
            code draws it anew and freezes the layers below too, which this does where it is given.
        metric, foil: what is measured (`make_measure`); the foil is a token id.
        engine: "fast" computes what differs between cells, "plain" is its oracle: a whole forward pass each;
            "auto" is fast where it can be, and else plain, with a warning.
        batch_size: rows (cells times samples) of a forward pass of the plain engine.
        memory: GiB for the activations of cells that the fast engine advances together (`fast.usual_memory`).
        skip_before_subject: give the cells before the subject the corrupted value instead of computing it. In
            a causal decoder the two are equal, since noise changes no state before the subject; the fast
            engine always does.

    Raises ValueError for a window, span or batch size below 1, an unknown site, metric or engine, a position that
    the prompt does not have, noise of another shape than the subject's, a model whose probabilities are NaN, and an
    architecture that the "fast" engine does not know.
    """
    _check(sites, severed, engine, window=window, span=span)
    tokens = model.tokenize([fact.prompt])
    first, end = subject_span(model, fact)
    for each in (noise,) if severed_noise is None else (noise, severed_noise):
        if len(each) < 1 or tuple(each.shape[1:]) != (end - first, model.d_model) or len(each) != len(noise):
            raise ValueError(
                f"noise for {fact.subject!r} in {fact.prompt!r} must be [samples, {end - first} subject tokens, "
                f"{model.d_model}], got {list(each.shape)}"
            )
    chosen = traced_positions(positions, n_tokens=tokens.ids.shape[1], subject=(first, end))
    corruption = Corruption(first=first, noise=noise, replace=replace, frozen_noise=severed_noise)
    runs = None if engine == "plain" else _fast_runs(model, tokens, corruption, memory, strict=engine == "fast")
    skip_before_subject = skip_before_subject or runs is not None
    if runs is None:
        runs = PlainRuns(model, tokens, corruption, batch_size=batch_size)
    answer = int(runs.clean_logits.argmax())
    measure = make_measure(metric, clean=runs.clean_logits, answer=answer, foil=foil)
    clean = measure(runs.clean_logits).cpu()
    corrupted = runs.values([Cell(positions=(first, end), patches=())], measure)[0]
    check_probabilities(torch.stack([clean, corrupted]), model=model.name, prompt=fact.prompt)

    sites = list(dict.fromkeys(sites))
    cells = [
        cell
        for site in sites
        for cell in grid(
            site, n_layers=model.n_layers, n_pos=tokens.ids.shape[1], positions=chosen, window=window, span=span,
            severed=severed, severed_below=severed_noise is not None,
        )
    ]  # fmt: skip
    values = corrupted.repeat(len(cells))
    todo = [index for index, cell in enumerate(cells) if cell.positions[1] > first or not skip_before_subject]
    values[todo] = runs.values([cells[index] for index in todo], measure)
    check_probabilities(values, model=model.name, prompt=fact.prompt)
    by_site = rearrange(values, "(site pos layer) -> site pos layer", site=len(sites), layer=model.n_layers)
    restored = {site: each.clone() for site, each in zip(sites, by_site, strict=True)}

    def text(token: int) -> str:
        return model.token_strings(torch.tensor([token]))[0]

    return CausalTrace(
        fact=fact,
        tokens=tuple(model.token_strings(tokens.ids[0])),
        subject=(first, end),
        answer=text(answer),
        answer_id=answer,
        clean=clean.item(),
        corrupted=corrupted.item(),
        restored=restored,
        window=window,
        positions=chosen,
        span=span,
        severed=severed,
        metric=metric,
        foil=None if foil is None else text(foil),
        samples=len(noise),
    )


def _fast_runs(
    model: Model, tokens: Tokens, corruption: Corruption, memory: float | None, *, strict: bool
) -> FastRuns | None:
    """The fast engine; unless `strict`, None with a warning for a model or a prompt that it does not know."""
    try:
        return FastRuns(model, tokens, corruption, memory=memory)
    except BlocksError as error:
        if strict:
            raise
        warnings.warn(str(error).replace("use the plain engine", "tracing by the plain engine"), stacklevel=3)
        return None


def _check(sites: Sequence[str], severed: str | None, engine: str, **at_least_one: int) -> None:
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        got = ", ".join(map(repr, sites)) or "none"
        raise ValueError(f"sites must be some of {', '.join(SITES)}, got {got}")
    if severed not in (None, "mlp_out", "attn_out"):
        raise ValueError(f"severed must be mlp_out, attn_out or None, got {severed!r}")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
