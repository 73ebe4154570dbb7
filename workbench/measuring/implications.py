"""What follows from an edit, and how far it reaches: prompts about one record by kind, and what a model makes of them.

Which implications follow (after Cohen et al. 2307.12976, and the portability of Yao et al. 2305.13172). Of a prompt,
each teacher-forced and generated as `survey` says:

    same prompt        the new object is given
    paraphrase         the new object is given
    reversed           the subject is given, asked for by the new object. Others that were right before still are, so
                       that a low share is no fault by itself: what counts is how it differs from the unedited model's
    two hops           what a second fact makes of the new object is given
    alias              the new object is given, the subject being called by another name
    logic              an answer that follows by logic alone is given
    negated            the new object is not given where the prompt denies it
    neighbors          the output is what it was, asked about another subject that had the same object

How far it reaches: the probability of the new object, the tokens before each given (`metrics.target_probability`), its
share of that of the new and the old one together, and whether the greedy continuation begins with it, at distances from
the edit: the same prompt, a paraphrase, another relation of the subject, another subject (the neighbors), and prompts
of other records that share neither subject nor relation nor object.

Prompts are those that the data set has. Only the negated ones are made, from the request's own template (`negated`).
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.machine.as_json import AsJson
from workbench.measuring.metrics import target_probability
from workbench.measuring.survey import Answered, Question, answers, unchanged
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import Record, fill
from workbench.records.joining import starts_with_target

IMPLICATIONS: Mapping[str, str] = {
    "same prompt": "The edit itself",
    "paraphrase": "Paraphrase",
    "reversed": "Reversed relation",
    "two hops": "Two hops",
    "alias": "Alias",
    "logic": "Logic",
    "negated": "Negated prompt",
    "neighbors": "Neighbors",
}
"""Kinds of prompts that tell whether an edit is followed by what it implies, and what they are called."""
DISTANCES: Mapping[str, str] = {
    "same prompt": "Same prompt",
    "paraphrase": "Paraphrase",
    "another relation": "Another relation",
    "neighbors": "Another subject",
    "unrelated": "Unrelated",
}
"""Kinds of prompts that lie farther and farther from an edit, and what they are called."""
KINDS = tuple(dict.fromkeys([*IMPLICATIONS, *DISTANCES]))
"""Kinds of prompts."""
REACH = {"new": "p(new)", "share": "p(new) of new + old", "says": "generated: begins with new"}
"""What is measured of the new object at a distance."""
OTHERS = 5
"""Prompts of other records that are asked of one, at most: about its subject, and unrelated ones."""

_PORTABILITY = {"": "two hops", "one hop": "two hops", "alias": "alias", "reversed": "reversed", "logic": "logic"}
_OF_THE_SUBJECT = "relation specificity"
"""KnowEdit's kind of locality whose prompts ask for other relations of the subject."""


@dataclass(frozen=True, kw_only=True)
class Probed(AsJson):
    """A prompt, what one state of the model makes of it, and how likely the edit's objects are after it."""

    answered: Answered
    """Its `score` is one of `KINDS`."""
    new: float
    """Probability of the new object."""
    old: float
    """Probability of the old object; NaN if it is not known."""
    says: bool
    """Whether the greedy continuation begins with the new object."""

    @property
    def share(self) -> float:
        """The new object's part of the probability of both."""
        both = self.new + self.old
        return self.new / both if both > 0 else math.nan


def probe(model: Model, record: Record, others: Sequence[Record], *, batch_size: int = 64) -> tuple[Probed, ...]:
    """Ask the model as it is all prompts about a record, of which some are those of `others` (`probes`).

    ValueError for a prompt that the tokenizer or the context cannot take.
    """
    request, asked = record.request, probes(record, others)
    given = answers(model, asked, separator=request.separator, batch_size=batch_size)
    objects = [request.target_new, *([] if request.target_true is None else [request.target_true])]
    pairs = list(dict.fromkeys((prompt, target) for _, _, prompt, _ in asked for target in objects))
    found = score_targets(model, pairs, separator=request.separator, batch_size=batch_size)
    likely = {pair: target_probability(one.log_probs) for pair, one in zip(pairs, found, strict=True)}
    return tuple(
        Probed(
            answered=one,
            new=likely[one.prompt, request.target_new],
            old=math.nan if request.target_true is None else likely[one.prompt, request.target_true],
            says=starts_with_target(one.generated, request.target_new),
        )
        for one in given
    )


