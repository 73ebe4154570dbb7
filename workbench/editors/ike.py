"""IKE: in-context knowledge editing (Zheng et al. 2023, arXiv:2305.12740)."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import Any, ClassVar, Literal

from torch import Tensor

from workbench.editors.editor import Editor, Setting
from workbench.editors.shared.demonstrations import (
    demonstration,
    mention,
    names,
    prompts_by_kind,
    shuffled_kinds,
    stated,
    tells_of,
    usable,
)
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.retrieval import Retrieval, nearest
from workbench.edits.edit import provenance
from workbench.edits.redirected import RedirectEdit
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record, fill

Variant = Literal["paper", "easyedit"]
_ROOM = "fit into the context of {0.n_ctx} of {0.name} with the prompt and its answer"


@dataclass(frozen=True, kw_only=True, eq=False)
class InContextEdit(RedirectEdit):
    """Puts demonstrations and the new facts before every prompt that a model is asked.

    Of several that are applied, the latest puts what all of them know: first the demonstrations, those of every request
    taking turns by how near they are; then each request as a demonstration of itself; then each new fact and the
    prompt. Demonstrations that mention a subject edited by any of them are left out, and those that show the prompt or
    share a name with it (`demonstrations.tells_of`): training records have neighbors in common with evaluated ones, and
    would tell what is asked of these. Where the context has no room, so are the farthest, and at last the oldest facts,
    with a warning that is given once a model.
    """

    demonstrations: tuple[tuple[str, ...], ...]
    """Texts by request, the nearest last."""
    question: str
    """How a prompt is put, with a {} for it."""
    variant: Variant
    """As `IKE.variant`."""
    answer_tokens: int
    """Tokens kept free for the answer."""

    def asked(self, model: Model, prompt: str) -> tuple[Model, str]:
        """The model, and the prompt behind the demonstrations and facts of all edits of this kind."""
        edits = [edit for edit in model.edits if isinstance(edit, InContextEdit)]
        edits = edits if self in edits else [*edits, self]
        if self is not edits[-1]:
            return model, prompt  # the latest, which is asked first, has put it
        requests = [request for edit in reversed(edits) for request in reversed(edit.requests)]  # the latest first
        room = model.n_ctx - min(self.answer_tokens, model.n_ctx // 4) - model.tokenizer.num_special_tokens_to_add()
        end = fill(self.question, prompt)
        facts = _fitting(model, map(stated, requests), room - _tokens(model, end))[0] or [stated(requests[0])]
        if len(facts) < len(requests):
            model.once(_say_facts_left_out)
        end = "".join(reversed(facts)) + end
        shown, all_shown = _fitting(model, self._shown(edits, requests, prompt), room - _tokens(model, end))

        def put() -> str:
            return "".join(shown if self.variant == "easyedit" else reversed(shown)) + end

        while shown and _tokens(model, put()) > room:  # where texts meet, a tokenizer may make more of them
            shown.pop()
            all_shown = False
        if not all_shown:
            model.once(_say_demonstrations_left_out)
        return model, put()

    def _shown(self, edits: Sequence["InContextEdit"], requests: Sequence[EditRequest], prompt: str) -> Iterator[str]:
        """Demonstrations, the last of the text first."""
        if self.variant == "paper":
            yield from (demonstration(request, "copy", request.prompt, self.question) for request in requests)
        subjects = [request.subject for request in requests]
        lists = [reversed(texts) for edit in reversed(edits) for texts in reversed(edit.demonstrations)]
        texts = [text for turn in zip_longest(*lists) for text in turn if text is not None]
        named = names(prompt, texts)
        yield from (text for text in texts if not mention([text], subjects) and not tells_of(text, prompt, named))

    def tensors(self) -> dict[str, Tensor]:
        """None: it is made of texts."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Its texts, and how they are put."""
        return {
            "demonstrations": [list(texts) for texts in self.demonstrations],
            "question": self.question,
            "variant": self.variant,
            "answer_tokens": self.answer_tokens,
        }

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "InContextEdit":
        """From its settings."""
        del tensors
        shown = tuple(tuple(texts) for texts in settings["demonstrations"])
        return cls(**{**settings, "demonstrations": shown}, **common)


