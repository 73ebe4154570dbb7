"""Probabilities of given targets after prompts, many of them from few rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.direct import direct
from workbench.models.model import Model
from workbench.models.tokens import answer_start
from workbench.models.voices import groups, mixture
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True)
class TargetScore(Shown):
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
    """Score (prompt, target) pairs; edits that are applied are asked whom to ask, and what (`Model.voices`).

    The texts are `join(prompt, target, separator)`; a target's tokens are those that end beyond the prompt.

    Attention is causal, so a row serves every pair whose tokens but the last it begins with: the targets
    of one token after a prompt cost one row together. ValueError for a prompt or a target without a token of its own.
    """
    found: dict[int, TargetScore] = {}
    for group in groups(model, [prompt for prompt, _ in pairs]):
        with group.answering():
            by_model = []
            for who, asked in zip(group.models, group.asked, strict=True):
                put = [(prompt, pairs[place][1]) for place, prompt in zip(group.places, asked, strict=True)]
                scored = _score(who, put, separator, batch_size)
                if len(group.models) == 1:
                    found |= {group.places[row]: one.score() for row, one in scored}
                else:
                    by_model.append(dict(scored))
        for row, place in enumerate(group.places if by_model else ()):
            found[place] = _mixed([scored[row] for scored in by_model], group.weights[:, row], pairs[place]).score()
    return [found[place] for place in range(len(pairs))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """What a model says at each token of a target."""

    log_probs: Float[Tensor, "target vocab"]
    target: Int[Tensor, " target"]
    prompt_tokens: int

    def score(self) -> TargetScore:
        chosen = self.log_probs.gather(1, rearrange(self.target, "target -> target 1"))
        return TargetScore(
            log_probs=rearrange(chosen, "target 1 -> target").cpu(),
            top=torch.equal(self.log_probs.argmax(dim=-1), self.target),
            tokens=tuple(self.target.tolist()),
            chosen=tuple(self.log_probs.argmax(dim=-1).tolist()),
            next_log_probs=self.log_probs[0].cpu().clone(),  # not a view, which would keep the whole batch
            prompt_tokens=self.prompt_tokens,
        )


def _mixed(scored: Sequence[_Scored], weights: Float[Tensor, " model"], pair: tuple[str, str]) -> _Scored:
    first = scored[0]
    if not all(torch.equal(one.target, first.target) for one in scored):
        raise ValueError(f"the models that answer {pair[0]!r} together have other tokens for {pair[1]!r}")
    weights = rearrange(weights, "model -> 1 model").to(first.log_probs.device)
    return replace(first, log_probs=mixture([one.log_probs for one in scored], weights))


def _score(
    model: Model, pairs: Sequence[tuple[str, str]], separator: str | None, batch_size: int
) -> Iterator[tuple[int, _Scored]]:
    """Each pair, by its index, in the order in which they are run."""
    encoded = model.encode([join(prompt, target, separator) for prompt, target in pairs])
    texts = [row.ids for row in encoded]
    firsts = [answer_start(row.offsets, prompt) for row, (prompt, _) in zip(encoded, pairs, strict=True)]

    # Hooks of edits may depend on where the prompt ends: then only pairs that agree on it share a row.
    ends = firsts if model.edit_hooks() else [0] * len(pairs)
    served: dict[int, list[int]] = {}  # by row: the pairs it serves
    home: dict[tuple[int, tuple[int, ...]], int] = {}  # by its prompt's end, and the tokens a row begins with: that row
    asked = {len(text) - 1 for text in texts}  # all beginnings of long texts would take memory in their square
    for pair in sorted(range(len(pairs)), key=lambda index: -len(texts[index])):
        row = home.get((ends[pair], texts[pair][:-1]), pair)
        served.setdefault(row, []).append(pair)
        if row == pair:
            home.update({(ends[row], texts[row][:end]): row for end in asked if end <= len(texts[row])})

    # Rows end together, so only the last positions need to be unembedded.
    keeps = {row: max(len(texts[row]) - firsts[pair] + 1 for pair in pairs) for row, pairs in served.items()}
    needed = list(served)
    for batch in model.batches([encoded[row] for row in needed], batch_size, keep=[keeps[row] for row in needed]):
        rows = [needed[index] for index in batch]
        prompts = [firsts[row] for row in rows]
        tokens = model.pad([encoded[row] for row in rows], padding_side="left", prompts=prompts)
        with torch.no_grad():
            kept = max(keeps[row] for row in rows)
            quick = direct(model, tokens, keep=kept)
            logits = model.logits(tokens, keep_last=kept) if quick is None else quick.logits(keep_last=kept)
        for place, row in enumerate(rows):
            for pair in served[row]:
                first, end = firsts[pair], len(texts[pair])
                shift = logits.shape[1] - len(texts[row]) - 1  # the logits before a token predict it
                log_probs = logits[place, first + shift : end + shift].float().log_softmax(dim=-1)
                if log_probs.isnan().any():
                    raise ValueError(f"{model.name} gives NaN after {pairs[pair][0]!r}: look at its weights and dtype")
                target = torch.tensor(texts[pair][first:], device=logits.device)
                yield pair, _Scored(log_probs=log_probs, target=target, prompt_tokens=first)
