"""Which facts of the atlas a pretrained model knows, and in what words."""

from collections.abc import Sequence

import torch
from rich.progress import track

from workbench.atlas.world import World
from workbench.facts import fill
from workbench.models import Model
from workbench.tracing import answer_token

_AT_ONCE = 64
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
            said = dict(zip(answers, _top_tokens(model, list(prompts.values())), strict=True))
            for subject, answer in answers.items():
                token = answer_token(model, prompts[subject], answer)
                others = [said[other] for other, theirs in answers.items() if theirs != answer]
                if token is not None and said[subject] == token and others.count(token) <= _GUESSED * len(others):
                    found.setdefault((subject, relation.name), template)
    return found


@torch.no_grad()
def _top_tokens(model: Model, prompts: Sequence[str]) -> list[int]:
    found: list[int] = []
    for start in range(0, len(prompts), _AT_ONCE):
        tokens = model.tokenize(prompts[start : start + _AT_ONCE], padding_side="left")
        found += model.logits(tokens, keep_last=1)[:, -1].argmax(dim=-1).tolist()
    return found