@dataclass(frozen=True, kw_only=True, eq=False)
class IKE(Editor):
    """Tells a model the new fact in front of every prompt, and shows by demonstrations what to do with such facts.

    A demonstration states the new fact of a training record and goes on (section 3.2) with its prompt and new target
    (copy), a paraphrase and the new target (update), or a prompt about another subject and the target that is true of
    it (retain), which are chosen by chance in the proportion 1 : 3 : 4:

        New Fact: The capital of France is Athens
        Prompt: France's capital city is Athens

    They are of the records nearest to the request, the nearest last, and the request itself follows as a last copy.
    Those that tell of what a prompt is about are left out before it, so that it has fewer. No weights change. A model
    that cannot learn in context is not edited by it.

    Defaults are the published hyperparameters for GPT-J, but for the retrieval, which is there by the embeddings of
    "all-MiniLM-L6-v2".
    """

    method: ClassVar[str] = "IKE"
    layers: ClassVar[tuple[int, ...]] = ()

    records: Sequence[Record]
    """Training records; those used have paraphrases, neighborhood prompts and a true target, and none mention a subject
    that is edited."""
    demonstrations: int = 32
    """How many a request has, as far as there are records and room."""
    retrieval: Retrieval = "tfidf"
    """Which embeddings find the nearest records: see `retrieval.Retrieval`."""
    question: str = "Prompt: {}"
    """How a prompt is put, with a {} for it; as published, while the paper's figures have "Q: {} A:"."""
    variant: Variant = "paper"
    """"paper", which is also the authors' code; "easyedit" for EasyEdit's, where the nearest of all copies, first
    paraphrases and first neighborhood prompts are taken whatever their kinds, the nearest is first, and the request
    is no demonstration of itself."""
    answer_tokens: int = 100
    """Tokens kept free for the answer, but not more than a quarter of the context; the texts that fluency is measured
    on have at most as many."""
    seed: int = 42
    """Of the kinds of demonstrations, and of which prompts they show; each request draws anew."""

    def __post_init__(self) -> None:
        if self.demonstrations < 0 or self.answer_tokens < 1:
            given = f"{self.demonstrations} and {self.answer_tokens}"
            raise ValueError(f"demonstrations must be at least 0 and answer_tokens at least 1, got {given}")
        if self.question.count("{}") != 1:
            raise ValueError(f"question needs exactly one {{}}, got {self.question!r}")
        if self.variant not in ("paper", "easyedit"):
            raise ValueError(f"variant is 'paper' or 'easyedit', got {self.variant!r}")

    @classmethod
    def prepare(cls, setting: Setting, fields: Mapping[str, Any]) -> "IKE":
        """With the training records."""
        given = {"seed": setting.seed, **fields}
        if "records" not in given:
            given["records"] = setting.records()
        return cls(**given)

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> InContextEdit:
        """The edit that tells the requests' facts; the model is not run.

        ValueError for no requests or contradictory ones, if no record can demonstrate, or if the package that the
        retrieval needs is missing.
        """
        requests = check_requests(requests, model)
        edited = [request.subject for edit in model.edits for request in edit.requests]
        subjects = [*dict.fromkeys([request.subject for request in requests] + edited)]
        records = [found for record in self.records if (found := usable(record, subjects))]
        if self.demonstrations and not records:
            raise ValueError(
                f"none of {len(self.records)} training records can demonstrate an edit of {subjects[0]!r}: give "
                "records about other subjects, with paraphrases, neighborhood prompts and true targets, or ask for "
                "demonstrations=0"
            )
        shown = self._shown if self.variant == "paper" else self._shown_by_easyedit
        return InContextEdit(
            method=self.method,
            requests=requests,
            provenance=provenance(model, self._hyperparameters(), records=len(records)),
            demonstrations=tuple(tuple(shown(request, records)) if records else () for request in requests),
            question=self.question,
            variant=self.variant,
            answer_tokens=self.answer_tokens,
        )

    def _hyperparameters(self) -> dict[str, Any]:
        by = self.retrieval if isinstance(self.retrieval, str) else getattr(self.retrieval, "__name__", "a function")
        names = ("demonstrations", "question", "variant", "answer_tokens", "seed")
        return {name: getattr(self, name) for name in names} | {"retrieval": by}

    def _shown(self, request: EditRequest, records: Sequence[Record]) -> list[str]:
        """Demonstrations of the nearest records by their copies, the nearest last."""
        copies = [demonstration(record.request, "copy", record.request.prompt, self.question) for record in records]
        found = [records[place] for place in self._nearest(copies, request)]
        chance = Random(self.seed)
        texts = []
        for record, kind in zip(found, shuffled_kinds(len(found), chance), strict=True):
            prompts = prompts_by_kind(record)[kind]
            prompt = prompts[0] if kind == "copy" else chance.choice(prompts)  # nothing is drawn for a copy
            texts.append(demonstration(record.request, kind, prompt, self.question))
        return texts[::-1]

    def _shown_by_easyedit(self, request: EditRequest, records: Sequence[Record]) -> list[str]:
        """The nearest of three demonstrations a record, the nearest last."""
        texts = [
            demonstration(record.request, kind, prompt, self.question)
            for record in records
            for kind, (prompt, *_) in prompts_by_kind(record).items()
        ]
        return [texts[place] for place in self._nearest(texts, request)][::-1]

    def _nearest(self, texts: Sequence[str], request: EditRequest) -> list[int]:
        query = f"{stated(request)}{fill(self.question, request.prompt)}\n\n"
        return nearest(texts, query, self.retrieval, count=self.demonstrations)


def _fitting(model: Model, texts: Iterable[str], room: int) -> tuple[list[str], bool]:
    """The first of the texts, as far as their tokens fit, and whether these are all."""
    kept = []
    for text in texts:
        room -= _tokens(model, text)
        if room < 0:
            return kept, False
        kept.append(text)
    return kept, True


def _tokens(model: Model, text: str) -> int:
    return len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _say_demonstrations_left_out(model: Model) -> None:
    warnings.warn(f"not all demonstrations of IKE {_ROOM.format(model)}: the farthest are left out", stacklevel=2)


def _say_facts_left_out(model: Model) -> None:
    warnings.warn(f"not all facts that IKE tells {_ROOM.format(model)}: the oldest are left out", stacklevel=2)
