"""Probabilities of given targets after prompts, many of them from few rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.joining import join
from workbench.models import Model, Tokens


@dataclass(frozen=True, kw_only=True)
class TargetScore:
    """A target after a prompt."""

    log_probs: Float[Tensor, " target"]
    """Log p of each token of the target, float32 on the CPU."""
    top: bool
    """Whether every token is the top choice."""
    next_log_probs: Float[Tensor, " vocab"]
    """Log p of every token right after the prompt."""
    prompt_tokens: int
    """Number of tokens before the target."""


def score_targets(
    model: Model, pairs: Sequence[tuple[str, str]], *, separator: str | None = None, batch_size: int = 64
) -> list[TargetScore]:
    """Score (prompt, target) pairs by one pass; equal to `Model.target_log_probs` and `Model.greedy_matches`.

    The texts are `join(prompt, target, separator)`.

    Attention is causal, so a row serves every pair whose tokens but the last it begins with: the targets
    of one token after a prompt cost one row together.
    """
    tokens = model.tokenize([join(prompt, target, separator) for prompt, target in pairs], padding_side="left")
    texts = [tuple(ids[start:]) for ids, start in zip(tokens.ids.tolist(), tokens.starts.tolist(), strict=True)]
    firsts = [_first_target_token(tokens, index, prompt) for index, (prompt, _) in enumerate(pairs)]

    served: dict[int, list[int]] = {}  # by row: the pairs it serves
    home: dict[tuple[int, ...], int] = {}  # by the tokens a row begins with: that row
    for pair in sorted(range(len(pairs)), key=lambda index: -len(texts[index])):
        row = home.get(texts[pair][:-1], pair)
        served.setdefault(row, []).append(pair)
        if row == pair:
            home.update({texts[row][:end]: row for end in range(1, len(texts[row]) + 1)})

    scores: dict[int, TargetScore] = {}
    for rows in _batches(list(served), batch_size):
        # Rows end together, so only the last positions need to be unembedded.
        keep = max(len(texts[row]) - firsts[pair] + 1 for row in rows for pair in served[row])
        with torch.no_grad():
            logits = model.logits(_select(tokens, rows), keep_last=keep)
        for place, row in enumerate(rows):
            for pair in served[row]:
                first, end = firsts[pair], len(texts[pair])
                shift = logits.shape[1] - len(texts[row]) - 1  # the logits before a token predict it
                log_probs = logits[place, first + shift : end + shift].float().log_softmax(dim=-1)
                if log_probs.isnan().any():
                    raise ValueError(f"{model.name} gives NaN after {pairs[pair][0]!r}: look at its weights and dtype")
                target = tokens.ids[pair, first - end :]
                chosen = log_probs.gather(1, rearrange(target, "target -> target 1"))
                scores[pair] = TargetScore(
                    log_probs=rearrange(chosen, "target 1 -> target").cpu(),
                    top=torch.equal(log_probs.argmax(dim=-1), target),
                    next_log_probs=log_probs[0].cpu(),
                    prompt_tokens=first,
                )
    return [scores[pair] for pair in range(len(pairs))]


def _first_target_token(tokens: Tokens, row: int, prompt: str) -> int:
    """The first token that ends beyond the prompt's characters."""
    ends = [end for _, end in tokens.offsets[row]]
    first = next((index for index, end in enumerate(ends) if end > len(prompt)), len(ends))
    if first in (0, len(ends)):
        what = "prompt" if first == 0 else "target"
        raise ValueError(f"the {what} has no token of its own: lengthen it, in the text after {prompt!r}")
    return first


def _select(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """Some rows of a left-padded batch, without the padding that none of them needs."""
    index = torch.tensor(rows, device=tokens.ids.device)
    starts = tokens.starts[index]
    cut = int(starts.min())
    return Tokens(
        ids=tokens.ids[index, cut:],
        mask=tokens.mask[index, cut:],
        offsets=tuple(tokens.offsets[row] for row in rows),
        starts=starts - cut,
        lasts=tokens.lasts[index] - cut,
    )


def _batches(rows: list[int], size: int) -> list[list[int]]:
    if size < 1:
        raise ValueError(f"expected batch_size >= 1, got {size}")
    return [rows[start : start + size] for start in range(0, len(rows), size)]
