"""Many records scored at once by what the model writes: does the greedy continuation begin with the answer?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.machine.as_json import AsJson
from workbench.machine.intervals import Estimate, wilson
from workbench.measuring.evaluate import SLACK
from workbench.measuring.metrics import harmonic_mean
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.joining import starts_with_target

SCORES = ("efficacy", "paraphrase", "neighborhood", "portability")
"""Of the request's own prompt, and of the kinds of prompts that test it."""

_OVERALL = SCORES[:3]  # as in CounterFact's S


@dataclass(frozen=True, kw_only=True)
class Question(AsJson):
    """A prompt of a record."""

    case_id: int
    """Number of the record."""
    score: str
    """What it counts for, of `SCORES`."""
    prompt: str
    """The text to continue."""
    new: tuple[str, ...]
    """Answers that are right after the edit; on a neighborhood prompt the old one."""
    old: tuple[str, ...]
    """Answers that are right before the edit; empty if unknown."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question with the model's greedy continuation."""

    question: Question
    """What was asked."""
    generated: str
    """What the model wrote."""

    @property
    def right(self) -> bool:
        """Whether it begins with an answer that is right after the edit."""
        return self._begins_with(self.question.new)

    @property
    def old(self) -> bool:
        """Whether it begins with an answer that is right before the edit."""
        return self._begins_with(self.question.old)

    def _begins_with(self, targets: Sequence[str]) -> bool:
        return any(starts_with_target(self.generated, target) for target in targets)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the question's, with `right` for a reader."""
        return self.question.to_dict() | {"generated": self.generated, "right": self.right}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Answer":
        """The inverse of `to_dict`."""
        return cls(question=Question.from_dict(values), generated=values["generated"])


def questions(records: Sequence[Record]) -> list[Question]:
    """Every prompt of the records that counts for one of `SCORES`; ValueError for a record without a true target."""
    asked = []
    for record in records:
        request = record.request
        new, old = (request.target_new,), (request.fact.object,)
        prompts = [
            ("efficacy", request.prompt, new, old),
            *(("paraphrase", prompt, new, old) for prompt in record.paraphrase_prompts),
            *(("neighborhood", prompt, old, old) for prompt in record.neighborhood_prompts),
            *(("portability", one.prompt, one.targets_new, one.targets_true) for one in record.portability_prompts),
        ]
        asked += [
            Question(case_id=record.case_id, score=score, prompt=prompt, new=new, old=old)
            for score, prompt, new, old in prompts
        ]
    return asked


def answer(model: Model, asked: Sequence[Question], *, batch_size: int = 64) -> list[Answer]:
    """The model's greedy continuations, all in one go, long enough for every answer.

    ValueError if a prompt leaves no room for them in the context.
    """
    targets = sorted({target for one in asked for target in one.new + one.old})
    length = int(model.tokenize(targets).mask.sum(dim=1).max()) + SLACK
    prompts = list(dict.fromkeys(one.prompt for one in asked))
    written = generate(model, prompts, max_new_tokens=length, batch_size=batch_size)
    continued = dict(zip(prompts, written, strict=True))
    return [Answer(question=one, generated=continued[one.prompt]) for one in asked]


def scores(answers: Sequence[Answer]) -> dict[str, Estimate]:
    """Each of `SCORES`: the share of a record's prompts that are right, its mean over the records that have some.

    `overall` is the harmonic mean of the first three, without an interval.
    """
    found = {score: share([one for one in answers if one.question.score == score]) for score in SCORES}
    overall = float(harmonic_mean(np.array([found[score].value for score in _OVERALL])))
    return found | {"overall": Estimate(value=overall, n=found["efficacy"].n)}


def share(answers: Sequence[Answer], *, old: bool = False) -> Estimate:
    """Mean over records of the share of their answers that are right (or the `old` ones), with `wilson`'s interval."""
    by_record: dict[int, list[bool]] = {}
    for one in answers:
        by_record.setdefault(one.question.case_id, []).append(one.old if old else one.right)
    return wilson([sum(given) / len(given) for given in by_record.values()])
