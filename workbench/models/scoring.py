"""Probabilities of given targets after prompts, many of them from few rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.models.generation import by_answerer
from workbench.models.model import Model
from workbench.models.tokens import answer_start
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True)
class TargetScore:
    """A target after a prompt."""

    log_probs: Float[Tensor, " target"]
    """Log p of each token of the target, float32 on the CPU."""
    top: bool
    """Whether every token is the top choice."""
    tokens: tuple[int, ...]
    """The target's tokens."""
    chosen: tuple[int, ...]
    """The top choice at each of their places."""
    next_log_probs: Float[Tensor, " vocab"]
    """Log p of every token right after the prompt."""
    prompt_tokens: int
    """Number of tokens before the target, of the prompt as it was put."""


def score_targets(
    model: Model, pairs: Sequence[tuple[str, str]], *, separator: str | None = None, batch_size: int = 64
) -> list[TargetScore]:
    """Score (prompt, target) pairs; edits that are applied are asked whom to ask, and what (`Model.asked`).

    The texts are `join(prompt, target, separator)`; a target's tokens are those that end beyond the prompt.

    Attention is causal, so a row serves every pair whose tokens but the last it begins with: the targets
    of one token after a prompt cost one row together. ValueError for a prompt or a target without a token of its own.
    """
    found: dict[int, TargetScore] = {}
    for answering, places, asked in by_answerer(model, [prompt for prompt, _ in pairs]):
        put = [(prompt, pairs[place][1]) for place, prompt in zip(places, asked, strict=True)]
        with answering.answering():
            found |= dict(zip(places, _score(answering, put, separator, batch_size), strict=True))
    return [found[place] for place in range(len(pairs))]


def _score(model: Model, pairs: Sequence[tuple[str, str]], separator: str | None, batch_size: int) -> list[TargetScore]:
    encoded = model.encode([join(prompt, target, separator) for prompt, target in pairs])
    texts = [row.ids for row in encoded]
    firsts = [answer_start(row.offsets, prompt) for row, (prompt, _) in zip(encoded, pairs, strict=True)]

    # Hooks of edits may depend on where the prompt ends: then only pairs that agree on it share a row.
    ends = firsts if model.edit_hooks() else [0] * len(pairs)
    served: dict[int, list[int]] = {}  # by row: the pairs it serves
    home: dict[tuple[int, tuple[int, ...]], int] = {}  # by its prompt's end, and the tokens a row begins with: that row
    for pair in sorted(range(len(pairs)), key=lambda index: -len(texts[index])):
        row = home.get((ends[pair], texts[pair][:-1]), pair)
        served.setdefault(row, []).append(pair)
        if row == pair:
            home.update({(ends[row], texts[row][:end]): row for end in range(1, len(texts[row]) + 1)})

    scores: dict[int, TargetScore] = {}
    # Rows end together, so only the last positions need to be unembedded.
    keeps = {row: max(len(texts[row]) - firsts[pair] + 1 for pair in pairs) for row, pairs in served.items()}
    needed = list(served)
    for batch in model.batches([encoded[row] for row in needed], batch_size, keep=[keeps[row] for row in needed]):
        rows = [needed[index] for index in batch]
        prompts = [firsts[row] for row in rows]
        tokens = model.pad([encoded[row] for row in rows], padding_side="left", prompts=prompts)
        with torch.no_grad():
            logits = model.logits(tokens, keep_last=max(keeps[row] for row in rows))
        for place, row in enumerate(rows):
            for pair in served[row]:
                first, end = firsts[pair], len(texts[pair])
                shift = logits.shape[1] - len(texts[row]) - 1  # the logits before a token predict it
                log_probs = logits[place, first + shift : end + shift].float().log_softmax(dim=-1)
                if log_probs.isnan().any():
                    raise ValueError(f"{model.name} gives NaN after {pairs[pair][0]!r}: look at its weights and dtype")
                target = torch.tensor(texts[pair][first:], device=logits.device)
                chosen = log_probs.gather(1, rearrange(target, "target -> target 1"))
                scores[pair] = TargetScore(
                    log_probs=rearrange(chosen, "target 1 -> target").cpu(),
                    top=torch.equal(log_probs.argmax(dim=-1), target),
                    tokens=tuple(target.tolist()),
                    chosen=tuple(log_probs.argmax(dim=-1).tolist()),
                    next_log_probs=log_probs[0].cpu().clone(),  # not a view, which would keep the whole batch
                    prompt_tokens=first,
                )
    return [scores[pair] for pair in range(len(pairs))]
