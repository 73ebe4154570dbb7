"""(model, edit, record) -> scores.

A model is asked for tokens, logits and generations only, so that an edit need not be one of weights.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from workbench.edits.edit import Edit
from workbench.measuring.metrics import kl_divergence, target_probability
from workbench.measuring.sampled_texts import sample_texts
from workbench.measuring.scores import FLUENCY_TOKENS, KINDS, Evaluation, PromptScores, RecordScores
from workbench.models.direct import keeping_passage
from workbench.models.generation import continue_within, generate_apart, rooms
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.models.scoring import TargetScore, score_targets
from workbench.records.facts import Record

SLACK = 2
"""Tokens generated beyond the longest target, which may come out in other pieces."""


def evaluate(
    model: Model,
    edit: Edit | None,
    record: Record,
    *,
    pre: RecordScores | None = None,
    generate: bool = True,
    fluency_tokens: int | None = FLUENCY_TOKENS,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """Score a record with the model as it is, then with the edit, applied for as long as that takes.

    Args:
        edit: None evaluates the model as it is: after is before.
        pre: What `score_state` gave with the same options, to try several edits on one record.
        generate, fluency_tokens, seed, batch_size: See `score_state`.

    ValueError for an edit that is applied already, for then it would be applied twice, and before were after.
    """
    if edit is not None and any(each is edit for each in model.edits):
        raise ValueError(f"this {edit.method} edit is applied to {model.name} already: evaluate it outside the block")
    began = time.perf_counter()

    def score() -> RecordScores:
        return score_state(
            model, record, generate=generate, fluency_tokens=fluency_tokens, seed=seed, batch_size=batch_size
        )

    pre = pre or score()
    post, norms = pre, {}
    if edit is not None:
        norms = edit.norms(model)
        with edit.applied(model):
            post = score()
    return Evaluation(
        case_id=record.case_id,
        pre=replace(pre, neighborhood_log_probs=None),
        post=replace(post, neighborhood_log_probs=None),
        kl=_kl(pre, post),
        relative_norms=norms,
        seconds=time.perf_counter() - began,
    )


def score_state(
    model: Model,
    record: Record,
    *,
    generate: bool = True,
    fluency_tokens: int | None = FLUENCY_TOKENS,
    seed: int = 0,
    batch_size: int = 64,
) -> RecordScores:
    """Score one record with the model as it is, see `score_states`."""
    (found,) = score_states(
        model, [record], generate=generate, fluency_tokens=fluency_tokens, seed=seed, batch_size=batch_size
    )
    return found


def score_states(
    model: Model,
    records: Sequence[Record],
    *,
    generate: bool = True,
    fluency_tokens: int | None = FLUENCY_TOKENS,
    seed: int = 0,
    batch_size: int = 64,
) -> list[RecordScores]:
    """Score records with the model as it is: one pass over all prompts with all their targets, one greedy generation
    from all prompts, one sampled generation for the fluency, as far as a batch reaches. A record's scores are those it
    has alone, within rounding.

    Args:
        generate: Whether to continue the prompts greedily.
        fluency_tokens: Length of sampled texts, prompts included, cut at the context; None or 0: no fluency.
        seed: Of the sampling. A record's draws depend on it and on the case id: not on the order of records, and they
            are the same before and after an edit. Where its prompts do not fit into one batch, which draws in turn,
            they depend on how these are parted.
    """
    texts: Sequence[tuple[str, ...]] = [()] * len(records)
    with keeping_passage():
        scored = _scored(model, records, batch_size)
        continuations = _continue(model, scored, batch_size) if generate else [{} for _ in records]
        if fluency_tokens:
            texts = sample_texts(model, records, fluency_tokens, seed=seed, batch_size=batch_size)
    return [_state(*each) for each in zip(records, scored, continuations, texts, strict=True)]


Scored = Mapping[tuple[str, str], TargetScore]
"""What the model makes of the prompts of a record with their answers."""


def _scored(model: Model, records: Sequence[Record], batch_size: int) -> list[Scored]:
    """By record, all its prompts with all their answers."""
    found: list[dict[tuple[str, str], TargetScore]] = [{} for _ in records]
    by_separator: dict[str | None, list[int]] = {}
    for index, record in enumerate(records):
        by_separator.setdefault(record.request.separator, []).append(index)
    for separator, some in by_separator.items():
        pairs = {index: scored_pairs(records[index]) for index in some}
        every = list(dict.fromkeys(pair for each in pairs.values() for pair in each))
        scores = score_targets(model, every, separator=separator, batch_size=batch_size)
        known = dict(zip(every, scores, strict=True))
        for index, own in pairs.items():
            found[index] = {pair: known[pair] for pair in own}
    return list(found)


def _state(record: Record, scored: Scored, continuations: Mapping[str, str], texts: tuple[str, ...]) -> RecordScores:
    asked = _questions(record)

    def prompt_scores(one: _Question) -> PromptScores:
        new, true = ([scored[one.prompt, target] for target in targets] for targets in (one.new, one.true))
        return PromptScores(
            prompt=one.prompt,
            targets_new=one.new,
            targets_true=one.true,
            p_new=max((target_probability(score.log_probs) for score in new), default=math.nan),
            p_true=max((target_probability(score.log_probs) for score in true), default=math.nan),
            top_new=any(score.top for score in new),
            top_true=any(score.top for score in true),
            generated=continuations.get(one.prompt),
        )

    nearby = [scored[one.prompt, one.new[0]].next_log_probs for one in asked if one.kind == "neighborhood"]
    return RecordScores(
        prompts={kind: tuple(prompt_scores(one) for one in asked if one.kind == kind) for kind in KINDS},
        texts=texts,
        neighborhood_log_probs=torch.stack(nearby) if nearby else None,
    )


def scored_pairs(record: Record) -> list[tuple[str, str]]:
    """The prompts of a record that `score_state` scores, with each of their answers."""
    return list(dict.fromkeys((one.prompt, target) for one in _questions(record) for target in one.targets))


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A prompt and its right answers after and before the edit."""

    kind: str
    prompt: str
    new: tuple[str, ...]
    true: tuple[str, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        return self.new + self.true


def _questions(record: Record) -> list[_Question]:
    """All prompts of a record, by kind in the order of `KINDS`."""
    request = record.request
    new, true = (request.target_new,), () if request.target_true is None else (request.target_true,)
    plain = {
        "rewrite": (request.prompt,),
        "paraphrase": record.paraphrase_prompts,
        "neighborhood": record.neighborhood_prompts,
    }
    asked = [
        _Question(kind=kind, prompt=prompt, new=new, true=true) for kind, prompts in plain.items() for prompt in prompts
    ]
    probes = {"portability": record.portability_prompts, "reversion": record.reversion_prompts}
    return asked + [
        _Question(kind=kind, prompt=probe.prompt, new=probe.targets_new, true=probe.targets_true)
        for kind, some in probes.items()
        for probe in some
    ]


def _continue(model: Model, scored: Sequence[Scored], batch_size: int) -> list[dict[str, str]]:
    """By record, each prompt's greedy continuation, longer than the longest target if the context allows."""
    found: list[dict[str, str]] = []
    sets, lengths = [], []
    for some in scored:
        wanted = max(len(score.log_probs) for score in some.values()) + SLACK
        prompts = list(dict.fromkeys(prompt for prompt, _ in some))
        within = [room >= wanted for room in rooms(model, prompts)]
        found.append({})
        if not all(within):
            found[-1] = continue_within(model, prompts, tokens=wanted, batch_size=batch_size)
            continue
        sets.append(prompts)
        lengths.append(wanted)
    greedy = [Sampler()] * len(sets)
    generated = generate_apart(model, sets, max_new_tokens=lengths, samplers=greedy, batch_size=batch_size)
    texts = iter(zip(sets, generated, strict=True))
    return [one or dict(zip(*next(texts), strict=True)) for one in found]


# Locality --------------------------------------------------------------------------------------------


def _kl(pre: RecordScores, post: RecordScores) -> float:
    if not pre.prompts["neighborhood"]:
        return math.nan
    if pre.neighborhood_log_probs is None or post.neighborhood_log_probs is None:
        raise ValueError("scores from a file lack the next-token distributions: give pre=None or a fresh score_state")
    return kl_divergence(pre.neighborhood_log_probs, post.neighborhood_log_probs).mean().item()
