"""What editors are trained on: edits with prompts that should follow them and texts that should not."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from workbench.editors.shared.passes import Scored, scored
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Edits to learn from, together."""

    requests: Sequence[EditRequest]
    """The edits."""
    edit: Scored
    """The requests' prompts with their targets."""
    outer: Scored
    """Prompts that should be answered by the targets after the edits."""
    kept: Scored
    """Texts of which every next token should stay as likely as it was."""


class Examples:
    """Draws examples from records: other targets of the relation, prompts and texts anew each time."""

    def __init__(
        self,
        model: Model,
        records: Sequence[Record],
        *,
        vary_targets: bool = False,
        itself: float = 0.0,
        kept: int = 1,
        answers_only: bool = False,
    ) -> None:
        """Of these records.

        Args:
            vary_targets: ask for a random new answer among those of the relation's records, instead of the record's.
            itself: share of examples in which the prompt that should follow is that of the request itself.
            kept: texts that should stay, with their answers: the first about what is near, the rest about anything.
            answers_only: of the first only its answer's positions are read, as EasyEdit does, and no others.
        """
        self.model, self.records = model, list(records)
        self.vary_targets, self.itself, self.kept, self.answers_only = vary_targets, itself, kept, answers_only
        self._answers: dict[str, list[str]] = {}
        for record in self.records:
            known = self._answers.setdefault(record.request.relation, [])
            if record.request.target_new not in known:
                known.append(record.request.target_new)

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: Sequence[int], draw: random.Random) -> Batch:
        """Examples of the records."""
        requests, outer, near, texts = [], [], [], []
        for record in (self.records[index] for index in indices):
            request = record.request
            if self.vary_targets:
                others = [each for each in self._answers[request.relation] if each != request.target_true]
                request = replace(request, target_new=draw.choice(others or [request.target_new]))
            requests.append(request)
            itself = draw.random() < self.itself
            outer.append(request.prompt if itself else draw.choice(_paraphrases(record)))
            other = draw.choice([each for each in self.records if each.request.subject != request.subject] or [record])
            near.append(draw.choice(_unrelated(record) or _reworded(other)))
            asked = [*_unrelated(record), *_alike(record), *_reworded(other), *_unrelated(other)]
            far = [*(join(*each) for each in asked), *record.generation_prompts]
            texts.append(list(dict.fromkeys([join(*near[-1]), *draw.sample(far, min(len(far), self.kept - 1))])))
        followed = zip(outer, requests, strict=True)
        return Batch(
            requests=requests,
            edit=scored(self.model, [(each.prompt, each.target_new, each.separator) for each in requests]),
            outer=scored(self.model, [(prompt, each.target_new, each.separator) for prompt, each in followed]),
            kept=answer_positions(self.model, near) if self.answers_only else whole_texts(self.model, texts),
        )


_Asked = tuple[str, str, str | None]
"""A prompt, its answer, and what stands between."""


def _paraphrases(record: Record) -> Sequence[str]:
    return record.paraphrase_prompts or (record.request.prompt,)


def _before(record: Record) -> str:
    """The answer before the edit, if it is known."""
    return record.request.target_true or record.request.target_new


def _unrelated(record: Record) -> list[_Asked]:
    """What the record asks that its edit has nothing to do with."""
    near = [(prompt, _before(record)) for prompt in record.neighborhood_prompts]
    own = [(each.prompt, each.answers_before[0]) for each in record.locality_prompts]
    return [(prompt, answer, record.request.separator) for prompt, answer in near + own]


def _alike(record: Record) -> list[_Asked]:
    """What it asks of other subjects that have the new answer."""
    return [(prompt, record.request.target_new, record.request.separator) for prompt in record.attribute_prompts]


def _reworded(record: Record) -> list[_Asked]:
    return [(prompt, _before(record), record.request.separator) for prompt in _paraphrases(record)]


def whole_texts(model: Model, texts: Sequence[Sequence[str]]) -> Scored:
    """Texts of each edit of which every next token is read."""
    tokens = model.tokenize([text for each in texts for text in each], padding_side="right")
    rows, positions = tokens.mask.nonzero(as_tuple=True)
    edits = [edit for edit, each in enumerate(texts) for _ in each]
    return Scored(tokens=tokens, rows=rows, positions=positions, edits=torch.tensor(edits, device=model.device))


def answer_positions(model: Model, asked: Sequence[tuple[str, str, str | None]]) -> Scored:
    """Texts of which the positions of their answers' tokens are read, one later than those that predict them."""
    found = scored(model, asked)
    return replace(found, positions=found.positions + 1, targets=None)
