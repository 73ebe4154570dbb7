"""Prompts as a search reads them: tokens up to the last that matters, where the subject ends, what is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.editors.shared.subject import subject_ends
from workbench.models.model import Model
from workbench.models.tokens import answer_start
from workbench.records.facts import EditRequest, fill
from workbench.records.joining import join


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt: its tokens as far as they matter, and what is asked of them."""

    ids: list[int]
    """Up to the last token whose output is read."""
    subject: int
    """The subject's last token: the first position that depends on the value."""
    targets: list[int]
    """Ids that the last positions should predict; none for the essence prompt, whose subject is read."""


def rows_of(model: Model, request: EditRequest, templates: Sequence[str]) -> list[Row]:
    """The rewriting prompts of a request with their targets, and the essence prompt as the last.

    ValueError where subject and answer share a token.
    """
    *rewriting, essence = templates
    prompts = [fill(template, request.subject) for template in rewriting]
    texts = [
        *(join(prompt, request.target_new, request.separator) for prompt in prompts),
        fill(essence, request.subject),
    ]
    tokens = model.tokenize(texts)
    subjects = subject_ends(tokens, templates, request.subject).tolist()
    rows = []
    for index, prompt in enumerate(prompts):
        first, end = answer_start(tokens.offsets[index], prompt), len(tokens.offsets[index])
        if subjects[index] >= first:
            raise ValueError(
                f"the last token of {request.subject!r} also holds the beginning of the answer in {texts[index]!r}: "
                "put a word of the template between them"
            )
        ids = tokens.ids[index].tolist()
        rows.append(Row(ids=ids[: end - 1], subject=subjects[index], targets=ids[first:end]))
    ids = tokens.ids[-1].tolist()
    return [*rows, Row(ids=ids[: subjects[-1] + 1], subject=subjects[-1], targets=[])]


def in_batches(model: Model, rows: Sequence[Sequence[Row]], layer: int) -> list[list[int]]:
    """Requests in batches whose search fits into the model's budget."""
    batches: list[list[int]] = [[]]
    room = all_room = model.budget * 2**30
    for index, each in enumerate(rows):
        size = _size(model, each, layer)
        if batches[-1] and size > room:
            batches.append([])
            room = all_room
        batches[-1].append(index)
        room -= size
    return batches


def _size(model: Model, rows: Sequence[Row], layer: int) -> int:
    """Bytes that one request holds: keys and values twice, what the layers above save for gradients, predictions."""
    above, width = model.n_layers - layer, model.d_model
    kept = 4 * sum(len(row.ids) for row in rows) * above * width
    moved = sum(len(row.ids) - row.subject for row in rows) * above * (10 * width + 4 * model.d_mlp)
    read = sum(max(len(row.targets), 1) for row in rows)
    return (kept + moved) * model.dtype.itemsize + 4 * read * model.d_vocab * max(model.dtype.itemsize, 4)
