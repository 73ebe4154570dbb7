"""Which facts of the atlas a pretrained model knows, and in what words."""

from workbench.atlas.world import World
from workbench.machine.progress import track
from workbench.models.model import Model
from workbench.records.facts import fill
from workbench.tracing.known import answer_token, top_tokens

_GUESSED = 1 / 5
"""An answer that a template brings for more than this share of the subjects of which it is wrong is a guess."""


def known_facts(model: Model, world: World) -> dict[tuple[str, str], str]:
    """(subject, relation) -> the first of the relation's templates after which the model's top token is the answer's.

    Facts that none of the templates brings are left out, and so are guesses: a model that says "Europe" of most places
    does not know where Athens lies.
    """
    found: dict[tuple[str, str], str] = {}
    for relation in track(world.relations.values(), "Asking for facts"):
        answers = {subject: facts[relation.name] for subject, facts in world.facts.items() if relation.name in facts}
        for template in relation.templates:
            prompts = {subject: fill(template, subject) for subject in answers}
            said = dict(zip(answers, top_tokens(model, list(prompts.values())), strict=True))
            for subject, answer in answers.items():
                token = answer_token(model, prompts[subject], answer)
                others = [said[other] for other, theirs in answers.items() if theirs != answer]
                if token is not None and said[subject] == token and others.count(token) <= _GUESSED * len(others):
                    found.setdefault((subject, relation.name), template)
    return found
