"""Edits scored as the survey of Yao et al. (2305.13172, section 2) defines it: each score teacher-forced and generated.

Of a prompt with its right answer after the edit:

    reliability      the request's own prompt
    generalization   its paraphrases
    locality         prompts that the edit has nothing to do with: their output is to stay what it was
    portability      questions whose answer follows from the edit, by kind (`facts.PORTABILITY`)

Teacher-forced is the share of the answer's tokens that are the model's top choice when the tokens before them are
given, as the survey's code counts it. Generated is whether the greedy continuation, which nothing but the model itself
ends before it is longer than the answer, begins with the answer. The first is the more lenient: it tells the model all
but the token in question, and how long the answer is (Yang et al. 2502.11177). For locality, outputs before and after
are compared: the top choices at the places of the answer, and the continuations as a whole.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workbench.edits.edit import Edit
from workbench.machine.as_json import AsJson
from workbench.machine.shown import Shown
from workbench.measuring.evaluate import SLACK
from workbench.models.direct import keeping_passage
from workbench.models.generation import continue_within
from workbench.models.model import Model
from workbench.models.scoring import TargetScore, score_targets
from workbench.records.facts import Record
from workbench.records.joining import starts_with_target

SCORES = ("reliability", "generalization", "locality", "portability")
"""What is scored."""
WAYS = ("forced", "generated")
"""How: see above."""
Question = tuple[str, str, str, tuple[str, ...]]
"""What it counts for, its kind, the prompt and its right answers."""


@dataclass(frozen=True, kw_only=True)
class Answered(AsJson):
    """A prompt of a record and what one state of the model makes of it."""

    score: str
    """What it counts for: of `SCORES`, or of `implications.KINDS`."""
    kind: str
    """Which kind of portability or locality it tests; empty where there is one kind."""
    prompt: str
    """The text to continue."""
    targets: tuple[str, ...]
    """Right answers after the edit; of locality those before it."""
    forced: float
    """Share of the answer's tokens that are top choices, of the answer for which it is largest."""
    chosen: tuple[int, ...]
    """Top choices at the places of the first answer's tokens."""
    generated: str
    """Greedy continuation, longer than the longest answer of the record unless the model ends it."""

    @property
    def begins(self) -> float:
        """1.0 if the continuation begins with one of the answers."""
        return float(any(starts_with_target(self.generated, target) for target in self.targets))


@dataclass(frozen=True, kw_only=True)
class SurveyScores(Shown, AsJson):
    """All prompts of one record before and after an edit."""

    case_id: int
    before: tuple[Answered, ...]
    after: tuple[Answered, ...]

    def metrics(self) -> dict[str, float]:
        """This record's value of `{score}.{way}`, and of `{score}.{kind}.{way}` by kind, means over its prompts; only
        of what it has prompts for. `{...}.excess` is what teacher forcing gives more than generation."""
        found: dict[str, list[tuple[float, float]]] = {}
        for before, after in zip(self.before, self.after, strict=True):
            local = after.score == "locality"
            both = unchanged(before, after) if local else (after.forced, after.begins)
            for name in [after.score, f"{after.score}.{after.kind}"] if after.kind else [after.score]:
                found.setdefault(name, []).append(both)
        values: dict[str, float] = {}
        for name, pairs in found.items():
            forced, generated = (_mean(pair[way] for pair in pairs) for way in range(2))
            values |= {f"{name}.forced": forced, f"{name}.generated": generated, f"{name}.excess": forced - generated}
        return values

    def unedited(self) -> "SurveyScores":
        """The same without the edit, in which nothing has changed."""
        return SurveyScores(case_id=self.case_id, before=self.before, after=self.before)


def survey_state(model: Model, record: Record, *, batch_size: int = 64) -> tuple[Answered, ...]:
    """Score a record with the model as it is: one pass over all prompts with all their answers, and one generation.

    Edits that are applied are seen whatever their kind. ValueError for a prompt that the tokenizer or the context
    cannot take.
    """
    return answers(model, questions(record), separator=record.request.separator, batch_size=batch_size)


def answers(
    model: Model, asked: Sequence[Question], *, separator: str | None = None, batch_size: int = 64
) -> tuple[Answered, ...]:
    """What the model as it is makes of questions, see `survey_state`."""
    pairs = _pairs(asked)
    with keeping_passage():
        found = score_targets(model, pairs, separator=separator, batch_size=batch_size)
        scored = dict(zip(pairs, found, strict=True))
        tokens = max(len(score.tokens) for score in found) + SLACK
        written = continue_within(model, [prompt for _, _, prompt, _ in asked], tokens=tokens, batch_size=batch_size)
    return tuple(
        Answered(
            score=score,
            kind=kind,
            prompt=prompt,
            targets=targets,
            forced=max(_share(scored[prompt, target]) for target in targets),
            chosen=scored[prompt, targets[0]].chosen,
            generated=written[prompt],
        )
        for score, kind, prompt, targets in asked
    )


def survey_scores(
    model: Model,
    edit: Edit,
    record: Record,
    *,
    before: tuple[Answered, ...] | None = None,
    batch_size: int = 64,
) -> SurveyScores:
    """Score a record with the model as it is (or take `before`, what `survey_state` gave), then with the edit."""
    before = before or survey_state(model, record, batch_size=batch_size)
    with edit.applied(model):
        after = survey_state(model, record, batch_size=batch_size)
    return SurveyScores(case_id=record.case_id, before=before, after=after)


def questions(record: Record) -> list[Question]:
    """All prompts of a record that count; it may lack all but the first."""
    request = record.request
    new = (request.target_new,)
    # Only the places at which outputs are compared depend on the answer of a prompt of locality.
    old = new if request.target_true is None else (request.target_true,)
    return [
        ("reliability", "", request.prompt, new),
        *(("generalization", "", prompt, new) for prompt in record.paraphrase_prompts),
        *(("locality", "neighborhood", prompt, old) for prompt in record.neighborhood_prompts),
        *(("locality", one.kind or "other", one.prompt, one.answers_before) for one in record.locality_prompts),
        *(("portability", one.kind or "one hop", one.prompt, one.targets_new) for one in record.portability_prompts),
        *(("portability", "reversed", one.prompt, one.targets_new) for one in record.reversion_prompts),
    ]


def surveyed_pairs(record: Record) -> list[tuple[str, str]]:
    """The prompts of a record that `survey_state` scores, with each of their answers."""
    return _pairs(questions(record))


def _pairs(asked: Sequence[Question]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((prompt, target) for _, _, prompt, targets in asked for target in targets))


def collected(scores: Sequence[SurveyScores]) -> Mapping[str, list[float]]:
    """By metric the values of the records that have it."""
    values: dict[str, list[float]] = {}
    for one in scores:
        for name, value in one.metrics().items():
            values.setdefault(name, []).append(value)
    return values


def unchanged(before: Answered, after: Answered) -> tuple[float, float]:
    """Of the output: the share of the answer's places with the same top choice, and whether the text is the same."""
    places = max(len(before.chosen), len(after.chosen))
    same = sum(a == b for a, b in zip(before.chosen, after.chosen, strict=False))  # an edit may have it put otherwise
    return same / places, float(before.generated == after.generated)


def _share(score: TargetScore) -> float:
    return _mean(float(token == chosen) for token, chosen in zip(score.tokens, score.chosen, strict=True))


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known)