def followed(before: Sequence[Probed], after: Sequence[Probed]) -> dict[str, tuple[float, float]]:
    """By kind of `IMPLICATIONS` how far it follows, teacher-forced and generated: the mean over a record's prompts."""
    found: dict[str, list[tuple[float, float]]] = {}
    for was, one in zip(before, after, strict=True):
        given = one.answered
        forced, generated = given.forced, given.begins
        if given.score == "negated":
            forced, generated = 1 - forced, 1 - generated
        elif given.score == "neighbors":
            forced, generated = unchanged(was.answered, given)
        if given.score in IMPLICATIONS:
            found.setdefault(given.score, []).append((forced, generated))
    return {kind: (_mean([f for f, _ in some]), _mean([g for _, g in some])) for kind, some in found.items()}


def reach(state: Sequence[Probed]) -> dict[str, dict[str, float]]:
    """By kind of `DISTANCES` the measures of `REACH`, means over a record's prompts."""
    by_kind = {kind: [one for one in state if one.answered.score == kind] for kind in DISTANCES}
    return {
        kind: {name: _mean([float(getattr(one, name)) for one in some]) for name in REACH}
        for kind, some in by_kind.items()
        if some
    }


# Prompts -----------------------------------------------------------------------------------------------


def probes(record: Record, others: Sequence[Record]) -> list[Question]:
    """All prompts about a record, by kind, with the answers that are right; the draw depends on its number alone.

    Another relation of the subject: the requests of other records about it, and what KnowEdit calls relation
    specificity. Of neighbors and of what an edit has nothing to do with the right answers are those before it.
    """
    request = record.request
    new, deny = (request.target_new,), negated(request.template)
    follows = [(_PORTABILITY[one.kind], one) for one in record.portability_prompts if one.kind in _PORTABILITY]
    follows += [("reversed", one) for one in record.reversion_prompts]
    found: list[Question] = [
        ("same prompt", "", request.prompt, new),
        *(("paraphrase", "", prompt, new) for prompt in record.paraphrase_prompts),
        *((kind, "", one.prompt, one.targets_new) for kind, one in follows),
        *([("negated", "", fill(deny, request.subject), new)] if deny else []),
        *(("neighbors", "", prompt, _right(record)) for prompt in record.neighborhood_prompts),
    ]
    elsewhere = [other for other in others if not _objects(other) & _objects(record) and _asks(other) != _asks(record)]
    same = [other for other in elsewhere if other.request.subject == request.subject]
    far = [other for other in elsewhere if other.request.subject != request.subject]
    about = list(dict.fromkeys((other.request.prompt, _right(other)) for other in same))[:OTHERS]
    about += [(one.prompt, one.answers_before) for one in record.locality_prompts if one.kind == _OF_THE_SUBJECT]
    drawn = random.Random(record.case_id).sample(far, min(OTHERS, len(far)))
    return [
        *found,
        *(("another relation", "", prompt, right) for prompt, right in about),
        *(("unrelated", "", other.request.prompt, _right(other)) for other in drawn),
    ]


_BE = re.compile(r"\b(?:is|are|was|were)\b")
_CAN = re.compile(r"\bcan\b")


def negated(template: str) -> str | None:
    """The template with what it says denied; None where that cannot be done by one word.

    "not" comes after the last "is", "are", "was" or "were" ("{} is not located in the city of", "The mother tongue of
    {} is not"), or else "can" becomes "cannot"; a template with none of these, or a question, is left alone.
    """
    if "?" in template:
        return None
    if verbs := list(_BE.finditer(template)):
        return f"{template[: verbs[-1].end()]} not{template[verbs[-1].end() :]}"
    changed = _CAN.sub("cannot", template, count=1)
    return None if changed == template else changed


def _asks(record: Record) -> str:
    return record.request.relation or record.request.template


def _objects(record: Record) -> set[str | None]:
    return {record.request.target_new, record.request.target_true} - {None}


def _right(record: Record) -> tuple[str, ...]:
    return (record.request.target_true or record.request.target_new,)


def _mean(values: Sequence[float]) -> float:
    """Mean of those that are not NaN; NaN if none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
