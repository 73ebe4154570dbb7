"""Many edits kept in one model, measured on a fixed sample of them: plan, scores and change of the weights."""

import math
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.atlas.world import World, statement
from workbench.machine.shown import Shown
from workbench.measuring.evaluate import score_states
from workbench.measuring.sampled_texts import sample_texts
from workbench.measuring.scores import Evaluation, RecordScores
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record
from workbench.records.joining import whole_word
from workbench.studies.before import AT_ONCE


@dataclass(frozen=True, kw_only=True)
class Plan(Shown):
    """What is stacked at each number of edits, and what is scored there."""

    sample: tuple[Record, ...]
    """The records scored, the same at every number, without prompts whose answers other edits change."""
    stacks: Mapping[tuple[int, int], tuple[Record, ...]]
    """(number of edits, group) -> the records whose requests are kept together, in the order in which they are made."""

    def scored(self, number: int, group: int) -> tuple[Record, ...]:
        """The records of the sample that a group scores: at small numbers the groups share the sample."""
        return self.sample[number * group : number * (group + 1)] if number < len(self.sample) else self.sample


def distinct(records: Sequence[Record]) -> list[Record]:
    """The first record of each subject and relation: the others repeat its request or contradict it."""
    first: dict[tuple[str, str], Record] = {}
    for record in records:
        request = record.request
        first.setdefault((request.subject, request.relation or request.template), record)
    return list(first.values())


def plan_stacks(records: Sequence[Record], numbers: Sequence[int], *, sample: int, seed: int) -> Plan:
    """Plan stacks of these sizes from distinct records in random order, and the sample that all of them score.

    The sample is drawn from the records of the largest stack that keep a neighborhood prompt there, so that its prompts
    are the same at every number. Below the sample's size a number has several groups of requests, which share the
    sample; from there on one stack, with the sample anywhere in it. A number beyond the records means all of them.

    ValueError for no records, a number or sample below 1.
    """
    if not records or sample < 1 or min(numbers, default=0) < 1:
        raise ValueError(f"needs records and positive numbers, got {len(records)} records, {numbers}, sample {sample}")
    order = list(records)
    random.Random(seed).shuffle(order)
    stacked = order[: max(*numbers, sample)]
    requests = [record.request for record in stacked]
    trimmed = untouched(stacked, requests)
    scored = [place for place, record in enumerate(trimmed) if record.neighborhood_prompts][:sample]
    scored = scored or list(range(len(stacked)))[:sample]  # where no neighbor is left, NS has no value
    others = [place for place in range(len(stacked)) if place not in set(scored)]
    stacks: dict[tuple[int, int], tuple[Record, ...]] = {}
    for number in sorted({min(number, len(stacked)) for number in numbers}):
        groups = math.ceil(len(scored) / number)
        for group in range(groups):
            chosen = scored[number * group : number * (group + 1)]
            chosen = chosen + others[: number - len(chosen)]
            random.Random(seed + number).shuffle(chosen)
            stacks[number, group] = tuple(stacked[place] for place in chosen)
    return Plan(sample=tuple(trimmed[place] for place in scored), stacks=stacks)


def untouched(records: Sequence[Record], requests: Sequence[EditRequest]) -> list[Record]:
    """The records without the prompts whose right answers other requests change.

    These are neighborhood prompts that name the subject of another request of the same relation, and portability
    prompts whose new answer is the old one of another request about this record's new target.
    """
    subjects: dict[str | None, set[str]] = {}
    moved: dict[str, set[str | None]] = {}
    for request in requests:
        subjects.setdefault(request.relation, set()).add(request.subject)
        moved.setdefault(request.subject, set()).add(request.target_true)
    return [
        replace(
            record,
            neighborhood_prompts=tuple(
                prompt
                for prompt in record.neighborhood_prompts
                if not _names(prompt, subjects.get(record.request.relation, ()), besides=record.request.subject)
            ),
            portability_prompts=tuple(
                probe
                for probe in record.portability_prompts
                if not moved.get(record.request.target_new.strip(), set()).intersection(probe.targets_new)
            ),
        )
        for record in records
    ]


def _names(prompt: str, subjects: Collection[str], *, besides: str) -> bool:
    return any(
        subject in prompt and subject != besides and re.search(whole_word(subject), prompt) for subject in subjects
    )


def score_stack(
    model: Model, records: Sequence[Record], *, sampled: Collection[int] = (), seed: int = 0, batch_size: int = 64
) -> list[RecordScores]:
    """Each record's teacher-forced scores in the model as it is; those of the cases `sampled` also have sampled texts.

    A record's texts are those of `sample_texts`, whatever other records there are.
    """
    scores = [
        one
        for start in range(0, len(records), AT_ONCE)
        for one in score_states(
            model, records[start : start + AT_ONCE], generate=False, fluency_tokens=None, batch_size=batch_size
        )
    ]
    some = {index: record for index, record in enumerate(records) if record.case_id in sampled}
    texts = dict(zip(some, sample_texts(model, list(some.values()), seed=seed, batch_size=batch_size), strict=True))
    return [replace(one, texts=texts.get(index, ())) for index, one in enumerate(scores)]


def evaluations(
    records: Sequence[Record],
    before: Sequence[RecordScores],
    after: Sequence[RecordScores],
    *,
    norms: Mapping[int, float],
    seconds: float,
) -> list[Evaluation]:
    """Each record before and after the edits, which share `norms` and `seconds`; without a KL divergence."""
    return [
        Evaluation(
            case_id=record.case_id,
            pre=replace(pre, neighborhood_log_probs=None),
            post=replace(post, neighborhood_log_probs=None),
            kl=math.nan,
            relative_norms=norms,
            seconds=seconds,
        )
        for record, pre, post in zip(records, before, after, strict=True)
    ]


def change_by_layer(model: Model) -> dict[int, float]:
    """||W' - W|| / ||W|| (Frobenius) by layer, over the matrices that all edits applied now have changed."""
    changed: dict[int, float] = {}
    weights: dict[int, float] = {}
    for (layer, matrix), original in sorted(model.originals.items()):
        difference = model.weight(layer, matrix).double() - original.double()
        changed[layer] = changed.get(layer, 0.0) + difference.square().sum().item()
        weights[layer] = weights.get(layer, 0.0) + original.double().square().sum().item()
    return {layer: math.sqrt(changed[layer] / weights[layer]) for layer in changed}


def held_out_statements(world: World, requests: Sequence[EditRequest], *, seed: int, limit: int) -> list[str]:
    """At most `limit` statements that the embedded model was not trained on, of facts that no request edits.

    They are drawn from all such facts in the wordings that training never stated, and half have a context. It is what
    edits should leave alone: text that tells edited facts in their old form is less likely after a good edit.
    """
    edited = {(request.subject, request.relation) for request in requests}
    every = [
        statement(template, subject, answer)
        for subject, facts in sorted(world.facts.items())
        for relation, answer in sorted(facts.items())
        if (subject, relation) not in edited
        for template in world.templates(subject, relation, held_out=True)
    ]
    rng = random.Random(seed)
    chosen = rng.sample(every, min(limit, len(every)))
    return [(rng.choice(world.contexts) if rng.random() < 0.5 else "") + text for text in chosen]
