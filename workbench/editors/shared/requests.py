"""What a batch of requests must be: some, distinct, and not at odds with each other; and what is drawn for it."""

from collections.abc import Sequence

from workbench.machine.hashing import digest
from workbench.models.model import Model
from workbench.records.facts import EditRequest


def check_requests(requests: Sequence[EditRequest], model: Model | None = None) -> tuple[EditRequest, ...]:
    """The distinct requests, in their order; of those that ask for the same edit the first is kept.

    Two requests contradict each other if one prompt (template and subject) is to be continued by two different
    targets; spaces between prompt and target do not count. ValueError for no requests, or for a contradiction, which
    names the subject and both targets, and for a subject or target that the model's tokenizer cannot write.
    """
    if not requests:
        raise ValueError("an editor needs at least one request, got none")
    asked: dict[str, EditRequest] = {}
    distinct: dict[tuple[str, str], EditRequest] = {}
    for request in requests:
        first = asked.setdefault(request.prompt.rstrip(), request)
        if first.target_new.lstrip() != request.target_new.lstrip():
            raise ValueError(
                f"contradictory requests about {request.subject!r}: {request.prompt!r} is to be continued by "
                f"{first.target_new!r} and by {request.target_new!r}; keep one of them"
            )
        distinct.setdefault((request.template, request.subject), request)
        if model is not None:
            model.text.check_known(request.subject)
            model.text.check_known(request.target_new)
    return tuple(distinct.values())


def seed_of(seed: int, *requests: EditRequest) -> int:
    """A seed for what an edit begins with: the same for the same requests, so that edits made one after another do not
    all begin with the same numbers."""
    asked = [f"{request.prompt}\n{request.target_new}\n" for request in requests]
    return int(digest(f"{seed}\n", *asked)[:15], 16)
