"""The plain tracing engine: for every cell a forward pass with a noisy subject and clean states patched in.

It saves nothing that would need an argument why it is right, and so is the oracle for faster engines.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.facts import Fact
from workbench.models import SITES, Hook, Model, Tokens
from workbench.tracing.noise import subject_span
from workbench.tracing.trace import CausalTrace, check_probabilities, restored_layers

Cell = tuple[int, tuple[str, ...]]
"""A position and the hooks whose clean states are restored there; no hooks is the corrupted run itself."""


def trace_fact(
    model: Model,
    fact: Fact,
    *,
    noise: Float[Tensor, "sample subject_pos d_model"],
    sites: Sequence[str] = SITES,
    window: int = 10,
    batch_size: int = 256,
    skip_before_subject: bool = False,
) -> CausalTrace:
    """Trace one fact (Meng et al. 2022, section 2): clean run, corrupted run, a restored run for every cell.

    `noise` is added to the token embeddings of the subject's tokens, the same for every cell. A cell
    restores, at one position, the clean state of `resid_post` in one layer or of `mlp_out` / `attn_out` in a
    window of layers (`restored_layers`). Probabilities are those of the clean run's top token, averaged over
    the noise samples.

    Args:
        batch_size: rows (cells times samples) in one forward pass. skip_before_subject: give the cells before
        the subject the corrupted probability instead of computing it. In
            a causal decoder the two are equal, since noise changes no state before the subject.

    Raises ValueError for a window or batch size below 1, an unknown site, no site, noise of another shape
    than the subject's, and a model whose probabilities are NaN.
    """
    _check_sites(sites)
    if window < 1:
        raise ValueError(f"window must be at least 1 layer, got {window}")
    tokens = model.tokenize([fact.prompt])
    first, end = subject_span(model, fact)
    samples = _check_noise(noise, fact, (end - first, model.d_model))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")

    cells = {site: list(_cells(model, site, window, tokens.ids.shape[1])) for site in dict.fromkeys(sites)}
    hooks = dict.fromkeys(hook for grid in cells.values() for _, names in grid for hook in names)
    clean_states = model.activations(tokens, list(hooks))
    with torch.no_grad():
        clean = _last_probabilities(model, model.logits(tokens, keep_last=1), fact)[0]
    answer_id = int(clean.argmax())

    def run(batch: Sequence[Cell]) -> Float[Tensor, " cell"]:
        return _restored_runs(model, fact, tokens, first, noise, clean_states, batch, answer_id)

    corrupted = run([(0, ())]).item()
    restored = {}
    for site, grid in cells.items():
        flat = torch.full((len(grid),), corrupted)
        todo = [i for i, (pos, _) in enumerate(grid) if pos >= first or not skip_before_subject]
        for chunk in _chunks(todo, max(1, batch_size // samples)):
            flat[chunk] = run([grid[i] for i in chunk])
        restored[site] = rearrange(flat, "(pos layer) -> pos layer", layer=model.n_layers).contiguous()

    return CausalTrace(
        fact=fact,
        tokens=tuple(model.token_strings(tokens.ids[0])),
        subject=(first, end),
        answer=model.token_strings(torch.tensor([answer_id]))[0],
        answer_id=answer_id,
        clean=clean[answer_id].item(),
        corrupted=corrupted,
        restored=restored,
        window=window,
    )


def _cells(model: Model, site: str, window: int, n_pos: int) -> Iterator[Cell]:
    """Every cell of a site's grid, position by position, layer by layer."""
    width = 1 if site == "resid_post" else window
    for pos in range(n_pos):
        for layer in range(model.n_layers):
            layers = restored_layers(layer, width, model.n_layers)
            yield pos, tuple(model.hook_name(site, restored) for restored in layers)


def _restored_runs(
    model: Model,
    fact: Fact,
    tokens: Tokens,
    first: int,
    noise: Float[Tensor, "sample subject_pos d_model"],
    clean_states: Mapping[str, Tensor],
    cells: Sequence[Cell],
    answer_id: int,
) -> Float[Tensor, " cell"]:
    """Mean probability of the answer over the samples for every cell, in one forward pass."""
    rows = _repeat_tokens(tokens, len(cells) * len(noise))
    noise_rows = repeat(noise, "sample pos d -> (cell sample) pos d", cell=len(cells))

    def add_noise(embeddings: Tensor, hook: object = None) -> Tensor:
        embeddings = embeddings.clone()
        embeddings[:, first : first + noise.shape[1]] += noise_rows.to(embeddings)
        return embeddings

    def restore(name: str) -> Callable[..., Tensor]:
        targets = [(cell, pos) for cell, (pos, names) in enumerate(cells) if name in names]

        def put_clean(states: Tensor, hook: object = None) -> Tensor:
            states = states.clone()
            for cell, pos in targets:
                states[cell * len(noise) : (cell + 1) * len(noise), pos] = clean_states[name][0, pos]
            return states

        return put_clean

    used = dict.fromkeys(name for _, names in cells for name in names)
    hooks: list[Hook] = [(model.hook_name("embed"), add_noise), *((name, restore(name)) for name in used)]
    with torch.no_grad():
        logits = model.logits(rows, hooks=hooks, keep_last=1)
    probabilities = _last_probabilities(model, logits, fact)[:, answer_id]
    return reduce(probabilities, "(cell sample) -> cell", "mean", cell=len(cells))


def _last_probabilities(
    model: Model, logits: Float[Tensor, "batch pos vocab"], fact: Fact
) -> Float[Tensor, "batch vocab"]:
    """Distribution after the prompt's last token, on the CPU."""
    probabilities = logits[:, -1].float().softmax(dim=-1).cpu()
    check_probabilities(probabilities, model=model.name, prompt=fact.prompt)
    return probabilities


def _repeat_tokens(tokens: Tokens, rows: int) -> Tokens:
    """One prompt as a batch of `rows` equal rows."""
    return Tokens(
        ids=repeat(tokens.ids, "1 pos -> rows pos", rows=rows),
        mask=repeat(tokens.mask, "1 pos -> rows pos", rows=rows),
        offsets=tokens.offsets * rows,
        starts=repeat(tokens.starts, "1 -> rows", rows=rows),
        lasts=repeat(tokens.lasts, "1 -> rows", rows=rows),
    )


def _chunks(items: Sequence[int], size: int) -> Iterable[list[int]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def _check_sites(sites: Sequence[str]) -> None:
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        got = ", ".join(map(repr, sites)) or "none"
        raise ValueError(f"sites must be some of {', '.join(SITES)}, got {got}")


def _check_noise(noise: Tensor, fact: Fact, expected: tuple[int, int]) -> int:
    """How many samples the noise has; ValueError where it does not fit the subject."""
    if len(noise) < 1 or tuple(noise.shape[1:]) != expected:
        raise ValueError(
            f"noise for {fact.subject!r} in {fact.prompt!r} must be [samples, {expected[0]} subject tokens, "
            f"{expected[1]}], got {list(noise.shape)}"
        )
    return len(noise)
