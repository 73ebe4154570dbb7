"""Prompts as a search reads them: tokens up to the last that matters, where the subject ends, what is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.editors.shared.subject import subject_ends
from workbench.models.model import Model
from workbench.models.tokens import answer_start
from workbench.records.facts import EditRequest, fill
from workbench.records.joining import join

_MEMORY = 2**30
"""Bytes that the states kept of one batch of requests may take."""


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
    """The rewriting prompts of a request with their targets, and the essence prompt as the last."""
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
        ids = tokens.ids[index].tolist()
        rows.append(Row(ids=ids[: end - 1], subject=subjects[index], targets=ids[first:end]))
    ids = tokens.ids[-1].tolist()
    return [*rows, Row(ids=ids[: subjects[-1] + 1], subject=subjects[-1], targets=[])]


def in_batches(model: Model, rows: Sequence[Sequence[Row]], layer: int) -> list[list[int]]:
    """Requests in batches whose kept keys and values fit into the memory."""
    bits = torch.finfo(model.dtype).bits
    batches: list[list[int]] = [[]]
    room = _MEMORY
    for index, each in enumerate(rows):
        size = sum(len(row.ids) for row in each) * 2 * (model.n_layers - layer) * model.d_model * bits // 8
        if batches[-1] and size > room:
            batches.append([])
            room = _MEMORY
        batches[-1].append(index)
        room -= size
    return batches
