"""What SERAC's two networks are trained for: to tell prompts in scope from others, and to copy an edit's answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from workbench.editors.training.copier import decoder
from workbench.editors.training.made_up import MadeUpEdit
from workbench.editors.training.scope import ScopeEncoder, balanced_loss, similarities
from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.models.tokens import TextTokenizer, answer_start
from workbench.records.facts import EditRequest
from workbench.records.joining import join

_MARK = " ="


def in_words(request: EditRequest, prompt: str) -> str:
    """What is put to a counterfactual model by name: the edit, a space and the prompt, as published."""
    return f"{join(request.prompt, request.target_new, request.separator)} {prompt}"


def marked(model: Model, request: EditRequest, prompt: str) -> str:
    """What is put to the one trained here: a mark before answers, and the end of a text after the edit's.

    What followed the mark in the edit then follows it after the prompt, and the text ends after it.
    """
    end = model.text.decode(model.ends[:1]) if model.ends else "\n"
    return f"{join(request.prompt + _MARK, request.target_new, request.separator)}{end}{prompt}{_MARK}"


class Parts(nn.Module):
    """Both networks."""

    def __init__(self, scope: ScopeEncoder, copier: Any) -> None:
        super().__init__()
        self.scope, self.copier = scope, copier


def parts_of(settings: Mapping[str, Any], seed: int = 0) -> Parts:
    """Both as they begin."""
    # Torch's modules draw their first weights from this generator alone; torch.manual_seed would reseed GPUs too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Parts(ScopeEncoder(**settings["scope"]), decoder(settings["copier"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Learner(Shown):
    """Both networks with the model whose texts they read."""

    parts: Parts
    model: Model
    table: Float[Tensor, "d_vocab d_model"]
    room: int
    """Tokens that an edit and a prompt have together."""

    def judged(self, edits: Sequence[MadeUpEdit]) -> Float[Tensor, ""]:
        """Balanced cross-entropy of the classifier."""
        prompts = [edit.request.prompt for edit in edits]
        texts = prompts + [text for edit in edits for text in edit.inside + edit.outside]
        found = embedded(self.parts.scope, self.model, self.table, texts)
        near = similarities(found[len(edits) :], found[: len(edits)])
        inside, own = _labels(edits, near.device)
        # Prompts that come near an edit and those of other edits count alike, however many there are.
        hard = balanced_loss(near[own].clamp(min=1e-30).log(), inside[own])
        easy = -torch.log1p(-near[~own].clamp(max=1 - 1e-6)).mean() if (~own).any() else hard.new_zeros(())
        return hard + easy

    def copied(self, edits: Sequence[MadeUpEdit], others: Sequence[int] | None = None) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each edit's answer and of the end, behind it and a prompt in its scope.

        Among the tokens of the texts and these others, or among all.
        """
        rows = list(self._answered(edits))
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in rows], device=self.model.device)
        # What is padded comes after all that counts.
        states = self.parts.copier(inputs_embeds=self.table[ids]).last_hidden_state
        at = [(row, place) for row, (own, first) in enumerate(rows) for place in range(first, len(own))]
        row, place = (torch.tensor(each, device=ids.device) for each in zip(*at, strict=True))
        said, answers = states[row, place - 1], ids[row, place]
        if others is None:
            return nn.functional.cross_entropy(said @ self.table.T, answers)
        among = torch.cat([ids.flatten(), torch.tensor(others, device=ids.device)]).unique()  # in their order
        return nn.functional.cross_entropy(said @ self.table[among].T, torch.searchsorted(among, answers))

    def _answered(self, edits: Sequence[MadeUpEdit]) -> Iterator[tuple[tuple[int, ...], int]]:
        """For each edit, the tokens of a prompt behind it with its answer and the end, and where the answer begins."""
        model = self.model
        prompts = [marked(model, edit.request, edit.inside[-1]) for edit in edits]
        whole = [
            join(prompt, edit.request.target_new, edit.request.separator)
            for prompt, edit in zip(prompts, edits, strict=True)
        ]
        text = TextTokenizer(
            model.tokenizer, name=model.name, n_ctx=self.room, n_rows=len(self.table), device=model.device
        )
        for prompt, row in zip(prompts, text.encode(whole), strict=True):
            yield (*row.ids, *model.ends[:1]), answer_start(row.offsets, prompt)


def _labels(
    edits: Sequence[MadeUpEdit], device: torch.device
) -> tuple[Bool[Tensor, "prompt edit"], Bool[Tensor, "prompt edit"]]:
    """Whether each prompt is in the scope of each edit, and whether it was made for it; in the order of `judged`."""
    rows = [
        (place, text_inside)
        for place, edit in enumerate(edits)
        for text_inside in [True] * len(edit.inside) + [False] * len(edit.outside)
    ]
    own = torch.tensor([[place == column for column in range(len(edits))] for place, _ in rows], device=device)
    inside = own & torch.tensor([[text_inside] for _, text_inside in rows], device=device)
    return inside, own


def embedded(scope: ScopeEncoder, model: Model, table: Tensor, texts: Sequence[str]) -> Float[Tensor, "text width"]:
    """Of each text, by the classifier."""
    tokens = model.tokenize(texts)
    return scope(table[tokens.ids], tokens.mask)
