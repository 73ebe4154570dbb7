"""What a batch of requests must be: some, distinct, and not at odds with each other."""

from collections.abc import Sequence

from workbench.records.facts import EditRequest


def check_requests(requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    """The distinct requests, in their order; of those that ask for the same edit the first is kept.

    Two requests contradict each other if one prompt (template and subject) is to be continued by two different
    targets; a target's leading space does not count. ValueError for no requests, or for a contradiction, which
    names the subject and both targets.
    """
    if not requests:
        raise ValueError("an editor needs at least one request, got none")
    asked: dict[str, EditRequest] = {}
    distinct: dict[tuple[str, str], EditRequest] = {}
    for request in requests:
        first = asked.setdefault(request.prompt, request)
        if first.target_new.lstrip() != request.target_new.lstrip():
            raise ValueError(
                f"contradictory requests about {request.subject!r}: {request.prompt!r} is to be continued by "
                f"{first.target_new!r} and by {request.target_new!r}; keep one of them"
            )
        distinct.setdefault((request.template, request.subject), request)
    return tuple(distinct.values())
