"""CounterFact-style records made from the atlas tables, split by subject into train and evaluation.

Every fact whose object other subjects share becomes a record. The request's new target is another object of the
same relation. Neighbourhood prompts ask about subjects that share the true object, attribute prompts about subjects
of which the new target is true, portability prompts chain a held-out second relation, and reversion prompts ask for
the subject by its new object.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from workbench.atlas.world import TwoHop, World
from workbench.records.facts import EditRequest, Probe, Record, fill

NEIGHBORS = 10


def atlas_records(world: World) -> tuple[list[Record], list[Record]]:
    """(train, evaluation) records; deterministic."""
    return _split(world, _records(world, random.Random(31)))


def known_records(world: World, known: Mapping[tuple[str, str], str]) -> tuple[list[Record], list[Record]]:
    """(train, evaluation) records of what a model knows: (subject, relation) -> the template after which it says so."""
    return _split(world, _records(world, random.Random(31), known))


def course_records(world: World, evaluation: Sequence[Record], count: int = 80) -> list[Record]:
    """Records of as many subjects, to be edited all together: those with portability prompts, then others.

    Subjects through which chained questions lead are not edited, and neighbors that are edited are left out, so that
    no edit changes the right answer of another one's prompt. The order is random: any first few are a fair sample.
    """
    passed = {facts.get(bridge.relation) for facts in world.facts.values() for bridge in world.bridges}
    chosen: dict[str, Record] = {}
    for record in sorted(evaluation, key=lambda record: not record.portability_prompts):
        if len(chosen) < count and record.request.subject not in passed:
            chosen.setdefault(record.request.subject, record)
    records = list(chosen.values())
    random.Random(32).shuffle(records)
    return [
        replace(record, neighborhood_prompts=tuple(p for p in record.neighborhood_prompts if not _about(p, chosen)))
        for record in records
    ]


def _about(prompt: str, subjects: Iterable[str]) -> bool:
    return any(subject in prompt for subject in subjects)


def _split(world: World, records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """(train, evaluation), by subject."""
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        parts[record.request.subject in world.evaluation_subjects].append(record)
    return parts


def _records(world: World, rng: random.Random, known: Mapping[tuple[str, str], str] | None = None) -> Iterator[Record]:
    """Records of all facts, or of some in the templates given, in random order."""
    holders = {relation: world.holders(relation) for relation in world.relations}
    pairs = [(s, r) for s in world.subjects for r in world.facts[s] if len(holders[r][world.facts[s][r]]) > 1]
    pairs = pairs if known is None else [pair for pair in pairs if pair in known]
    rng.shuffle(pairs)
    for case_id, (subject, relation) in enumerate(pairs):
        true = world.facts[subject][relation]
        new = rng.choice([answer for answer in holders[relation] if answer != true])
        template, *others = rng.sample(world.relations[relation].templates, 4)
        if known is not None:
            template, *others = known[subject, relation], *(t for t in others if t != known[subject, relation])
        yield Record(
            case_id=case_id,
            request=EditRequest(
                template=template, subject=subject, target_new=new, target_true=true, relation=relation
            ),
            paraphrase_prompts=tuple(rng.choice(world.contexts) + fill(t, subject) for t in others[:2]),
            neighborhood_prompts=_prompts(world, rng, relation, [s for s in holders[relation][true] if s != subject]),
            attribute_prompts=_prompts(world, rng, relation, holders[relation][new]),
            generation_prompts=tuple(
                fill(rng.choice(world.relations[other].templates), subject)
                for other in world.facts[subject]
                if other != relation
            ),
            portability_prompts=_portability(world, rng, subject, relation, new),
            reversion_prompts=(
                Probe(
                    prompt=fill(world.relations[relation].inverse, new),
                    targets_new=(subject,),
                    targets_true=tuple(holders[relation][new][:NEIGHBORS]),
                ),
            ),
        )


def _prompts(world: World, rng: random.Random, relation: str, subjects: list[str]) -> tuple[str, ...]:
    picked = rng.sample(subjects, min(NEIGHBORS, len(subjects)))
    return tuple(fill(rng.choice(world.relations[relation].templates), s) for s in picked)


def _portability(world: World, rng: random.Random, subject: str, relation: str, new: str) -> tuple[Probe, ...]:
    return tuple(
        Probe(
            prompt=hop.prompt(rng.choice(world.relations[hop.relation].templates)),
            targets_new=(answer,),
            targets_true=(hop.object,),
        )
        for hop, answer in changed_hops(world, subject, relation, new)
    )


def changed_hops(world: World, subject: str, relation: str, new: str) -> list[tuple[TwoHop, str]]:
    """Held-out chains through the edited relation whose answer the edit changes, with that answer."""
    edited = {hop.relation: hop.object for hop in world.chains(subject, {relation: new})}
    return [
        (hop, edited[hop.relation])
        for hop in world.two_hops[1]
        if hop.subject == subject
        and hop.bridge.relation == relation
        and edited.get(hop.relation, hop.object) != hop.object
    ]
