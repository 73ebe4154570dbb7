"""Tracing a fact, or several of like shape: clean, corrupted and restored runs of every cell, by either engine."""

import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.models.blocks import BlocksError
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.tracing.asked import Form, Prompt, prompt_of
from workbench.tracing.cells import Cell, grid
from workbench.tracing.fast import FastRuns
from workbench.tracing.known import as_asked
from workbench.tracing.measure import make_measure
from workbench.tracing.plain import PlainRuns
from workbench.tracing.positions import Positions
from workbench.tracing.trace import CausalTrace, check_probabilities


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
    form = Form(sites, window, span, severed, severed_noise is not None, metric, skip_before_subject)
    form.check(engine)
    prompt = prompt_of(model, fact, noise, replace, positions, severed_noise, foil)
    fast = None if engine == "plain" else _fast_runs(model, [prompt], memory, strict=engine == "fast")
    runs = fast or PlainRuns(model, prompt.tokens, prompt.corruption, batch_size=batch_size)
    return _traces(model, [prompt], runs, form)[0]


def trace_alike(
    model: Model,
    facts: Sequence[Fact],
    *,
    noises: Sequence[Float[Tensor, "sample subject_pos d_model"]],
    foils: Sequence[int] | None = None,
    replace: bool = False,
    sites: Sequence[str] = SITES,
    positions: Positions = "all",
    window: int = 10,
    span: int = 1,
    severed: str | None = None,
    metric: str = "probability",
    memory: float | None = None,
) -> list[CausalTrace]:
    """`trace_fact` for facts of one `shape_of`, by the fast engine in one wavefront: what is launched for one is
    launched for all.

    Takes a noise a fact, of as many samples each, and else what `trace_fact` does. BlocksError for an architecture that
    the fast engine does not know, ValueError as there and for facts of several shapes.
    """
    form = Form(sites, window, span, severed, False, metric, True)
    form.check("fast")
    prompts = [
        prompt_of(model, fact, noise, replace, positions, None, foil)
        for fact, noise, foil in zip(facts, noises, foils or [None] * len(facts), strict=True)
    ]
    if len({prompt.shape for prompt in prompts}) != 1 or len({len(noise) for noise in noises}) != 1:
        raise ValueError(
            f"facts are traced together if their prompts have as many tokens and their subjects begin at the same one, "
            f"with as many samples of noise; got {sorted({prompt.shape for prompt in prompts})} (tokens, first of the "
            f"subject, positions traced) and {sorted({len(noise) for noise in noises})} samples"
        )
    runs = _fast_runs(model, prompts, memory, strict=True)
    assert runs is not None
    return _traces(model, prompts, runs, form)


def _fast_runs(model: Model, prompts: Sequence[Prompt], memory: float | None, *, strict: bool) -> FastRuns | None:
    """The fast engine; unless `strict`, None with a warning for a model or a prompt that it does not know."""
    try:
        tokens = prompts[0].tokens
        if len(prompts) > 1:
            tokens = model.tokenize([as_asked(model, each.fact).prompt for each in prompts])
        return FastRuns(model, tokens, *(each.corruption for each in prompts), memory=memory)
    except BlocksError as error:
        if strict:
            raise
        warnings.warn(str(error).replace("use the plain engine", "tracing by the plain engine"), stacklevel=3)
        return None


# ---- what comes of it


def _traces(model: Model, prompts: Sequence[Prompt], runs: FastRuns | PlainRuns, form: Form) -> list[CausalTrace]:
    """Of prompts of one shape."""
    n_pos, first, chosen = prompts[0].shape
    logits = list(runs.clean)
    answers = runs.clean.argmax(dim=-1).tolist()
    measures = [
        make_measure(form.metric, clean=each, answer=answer, foil=prompt.foil)
        for prompt, each, answer in zip(prompts, logits, answers, strict=True)
    ]

    clean = torch.stack([measure(each).cpu() for measure, each in zip(measures, logits, strict=True)])
    corrupted = runs.every([Cell(positions=prompts[0].subject, patches=())], measures)
    for prompt, *values in zip(prompts, clean, corrupted[:, 0], strict=True):
        check_probabilities(torch.stack(values), model=model.name, prompt=prompt.fact.prompt)
    sites = list(dict.fromkeys(form.sites))
    cells = [
        cell
        for site in sites
        for cell in grid(
            site, n_layers=model.n_layers, n_pos=n_pos, positions=chosen, window=form.window, span=form.span,
            severed=form.severed, severed_below=form.severed_below,
        )
    ]  # fmt: skip
    found = corrupted.repeat(1, len(cells))
    skip = form.skip_before_subject or isinstance(runs, FastRuns)
    todo = [index for index, cell in enumerate(cells) if cell.positions[1] > first or not skip]
    found[:, todo] = runs.every([cells[index] for index in todo], measures)
    traces = []
    for index, (prompt, values) in enumerate(zip(prompts, found, strict=True)):
        check_probabilities(values, model=model.name, prompt=prompt.fact.prompt)
        by_site = rearrange(values, "(site pos layer) -> site pos layer", site=len(sites), layer=model.n_layers)
        traces.append(
            CausalTrace(
                fact=prompt.fact,
                tokens=tuple(model.token_strings(prompt.tokens.ids[0])),
                subject=prompt.subject,
                answer=_text(model, answers[index]),
                answer_id=answers[index],
                clean=clean[index].item(),
                corrupted=corrupted[index, 0].item(),
                restored={site: each.clone() for site, each in zip(sites, by_site, strict=True)},
                window=form.window,
                positions=chosen,
                span=form.span,
                severed=form.severed,
                metric=form.metric,
                foil=None if prompt.foil is None else _text(model, prompt.foil),
                samples=prompt.corruption.samples,
            )
        )
    return traces


def _text(model: Model, token: int) -> str:
    return model.token_strings(torch.tensor([token]))[0]
