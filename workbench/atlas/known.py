"""Which facts of the atlas a pretrained model knows, and in what words."""

from rich.progress import track

from workbench.atlas.world import World
from workbench.facts import Fact
from workbench.models import Model
from workbench.tracing import known_answers

_AT_ONCE = 256


def known_facts(model: Model, world: World) -> dict[tuple[str, str], str]:
    """(subject, relation) -> the first of the relation's templates after which the model's top token is the answer's.

    What the model says of none of the templates is left out, and so are relations that it answers by one object alone:
    who says "euro" of every country knows no currency.
    """
    found: dict[tuple[str, str], str] = {}
    for relation in track(world.relations.values(), "Asking for facts"):
        for template in relation.templates:
            facts = [
                Fact(subject=subject, template=template, object=facts[relation.name], relation=relation.name)
                for subject, facts in world.facts.items()
                if relation.name in facts and (subject, relation.name) not in found
            ]
            for start in range(0, len(facts), _AT_ONCE):
                some = facts[start : start + _AT_ONCE]
                for fact, answer in zip(some, known_answers(model, some), strict=True):
                    if answer is not None:
                        found[fact.subject, relation.name] = template
    return found
