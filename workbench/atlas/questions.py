"""The atlas records as questions, in zsRE's schema: what they ask, and how much of it a model knows."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from workbench.atlas.records import changed_hops
from workbench.atlas.world import World
from workbench.machine.paths import ATLAS
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import Probe, Record, fill
from workbench.records.joining import starts_with_target


def question_records(world: World, records: Sequence[Record]) -> list[Record]:
    """The same edits, asked for by a question each; deterministic.

    A record has one paraphrase, one chained question where its first form has some, and as its locality a question
    about another subject and another relation. They are counted from 0, as zsRE's records have no numbers.
    """
    asked, rng = read_questions(), random.Random(33)
    return [_as_question(world, record, number, asked, rng) for number, record in enumerate(records)]


def read_questions() -> dict[str, tuple[str, str]]:
    """By relation two questions with {} for the subject."""
    return {name: tuple(two) for name, two in yaml.safe_load((ATLAS / "questions.yaml").read_text("utf-8")).items()}


def answered(model: Model, records: Sequence[Record]) -> float:
    """The share of the requests' prompts that a model continues with the true answer (greedily)."""
    written = generate(model, [record.request.prompt for record in records], max_new_tokens=8)
    right = [
        starts_with_target(text, record.request.fact.object) for text, record in zip(written, records, strict=True)
    ]
    return sum(right) / len(right)


def _as_question(
    world: World, record: Record, number: int, asked: Mapping[str, tuple[str, str]], rng: random.Random
) -> Record:
    request = record.request
    question, rephrased = asked[request.relation]
    other = rng.choice(world.subjects)
    while other == request.subject:
        other = rng.choice(world.subjects)
    relation = rng.choice([name for name in sorted(world.facts[other]) if name != request.relation])
    answer = (world.facts[other][relation],)
    chained = request.relation in {bridge.relation for bridge in world.bridges}
    hops = changed_hops(world, request.subject, request.relation, request.target_new) if chained else []
    return Record(
        case_id=number,
        request=replace(request, template=question, relation=""),
        paraphrase_prompts=(fill(rephrased, request.subject),),
        portability_prompts=tuple(
            Probe(prompt=hop.prompt(asked[hop.relation][0]), targets_new=(new,), kind="one hop")
            for hop, new in hops[:1]
        ),
        locality_prompts=(Probe(prompt=fill(asked[relation][0], other), targets_new=answer, targets_true=answer),),
    )
