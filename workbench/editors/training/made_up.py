"""Made-up edits: training records' questions about subjects and answers that may be anybody's, in and out of scope."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record, fill


@dataclass(frozen=True, kw_only=True)
class MadeUpEdit:
    """An edit with prompts in its scope, and some that come near it and are not."""

    request: EditRequest
    inside: tuple[str, ...]
    """The same question in other words."""
    outside: tuple[str, ...]
    """The question about another subject, and other questions about the subject."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """What made-up edits are drawn from."""

    templates: tuple[tuple[str, ...], ...]
    """Ways to ask, by question: those of a relation, where records name it, else those of each record."""
    of_record: tuple[int, ...]
    """Which question each record asks."""
    subjects: tuple[str, ...]
    targets: tuple[str, ...]
    words: tuple[str, ...]
    """Pieces that made-up names are put together from."""
    separators: tuple[str | None, ...]
    """By record, what stands between prompt and answer."""

    @classmethod
    def of(cls, model: Model, records: Sequence[Record]) -> "Questions":
        """From records, and names from the whole words of the model's vocabulary."""
        asked: dict[str, dict[str, None]] = {}
        names = [record.request.relation or f"record {place}" for place, record in enumerate(records)]
        for name, record in zip(names, records, strict=True):
            request = record.request
            own = [request.template, *(_template(prompt, request.subject) for prompt in record.paraphrase_prompts)]
            asked.setdefault(name, {}).update(dict.fromkeys(one for one in own if one))
        numbers = {name: number for number, name in enumerate(asked)}
        vocabulary = model.tokenizer.get_vocab()
        words = sorted({"".join(filter(str.isalpha, token)) for token in vocabulary if token[1:].isascii()})
        requests = [record.request for record in records]
        return cls(
            templates=tuple(tuple(some) for some in asked.values()),
            of_record=tuple(numbers[name] for name in names),
            subjects=tuple(dict.fromkeys(request.subject for request in requests)),
            targets=tuple(dict.fromkeys(t for one in requests for t in (one.target_new, one.target_true) if t)),
            words=tuple(word for word in words if len(word) > 2 and word.isascii()),
            separators=tuple(request.separator for request in requests),
        )

    def draw(self, record: int, chance: random.Random) -> MadeUpEdit:
        """An edit that asks a record's question, of any subject, to be answered by anything."""
        number = self.of_record[record]
        ways = self.templates[number]
        subject = self._subject(chance)
        others = [self._subject(chance), self._near(subject, chance)]
        outside = [fill(chance.choice(ways), other) for other in others for _ in range(2) if other != subject]
        for _ in range(2):
            other = chance.randrange(len(self.templates))
            if other != number:
                outside.append(fill(chance.choice(self.templates[other]), subject))
        template = chance.choice(ways)
        inside = [fill(chance.choice(ways), subject) for _ in range(2)]
        target = chance.choice(self.targets) if chance.random() < 0.4 else self._name(chance)
        request = EditRequest(template=template, subject=subject, target_new=target, separator=self.separators[record])
        return MadeUpEdit(request=request, inside=tuple(inside), outside=tuple(outside))

    def _subject(self, chance: random.Random) -> str:
        return chance.choice(self.subjects) if chance.random() < 0.5 else self._name(chance)

    def _name(self, chance: random.Random) -> str:
        words = ["".join(chance.choices(self.words, k=chance.randint(1, 2))) for _ in range(chance.randint(1, 3))]
        return " ".join(word.capitalize() if chance.random() < 0.8 else word for word in words)

    def _near(self, subject: str, chance: random.Random) -> str:
        """Another name that has some of a subject's words."""
        words, new = subject.split(" "), self._name(chance).split(" ")[0]
        if len(words) == 1:
            return f"{subject} {new}" if chance.random() < 0.5 else f"{new} {subject}"
        words[chance.randrange(len(words))] = new
        return " ".join(words)


def _template(prompt: str, subject: str) -> str | None:
    """A prompt with a place for its subject, if it names it once."""
    return prompt.replace(subject, "{}") if prompt.count(subject) == 1 and "{}" not in prompt else None
